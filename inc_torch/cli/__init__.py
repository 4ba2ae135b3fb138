"""The command ``inc-torch``: its sub-commands are modules of this folder, imported when it is called.

Exit codes: 0 if all is well, 1 if something failed, 2 if what was asked for is wrong.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of this process, and exit with its code."""
    # On first use: `import inc_torch` must not load typer.
    from inc_torch.cli._app import app

    app()
