"""What is not the tool's business stays as it is, to the last byte."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch.core.errors import ConfigError
from inc_torch.migrate import Migrated, migrate_paths, migrate_source

ROOT = Path(__file__).resolve().parents[3]

STATEMENTS = [
    "x = 1",
    "x=  (1,\n  2 )  # two",
    "import torch . nn as nn",
    "loss.backward( )",
    "optimizer.step()",
    "callback.on_batch_begin(0)",
    "conf.pattern = '4x1'",
    'y = """a\n\tb\n"""',
    "if x: pass",
    "for i in x :\n\t\ty = i ; z = i\n\t\t# end",
    "def f( a,b ) :\n  return a\\\n    + b",
    "class A : pass",
    "# neural_compressor is named in a comment",
    "print('é', '\\x0c', \"\\u2028\")",
    "\x0c",
    "",
    "async def g():\n    async with a as b, c: await b",
    "match x:\n    case {'a': [1, *_]}: pass",
]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_script_without_inc_stays(statements, newline):
    text = "\n".join(["# inc_torch, so that it is parsed", *statements]).replace("\n", newline)
    ast.parse(text)
    assert migrate_source(text) == Migrated(text, ())


@given(st.text())
def test_a_text_that_names_none_of_the_packages_is_not_even_parsed(text):
    if not re.search("neural_compressor|inc_torch|optimum|sparseml|nncf|on_before_optimizer_step", text):
        assert migrate_source(text) == Migrated(text, ())


def test_the_programs_of_this_repository_need_nothing():
    outcome = migrate_paths([ROOT / "examples", ROOT / "inc_torch" / "training", ROOT / "tests" / "loops"])
    assert len(outcome.files) > 10
    assert not outcome.failed
    assert [file.path for file in outcome.changed] == []
    assert [finding for file in outcome.undecided for finding in file.findings] == []


@settings(max_examples=40)
@given(
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["    ", "\t", "  "]),
    st.lists(st.sampled_from(STATEMENTS), max_size=6),
)
def test_what_is_around_a_change_stays(newline, indent, statements):
    """Newlines, tabs and odd formatting are those of the script in what is put in too."""
    loop = (
        "from inc_torch import prepare_compression\nm = prepare_compression(model, conf)\n"
        "m.on_train_begin()\nfor i, x in enumerate(data):\n>m.on_step_begin(i)\n>model(x).backward()\n"
        ">m.on_before_optimizer_step()\n>optimizer.step()  # the step\n{}>optimizer.zero_grad()\nm.on_train_end()"
    ).replace(">", indent)
    before, after = loop.format(""), loop.format(f"{indent}m.on_after_optimizer_step()\n")
    around = "\n".join(statements)
    text, expected = (f"{around}\n{part}".replace("\n", newline) for part in (before, after))
    assert migrate_source(text).text == expected
    assert migrate_source(expected).text == expected


def test_what_cannot_be_parsed_is_an_error_with_its_line():
    with pytest.raises(ConfigError, match=r"^line 2: .*Expected a script of Python 3 that compiles\.$"):
        migrate_source("import neural_compressor\nprint 'old'\n")
