"""Write down every public name of ``inc_torch`` with its signature.

Run it to see the list; ``--update`` (or ``make api``) writes it to ``api_surface.txt``, which is checked in.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

SURFACE = Path(__file__).with_name("api_surface.txt")

# Modules that users import from. One that does not exist leaves no section in the file, so adding or removing it shows.
PUBLIC_MODULES = (
    "inc_torch",
    "inc_torch.benchmark",
    "inc_torch.callbacks",
    "inc_torch.compat",
    "inc_torch.compression",
    "inc_torch.conf",
    "inc_torch.config",
    "inc_torch.core.errors",
    "inc_torch.data",
    "inc_torch.distillers",
    "inc_torch.experimental",
    "inc_torch.export",
    "inc_torch.huggingface",
    "inc_torch.metric",
    "inc_torch.migrate",
    "inc_torch.mix_precision",
    "inc_torch.model",
    "inc_torch.objective",
    "inc_torch.pipeline",
    "inc_torch.precision",
    "inc_torch.pruners",
    "inc_torch.quantization",
    "inc_torch.quantizers",
    "inc_torch.testing",
    "inc_torch.training",
    "inc_torch.tuning",
    "inc_torch.utils",
    "inc_torch.utils.load_huggingface",
)


class _Bare(str):
    """An annotation that prints without quotes."""

    __slots__ = ()

    __repr__ = str.__str__


def _bare(annotation: object) -> object:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def _steady(text: str) -> str:
    """Drop what differs from run to run: addresses, and the folder of this checkout."""
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace(str(Path.cwd()), ".")


def _signature(function: Callable[..., object]) -> str:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "(...)"
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in signature.parameters.values()]
    signature = signature.replace(parameters=parameters, return_annotation=_bare(signature.return_annotation))
    return _steady(str(signature))


def _member(name: str, value: object) -> str:
    """Describe one attribute of a class."""
    if isinstance(value, (staticmethod, classmethod)):
        return f"{type(value).__name__} {name}{_signature(value.__func__)}"
    if inspect.isfunction(value):
        return f"def {name}{_signature(value)}"
    if isinstance(value, property):
        annotation = getattr(value.fget, "__annotations__", {}).get("return", "object")
        return f"property {name} -> {_bare(annotation)}"
    if hasattr(type(value), "__get__"):
        return f"property {name}"
    if inspect.isclass(value):
        return f"class {name}"
    if isinstance(value, frozenset):  # whose order follows the hash seed
        return f"{name} = frozenset({sorted(value, key=repr)!r})"
    return f"{name} = {_steady(repr(value))}"


def _has_own_constructor(owner: type) -> bool:
    """Tell whether we decide how the class is called; Python decides it for enums, protocols and plain errors."""
    if issubclass(owner, Enum) or getattr(owner, "_is_protocol", False):
        return False
    makers = (layer for layer in owner.__mro__ if "__init__" in vars(layer) or "__new__" in vars(layer))
    return next(makers).__module__.partition(".")[0] == "inc_torch"


def _class_lines(owner: type) -> Iterator[str]:
    bases = ", ".join(base.__qualname__ for base in owner.__bases__ if base is not object)
    yield f"class {owner.__name__}({bases})" if bases else f"class {owner.__name__}"
    if _has_own_constructor(owner):
        yield f"    {_signature(owner)}"
    seen: dict[str, str] = {}
    for layer in owner.__mro__:
        if layer.__module__.partition(".")[0] != "inc_torch":
            continue
        fields = vars(layer).get("__annotations__", {})
        for name, value in vars(layer).items():
            # The fields of a dataclass are in its signature; with slots they show up again as descriptors.
            if name.startswith("_") or name in seen or name in fields:
                continue
            seen[name] = _member(name, value)
        for name, annotation in fields.items():
            if not (name.startswith("_") or name in seen or dataclasses.is_dataclass(layer)):
                seen[name] = f"{name}: {_bare(annotation)}"
    for name in sorted(seen):
        yield f"    {seen[name]}"


def _name_lines(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value) and not typing.get_origin(value):
        if value.__name__ != name:
            yield f"{name} = {value.__module__}.{value.__qualname__}"
        else:
            yield from _class_lines(value)
    elif inspect.ismodule(value):
        yield f"module {name}"
    elif callable(value) and hasattr(value, "__name__"):
        yield f"def {name}{_signature(value)}"
    else:
        yield f"{name}: {type(value).__qualname__}"


def _exists(module_name: str) -> bool:
    """Tell whether there is such a file; a mere folder does not count, nor does one inside a missing package."""
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None


def surface() -> Iterator[str]:
    """Yield the lines of the file. A class is written out once, under the first module that has it."""
    home: dict[int, str] = {}
    for module_name in PUBLIC_MODULES:
        if not _exists(module_name):
            continue
        module = importlib.import_module(module_name)
        if not hasattr(module, "__all__"):
            sys.exit(f"{module_name} is public and has no __all__.")
        yield f"# {module_name}"
        for name in sorted(module.__all__):
            value = getattr(module, name)
            described = inspect.isclass(value) or inspect.isfunction(value)
            if described and id(value) in home:
                yield f"{name}: see {home[id(value)]}"
                continue
            if described:
                home[id(value)] = module_name
            yield from _name_lines(name, value)
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the list to api_surface.txt")
    text = "\n".join(surface())
    if parser.parse_args().update:
        SURFACE.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
