# SPDX-License-Identifier: Apache-2.0
"""The README points to what is there."""
import ast
import re
from typing import Iterator, Set

import pytest

from tests.kit import ROOT

TEXT = (ROOT / "README.md").read_text("utf-8")
PAGE = TEXT.partition("\n## Read it\n")[2]
#: Of the promises, the tests that hold them.
HELD = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)`:\s+`([A-Za-z_.0-9]+)`", PAGE)))
#: Of the table, what stands after a file in another folder: `store/layer.py`, `digest.py`.
FILES = sorted(set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE)))


def definitions(path: str, folder: str = "minipull") -> Iterator[str]:
    for node in ast.parse((ROOT / folder / path).read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from ("%s.%s" % (node.name, item.name) for item in node.body if isinstance(item, ast.FunctionDef))


@pytest.mark.parametrize("path, name", NAMED)
def test_the_way_of_a_pull_and_a_push_leads_to_what_is_defined_there(path: str, name: str) -> None:
    assert name in set(definitions(path))


def test_every_file_of_the_page_is_in_the_package() -> None:
    there: Set[str] = {path.relative_to(ROOT).as_posix() for folder in ("minipull", "tests")
                       for path in (ROOT / folder).glob("**/*.py")}
    assert [name for name in FILES if not any(
        path == name or path == "minipull/" + name or path.endswith("/" + name) for path in there)] == []


def test_the_page_shows_every_wing() -> None:
    wings = {path.parent.name for path in (ROOT / "minipull").glob("*/__init__.py")}
    picture = PAGE.split("```")[1]
    assert wings - set(re.findall(r"\w+", picture)) == set()
    assert {path.stem for path in (ROOT / "minipull").glob("[a-z]*.py")} <= set(re.findall(r"\w+", picture))


def test_every_promise_is_held_by_a_test() -> None:
    promises = TEXT.partition("\n## What it promises\n")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 13 and all("::test_" in row for row in rows)
    assert [name for path, name in HELD if name not in set(definitions(path, "."))] == []
