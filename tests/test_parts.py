# SPDX-License-Identifier: Apache-2.0
"""Parts that a build leaves out: everything else works, and a command that needs one says so."""
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

from minipull.parts import PARTS
from tests.kit import ROOT, images
from tests.kit.commands import is_sound
from tests.kit.processes import Finished, Minipull, Serve, clean_env, interpreters, run
from tests.kit.servers import ScriptedServer, reply

#: Left out one at a time, and all together.
BUILDS: List[Tuple[str, ...]] = [*((part,) for part in PARTS), tuple(PARTS)]
builds = pytest.mark.parametrize("parts", BUILDS, ids=[*PARTS, "all"])
PYTHONS = [(version, path) for version, path in interpreters()
           if path == sys.executable or re.match(r"3\.(6|13)\.", version)]
#: The commands that lack each part.
LACKING = {
    "archive": [["save", "x"], ["load", "-i", "FILE"], ["check", "FILE"], ["copy", "oci:x", "oci-archive:y"],
                ["copy", "docker-archive:FILE", "oci:x"]],
    "legacy": [["pull", "--legacy-v1", "127.0.0.1:1/x"], ["push", "--legacy-schema1", "x", "127.0.0.1:1/x"]],
    "rootfs": [["unpack", "x", "y"], ["export", "x"], ["cat", "x", "/y"]],
    "server": [["serve"], ["doctor"]]}


def package_without(parts: Tuple[str, ...], folder: Path) -> Path:
    """A folder with the package less some parts."""
    shutil.copytree(ROOT / "minipull", folder / "minipull", ignore=shutil.ignore_patterns("__pycache__"))
    for part in parts:
        for module in PARTS[part]:
            path = folder / "minipull" / module.replace(".", "/")
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.with_suffix(".py").unlink()
    return folder


@builds
@pytest.mark.parametrize("python", [path for _, path in PYTHONS], ids=[version for version, _ in PYTHONS])
def test_push_pull_check_and_copy_work_with_what_is_left(
        parts: Tuple[str, ...], python: str, run_minipull: Minipull, serve: Callable[..., Serve],
        tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(package_without(parts, tmp_path / "build"))}
    layout, image = images.single(tmp_path / "layout")
    if "server" in parts:
        registry = serve(tmp_path / "registry", "--writable")
    else:
        registry = serve(tmp_path / "registry", "--writable", env=env, python=python)
    name = registry.host + "/team/app:1"

    def call(root: str, *words: str) -> str:
        done = run_minipull("--root", tmp_path / root, *words, env=env, python=python)
        assert (done.code, "Traceback" in done.err) == (0, False), done
        return done.out

    call("first", "copy", "oci:%s:latest" % layout.root, "store:" + name)
    assert "1: digest: " + image.digest in call("first", "push", name)
    assert "Digest: " + image.digest in call("second", "pull", name)
    assert ": ok\nok: " in call("second", "check")
    for source, target in (
            ("store:" + name, "oci:%s:new" % (tmp_path / "copied")),
            ("docker://" + name, "oci:%s:new" % (tmp_path / "copied")),
            ("store:" + name, "docker://%s/new:2" % registry.host)):
        assert "@%s\n" % image.digest in call("second", "copy", source, target)
    assert call("second", "digest", registry.host + "/new:2").strip() == image.digest
    if "rootfs" not in parts:
        call("second", "unpack", name, str(tmp_path / "rootfs"))
    if "archive" not in parts:
        archive = str(tmp_path / "image.tar")
        call("second", "save", "-o", archive, name)
        assert is_sound(call("second", "check", archive), archive)
        assert call("third", "load", "-i", archive) == "Loaded image: %s\n" % name


@builds
def test_a_command_that_lacks_its_part_says_so_in_one_line(
        parts: Tuple[str, ...], run_minipull: Minipull, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(package_without(parts, tmp_path / "build"))}
    (tmp_path / "file").write_bytes(b"no archive")
    layout, _ = images.single(tmp_path / "layout")
    assert run_minipull("copy", "oci:%s:latest" % layout.root, "store:x", env=env).code == 0
    for part in parts:
        for words in LACKING[part]:
            words = [word.replace("FILE", str(tmp_path / "file")) for word in words]
            done = run_minipull(*words, env=env)
            name = "legacy" if part == "legacy" else part + "/"
            assert (done.code, done.err.count("\n")) == (2, 1), done
            assert words[0] in done.err or words[1] in done.err
            assert re.search(r"%s.* is not in this build of minipull$" % name, done.err), done
    assert {words[0] for part in parts for words in LACKING[part]} <= set(
        re.findall("^  ([a-z]+)  ", run_minipull("--help", env=env).out, re.M))


def test_a_manifest_of_schema_1_needs_the_legacy_part(
        server: ScriptedServer, run_minipull: Minipull, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(package_without(("legacy",), tmp_path / "build"))}
    server.on("GET", "^/v2/$", reply(200))
    server.on("GET", "/manifests/1", reply(200, b'{"schemaVersion": 1, "fsLayers": []}'))
    done = run_minipull("pull", server.host + "/r:1", env=env)
    assert done.code == 2 and done.err.count("\n") == 1, done
    assert "pull %s/r:1: the part legacy (v1, schema 1) is not in this build of minipull" % server.host in done.err


# -- scripts/pyz ---------------------------------------------------------------


def pyz(*arguments: object) -> Finished:
    return run([sys.executable, ROOT / "scripts/pyz", *map(str, arguments)], check=False)


@builds
def test_pyz_leaves_out_the_parts_that_are_named(parts: Tuple[str, ...], home: Path) -> None:
    out, tree = home / "small.pyz", home / "tree"
    assert pyz("--without", ",".join(parts), out).code == 0
    members = [name for name in zipfile.ZipFile(out).namelist() if name.startswith("minipull/")]
    package = package_without(parts, tree)
    files = [*package.rglob("*.py"), *package.glob("minipull/cli/completion.*sh")]
    assert sorted(members) == sorted(str(path.relative_to(tree)) for path in files)
    assert run([sys.executable, "-I", "-S", out, "images"], clean_env(home)).code == 0


@pytest.mark.parametrize("arguments", [["--without", "servers"], ["--without", "server,", "x.pyz"]])
def test_pyz_refuses_parts_that_it_does_not_know(arguments: List[str]) -> None:
    done = pyz(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "archive, legacy, rootfs, server" in done.err


@builds
def test_a_public_name_that_is_left_out_is_no_attribute(parts: Tuple[str, ...], tmp_path: Path) -> None:
    """In one file, as scripts/pyz builds it."""
    file = tmp_path / "minipull.pyz"
    run([sys.executable, ROOT / "scripts/pyz", "--without", ",".join(parts), file])
    lost = run([sys.executable, "-I", "-c", """if True:
        import sys
        sys.path.insert(0, %r)
        import minipull
        for name in minipull.__all__:
            try:
                getattr(minipull, name)
            except AttributeError as exc:
                print(exc)
        """ % str(file)]).out.splitlines()
    names = {"archive": ["load", "save"], "rootfs": ["export", "unpack"], "server": ["serve"]}
    assert lost == sorted("minipull.%s: %s/ is not in this build of minipull" % (name, part)
                          for part in parts for name in names.get(part, ()))
