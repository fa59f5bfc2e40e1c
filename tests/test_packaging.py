# SPDX-License-Identifier: Apache-2.0
"""The package installs, zips, moves and starts as promised."""
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import List, Set

import pytest

import minipull
from tests.kit import ROOT
from tests.kit.processes import clean_env, interpreters, run

PROJECT = (ROOT / "pyproject.toml").read_text()
PLAIN = dict(os.environ, PYTHONPATH=str(ROOT), COVERAGE_PROCESS_START="", COVERAGE_PROCESS_CONFIG="")


def test_versions_agree() -> None:
    assert re.findall(r'^version = "(.+)"$', PROJECT, re.M) == [minipull.__version__]


def test_the_test_script_installs_the_dev_extra() -> None:
    tools = re.findall(r'^TOOLS="(.+)"$', (ROOT / "scripts/test").read_text(), re.M)
    extra = re.findall(r"^dev = \[(.+)\]$", PROJECT, re.M)
    assert tools[0].split() == re.findall(r'"(.+?)"', extra[0])


def test_the_public_names_are_there() -> None:
    assert [name for name in minipull.__all__ if not hasattr(minipull, name)] == []


# -- start-up ------------------------------------------------------------------


def loaded(*args: str) -> Set[str]:
    """The modules that one run of Python imports."""
    done = run([sys.executable, "-X", "importtime", *args], PLAIN)
    return {line.rpartition("|")[2].strip() for line in done.err.splitlines() if "|" in line}


def test_version_is_answered_without_tls() -> None:
    assert not {"ssl", "urllib.request"} & loaded("-m", "minipull", "--version")


def test_import_is_light() -> None:
    assert not {"ssl", "urllib.request", "http", "tarfile"} & loaded("-c", "import minipull")


# -- one file ------------------------------------------------------------------


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pyz") / "minipull.pyz"
    run([sys.executable, ROOT / "scripts/pyz", out])
    return out


def test_pyz_is_the_same_bytes_from_another_time_and_place(pyz: Path, tmp_path: Path) -> None:
    tree = tmp_path / "elsewhere"
    tree.mkdir()
    for name in ("scripts", "minipull"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", tree)
    for path in tree.glob("minipull/**/*.py"):
        path.chmod(0o600)
        os.utime(path, (10 ** 9, 10 ** 9))
    run([sys.executable, tree / "scripts/pyz"], dict(os.environ, TZ="Asia/Tokyo"), cwd=tmp_path)
    assert (tmp_path / "minipull.pyz").read_bytes() == pyz.read_bytes()


def test_pyz_needs_only_an_interpreter(pyz: Path, home: Path) -> None:
    env = clean_env(home)
    assert minipull.__version__ in run([sys.executable, "-I", "-S", pyz, "--version"], env).out
    assert run([sys.executable, "-I", "-S", pyz, "tags"], env, check=False).code == 2
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n") and os.access(pyz, os.X_OK)
    assert "LICENSE" in zipfile.ZipFile(pyz).namelist()


# -- inside another package ----------------------------------------------------


def test_runs_under_another_name_inside_another_package(tmp_path: Path, home: Path) -> None:
    vendor = tmp_path / "outer" / "vendor"
    vendor.mkdir(parents=True)
    shutil.copytree(ROOT / "minipull", vendor / "_parser", ignore=shutil.ignore_patterns("__pycache__"))
    for package in (vendor, vendor.parent):
        (package / "__init__.py").touch()
    env = clean_env(home, {"PYTHONPATH": str(tmp_path)})
    whole = run([sys.executable, "-c", (
        "import importlib, pkgutil, sys\n"
        "from outer.vendor import _parser\n"
        "for _, name, _ in pkgutil.walk_packages(_parser.__path__, _parser.__name__ + '.'):\n"
        "    name.endswith('__main__') or importlib.import_module(name)\n"
        "for name in _parser.__all__: getattr(_parser, name)\n"
        "print('minipull' in sys.modules)")], env, cwd=tmp_path)
    assert whole.out == "False\n"
    module = [sys.executable, "-m", "outer.vendor._parser"]
    assert minipull.__version__ in run([*module, "--version"], env, cwd=tmp_path).out
    assert run([*module, "tags"], env, cwd=tmp_path, check=False).code == 2
    assert "no command tugs" in run([*module, "tugs", "a"], env, cwd=tmp_path, check=False).err
    for flags in ([], ["-I", "-S"]):  # the folder alone is a program as well
        folder = [sys.executable, *flags, str(vendor / "_parser")]
        assert minipull.__version__ in run([*folder, "--version"], clean_env(home), cwd=tmp_path).out
        assert run([*folder, "tags"], clean_env(home), cwd=tmp_path, check=False).code == 2


# -- pip -----------------------------------------------------------------------


def oldest() -> List[str]:
    return [path for version, path in interpreters() if version.startswith("3.6.")]


@pytest.mark.skipif(not oldest(), reason="no Python 3.6 on this machine")
def test_pip_installs_it_on_python_3_6(tmp_path: Path, home: Path) -> None:
    run([oldest()[0], "-m", "venv", tmp_path / "venv"])
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE_", "PYTHON"))}
    try:
        run([*pip, "pip>=21,<22", "flit_core>=3.2,<3.12"], env)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        pytest.skip("pip cannot download flit_core: %s" % str(error)[-200:])
    source = tmp_path / "source"  # pip may write where it builds
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    run([*pip, "--no-build-isolation", "--no-deps", str(source)], env)
    command = tmp_path / "venv/bin/minipull"
    assert minipull.__version__ in run([command, "--version"], clean_env(home)).out
    assert run([command, "tags"], clean_env(home), check=False).code == 2
    assert list(tmp_path.glob("venv/lib/python3.6/site-packages/minipull/py.typed"))
