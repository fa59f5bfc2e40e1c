# SPDX-License-Identifier: Apache-2.0
"""unpack, export and cat as a user types them, of images that are stored and that are not."""
import gzip
import io
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Dict, Iterator

import pytest

from tests.kit import images
from tests.kit.commands import Call
from tests.kit.processes import Minipull, end, minipull_env, wait_until
from tests.kit.layers import fast_folder
from tests.kit.servers import ScriptedServer, content


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as started:
        yield started


@pytest.fixture
def fast() -> Iterator[Path]:
    with fast_folder() as path:
        yield path


@pytest.fixture
def name(server: ScriptedServer, tmp_path: Path) -> str:
    layout = images.Layout(tmp_path / "layout")
    layout.image([images.Spec(size=50000, seed=1, entries=[("etc", None), ("etc/motd", b"hello\n")]),
                  images.Spec(entries=[("etc/.wh.motd", b""), ("etc/issue", b"two\n")])], "1")
    server.serve(layout.root, "x")
    return server.host + "/x:1"


def tree(root: Path) -> Dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def test_an_image_that_is_not_stored_is_pulled_on_the_way(
    run_minipull: Minipull, server: ScriptedServer, name: str, fast: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    done = run_minipull("--root", root, "unpack", name, fast / "rootfs")
    assert done.code == 0, done
    assert done.out.startswith("Unpacked %s@sha256:" % name[:-2]) and done.out.endswith("/rootfs\n")
    assert tree(fast / "rootfs")["etc/issue"] == b"two\n" and not (fast / "rootfs/etc/motd").exists()
    asked = len(server.requests)
    # What was found on the way is remembered: nothing is asked for or inflated again.
    again = run_minipull("--root", root, "pull", name)
    assert (again.code, again.err.count("Extracting")) == (0, 0)
    assert "Image is up to date" in again.out
    assert [request.method for request in server.requests[asked:]] == ["HEAD"]
    assert json.loads(run_minipull("--root", root, "check", "--format", "json").out)["problems"] == []


def test_a_stored_image_is_unpacked_without_a_request(
    run_minipull: Minipull, server: ScriptedServer, name: str, fast: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    assert run_minipull("--root", root, "pull", "-q", name).code == 0
    asked = len(server.requests)
    assert run_minipull("--root", root, "unpack", "-q", name, fast / "rootfs").out == ""
    done = run_minipull("--root", root, "unpack", "-q", "--format", "json", name, fast / "other")
    [stored] = json.loads(run_minipull("--root", root, "images", "--format", "json").out)
    del stored["unique"]
    assert json.loads(done.out) == {**stored, "directory": str(fast / "other")}
    cat = run_minipull("--root", root, "cat", "docker://" + name, "/etc/issue")
    assert (cat.code, cat.raw) == (0, b"two\n")
    done = run_minipull("--root", root, "export", "-q", name)
    assert done.code == 0
    with tarfile.open(fileobj=io.BytesIO(done.raw)) as tar:
        members = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        found = {path: data.read() for path, data in members.items() if data is not None}
    assert found == {path: data for path, data in tree(fast / "rootfs").items() if not path.endswith("/same")}
    assert len(server.requests) == asked


def test_unpack_takes_the_platform_asked_for_out_of_an_index(
    run_minipull: Minipull, server: ScriptedServer, fast: Path, tmp_path: Path
) -> None:
    layout, _, children = images.multi_platform(tmp_path / "many")
    server.serve(layout.root, "many")
    for image in children.values():
        server.on("GET", "/v2/many/manifests/%s$" % image.digest,
                  content(image.raw, image.descriptor["mediaType"], ranges=False))
    name, root = server.host + "/many:latest", tmp_path / "root"
    assert run_minipull("--root", root, "pull", "-q", "--all-platforms", name).code == 0
    trees = []
    for platform in ("linux/arm64", "linux/amd64"):
        done = run_minipull("--root", root, "unpack", "--platform", platform, name, fast / platform[-5:])
        assert done.code == 0, done
        trees.append(tree(fast / platform[-5:]))
    assert trees[0] != trees[1]
    none = run_minipull("--root", root, "unpack", "--platform", "linux/s390x", name, fast / "none")
    assert none.code == 3 and "has nothing for linux/s390x" in none.err
    # One that is stored for another platform is pulled again.
    other = tmp_path / "other"
    assert run_minipull("--root", other, "pull", "-q", "--platform", "linux/amd64", name).code == 0
    done = run_minipull("--root", other, "unpack", "--platform", "linux/arm64", name, fast / "again")
    assert done.code == 0 and tree(fast / "again") == trees[0]


@pytest.mark.usefixtures("no_repeats")
@pytest.mark.parametrize("args, code, text", [
    (["unpack", "NAME", "FAST"], 9, "is there, and is no empty directory"),
    (["unpack", "NAME", "FAST/x", "--max-unpacked", "1k"], 9, "the image is larger than allowed; see --max-unpacked"),
    (["unpack", "NAME", "FAST/x", "--max-unpacked", "much"], 2, "--max-unpacked must be a size"),
    (["cat", "NAME", "/no"], 3, "/no: no such file in the image"),
    (["export", "NAME:9"], 2, "invalid reference format"),
    (["export", "NAME", "FAST/x", "-o", "FAST/x"], 2, "FILE and -o FILE are the same; give one of them"),
    (["export", "NAME", "-o", "FAST/x.txz"], 2, "a tar is written plain or as .tar.gz, not as .txz"),
    (["export", "NAME", "FAST/no/x"], 7, "/no/x: No such file or directory"),
    (["cat", "127.0.0.1:1/x:1", "/f"], 5, "connection refused")])
def test_a_failed_unpack_export_or_cat_is_one_line_and_leaves_no_file(
    call: Call, name: str, fast: Path, tmp_path: Path, args: "list[str]", code: int, text: str
) -> None:
    (fast / "full").write_text("x")
    done = call("--root", tmp_path / "root", *(
        arg.replace("NAME", name).replace("FAST", str(fast)) for arg in args), "-q")
    assert (done.code, done.out) == (code, ""), done
    assert text in done.err and done.err.count("\n") == 1 and done.err.startswith("minipull: ")
    assert [path.name for path in fast.iterdir()] == ["full"]


def test_a_root_file_system_is_written_to_a_file_as_to_stdout(
        run_minipull: Minipull, name: str, tmp_path: Path) -> None:
    root = ["--root", tmp_path / "root"]
    files = [tmp_path / "a.tar", tmp_path / "b.tar", tmp_path / "c.tgz"]
    assert run_minipull(*root, "export", name, files[0]).out == ""
    assert run_minipull(*root, "export", "-o", files[1], name).out == ""
    assert run_minipull(*root, "export", "-o", files[2], name).out == ""
    plain = run_minipull(*root, "export", name, "-").raw
    assert [files[0].read_bytes(), files[1].read_bytes(), gzip.decompress(files[2].read_bytes())] == [plain] * 3
    # A failure leaves what was there.
    [blob, *_] = sorted((tmp_path / "root" / "blobs" / "sha256").iterdir(), key=lambda path: -path.stat().st_size)
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-9] + bytes(9))
    assert run_minipull(*root, "export", name, files[0]).code == 7 and files[0].read_bytes() == plain
    assert not list(tmp_path.glob(".minipull-*"))


#: A command whose first layer takes until it is cancelled, and whose clean-up is slow.
SLOW = """
import sys, threading
from minipull.cli import main
from minipull.rootfs import unpack
clear = unpack.clear
def slow_clear(path):
    threading.Event().wait(0.3)
    clear(path)
unpack.clear = slow_clear
unpack.apply = lambda *args: args[-1].pause(60)
main.GRACE = 0.0
sys.argv[:1] = ["minipull"]
main.run()
"""


def test_a_cancelled_unpack_cleans_up_however_long_that_takes(
        run_minipull: Minipull, name: str, home: Path, fast: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert run_minipull("--root", root, "pull", "-q", name).code == 0
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "--root", str(root), "unpack", name, str(fast / "rootfs")],
        env=minipull_env(home), cwd=str(home), stderr=subprocess.PIPE)
    try:
        wait_until(lambda: any(fast.iterdir()), "unpack", process)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1].endswith(b"\ninterrupted\n") and process.returncode == 130
        assert list(fast.iterdir()) == []
    finally:
        end(process)
