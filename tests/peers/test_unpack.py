# SPDX-License-Identifier: Apache-2.0
"""unpack() beside umoci and GNU tar, on images that were built to be awkward.

What differs is listed, each with its reason, and everything else is the same: path, type, mode,
owner, size, content, link, time, device, attributes, and which names are one file.
"""
import os
import time
from pathlib import Path
from typing import Dict, Iterator, Mapping, Sequence, Set, Tuple

import pytest

from tests.kit import ROOT
from tests.kit.processes import Finished, clean_env, interpreters, peer, run
from tests.kit.images import Layout, Spec
from tests.kit.layers import (
    END, Thing, as_nobody, extended, fast_folder, file, folder, hardlink, head, needs_root, pax, record, shown,
    symlink, things, xattrs)
from minipull.errors import InvalidDocument
from minipull.store.store import Store
from minipull.rootfs.unpack import unpack
from tests.rootfs.test_outside import OUTSIDE
from tests.rootfs.test_rootfs import LOWER, WHITEOUTS

NAME = "r.example/x:1"


def attribute(key: bytes, value: bytes = b"x") -> bytes:
    return record(b"SCHILY.xattr." + key, value)


CAPABILITY = attribute(b"security.capability", b"\x01\0\0\x02\0\x20" + bytes(14))
TOP = folder(b"./")
DEEP = b"d" * 100 + b"/" + b"e" * 100 + b"/" + b"f" * 98

#: Name to layers, bottom first.
IMAGES: Dict[str, Sequence[bytes]] = {
    "whiteout of a directory, then re-created": [
        TOP + folder(b"d", 0o700, uid=5, mtime=5) + file(b"d/a", b"1") + folder(b"d/e") + file(b"d/e/b", b"1")
        + folder(b"g") + file(b"g/a", b"1") + folder(b"h") + file(b"h/a", b"1") + file(b"x", b"1"),
        file(b".wh.d") + file(b"g/.wh.a") + file(b".wh.h") + file(b".wh.x") + file(b".wh.nothing"),
        folder(b"d") + file(b"d/c", b"3") + file(b"x", b"3"),
        # in one layer, in either order
        file(b".wh.d") + folder(b"d", 0o711) + file(b"d/f", b"4") + file(b"x", b"4") + file(b".wh.x")
        + folder(b"g", 0o711) + file(b"g/new", b"4") + file(b".wh.g")],
    "opaque, with additions": [
        TOP + folder(b"d") + file(b"d/a", b"1") + folder(b"d/e") + file(b"d/e/b", b"1") + folder(b"first")
        + file(b"first/a", b"1") + folder(b"only") + file(b"only/a", b"1"),
        file(b"first/.wh..wh..opq") + folder(b"first") + file(b"first/new", b"2") + folder(b"d")
        + file(b"d/new", b"2") + file(b"d/e/new", b"2") + file(b"d/.wh..wh..opq") + file(b"only/.wh..wh..opq")
        + file(b"no/.wh..wh..opq"),
        folder(b"d", 0o700) + file(b"d/a", b"3")],
    "hard links over layers": [
        TOP + file(b"a", b"1", mode=0o600, uid=5, mtime=5) + hardlink(b"b", b"a", mode=0o777)
        + symlink(b"s", b"a") + hardlink(b"t", b"s") + folder(b"d") + hardlink(b"d/c", b"./b"),
        hardlink(b"d/e", b"/a") + file(b".wh.b"),
        file(b"a", b"3") + hardlink(b"f", b"d/e"),
        hardlink(b"d/c", b"a"),
        file(b"d/x", b"5") + symlink(b"way", b"d") + hardlink(b"way/y", b"way/x")],
    "names of 300 bytes": [
        TOP + pax(path=DEEP) + file(b"f", b"1") + pax(path=DEEP + b"2", linkpath=b"t" * 300)
        + symlink(b"l", b"t") + pax(path=DEEP + b"3", linkpath=DEEP) + hardlink(b"h", b"t")
        + extended(DEEP + b"4\0", b"L") + file(b"g", b"1") + file("\u00e9\u4e2d".encode(), b"1")
        + file(b"\xff\xfe", b"1") + pax(path=b"n" * 255) + file(b"n", b"1")
        + file(b"with blanks, \"quotes\" and \\", b"1") + pax(path=b"line\nfeed\x1b[31m") + file(b"f", b"1"),
        pax(path=os.path.dirname(DEEP) + b"/.wh." + b"f" * 98) + file(b"f"),
        pax(path=DEEP + b"5") + file(b"f", b"3")],
    "setuid and all modes": [
        TOP + b"".join(
            file(b"f%o" % mode, b"1", mode=mode, uid=5, gid=6) + folder(b"d%o" % mode, mode, uid=5, gid=6)
            for mode in (0, 0o400, 0o644, 0o666, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777)),
        file(b"f4755", b"2", mode=0o755) + folder(b"d7777", 0o755) + file(b"f755", b"2", mode=0o6755)
        + file(b"d2755/inner", b"2") + folder(b"d0", 0) + file(b"d0/inner", b"2", uid=7)],
    "parents that are links": [
        TOP + folder(b"usr") + folder(b"usr/lib") + symlink(b"lib", b"usr/lib") + symlink(b"up", b"../../usr")
        + symlink(b"abs", b"/usr/lib") + symlink(b"far", b"abs/../lib") + symlink(b"dangling", b"no/where"),
        file(b"lib/a", b"2") + file(b"up/lib/b", b"2") + file(b"abs/c", b"2") + file(b"far/d", b"2")
        + folder(b"abs/new", 0o700) + file(b"dangling/e", b"2") + symlink(b"abs/l", b"../x"),
        file(b"lib/.wh.a") + file(b"far/.wh.c") + hardlink(b"lib/f", b"abs/b") + folder(b"up/lib/new"),
        folder(b"lib", 0o711) + file(b"lib/g", b"4")],  # no longer a link
    "one thing instead of another, and back": [
        TOP + file(b"a", b"1") + folder(b"b") + file(b"b/f", b"1") + symlink(b"c", b"b") + head(b"p", b"6")
        + file(b"e", b"1"),
        folder(b"a") + file(b"a/f", b"2") + file(b"b", b"2") + folder(b"c") + file(b"c/f", b"2")
        + file(b"p", b"2") + symlink(b"e", b"a"),
        file(b"a", b"3") + folder(b"b") + file(b"b/g", b"3") + symlink(b"c", b"b") + head(b"p", b"6")
        + hardlink(b"e", b"a"),
        file(b"a", b"4", mode=0o600) + file(b"a", b"5") + folder(b"b", 0o700) + folder(b"b", 0o755)],  # twice
    "20,000 files": [
        TOP + b"".join(folder(b"d%d" % d, mtime=d) + b"".join(
            file(b"d%d/f%d" % (d, n), b"%d" % n, mtime=n, mode=0o600 + n % 64) for n in range(100))
            for d in range(200)),
        b"".join(file(b"d%d/.wh.f%d" % (d, d)) for d in range(0, 200, 2)) + b"".join(
            file(b"d%d/.wh..wh..opq" % d) for d in range(1, 200, 20))],
    "xattrs": [
        TOP + xattrs(a=b"1", b=b"\0\xff\n") + file(b"f", b"1") + xattrs(a=b"1", b=b"1") + folder(b"d")
        + xattrs(a=b"1") + file(b"g", b"1") + extended(CAPABILITY) + file(b"ping", b"1", mode=0o755)
        + extended(CAPABILITY) + file(b"p4755", b"1", mode=0o4755, uid=5) + hardlink(b"h", b"f"),
        xattrs(b=b"2", c=b"2") + folder(b"d") + xattrs(c=b"2") + file(b"g", b"2")
        + xattrs(z=b"x" * 3000) + file(b"i")],
    "odd times": [
        TOP + folder(b"d", mtime=1) + file(b"d/zero", mtime=0) + pax(mtime=b"1.000000001") + file(b"d/nano")
        + pax(mtime=b"-1.5") + file(b"d/before") + pax(mtime=b"4294967296.25") + file(b"d/late")
        + pax(mtime=b"1500000000.1234567891") + symlink(b"d/l", b"x") + pax(mtime=b"7.5") + folder(b"d/e")
        + pax(mtime=b"2147483648") + file(b"d/e/f") + head(b"d/p", b"6", mtime=3),
        file(b"d/added") + file(b"d/e/.wh.f"),
        folder(b"d/e", mtime=9) + file(b"d/e/g")],
    "owners": [
        TOP + folder(b"d", uid=1000, gid=1000) + file(b"d/f", uid=1000, gid=1001)
        + symlink(b"d/l", b"f", uid=5, gid=5) + pax(uid=b"4294967294", gid=b"3000000") + file(b"d/big")
        + head(b"d/p", b"6", uid=5),
        folder(b"d", uid=0, gid=0) + folder(b"./", uid=3, gid=4) + file(b"d/f", uid=0)],
    "devices": [
        TOP + head(b"null", b"3", major=1, minor=3, mode=0o666)
        + head(b"sda", b"4", major=8, minor=255, uid=5, mode=0o660)
        + head(b"fifo", b"6", mode=0o622) + file(b"was", b"1"),
        head(b"was", b"3", major=1, minor=5) + file(b"null", b"2") + file(b"gone", b"1")],
}

#: Where we differ from umoci as root: image and path, then what of it, and why.
DIVERGENCES: Dict[Tuple[str, bytes], Tuple[Set[str], str]] = {
    ("opaque, with additions", b"d/e"): (
        {"mtime"}, "what lies in an opaque directory, and is gone through, keeps the time that it had; umoci"
        " leaves that of its own work there"),
    ("names of 300 bytes", b"."): (
        {"mtime"}, "a directory in which a missing parent is made keeps its time, as one does in which anything"
        " else is; umoci sees to that only where an entry is"),
    ("parents that are links", b"."): ({"mtime"}, "the same, by way of a link to what is not there"),
}
#: And on hostile layers: what is there with us and not with umoci, or the other way round.
HOSTILE: Dict[str, Tuple[Set[str], Set[str], str]] = {
    "dangling links": (
        {"c", "c/d"}, set(), "the text of a link is followed as the kernel would, so what it goes through"
        " is made; umoci takes b/../.. for nothing"),
    "links of AUFS": (set(), {".wh..wh.plnk", ".wh..wh.plnk/1.2"}, "no file of AUFS's own belongs in an image"),
    "links of AUFS, opaque": (set(), {".wh..wh.plnk", ".wh..wh.plnk/1.2"}, "the same"),
    "links of AUFS that are none": (
        {"d/n"}, {".wh..wh.plnk", ".wh..wh.plnk/n"}, "the same; and the link is one until the layer is done"),
}
MARK = "user.rootlesscontainers"


def as_without_rights(name: str, theirs: Mapping[bytes, Thing]) -> Dict[bytes, Thing]:
    """What umoci makes without root, but for what we do not do there.

    It keeps setuid and setgid, for an owner who is another one now (CVE-2021-41091); it notes the
    true owner in an attribute, which only its own repack reads; it makes empty files of devices,
    which a program takes for what they are not.
    """
    return {path: thing._replace(
        mode=thing.mode & 0o1777, xattrs=tuple(pair for pair in thing.xattrs if pair[0] != MARK))
        for path, thing in theirs.items() if name != "devices" or path not in (b"was", b"sda")}


class Image:
    """An image in a store that others may read too, and a place to unpack it."""

    def __init__(self, base: Path, layers: Sequence[bytes]) -> None:
        base.mkdir()
        base.chmod(0o777)
        self.base, self.root = base, base / "store"
        Layout(self.root).image([Spec(raw=layer + END, compression="") for layer in layers], NAME)
        self.start = time.time()

    def ours(self) -> Path:
        unpack(NAME, Store(str(self.root)), str(self.base / "ours"))
        return self.base / "ours"

    def umoci(self, *flags: str, check: bool = True) -> Finished:
        return run([peer("umoci"), "raw", "unpack", *flags, "--image", "%s:%s" % (self.root, NAME),
                    self.base / "umoci"], clean_env(self.base), cwd=self.base, check=check)

    def look(self, name: str) -> Dict[bytes, Thing]:
        """What is there; a time that the unpacking gave is taken for 0."""
        now = range(int(self.start) - 1, int(self.start) + 1000)
        return {path: thing._replace(mtime=0) if thing.mtime // 10 ** 9 in now else thing
                for path, thing in things(self.base / name).items()}


@pytest.fixture
def fast() -> Iterator[Path]:
    with fast_folder() as path:
        path.chmod(0o755)
        yield path


def differences(one: Mapping[bytes, Thing], other: Mapping[bytes, Thing]) -> Dict[bytes, Set[str]]:
    """Path to the fields in which two trees differ."""
    return {path: {field for field, mine, yours in zip(
        Thing._fields, one.get(path, [None] * len(Thing._fields)), other.get(path, [None] * len(Thing._fields)))
        if mine != yours} for path in {**one, **other} if one.get(path) != other.get(path)}


def listed(name: str) -> Dict[bytes, Set[str]]:
    return {path: fields for (image, path), (fields, _) in DIVERGENCES.items() if image == name}


@pytest.mark.parametrize("name", IMAGES)
def test_root_gets_what_umoci_makes(name: str, fast: Path) -> None:
    needs_root()
    image = Image(fast / "image", IMAGES[name])
    image.ours()
    image.umoci()
    assert differences(image.look("ours"), image.look("umoci")) == listed(name)


@pytest.mark.parametrize("name", IMAGES)
def test_others_get_what_umoci_makes_but_for_owners_and_devices(name: str, fast: Path) -> None:
    needs_root()
    image = Image(fast / "image", IMAGES[name])
    as_nobody(image.ours)
    as_nobody(lambda: image.umoci("--rootless"))
    theirs = as_without_rights(name, image.look("umoci"))
    assert differences(image.look("ours"), theirs) == listed(name)


@pytest.mark.parametrize("name", IMAGES)
def test_of_one_layer_gnu_tar_makes_the_same(name: str, fast: Path) -> None:
    needs_root()
    [layer, *_] = IMAGES[name]
    image = Image(fast / "image", [layer])
    image.ours()
    (image.base / "tar").mkdir()
    run([peer("tar"), "--extract", "--preserve-permissions", "--same-owner", "--numeric-owner", "--xattrs",
         "--xattrs-include=*", "--file=-"], clean_env(image.base), cwd=image.base / "tar", stdin=layer + END)
    assert differences(image.look("ours"), image.look("tar")) == {}


@pytest.mark.parametrize("python", [path for _, path in interpreters()],
                         ids=[version for version, _ in interpreters()])
def test_every_interpreter_makes_the_same(python: str, fast: Path) -> None:
    needs_root()
    made = {name: Image(fast / str(number), layers)
            for number, (name, layers) in enumerate(IMAGES.items()) if name != "20,000 files"}
    code = ("import sys\nfrom minipull import Store, unpack\n"
            "for base in sys.argv[1:]: unpack(%r, Store(base + '/store'), base + '/its')" % NAME)
    run([python, "-c", code, *(image.base for image in made.values())],
        {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"})
    for image in made.values():
        image.ours()
        assert differences(image.look("ours"), image.look("its")) == {}


def hostile(victim: bytes) -> Iterator[Tuple[str, Sequence[bytes]]]:
    """The cases of test_rootfs."""
    for name, case in OUTSIDE.items():
        yield name, case(victim)[0]
    for name, (layer, _) in WHITEOUTS.items():
        yield name, [LOWER, layer]


#: umoci replaces a parent that is a file or a FIFO from 0.6 on; test_rootfs says what is ours.
REFUSED_BEFORE_06 = {"file in a file", "file in a FIFO"}


def test_hostile_layers_come_to_what_they_do_with_umoci(fast: Path) -> None:
    needs_root()
    (fast / "victim").mkdir()
    (fast / "victim" / "secret").write_text("secret\n")
    before = things(fast / "victim")
    found: Dict[str, Tuple[Set[str], Set[str]]] = {}
    for number, (name, layers) in enumerate(hostile(os.fsencode(fast / "victim"))):
        image = Image(fast / str(number), layers)
        theirs = image.umoci(check=False)
        try:
            ours = set(shown(image.ours()).items())
        except InvalidDocument:
            assert theirs.code != 0, name
            continue
        if name in REFUSED_BEFORE_06 and theirs.code != 0:
            continue
        assert theirs.code == 0, (name, theirs)
        yours = set(shown(image.base / "umoci").items())
        if ours != yours:
            found[name] = {path for path, _ in ours - yours}, {path for path, _ in yours - ours}
    assert found == {name: (more, less) for name, (more, less, _) in HOSTILE.items()}
    assert things(fast / "victim") == before
