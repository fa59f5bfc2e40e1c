# SPDX-License-Identifier: Apache-2.0
"""What works offline loads no network stack, and works on a Python without ssl."""
import json
import shutil
import sys
from pathlib import Path
from typing import Callable, Dict, List, Set

import pytest

import minipull
from tests.kit import images
from tests.kit.commands import Call
from tests.kit.processes import Finished, minipull_env, run

NETWORK = {"ssl", "_ssl", "http.client", "urllib.request", "socket", "_socket"}
NAME = "localhost/x:1"
OFFLINE = [
    ["images"], ["history", NAME], ["df"], ["inspect", NAME], ["tag", NAME, "localhost/y:1"], ["rm", NAME], ["gc", "--keep", "0"],
    ["check"], ["check", "ARCHIVE"], ["save", "-o", "saved.tar", NAME], ["load", "-i", "ARCHIVE"],
    ["unpack", NAME, "rootfs"], ["export", NAME], ["cat", NAME, "/etc/motd"]]
offline = pytest.mark.parametrize("words", OFFLINE, ids=[" ".join(words[:2]) for words in OFFLINE])
ONLINE = [
    ["pull", "HOST/x"], ["push", NAME, "HOST/x"], ["copy", "store:" + NAME, "docker://HOST/x"],
    ["tags", "HOST/x"], ["manifest", "HOST/x"], ["digest", "HOST/x"], ["doctor"], ["unpack", "HOST/x", "rootfs"]]
#: The main module of a Python that was built without ssl.
WITHOUT_SSL = """
import sys
sys.modules["_ssl"] = None
from minipull.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
#: One that tells the modules that it has loaded in the end.
MODULES = """
import sys
from minipull.cli.main import main
code = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small image in a store, and the same in an archive."""
    folder = tmp_path_factory.mktemp("offline")
    layout = images.Layout(folder / "layout")
    layout.image([images.Spec(entries=[("etc", None), ("etc/motd", b"hello\n")])], "1")
    store = minipull.Store(str(folder / "store"))
    minipull.copy("oci:%s:1" % layout.root, "store:" + NAME, store=store)
    minipull.save([NAME], store, str(folder / "archive.tar"))
    return folder


Run = Callable[..., Finished]


def unmeasured(home: Path) -> Dict[str, str]:
    """An environment without coverage, which would load socket itself."""
    return {key: value for key, value in minipull_env(home).items() if not key.startswith("COVERAGE_")}


@pytest.fixture
def python(image: Path, tmp_path: Path, home: Path) -> Run:
    """``python(["-m", "minipull"], words)``: run Python with minipull's arguments on a fresh copy."""
    shutil.copytree(image, tmp_path / "work")
    flags = ["--root", "store"]

    def call(arguments: List[str], words: List[str]) -> Finished:
        named = [word.replace("ARCHIVE", "archive.tar").replace("HOST", "127.0.0.1:1") for word in words]
        return run([sys.executable, *arguments, *flags, *named], unmeasured(home), cwd=tmp_path / "work",
                   check=False)

    return call


def loaded(done: Finished) -> Set[str]:
    return {line.rpartition("|")[2].strip() for line in done.err.splitlines() if "import time:" in line}


@offline
def test_an_offline_command_loads_no_network_stack(python: Run, words: List[str]) -> None:
    done = python(["-X", "importtime", "-m", "minipull"], words)
    assert done.code == 0, done
    assert "minipull.store.store" in loaded(done)
    assert loaded(done) & NETWORK == set()


@pytest.mark.parametrize("words", [words for words in OFFLINE if words[0] in ("images", "check", "save", "unpack")],
                         ids=" ".join)
def test_an_archive_as_root_loads_no_network_stack(python: Run, words: List[str]) -> None:
    done = python(["-X", "importtime", "-m", "minipull"], ["--root", "ARCHIVE", *words])
    assert done.code == 0, done
    assert "minipull.archive.stream" in loaded(done)  # since `part` imports it by name, reader itself is not listed
    assert loaded(done) & NETWORK == set()


@pytest.mark.parametrize("command", sorted({words[0] for words in OFFLINE}))
def test_the_help_of_an_offline_command_loads_only_the_parser(python: Run, command: str) -> None:
    done = python(["-c", MODULES], [command, "--help"])
    assert done.code == 0
    flags = {"minipull.cli.local", *(["minipull.cli.commands"] if command not in ("images", "history", "df") else [])}
    assert {name for name in done.err.split() if name.startswith("minipull.")} == flags | {
        "minipull.cli", "minipull.cli.habits", "minipull.cli.main", "minipull.cli.parser", "minipull.errors",
        "minipull.parts"}


@offline
def test_an_offline_command_works_without_ssl(python: Run, words: List[str]) -> None:
    done = python(["-c", WITHOUT_SSL], words)
    assert (done.code, "Traceback" in done.err) == (0, False), done


@pytest.mark.parametrize("words", ONLINE, ids=[words[0] for words in ONLINE])
def test_a_command_that_needs_ssl_says_so_in_one_line(python: Run, words: List[str]) -> None:
    done = python(["-c", WITHOUT_SSL], words)
    assert done.code == 1
    *before, line = done.err.splitlines(keepends=True)
    assert before in ([], ["The push refers to repository [127.0.0.1:1/x]\n"])
    assert line == ("minipull: this Python has no ssl module, which %s needs; use another Python or install"
                        " its ssl support\n" % words[0])


@pytest.mark.parametrize("words, code, text", [
    (["tags", "--plain-http", "HOST/x"], 5, "connection refused"),
    (["push", "--plain-http", NAME, "HOST/x"], 5, "connection refused"),
    (["logout", "HOST"], 0, "Not logged in")], ids=["tags", "push", "logout"])
def test_without_https_nothing_needs_ssl(python: Run, words: List[str], code: int, text: str) -> None:
    done = python(["-c", WITHOUT_SSL], words)
    assert done.code == code and text in done.out + done.err


def test_the_traceback_of_a_missing_ssl_module_is_for_verbose_only(python: Run) -> None:
    done = python(["-c", WITHOUT_SSL, "-v"], ["tags", "HOST/x"])
    assert (done.code, "Traceback" in done.err) == (1, True)


def test_serve_works_without_ssl(python: Run) -> None:
    done = python(["-c", WITHOUT_SSL], ["serve", "--listen", "no port"])
    assert (done.code, done.err) == (2, "minipull: --listen must be HOST:PORT, not 'no port'\n")


def test_the_library_works_offline_without_ssl_and_without_a_network_stack(image: Path, home: Path) -> None:
    code = """
import json, sys
sys.modules["_ssl"] = None
import minipull
from minipull.store.check import check
store = minipull.Store("store")
loaded = minipull.load(sys.argv[1], store)
minipull.save([str(loaded[0].name)], store, "again.tar")
minipull.unpack(loaded[0].name, store, "rootfs")
print(json.dumps([str(loaded[0].name), check(store, cancel=minipull.Cancel()), sorted(sys.modules)]))
"""
    done = run([sys.executable, "-c", code, image / "archive.tar"], unmeasured(home), cwd=home)
    name, problems, modules = json.loads(done.out)
    assert (name, problems) == (NAME, [])
    assert (home / "rootfs/etc/motd").read_bytes() == b"hello\n"
    assert set(modules) & (NETWORK - {"_ssl"}) == set()


@pytest.mark.usefixtures("no_repeats")
def test_an_image_that_is_not_stored_is_asked_of_its_registry(call: Call) -> None:
    done = call("cat", "--plain-http", "127.0.0.1:1/x", "/etc/motd")
    assert done.code == 5 and "127.0.0.1:1" in done.err
