# SPDX-License-Identifier: Apache-2.0
"""The package is what its docstrings say: wings between walls, modules in reading order."""
import ast
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

from tests.kit import ROOT

PACKAGE = ROOT / "minipull"
#: A wing and those that it may import, besides the ground that they all stand on.
WALLS: Dict[str, Set[str]] = {
    "image": set(),
    "store": {"image"},
    "registry": {"image"},
    "xfer": {"store", "image"},
    "archive": {"store", "image"},
    "rootfs": {"store", "image"},
    "distribution": {"registry", "xfer", "archive", "store", "image"},
    "server": {"store", "image"},
    "cli": {"image", "store", "registry", "xfer", "archive", "rootfs", "distribution", "server"}}
LONGEST, BRANCHES = 350, 15  # lines of a file, branches of a function
CORE, ALL = 8650, 21600  # lines
#: What a pull and a push need: files, or wings less some files.
CORE_WINGS: Dict[str, Set[str]] = {
    "": set(), "image": {"schema1", "es256", "pax", "tar"}, "store": {"gc", "check", "repair", "usage"},
    "registry": {"v1", "credentials", "login"}, "xfer": set()}
CORE_FILES = {"distribution." + name for name in (
    "blobs", "sessions", "documents", "layers", "pull", "push", "pull_v2", "push_v2", "mounts")}
SPDX = "# SPDX-License-Identifier: Apache-2.0"
OUTSIDE = {"os", "socket", "http", "urllib.request", "threading"}
STDLIB = set(sys.stdlib_module_names) | {"compression"}  # the latter since 3.14

PATHS = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
         for path in sorted(PACKAGE.glob("**/*.py"))}
SOURCES = {name: path.read_text("utf-8") for name, path in PATHS.items()}
TREES = {name: ast.parse(text, name, feature_version=(3, 6)) for name, text in SOURCES.items()}
MODULES = [name for name in SOURCES if name.rpartition(".")[2] not in ("__init__", "__main__")]


def wing(name: str) -> str:
    return name.rpartition(".")[0]


def listed(name: str) -> List[str]:
    """What a package lists in its docstring: lines of four blanks, a name, blanks and a text."""
    return re.findall(r"^ {4}(\w+) {2,}\S", ast.get_docstring(TREES[name], clean=False) or "", re.M)


ORDER = {"": listed("__init__"), **{name: listed(name + ".__init__") for name in WALLS}}


def imports(tree: ast.AST) -> Iterator[Tuple[int, str]]:
    """(line, name) of everything imported; a module of the package starts with dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            if node.module:
                yield node.lineno, dots + node.module
            if not node.level or not node.module or dots + node.module in ("." + one for one in WALLS) or (
                    dots + node.module in (".." + one for one in WALLS)):
                prefix = dots + node.module + "." if node.module else dots
                yield from ((node.lineno, prefix + alias.name) for alias in node.names)


def ours(name: str, tree: ast.AST) -> Iterator[Tuple[int, str]]:
    """(line, module) of what a module imports of the package."""
    for line, target in imports(tree):
        level = len(target) - len(target.lstrip("."))
        if level:
            base = name.split(".")[:-level] if level <= name.count(".") + 1 else ["?"]
            module = ".".join([*base, target[level:]])
            if module in SOURCES:
                yield line, module


def test_every_module_is_listed_once_by_its_wing() -> None:
    for name, modules in ORDER.items():
        held = [module.rpartition(".")[2] for module in MODULES if wing(module) == name]
        assert sorted(modules) == sorted(held + (list(WALLS) if not name else []))


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_point_down(name: str) -> None:
    upward = []
    for line, target in ours(name, TREES[name]):
        here, there = wing(name), wing(target)
        if here == there:
            order = ORDER[here]
            fits = order.index(target.rpartition(".")[2]) < order.index(name.rpartition(".")[2])
        else:
            fits = there == "" or there in WALLS.get(here, ())
        if not fits:
            upward.append((line, target))
    assert upward == []


@pytest.mark.parametrize("name", WALLS)
def test_a_wing_is_its_docstring_alone(name: str) -> None:
    assert [type(node).__name__ for node in TREES[name + ".__init__"].body] == ["Expr"]


@pytest.mark.parametrize("name", SOURCES)
def test_imports_are_relative_or_from_the_standard_library(name: str) -> None:
    assert [found for found in imports(TREES[name])
            if found[1][0] != "." and found[1].partition(".")[0] not in STDLIB] == []


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) != "cli"])
def test_imports_stand_at_the_top(name: str) -> None:
    assert [found for node in ast.walk(TREES[name])
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for found in imports(node)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) == "image"])
def test_documents_reach_nothing_outside(name: str) -> None:
    assert [found for found in imports(TREES[name])
            if any((found[1] + ".").startswith(outside + ".") for outside in OUTSIDE)] == []


def uses_process(tree: ast.AST) -> Iterator[Tuple[int, str]]:
    names = {"os.environ", "os.environb", "os.getenv", "sys.stdout", "sys.stderr", "sys.stdin", "sys.argv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = "%s.%s" % (node.value.id, node.attr)
            if name in names or name.startswith("signal."):
                yield node.lineno, name
        elif isinstance(node, ast.Name) and node.id in ("print", "input"):
            yield node.lineno, node.id
    yield from (found for found in imports(tree) if found[1] in names)


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) != "cli"])
def test_only_the_command_line_reads_the_environment_or_prints(name: str) -> None:
    assert list(uses_process(TREES[name])) == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_read_in_one_sitting(name: str) -> None:
    assert SOURCES[name].count("\n") <= LONGEST


@pytest.mark.parametrize("name", MODULES)
def test_a_function_has_few_branches(name: str) -> None:
    branch = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp)
    branches = {node.name: sum(isinstance(inner, branch) for inner in ast.walk(node))
                for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef)}
    assert {function: count for function, count in branches.items() if count > BRANCHES} == {}


def test_the_package_stays_small() -> None:
    lines = {name: text.count("\n") for name, text in SOURCES.items()}
    core = [name for name in lines if name in CORE_FILES or wing(name) in CORE_WINGS
            and name.rpartition(".")[2] not in CORE_WINGS[wing(name)]]
    assert sum(lines[name] for name in core) <= CORE
    assert sum(lines.values()) <= ALL


def test_every_file_names_its_license() -> None:
    files = [*PACKAGE.glob("**/*.py"), *Path(__file__).parent.glob("**/*.py"), *ROOT.glob("scripts/**/*.py")]
    assert [path.name for path in files if path.read_text("utf-8").partition("\n")[0] != SPDX] == []
