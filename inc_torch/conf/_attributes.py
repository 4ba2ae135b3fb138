"""A tree of dicts that is written by assigning to attributes."""

from __future__ import annotations

from typing import Any, final

__all__ = ["AttributeTree"]


@final
class AttributeTree(dict[str, Any]):
    """Dicts in dicts whose keys are attributes; one that is not there begins as an empty dict.

    Example:
        >>> tree = AttributeTree()
        >>> tree.tuning.exit_policy.max_trials = 10
        >>> tree.filled()
        {'tuning': {'exit_policy': {'max_trials': 10}}}
    """

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever was put there
        if name.startswith("_"):
            raise AttributeError(name)
        return self.setdefault(name, AttributeTree())

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(name)
        del self[name]

    def filled(self) -> dict[str, Any]:
        """Return plain dicts, without those that looking at an attribute has left behind empty."""
        plain = {key: value.filled() if isinstance(value, AttributeTree) else value for key, value in self.items()}
        return {key: value for key, value in plain.items() if value != {}}
