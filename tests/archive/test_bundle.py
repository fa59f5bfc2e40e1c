# SPDX-License-Identifier: Apache-2.0
"""save --bundle: an archive that runs, and is its own store."""
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Callable, List, Mapping, Optional

import pytest

import minipull
from minipull.archive.bundle import program
from minipull.parts import PARTS
from tests.kit import ROOT
from minipull.store.store import Store
from tests.archive.conftest import three_in
from tests.kit.archives import Three, members_of, names
from tests.kit.commands import is_sound
from tests.kit.images import Layout
from tests.kit.processes import Finished, Minipull, interpreters, run

#: The oldest, and a new one.
PYTHONS = [(version, path) for version, path in interpreters()
           if re.match(r"3\.(6|13)\.", version)] or interpreters()[-1:]
everywhere = pytest.mark.parametrize("python", [path for _, path in PYTHONS], ids=[version for version, _ in PYTHONS])
REFS = ["demo/one", "two", "r.example.com/many"]
Call = Callable[..., Finished]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Three:
    folder = tmp_path_factory.mktemp("three")
    return three_in(Store(str(folder / "root")), Layout(folder / "layout"))


@pytest.fixture(scope="module")
def whole(three: Three) -> bytes:
    file = io.BytesIO()
    minipull.save(REFS, three[0], file, bundle=True)
    return file.getvalue()


@pytest.fixture
def bundle(whole: bytes, tmp_path: Path) -> Path:
    """A bundle of :func:`three`."""
    path = tmp_path / "site.pyz"
    path.write_bytes(whole)
    return path


@pytest.fixture
def call(home: Path) -> Call:
    """Run a bundle where there is nothing but an interpreter."""
    def run_it(path: Path, *args: object, python: str = sys.executable, cwd: Path = home,
               env: Optional[Mapping[str, str]] = None) -> Finished:
        return run([python, "-S", path, *map(str, args)], {"HOME": str(home), "PATH": "", **(env or {})},
                   cwd=cwd, check=False)
    return run_it


def test_a_bundle_is_the_bytes_of_save_and_then_the_program(three: Three, bundle: Path) -> None:
    archive = io.BytesIO()
    minipull.save(REFS, three[0], archive)
    assert bundle.read_bytes() == archive.getvalue() + program()
    with zipfile.ZipFile(str(bundle)) as packed:
        infos = packed.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {(info.date_time, info.compress_type, info.external_attr >> 16) for info in infos} == {
        ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED, 0o100644)}
    assert {"LICENSE", "__main__.py", "minipull/__main__.py"} < {info.filename for info in infos}


@everywhere
def test_a_bundle_makes_the_same_bundle_under_any_python(
        bundle: Path, call: Call, python: str, tmp_path: Path) -> None:
    done = call(bundle, "save", "-q", "--bundle", "-o", tmp_path / "again", *reversed(REFS), python=python)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "again").read_bytes() == bundle.read_bytes()


def test_a_vendored_package_and_a_zip_pack_the_same_program(home: Path, tmp_path: Path) -> None:
    vendor = tmp_path / "outer"
    shutil.copytree(str(ROOT / "minipull"), str(vendor / "_puller"), ignore=shutil.ignore_patterns("__pycache__"))
    (vendor / "__init__.py").touch()
    (vendor / "LICENSE").write_text("that of the package around it")
    code = ("import sys, hashlib; from %s.archive.bundle import program\n"
            "print(hashlib.sha256(program(['legacy'])).hexdigest())")
    licensed = hashlib.sha256(program(["legacy"])).hexdigest()
    (tmp_path / "minipull.pyz").write_bytes(b"#!/usr/bin/env python3\n" + program())
    packed = run([sys.executable, "-c", code % "minipull"], {"PYTHONPATH": str(tmp_path / "minipull.pyz")}, cwd=home)
    assert packed.out.strip() == licensed
    code = "import sys; from outer._puller.archive.bundle import program; sys.stdout.buffer.write(program())"
    vendored = run([sys.executable, "-c", code], {"PYTHONPATH": str(tmp_path)}, cwd=home)
    ours, theirs = [{name: file.read(name) for name in file.namelist()} for file in (
        zipfile.ZipFile(io.BytesIO(data)) for data in (program(), vendored.raw))]
    del ours["LICENSE"]  # theirs is not that of the package
    assert ours == theirs


@everywhere
def test_in_a_bundle_the_bundle_is_the_store(
        three: Three, bundle: Path, call: Call, python: str, home: Path, tmp_path: Path) -> None:
    env = {"MINIPULL_ROOT": str(tmp_path / "other")}
    rows = json.loads(call(bundle, "images", "--format", "json", python=python, env=env).out)
    assert [row["name"] for row in rows] == names(three[0])
    assert is_sound(call(bundle, "check", python=python).out, bundle)
    assert call(bundle, "unpack", "demo/one:1", "tree", python=python).code == 0
    assert (home / "tree/etc/motd").read_text() == "two"
    assert call(bundle, "cat", "two:2", "/etc/motd", python=python).out == "one"
    assert is_sound(call(bundle, "--root", three[0].root, "check", python=python).out, three[0].root)
    assert not (home / ".local").exists() and not (tmp_path / "other").exists()


def test_load_brings_a_bundle_into_the_store_of_the_host(
        three: Three, bundle: Path, call: Call, home: Path, tmp_path: Path) -> None:
    loaded = "".join("Loaded image: %s\n" % name for name in ("demo/one:1", "two:2", "two:b", "r.example.com/many:3"))
    plan = json.loads(call(bundle, "load", "--dry-run", "--format", "json").out)
    blobs = [data for name, data in members_of(bundle).items() if name.startswith("blobs/")]
    assert (plan["total"]["blobs"], plan["total"]["bytes"]) == (len(blobs), sum(map(len, blobs)))
    assert {row["name"]: row["blobs"] for row in plan["images"]}["docker.io/library/two:b"] == 0
    assert not (home / ".local").exists()
    assert call(bundle, "load").out == loaded
    assert names(Store(str(home / ".local/share/minipull"))) == names(three[0])
    assert call(bundle, "load", env={"MINIPULL_ROOT": str(tmp_path / "variable")}).out == loaded
    minipull.save(["demo/one"], three[0], str(tmp_path / "one.tar"))
    done = call(bundle, "--root", tmp_path / "third", "load", "-i", tmp_path / "one.tar")
    assert done.out == "Loaded image: demo/one:1\n"


def test_a_bundle_alone_says_what_is_in_it_and_what_to_type(three: Three, bundle: Path, call: Call) -> None:
    done = call(bundle)
    many = three[2]["r.example.com/many:3"].digest
    row = "^r.example.com/many:3 +linux/amd64,linux/arm/v7.* [0-9.]+kB +%s$" % many
    assert done.code == 0 and re.search(row, done.out, re.M), done
    for command in ("load", "serve", "check", "unpack demo/one:1 DIR", "copy store: docker://HOST:PORT/ "):
        assert "  python3 %s %s" % (bundle, command) in done.out
    for engine in ("docker load -i", "podman load -i", "ctr images import --all-platforms"):
        assert "  %s %s\n" % (engine, bundle) in done.out
    wrong = call(bundle, "nonsense")
    assert wrong.code == 2 and wrong.err.endswith("see python3 %s --help\n" % bundle)
    help_ = "".join(call(bundle, "--help").out.split())  # argparse wraps paths as well
    assert ("example: python3 %s pull alpine:3.20" % bundle).replace(" ", "") in help_
    assert call(bundle, "--root", "/nowhere").code == 2


@pytest.mark.parametrize("args", [
    ["rm", "demo/one:1"], ["pull", "127.0.0.1:1/x"], ["serve", "--writable"],
    ["copy", "store:demo/one:1", "store:x"]], ids=lambda args: args[0])
def test_what_would_write_into_a_bundle_says_read_only(bundle: Path, call: Call, args: List[str]) -> None:
    before = bundle.read_bytes()
    done = call(bundle, *args)
    assert (done.code, done.err.count("\n")) == (7, 1) and "read-only" in done.err, done
    assert bundle.read_bytes() == before


@pytest.mark.parametrize("name", ["my site", "50% off.tar"])
def test_a_bundle_runs_under_any_name_and_imports_nothing_beside_it(
        bundle: Path, call: Call, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "minipull").mkdir(parents=True)
    (folder / "minipull/__init__.py").write_text("raise SystemExit('the wrong one')")
    bundle.rename(folder / name)
    (tmp_path / "link").symlink_to(folder / name)
    folder.chmod(0o555)
    try:
        for path in (Path(".") / name, folder / name, tmp_path / "link"):
            typed = "./" + name if path.parent == Path(".") else path
            done = run([sys.executable, typed, "images"], {"HOME": "/nowhere", "PATH": ""}, cwd=folder, check=False)
            assert (done.code, done.err) == (0, "") and "demo/one:1" in done.out, done
    finally:
        folder.chmod(0o755)


def test_what_was_changed_or_cut_in_a_bundle_is_found(
        whole: bytes, bundle: Path, call: Call, run_minipull: Minipull) -> None:
    layer = max((data for name, data in members_of(bundle).items() if name.startswith("blobs/")), key=len)
    at = whole.index(layer) + len(layer) // 2
    bundle.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    done = call(bundle, "check")
    assert done.code == 6 and done.out.endswith(": damaged\n"), done
    bundle.write_bytes(whole[:-100])  # without the end of the zip: still an archive, and no program
    assert call(bundle, "check").code == 1
    assert is_sound(run_minipull("check", bundle).out, bundle)
    bundle.write_bytes(whole[:at])
    assert run_minipull("check", bundle).code == 6


def test_parts_can_be_left_out_of_a_bundle(three: Three, bundle: Path, call: Call, run_minipull: Minipull,
                                          tmp_path: Path) -> None:
    save = ["--root", three[0].root, "save", "-q"]
    small = tmp_path / "small"
    assert run_minipull(*save, "--bundle", "--without", "server,rootfs", "-o", small, *REFS).code == 0
    assert call(small, "images").code == 0
    for args, part in ((["serve"], "server/"), (["unpack", "two:2", "x"], "rootfs/")):
        done = call(small, *args)
        assert (done.code, done.err) == (2, "minipull: %s: %s is not in this build of minipull\n" % (args[0], part))
    for flags, text in (
            (["--without", "server"], "--without is for --bundle"),
            (["--bundle", "--without", "archive"], "a bundle reads itself"),
            (["--bundle", "--without", "servers"], "no part 'servers'; there are " + ", ".join(PARTS))):
        done = run_minipull(*save, *flags, "-o", tmp_path / "none", *REFS)
        assert (done.code, done.err.count("\n")) == (2, 1) and text in done.err, done
        assert not (tmp_path / "none").exists()


def test_the_version_tells_the_digest_of_the_program(bundle: Path, call: Call, run_minipull: Minipull) -> None:
    told = run_minipull("--version", "-v").out
    assert told == call(bundle, "-v", "--version").out
    size = int(re.findall("last ([0-9]+) bytes", told)[0])
    assert hashlib.sha256(bundle.read_bytes()[-size:]).hexdigest() in told


@pytest.mark.parametrize("how", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_bundle_may_be_piped_and_compressed(
        whole: bytes, run_minipull: Minipull, tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    done = run_minipull("--root", tmp_path / "root", "load", "-q", stdin=how(whole))
    assert (done.code, done.err) == (0, "") and "Loaded image: demo/one:1" in done.out, done


def test_a_bundle_replaces_itself(bundle: Path, call: Call) -> None:
    before = bundle.read_bytes()
    done = call(bundle, "save", "-q", "--bundle", "-o", bundle, "demo/one", "two")
    assert (done.code, done.err) == (0, "") and len(bundle.read_bytes()) < len(before)
    assert is_sound(call(bundle, "check").out, bundle)
