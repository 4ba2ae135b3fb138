"""What all configurations share: built once and checked, read-only, to and from plain values.

A configuration is declared as a dataclass whose fields name their check beside their default::

    @config
    class Example(Config):
        temperature: float = option(number("a number above 0", lambda x: x > 0), default=1.0)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, Self, TypeVar, dataclass_transform

from inc_torch.config._checks import Check, Place, items_of
from inc_torch.config._readonly import FrozenConfigError, plain
from inc_torch.core.errors import ConfigTypeError, InexactWarning, did_you_mean
from inc_torch.core.user_warning import warn_user

__all__ = ["Config", "check_option", "config", "is_described", "option", "option_names", "set_leniency"]

T = TypeVar("T")
AnyConfig = TypeVar("AnyConfig", bound="Config")

_CHECK = "check"
_VERSION = 1
_KNOWN: dict[str, type[Config]] = {}
"""Every configuration that `Config.from_dict` may build, by class name; nothing is looked up elsewhere."""
_LENIENT: set[tuple[str, str]] | None = None
"""None where configurations are strict; else what was forgiven already, as each class and name is told once."""


class Config:
    """Base of the configurations. Not built directly.

    Attributes:
        keyword_only_inputs: Further keywords that are folded into fields and not kept under their own name.
    """

    __slots__ = ()
    keyword_only_inputs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_relations()

    def _check_fields(self) -> None:
        """Check one field after another and store each in its frozen form; None means the default."""
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if value is None:
                value = field.default
            checked = field.metadata[_CHECK](value, Place(type(self).__name__, field.name))
            object.__setattr__(self, field.name, checked)

    def _check_relations(self) -> None:
        """Check fields against each other; each of them is known to be right by itself."""

    def replace(self, **changes: object) -> Self:
        """Return a copy with some options changed, checked like a new one.

        Raises:
            ConfigError: An option is unknown or its value is wrong.
        """
        values = {field.name: getattr(self, field.name) for field in _fields(type(self))}
        build: Callable[..., Self] = type(self)
        return build(**(values | changes))

    def to_dict(self) -> dict[str, object]:
        """Return plain values that JSON and YAML can hold: ``{"type", "version", "data"}``."""
        data = {field.name: self._encode(field.name) for field in _fields(type(self))}
        return {"type": type(self).__name__, "version": _VERSION, "data": data}

    def _encode(self, name: str) -> object:
        value = getattr(self, name)
        return value.to_dict() if isinstance(value, Config) else plain(value, f"{type(self).__name__}.{name}")

    @classmethod
    def _options_in(cls, data: Mapping[str, object]) -> Mapping[str, object]:
        """What of `to_dict`'s data the class is built from."""
        return data

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Build the configuration that `to_dict` described; called on `Config`, one of any class.

        Raises:
            ConfigError: The class is unknown or another one, an option is unknown or wrong, or the content
                was written by a newer version of the package.
        """
        place = Place(cls.__name__, "from_dict")
        envelope = items_of(content, place, "a dict made by to_dict()", ("type", "version", "data"))
        name, version = envelope.get("type"), envelope.get("version")
        if not isinstance(name, str) or name not in _KNOWN:
            hint = did_you_mean(str(name), _KNOWN)
            raise place.item("type").error(name, f"one of {', '.join(sorted(_KNOWN))}", hint)
        if not isinstance(version, int) or not 1 <= version <= _VERSION:
            hint = " Newer content needs a newer inc_torch."
            raise place.item("version").error(version, f"a version from 1 to {_VERSION}", hint)
        kind = _KNOWN[name]
        if not issubclass(kind, cls):
            raise place.item("type").error(name, repr(cls.__name__), f" Use {name}.from_dict.")
        data = kind._options_in(items_of(envelope.get("data"), place.item("data"), "a dict"))
        build: Callable[..., Self] = kind
        return build(**{key: Config.from_dict(value) if is_described(value) else value for key, value in data.items()})

    def __repr__(self) -> str:
        changed = [field.name for field in _fields(type(self)) if getattr(self, field.name) != field.default]
        return f"{type(self).__name__}({', '.join(f'{name}={self._shown(name)}' for name in changed)})"

    def _shown(self, name: str) -> str:
        return repr(getattr(self, name))


def option(check: Check[T], *, default: T, kw_only: bool = False) -> T:
    """Declare a field: its check and its default."""
    declared: T = dataclasses.field(default=default, kw_only=kw_only, metadata={_CHECK: check})
    return declared


def option_names(kind: type[Config]) -> list[str]:
    """The names of the fields, in order."""
    return [field.name for field in _fields(kind)]


def check_option(kind: type[Config], name: str, value: object, place: Place) -> object:
    """Apply the check of the field ``name`` of ``kind`` to a value that stands elsewhere."""
    checks = {field.name: field.metadata[_CHECK] for field in _fields(kind)}
    return checks[name](value, place)


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def config(kind: type[AnyConfig]) -> type[AnyConfig]:
    """Make a declared class a configuration: frozen, with slots, unknown keywords and assignments explained."""
    built = dataclasses.dataclass(frozen=True, slots=True, repr=False)(kind)
    methods = {
        "__init__": _refusing_unknown_keywords(built, vars(built)["__init__"]),
        "__setattr__": _assign,
        "__delattr__": _refuse_deletion,
        "__replace__": Config.replace,
    }
    for name, method in methods.items():
        setattr(built, name, method)
    for name in built.keyword_only_inputs:
        # The default of an InitVar stays behind as a class attribute, and would read as None on every object.
        delattr(built, name)
    _KNOWN[built.__name__] = built
    return built


def _refusing_unknown_keywords(kind: type[Config], build: Callable[..., None]) -> Callable[..., None]:
    known = [*option_names(kind), *kind.keyword_only_inputs]

    @functools.wraps(build)
    def checked_init(self: Config, *values: object, **options: object) -> None:
        for name in [name for name in options if name not in known]:
            nearest = did_you_mean(name, known) or f" Options: {', '.join(known)}."
            message = f"{kind.__name__} has no option {name!r}.{nearest}"
            if _LENIENT is None:
                raise ConfigTypeError(message)
            _forgive(kind, name, f"{kind.__name__} has no option {name!r}, which is dropped.{nearest}")
            del options[name]
        build(self, *values, **options)

    return checked_init


def _assign(self: Config, name: str, value: object) -> None:
    """Refuse it; where configurations are lenient, check the value as `Config.replace` does and take it over."""
    kind = type(self)
    known = [*option_names(kind), *self.keyword_only_inputs]
    if name not in known:
        message = f"{kind.__name__} is read-only and has no option {name!r}.{did_you_mean(name, known)}"
        if _LENIENT is None:
            raise FrozenConfigError(message)
        _forgive(kind, name, f"{message} The assignment is dropped.")
        return
    message = f"{kind.__name__} is read-only. Make a changed copy: config = config.replace({name}={value!r})."
    if _LENIENT is None:
        raise FrozenConfigError(message)
    changed = self.replace(**{name: value})
    for option_name in option_names(kind):
        object.__setattr__(self, option_name, getattr(changed, option_name))
    _forgive(kind, name, f"{kind.__name__}.{name} is assigned to, as INC allows. Without inc_torch.compat: {message}")


def _forgive(kind: type[Config], name: str, message: str) -> None:
    if _LENIENT is not None and (kind.__name__, name) not in _LENIENT:
        _LENIENT.add((kind.__name__, name))
        warn_user(message, InexactWarning)


def set_leniency(is_lenient: bool) -> None:
    """Let configurations be as forgiving as INC's, or as strict as they are by themselves.

    Where they are lenient, an option that is not known is dropped and assigning works, each with one warning. Values
    are checked all the same.
    """
    global _LENIENT
    _LENIENT = set() if is_lenient else None


def _refuse_deletion(self: Config, name: str) -> NoReturn:
    message = f"{type(self).__name__} is read-only; {name!r} cannot be deleted."
    raise FrozenConfigError(message)


def _fields(kind: type[Config]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)  # type: ignore[arg-type]  # the decorator makes every Config a dataclass


def is_described(value: object) -> bool:
    """Whether `Config.to_dict` made it."""
    return isinstance(value, Mapping) and value.keys() == {"type", "version", "data"}
