# SPDX-License-Identifier: Apache-2.0
"""The package is what its docstring says: layers, each importing only from those above it."""
import ast
import re
import sys
from pathlib import Path
from typing import Iterator, Tuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "minipull"
READING_PATH, ALL = 7500, 13500  # lines
SPDX = "# SPDX-License-Identifier: Apache-2.0"
DOCUMENTS = {"descriptor", "reference", "manifest", "image", "schema1", "es256", "tar"}
OUTSIDE = {"os", "socket", "http", "urllib.request", "threading"}
#: May read the environment and print.
ENTRY = {"accounts", "cli", "commands", "context", "remote", "render", "services", "settings", "doctor", "trees",
         "__main__"}
LATE_IMPORTS = {"cli", "__init__"}
STDLIB = set(sys.stdlib_module_names) | {"compression"}  # the latter since 3.14

SOURCES = {path.stem: path.read_text("utf-8") for path in sorted(PACKAGE.glob("*.py"))}
TREES = {name: ast.parse(text, name, feature_version=(3, 6)) for name, text in SOURCES.items()}
#: The modules in reading order: lines of four blanks, a name, blanks and a text.
LISTED = re.findall(r"^ {4}(\w+) {2,}\S", ast.get_docstring(TREES["__init__"], clean=False) or "", re.M)
ORDER = {name: place for place, name in enumerate(LISTED)}
MODULES = [name for name in SOURCES if name not in ("__init__", "__main__")]


def imports(tree: ast.AST) -> Iterator[Tuple[int, str]]:
    """(line, name) of everything imported; a module of the package starts with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dot = "." * node.level
            if node.module:
                yield node.lineno, dot + node.module
            if not node.level or not node.module:
                prefix = dot or "%s." % node.module
                yield from ((node.lineno, prefix + alias.name) for alias in node.names)


def siblings(tree: ast.AST) -> Iterator[Tuple[int, str]]:
    return ((line, name[1:]) for line, name in imports(tree) if name[0] == "." and name[1:] in SOURCES)


def test_every_module_is_listed_once() -> None:
    assert len(LISTED) == len(ORDER)
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_come_from_above(name: str) -> None:
    assert [found for found in siblings(TREES[name])
            if ORDER.get(found[1], len(ORDER)) >= ORDER.get(name, -1)] == []


@pytest.mark.parametrize("name", SOURCES)
def test_imports_are_relative_or_from_the_standard_library(name: str) -> None:
    assert [found for found in imports(TREES[name])
            if found[1][0] != "." and found[1].partition(".")[0] not in STDLIB] == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in LATE_IMPORTS])
def test_imports_stand_at_the_top(name: str) -> None:
    assert [found for node in ast.walk(TREES[name])
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for found in imports(node)] == []


@pytest.mark.parametrize("name", sorted(DOCUMENTS & set(SOURCES)))
def test_documents_reach_nothing_outside(name: str) -> None:
    assert [found for found in imports(TREES[name])
            if any((found[1] + ".").startswith(outside + ".") for outside in OUTSIDE)] == []


@pytest.mark.parametrize("name", ["framing", "httpd", "uploads", "blobs", "catalog", "server"])
def test_the_server_shares_no_client_code(name: str) -> None:
    remote = [*LISTED[LISTED.index("connection"):LISTED.index("distribution") + 1], "copy", "unpack"]
    assert [found for found in siblings(TREES[name]) if found[1] in remote] == []


def test_the_v1_protocol_goes_by_deleting_its_modules_and_one_branch() -> None:
    v1 = {"session", "pull_v1", "push_v1"}
    assert {name for name in SOURCES if v1 & {found for _, found in siblings(TREES[name])}} - v1 == {"distribution"}
    assert [name for name in sorted(v1) if "repository" in {found for _, found in siblings(TREES[name])}] == []


def uses_process(tree: ast.AST) -> Iterator[Tuple[int, str]]:
    names = {"os.environ", "os.environb", "os.getenv", "sys.stdout", "sys.stdin", "sys.argv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = "%s.%s" % (node.value.id, node.attr)
            if name in names:
                yield node.lineno, name
        elif isinstance(node, ast.Name) and node.id in ("print", "input"):
            yield node.lineno, node.id
    yield from (found for found in imports(tree) if found[1] in names)


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ENTRY])
def test_only_entry_modules_read_the_environment_or_print(name: str) -> None:
    assert list(uses_process(TREES[name])) == []


def test_the_reading_path_stays_readable() -> None:
    lines = {name: text.count("\n") for name, text in SOURCES.items()}
    path = LISTED[LISTED.index("errors"):LISTED.index("distribution") + 1]
    assert sum(lines.get(name, 0) for name in path) <= READING_PATH
    assert sum(lines.values()) <= ALL


def test_every_file_names_its_license() -> None:
    files = [*PACKAGE.glob("*.py"), *Path(__file__).parent.glob("*.py")]
    assert [path.name for path in files if path.read_text("utf-8").partition("\n")[0] != SPDX] == []
