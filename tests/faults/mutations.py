"""Any value anywhere in a JSON file, put in the place of what stands there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

from hypothesis import strategies as st

DEEP = 10_000
JUNK = (
    None,
    True,
    0,
    -1,
    7,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    "/etc/passwd",
    "__class__",
    "a.b.c",
    [],
    [1],
    [[]],
    ["x", "y"],
    {},
    {"x": 1},
    {"0": {}},
)


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


def put(whole: object, path: tuple, value: object) -> object:
    """A copy with another value at a place."""
    if not path:
        return value
    changed = copy.deepcopy(whole)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def dropped(whole: object, path: tuple) -> object:
    """A copy without the value at a place."""
    changed = copy.deepcopy(whole)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([value for value in JUNK if not isinstance(value, list | dict)])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutations(draw, whole: object) -> object:
    """``whole`` with one to three values changed or missing."""
    changed = whole
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(changed))))
        if path and draw(st.integers(0, 3)) == 0:
            changed = dropped(changed, path)
        else:
            changed = put(changed, path, draw(st.sampled_from(JUNK) | VALUES))
    return changed


WRONG_TEXTS = {
    "nothing": "",
    "cut": '{"format": "inc_to',
    "nested lists": "[" * DEEP + "]" * DEEP,
    "nested objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "a number of many digits": '{"format": ' + "9" * 10_000 + "}",
    "a key twice": '{"format": "inc_torch/1", "format": "inc_torch/1"}',
    "a list": "[]",
    "a number": "1e999",
    "a word": json.dumps("x"),
    "no text": "\udcff\udcfe",
}
