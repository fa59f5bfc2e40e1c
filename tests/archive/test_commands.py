# SPDX-License-Identifier: Apache-2.0
"""save, load and check as commands, killed and piped."""
import gzip
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

import pytest

from minipull.archive.load import load
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.store.store import Store
from tests.kit import images
from tests.kit.archives import NAME, Three, document, layout_members, named, names, pack
from tests.kit.images import Layout, Spec
from tests.kit.processes import Minipull, end, driver_env, minipull_env
from tests.kit.stores import keep, text_layer


def test_save_and_load_as_a_user_sees_them(saved: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    root = ["--root", tmp_path / "fresh"]
    done = run_minipull(*root, "load", "-i", saved)
    lines = "".join("Loaded image: %s\n" % name for name in (
        "demo/one:1", "two:2", "two:b", "r.example.com/many:3"))
    assert (done.code, done.out) == (0, lines) and "Loading layer" in done.err, done
    assert run_minipull(*root, "load", "-q", stdin=saved.read_bytes()).out == lines
    done = run_minipull(*root, "save", "demo/one", "two", "r.example.com/many")
    assert done.code == 0 and done.raw == saved.read_bytes() and "Saving" in done.err
    done = run_minipull(*root, "save", "-q", "-o", tmp_path / "again", "demo/one", "two", "r.example.com/many")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    done = run_minipull(*root, "load", "--format", "json", stdin=gzip.compress(saved.read_bytes()))
    assert [item["name"] for item in json.loads(done.out)][0] == "docker.io/demo/one:1"
    done = run_minipull(
        *root, "save", "--platform", "linux/arm64", "-o", tmp_path / "again", "r.example.com/many")
    assert done.code == 0 and document(tmp_path / "again", "index.json")["manifests"][0]["mediaType"] == (
        images.OCI_MANIFEST)


def test_an_image_without_a_name_is_loaded_by_id(
        layout: Layout, path: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    image = layout.image([text_layer("one")])
    path.write_bytes(pack(layout_members(layout, [image.descriptor])))
    root = ["--root", tmp_path / "root"]
    assert run_minipull(*root, "load", "-i", path).out == "Loaded image ID: %s\n" % image.config["digest"]
    assert run_minipull(*root, "tag", image.config["digest"], "x:1").code == 0
    assert run_minipull(*root, "rm", "localhost/loaded@" + image.digest).code == 0
    assert "docker.io/library/x:1" in run_minipull(*root, "images").out


@pytest.mark.parametrize("args, code, text", [
    (["load", "-i", "/nowhere"], 7, "load /nowhere: open /nowhere: No such file or directory"),
    (["load"], 6, "load: there is no image in it: no index.json, manifest.json or repositories"),
    (["load", "-i", "x", "y"], 2, "FILE and -i FILE are the same; give one of them"),
    (["save", "-o", "x.tar.xz", "two"], 2, "x.tar.xz: a tar is written plain or as .tar.gz, not as .xz; write it to"
     " stdout and compress that"), (["save", "-o", "x.tzst", "--dry-run", "two"], 2, None),
    (["save", "--bundle", "-o", "x.tar.gz", "two"], 2, "x.tar.gz: a bundle must be a plain tar"),
    (["copy", "store:two", "oci-archive:x.tar.bz2"], 2, None),
    (["save", "nope"], 3, "No such image: nope:latest; pull it first"), (["save", "-o", "x", "UPPER"], 2, None),
    (["save"], 2, None), (["save", "--platform", "x/y/z/w", "two"], 2, None)])
def test_errors_of_save_and_load_are_one_line(
        three: Three, run_minipull: Minipull, home: Path, args: List[str], code: int, text: Optional[str]) -> None:
    done = run_minipull("--root", three[0].root, *args)
    assert (done.code, done.out) == (code, "") and done.err.count("\n") == 1, done
    assert text is None or done.err == "minipull: %s\n" % text
    assert not list(home.glob("x*"))


def test_an_archive_whose_name_says_so_is_compressed_into_the_same_bytes(
        saved: Path, three: Three, tmp_path: Path, run_minipull: Minipull) -> None:
    names = ["demo/one", "two", "r.example.com/many"]
    root = ["--root", three[0].root]
    for name in ("a.tar.gz", "B.TGZ"):
        assert run_minipull(*root, "save", "-o", tmp_path / name, *names).code == 0
    data = (tmp_path / "a.tar.gz").read_bytes()
    assert gzip.decompress(data) == saved.read_bytes() and data[:10] == b"\x1f\x8b\x08" + bytes(6) + data[9:10]
    assert (tmp_path / "B.TGZ").read_bytes() == data
    loaded = run_minipull("--root", tmp_path / "fresh", "load", tmp_path / "a.tar.gz").out
    assert run_minipull("--root", tmp_path / "other", "load", "-", stdin=data).out == loaded != ""
    assert run_minipull(*root, "save", "-o", "-", *names).raw == saved.read_bytes()
    # A plan tells the size that is known, that of the tar.
    planned = run_minipull(*root, "save", "--dry-run", "-o", tmp_path / "c.tgz", *names).out
    assert "\nthe archive would have %d bytes before it is compressed\n" % len(saved.read_bytes()) in planned
    assert run_minipull(*root, "copy", "-q", "store:two:2", "oci-archive:%s" % (tmp_path / "d.tgz")).code == 0
    assert b"oci-layout" in gzip.decompress((tmp_path / "d.tgz").read_bytes())


@pytest.mark.parametrize("args, text", [
    (["save", "two"], "refusing to write an archive to a terminal"), (["load"], "give -i FILE")])
def test_save_and_load_refuse_a_terminal(three: Three, home: Path, args: List[str], text: str) -> None:
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "minipull", "--root", three[0].root, *args], stdin=slave, stdout=slave,
            stderr=subprocess.PIPE, env=minipull_env(home), cwd=str(home), timeout=60)
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 2 and text in done.stderr.decode()


def test_save_ends_quietly_when_its_pipe_closes(
        store: Store, layout: Layout, home: Path) -> None:
    """HA11."""
    keep(store, layout, layout.image([Spec(4 << 20, compression="")]))
    with subprocess.Popen(
            [sys.executable, "-m", "minipull", "--root", store.root, "save", "-q", NAME], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=minipull_env(home), cwd=str(home)) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1000)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_load_from_a_pipe_that_ends_early_is_an_error(
        saved: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    """HA11."""
    data = saved.read_bytes()
    done = run_minipull("--root", tmp_path / "fresh", "load", stdin=data[:len(data) // 2])
    assert (done.code, done.out) == (6, "") and "cut short" in done.err, done
    assert run_minipull("--root", tmp_path / "fresh", "images", "--format", "json").out == "[]\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", ["file", "gzip"])
def test_gc_removes_all_that_a_killed_load_left(
        store: Store, layout: Layout, home: Path, path: Path, number: int, how: str) -> None:
    data = pack(layout_members(layout, [named(layout.image(images.specs(2, 3 << 20)))]))
    path.write_bytes(gzip.compress(data) if how == "gzip" else data)
    code = ("import minipull, sys, time\n"
            "def wait(event):\n    print('go', flush=True)\n    time.sleep(60)\n"
            "minipull.load(sys.argv[1], minipull.Store(sys.argv[2]), progress=wait)")
    process = subprocess.Popen([sys.executable, "-c", code, str(path), store.root], stdout=subprocess.PIPE,
                               env=driver_env(home))
    assert process.stdout is not None
    try:
        assert process.stdout.read(2) == b"go"
        process.send_signal(number)
        assert process.wait(10) == -number
    finally:
        end(process)
    with process.stdout:
        assert names(store) == [] and check(store) == []
    gc(store, 0)
    assert store.content.digests() == [] == os.listdir(store.content.scratch)
    assert len(load(str(path), store)) == 1 and check(store) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_save_leaves_the_former_file(
        store: Store, layout: Layout, home: Path, path: Path, number: int) -> None:
    """CR09, CR11."""
    keep(store, layout, layout.image([text_layer("one")]))
    path.write_bytes(b"what was there")
    process = subprocess.Popen(
        [sys.executable, "-c", "import minipull, sys, time\n"
         "def wait(event):\n    print('go', flush=True)\n    time.sleep(60)\n"
         "minipull.save(sys.argv[1:2], minipull.Store(sys.argv[2]), sys.argv[3], progress=wait)",
         NAME, store.root, str(path)], stdout=subprocess.PIPE, env=driver_env(home))
    assert process.stdout is not None
    try:
        assert process.stdout.read(2) == b"go"
        process.send_signal(number)
        assert process.wait(10) == -number
    finally:
        end(process)
    with process.stdout:
        assert path.read_bytes() == b"what was there"
