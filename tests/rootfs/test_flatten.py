# SPDX-License-Identifier: Apache-2.0
"""An image as one tar is what unpack() makes of it, and one file of it is that file."""
import io
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import pytest

from tests.kit.processes import peer
from tests.kit.images import Layout, Spec
from tests.kit.layers import END, Thing, fast_folder, file, folder, hardlink, head, needs_root, symlink, things
from minipull.errors import InvalidDocument, NotFound, PolicyError
from minipull.rootfs.flatten import Flattened
from minipull.progress import discard
from minipull.store.store import Store
from minipull.cancel import Cancel
from minipull.image.tar import Reader
from minipull.rootfs.layers import layers_of
from minipull.rootfs.unpack import unpack
from tests.peers.test_unpack import IMAGES, NAME


@pytest.fixture
def fast() -> Iterator[Path]:
    with fast_folder() as path:
        yield path


def stored(base: Path, layers: Sequence[bytes]) -> Store:
    Layout(base / "store").image([Spec(raw=layer + END, compression="") for layer in layers], NAME)
    return Store(str(base / "store"))


def flattened(base: Path, *layers: bytes) -> Flattened:
    store = stored(base, layers)
    return Flattened(store, layers_of(store.image(NAME), store), discard, Cancel())


def tar_of(flat: Flattened) -> bytes:
    return b"".join(bytes(piece) for piece in flat.tar())


def extracted(root: Path, start: float) -> Dict[bytes, Thing]:
    """What is there; a time that the extraction gave is 0, and what links to a link is another one."""
    now = range(int(start) - 1, int(start) + 1000)
    return {path: thing._replace(mtime=0 if thing.mtime // 10 ** 9 in now else thing.mtime, links=0,
                                 same=b"" if thing.kind != "file" else thing.same)
            for path, thing in things(root).items()}


@pytest.mark.parametrize("name", IMAGES)
def test_the_tar_is_what_unpack_makes(name: str, fast: Path) -> None:
    needs_root()
    start = time.time()
    store = stored(fast, IMAGES[name])
    unpack(NAME, store, str(fast / "unpacked"))
    flat = Flattened(store, layers_of(store.image(NAME), store), discard, Cancel())
    (fast / "x.tar").write_bytes(tar_of(flat))
    (fast / "extracted").mkdir()
    subprocess.run([peer("tar"), "--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore", "-xpf", str(fast / "x.tar"), "-C", str(fast / "extracted")],
                   check=True)
    assert extracted(fast / "extracted", start) == extracted(fast / "unpacked", start)
    assert tar_of(flat) == (fast / "x.tar").read_bytes()


def test_files_that_are_one_stay_one_though_the_first_name_has_gone(fast: Path) -> None:
    flat = flattened(
        fast, file(b"a", b"one", mtime=7) + hardlink(b"b", b"a") + hardlink(b"c", b"b"),
        file(b".wh.a") + file(b"z", b"two"), file(b"a", b"three"))
    with tarfile.open(fileobj=io.BytesIO(tar_of(flat))) as tar:
        found = [(member.name, member.type, member.linkname) for member in tar]
    assert found == [("b", b"0", ""), ("z", b"0", ""), ("a", b"0", ""), ("c", b"1", "b")]
    assert [b"".join(map(bytes, flat.file(name))) for name in ("a", "b", "/c")] == [b"three", b"one", b"one"]


def test_owners_devices_and_the_root_are_the_images_whoever_asks(fast: Path) -> None:
    flat = flattened(fast, folder(b"./", 0o711, uid=7) + file(b"f", uid=5, gid=6, mode=0o4755)
                     + head(b"null", b"3", major=1, minor=3))
    entries = {entry.name: entry for entry in Reader(iter([tar_of(flat)]))}
    assert (entries[b"./"].mode, entries[b"./"].uid) == (0o711, 7)
    assert entries[b"f"][3:6] == (0o4755, 5, 6)
    assert (entries[b"null"].kind, entries[b"null"].major, entries[b"null"].minor) == (b"3", 1, 3)


def test_directories_that_admit_no_writer_are_filled_by_one_who_is_not_root(fast: Path) -> None:
    needs_root()
    flat = flattened(fast, folder(b"ro", 0o555, mtime=7) + file(b"ro/f") + folder(b"ro/sub", 0o555, mtime=8),
                     file(b"ro/sub/g") + folder(b"blind", 0o600, mtime=9) + folder(b"blind/sub", 0o700, mtime=10))
    target = fast / "extracted"
    target.mkdir()
    fast.chmod(0o755)
    os.chown(str(target), 65534, 65534)
    subprocess.run([peer("tar"), "-xp", "--delay-directory-restore", "-C", str(target)], input=tar_of(flat), check=True,
                   preexec_fn=lambda: os.setuid(65534))
    assert {path: (thing.mode, thing.mtime // 10 ** 9) for path, thing in things(target).items()
            if thing.kind == "directory" and path != b"."} == {
        b"ro": (0o555, 7), b"ro/sub": (0o555, 8), b"blind": (0o600, 9), b"blind/sub": (0o700, 10)}


@pytest.mark.parametrize("path, data", [
    ("etc/f", b"x"), ("/etc//./f", b"x"), ("../../etc/f", b"x"), ("way/f", b"x"), ("abs", b"x"), ("up", b"x"),
    ("odd\udcff", b"y")])
def test_a_file_is_found_by_every_way_within_the_root(fast: Path, path: str, data: bytes) -> None:
    flat = flattened(fast, folder(b"etc") + file(b"etc/f", b"x") + symlink(b"way", b"etc")
                     + symlink(b"abs", b"/way/f") + symlink(b"up", b"../../etc/../way/f") + file(b"odd\xff", b"y"))
    assert b"".join(map(bytes, flat.file(path))) == data


@pytest.mark.parametrize("path, why", [
    ("no", "no: no such file in the image"), ("etc", "etc is no file in the image"), ("/", "/ is no file"),
    ("etc/f/g", "no such file"), ("nowhere", "no such file"), ("null", "null is no file in the image")])
def test_what_is_no_file_is_not_found(fast: Path, path: str, why: str) -> None:
    flat = flattened(fast, folder(b"etc") + file(b"etc/f") + symlink(b"nowhere", b"no") + head(b"null", b"3", major=1, minor=3))
    with pytest.raises(NotFound, match=why):
        list(flat.file(path))


LOOP = symlink(b"a", b"b") + symlink(b"b", b"a")
REFUSED: Dict[str, List[bytes]] = {
    "root as a link": [symlink(b".", b"/etc")],
    "whiteout of nothing": [file(b".wh.")],
    "whiteout of the parent": [file(b"d/.wh...")],
    "links in a circle": [LOOP + file(b"a/f")],
    "link to a file in a file": [file(b"f") + hardlink(b"l", b"f/g")],
    "link to nothing": [hardlink(b"l", b"no")],
    "link to a directory": [folder(b"d") + hardlink(b"l", b"d")],
    "link to itself": [file(b"f") + hardlink(b"f", b"f")],
    "link instead of what holds its target": [folder(b"d") + file(b"d/f"), hardlink(b"d", b"d/f")]}


@pytest.mark.parametrize("name", REFUSED)
def test_what_unpack_refuses_is_refused(name: str, fast: Path) -> None:
    with pytest.raises((InvalidDocument, PolicyError), match="^layer [0-9a-f]{12}: entry "):
        flattened(fast, *REFUSED[name])
    store = Store(str(fast / "store"))
    with pytest.raises((InvalidDocument, PolicyError)):
        unpack(NAME, store, str(fast / "unpacked"))


def test_a_cancelled_tar_ends_at_once(fast: Path) -> None:
    from minipull.errors import Cancelled
    store, cancel = stored(fast, [file(b"f", b"x" * 100000)]), Cancel()
    flat = Flattened(store, layers_of(store.image(NAME), store), discard, cancel)
    cancel.cancel()
    with pytest.raises(Cancelled):
        tar_of(flat)
