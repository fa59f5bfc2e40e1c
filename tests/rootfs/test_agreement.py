# SPDX-License-Identifier: Apache-2.0
"""``export REF | tar x`` equals ``unpack REF``, and both refuse the same images."""
import os
import random
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import pytest

from minipull.cancel import Cancel
from minipull.digest import DiffID
from minipull.errors import Error
from minipull.image.descriptor import OCI_LAYER, Descriptor
from minipull.image.tar import LINK, MAX_NAME, Reader
from minipull.progress import discard
from minipull.rootfs.flatten import Flattened
from minipull.rootfs.rootfs import RootFS
from minipull.rootfs.unpack import apply
from minipull.store.store import Store
from tests.kit.layers import (
    END, Thing, fast_folder, file, folder, hardlink, head, needs_root, pax, sparse, symlink, things, xattrs)
from tests.kit.processes import peer

STACKS = 3000
NAMES = [b"a", b"b", b"c", b"a/b", b"a/c", b"b/a", b"b/c", b"a/b/c", b"c/a/b", b"../a", b"a/../b/d", b"./c//d",
         b".wh..wh.plnk", b".wh..wh.plnk/1", b"d" * 200 + b"/e", b"e/" * 40 + b"f"]
MARKERS = [b".wh.a", b".wh.b", b".wh..wh..opq", b"a/.wh.b", b"a/.wh..wh..opq", b"b/.wh.c", b"a/b/.wh.c",
           b"c/.wh..wh..opq", b"b/.wh..wh.aufs"]
TARGETS = [b"a", b"/b", b"../c", b"b/c", b"a/b", b"/no", b".", b"no/such", b"a/../../b", b"c/"]
#: A tree, or the exit code of its refusal.
Result = Union[Dict[bytes, Thing], int]


class Site(NamedTuple):
    base: Path
    store: Store

    def layers(self, stack: Sequence[bytes]) -> List[Tuple[Descriptor, DiffID]]:
        layers = []
        for data in stack:
            blob = Descriptor.of(data, OCI_LAYER)
            self.store.content.put(blob.digest, data)
            layers.append((blob, DiffID(blob.digest)))
        return layers

    def unpacked(self, name: str, stack: Sequence[bytes]) -> Result:
        target = self.base / (name + "-unpacked")
        target.mkdir()
        fd = os.open(str(target), os.O_RDONLY)
        root = RootFS(fd, 1 << 30, lambda text: None)
        try:
            for blob, diff_id in self.layers(stack):
                apply(root, self.store, blob, diff_id, discard, Cancel())
            root.close()
        except Error as exc:
            return exc.exit_code
        finally:
            root.drop()
            os.close(fd)
        return things(target)

    def exported(self, name: str, stack: Sequence[bytes]) -> Result:
        target = self.base / (name + "-exported")
        target.mkdir()
        try:
            data = b"".join(Flattened(self.store, self.layers(stack), discard, Cancel()).tar())
        except Error as exc:
            return exc.exit_code
        ordered(data)
        subprocess.run([peer("tar"), "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs",
                        "--xattrs-include=*", "--delay-directory-restore", "-C", str(target)], input=data, check=True)
        return things(target)


def ordered(data: bytes) -> None:
    """No name is there twice, none comes before its directory, if that is there, no link before its target."""
    entries = [(entry.name.rstrip(b"/"), entry) for entry in Reader(iter([data]))]
    names, written = {name for name, _ in entries}, {b""}
    assert len(names) == len(entries)
    for name, entry in entries:
        above = name.rpartition(b"/")[0] or b"."
        assert above in written or above not in names or name == b".", name
        assert entry.kind != LINK or entry.linkname in written, name
        written.add(name)


def layer(rng: random.Random) -> bytes:
    entries = b""
    for _ in range(rng.randrange(1, 7)):
        name, kind = rng.choice(NAMES), rng.randrange(10)
        fields: Dict[str, Any] = {"mode": rng.choice([0o644, 0o755, 0o4755, 0o700]), "uid": rng.choice([0, 7]), "gid": 8,
                  "mtime": rng.randrange(1 << 30)}
        if kind < 3:
            entries += file(name, b"%d" % rng.randrange(1000), **fields)
        elif kind < 5:
            entries += folder(name, **fields)
        elif kind == 5:
            entries += symlink(name, rng.choice(TARGETS), **fields)
        elif kind == 6:
            entries += hardlink(name, rng.choice(NAMES))
        elif kind == 7:
            entries += head(name, b"6", **fields)
        elif kind == 8:
            entries += head(name, rng.choice([b"3", b"4"]), major=rng.randrange(2), minor=rng.randrange(2), **fields)
        else:
            marker = rng.choice(MARKERS)
            entries += file(marker) if rng.randrange(2) else folder(marker)
    return entries + END


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    needs_root()
    with fast_folder() as base:
        yield Site(base, Store(str(base / "store")))


def described(result: Result) -> Optional[Dict[bytes, Thing]]:
    """A tree without the times that layers do not tell: those of directories that are parents only."""
    return None if isinstance(result, int) else {
        path: thing._replace(mtime=0) if thing.kind == "directory" and thing.mode == 0o755 and thing.uid == 0
        and thing.gid == 0 else thing for path, thing in result.items() if path != b"."}


def agree(site: Site, name: str, stack: Sequence[bytes]) -> Result:
    unpacked, exported = site.unpacked(name, stack), site.exported(name, stack)
    if isinstance(unpacked, int) or isinstance(exported, int):
        assert unpacked == exported, name
    assert described(unpacked) == described(exported), name
    return unpacked


def test_unpack_and_export_agree_on_random_stacks_of_layers(site: Site) -> None:
    refused = 0
    for seed in range(STACKS):
        rng = random.Random(seed)
        stack = [layer(rng) for _ in range(rng.randrange(1, 5))]
        refused += isinstance(agree(site, "%d" % seed, stack), int)
    assert STACKS / 10 < refused < STACKS * 2 / 3


DIRECTORY = {"p": "directory", "p/f": "file"}
CASES: Dict[str, Tuple[List[bytes], Union[Dict[str, str], int]]] = {
    "parent is a file": ([file(b"p", b"x"), file(b"p/f")], DIRECTORY),
    "parent is a FIFO": ([head(b"p", b"6"), file(b"p/f")], DIRECTORY),
    "parent is a device": ([head(b"p", b"3", major=1, minor=3), file(b"p/f")], DIRECTORY),
    "parent is a link to a file": (
        [file(b"t", b"x") + symlink(b"p", b"t"), file(b"p/f")], {"p": "link", "t": "directory", "t/f": "file"}),
    "parent is a link to nothing": (
        [symlink(b"p", b"t"), file(b"p/f")], {"p": "link", "t": "directory", "t/f": "file"}),
    "parent is a link through a file": (
        [file(b"t", b"x") + symlink(b"p", b"t/u"), file(b"p/f")],
        {"p": "link", "t": "directory", "t/u": "directory", "t/u/f": "file"}),
    "parent below a file": ([file(b"p", b"x"), folder(b"p/q")], {"p": "directory", "p/q": "directory"}),
    "whiteout below a file": ([file(b"p", b"x"), file(b"p/.wh.f")], {"p": "file"}),
    "opaque marker below a file": ([file(b"p", b"x"), file(b"p/.wh..wh..opq")], {"p": "file"}),
    "marker before what it spares": (
        [file(b"p/f") + file(b"p/g"), file(b"p/.wh..wh..opq") + file(b"p/g")], {"p": "directory", "p/g": "file"}),
    "marker behind what it spares": (
        [file(b"p/f") + file(b"p/g"), file(b"p/g") + file(b"p/.wh..wh..opq")], {"p": "directory", "p/g": "file"}),
    "marker in the layer of a parent that is only named": (
        [file(b"p/f"), file(b"p/q/g") + file(b".wh.p")], {"p": "directory", "p/q": "directory", "p/q/g": "file"}),
    "hard link through what it replaces": ([file(b"p/f"), hardlink(b"p", b"p/f")], 6),
    "hard link through a link that it replaces": ([file(b"d/f") + symlink(b"p", b"d"), hardlink(b"p", b"p/f")], 6),
    "hard link to itself": ([file(b"p"), hardlink(b"p", b"p")], 6),
    "hard link to a directory": ([folder(b"p"), hardlink(b"q", b"p")], 6),
    "hard link to a link": ([symlink(b"p", b"no") + hardlink(b"q", b"p")], {"p": "link", "q": "link"}),
    "hard link to a FIFO": ([head(b"p", b"6") + hardlink(b"q", b"p")], {"p": "fifo", "q": "fifo"}),
    "device 0:0": ([file(b"p", b"x") + file(b"q"), head(b"p", b"3")], {"q": "file"}),
    "block device 0:0": ([head(b"p", b"4")], {"p": "block"}),
    "plnk": ([file(b".wh..wh.plnk/1", b"x") + hardlink(b"p", b".wh..wh.plnk/1")], {"p": "file"}),
    "sparse file, and a link to it": (
        [b"".join(sparse(version, 999999, [(70000, b"x")]) for version in ("0.0", "0.1", "1.0")) + hardlink(b"g", b"f"),
         pax(uid=b"-1", path=b"", mtime=b"") + file(b"h")], {"f": "file", "g": "file", "h": "file"}),
    "sparse file with a wrong map": ([sparse("1.0", 5, [(0, b"x"), (0, b"y")])], 6),
    "name of 255 bytes": ([pax(path=b"n" * 255) + file(b"x")], {"n" * 255: "file"}),
    "attributes of an overlay": ([xattrs(**{"trusted.overlay.opaque": b"y"}) + folder(b"p")], {"p": "directory"}),
}


@pytest.mark.parametrize("name", CASES)
def test_unpack_and_export_give_the_same_answer(site: Site, name: str) -> None:
    stack, expected = CASES[name]
    result = agree(site, name.replace(" ", "-"), [data + END for data in stack])
    if isinstance(result, int) or isinstance(expected, int):
        assert result == expected
    else:
        assert {os.fsdecode(path): thing.kind for path, thing in result.items() if path != b"."} == expected
        assert not any(key.startswith("trusted.overlay.") for thing in result.values() for key, _ in thing.xattrs)


def test_names_depth_and_links_have_one_bound(site: Site) -> None:
    deep = b"d/" * (MAX_NAME // 4 + 10)
    for name, stack in {
            "name": [pax(path=b"n" * 256) + file(b"x")],
            "parent": [pax(path=b"n" * 256 + b"/p") + file(b"x")],
            "depth": [pax(linkpath=deep) + symlink(b"s", b"x"), pax(path=b"s/" + deep + b"f") + file(b"x")],
            "links": [symlink(b"p", b"p"), file(b"p/f")]}.items():
        assert agree(site, name, [data + END for data in stack]) == 6, name
