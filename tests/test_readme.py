# SPDX-License-Identifier: Apache-2.0
"""The README points to what is there."""
import ast
import contextlib
import io
import re
from typing import Iterator, List, Set, Tuple

import pytest

from minipull.cli.parser import command_line
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


def _inline() -> Iterator[Tuple[str, List[str]]]:
    """The commands within the text, with the words that stand for others made up."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", TEXT.partition("\n## As a library\n")[0])
    names = set(command_line([]).commands)
    for span in re.findall(r"`([^`]+)`", prose):
        words = re.sub(r"^(python3 -m minipull|python3 \S+\.pyz|minipull) ", "", span.replace(r"\|", "|"))
        words = words.partition(" | ")[0].replace("…", "x").replace("sha256:x", "sha256:" + 64 * "a")
        first = [word for word in words.split() if not word.startswith("-")][:1]
        if first and first[0] in names and " " in words:
            yield span, words.split()


@pytest.mark.parametrize("span, words", sorted(_inline()), ids=lambda value: str(value)[:60])
def test_a_command_in_the_text_is_one(span: str, words: List[str]) -> None:
    """What it needs besides the words that are shown may be left out."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            command_line(words).parsed(words)
        except SystemExit:
            assert "the following arguments are required" in said.getvalue(), span


def test_a_flag_in_the_text_is_one() -> None:
    helps = [parser.format_help() for parser in command_line([]).commands.values()]
    flags = {flag for text in [command_line([]).format_help(), *helps] for flag in re.findall("--[a-z0-9-]+", text)}
    shown = re.sub(r"(?ms)^```.*?^```$", "", TEXT)
    assert set(re.findall("(?<=`)--[a-z0-9-]+", shown)) - flags <= {"--fuzz", "--install-peers", "--src-"}


def test_the_readme_stays_short() -> None:
    assert len(TEXT.splitlines()) < 600
