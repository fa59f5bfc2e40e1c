# SPDX-License-Identifier: Apache-2.0
"""Layers on a root file system: nothing outside is touched, whatever they say.

Every test has a victim beside the root, and the current directory is full of bait.
As root the tests run twice: as root, and as somebody without any rights.
"""
import os
from pathlib import Path
from typing import Callable, Dict, Tuple, Union

import pytest

from tests.kit.layers import file, folder, hardlink, head, pax, symlink
from minipull.errors import InvalidDocument, StorageError
from tests.kit.worlds import Layers, World, chain, fifo, make_world, ways


# -- names and links that lead outside -------------------------------------------

#: What to apply, in one layer and in one each, given the absolute path of the victim; then what
#: is there, or the message that refuses it.
Case = Callable[[bytes], Tuple[Layers, Union[Dict[str, str], str]]]
EVIL = "'evil'"

OUTSIDE: Dict[str, Case] = {
    # HL01
    "..": lambda v: ([file(b"../x", b"evil")], {"x": EVIL}),
    "/..": lambda v: ([file(b"/../x", b"evil")], {"x": EVIL}),
    "many ..": lambda v: ([file(b"../" * 20 + b"victim/secret", b"evil")], ways(b"victim/secret", EVIL)),
    "absolute": lambda v: ([file(v + b"/secret", b"evil")], ways(v + b"/secret", EVIL)),
    ".. within": lambda v: ([file(b"a/../../x", b"evil")], {"x": EVIL}),
    "directory ..": lambda v: ([folder(b"../victim/dir", 0o777)], ways(b"victim/dir")),
    "root by many names": lambda v: ([folder(b"./"), folder(b"/"), folder(b".."), folder(b"a/..")], {}),
    "dots that are names": lambda v: (
        [file(b"..gitme", b"evil"), folder(b"...")], {"..gitme": EVIL, "...": "dir"}),
    "dots and slashes": lambda v: ([file(b"./a//./b/c", b"evil")], ways(b"a/b/c", EVIL)),
    "control characters": lambda v: ([pax(path=b"\x1b[31m\n") + file(b"f", b"evil")], {"\x1b[31m\n": EVIL}),
    # HL02
    "link to /": lambda v: ([symlink(b"l", b"/"), file(b"l/x", b"evil")], {"l": "-> /", "x": EVIL}),
    "link to the victim": lambda v: (
        [symlink(b"l", v), file(b"l/secret", b"evil")],
        {"l": "-> " + v.decode(), **ways(v + b"/secret", EVIL)}),
    "link up": lambda v: (
        [symlink(b"l", b"../../.."), file(b"l/x", b"evil")], {"l": "-> ../../..", "x": EVIL}),
    "link up and out": lambda v: (
        [symlink(b"l", b"../victim"), file(b"l/secret", b"evil")],
        {"l": "-> ../victim", **ways(b"victim/secret", EVIL)}),
    "link up from below": lambda v: (
        [folder(b"a/b"), symlink(b"a/b/l", b"../../../victim"), file(b"a/b/l/secret", b"evil")],
        {**ways(b"a/b/l", "-> ../../../victim"), **ways(b"victim/secret", EVIL)}),
    "link to the parent": lambda v: (
        [symlink(b"l", b".."), file(b"l/l/victim/secret", b"evil")],
        {"l": "-> ..", **ways(b"victim/secret", EVIL)}),
    "link with a slash": lambda v: (
        [symlink(b"l", b"../victim/"), file(b"l/secret", b"evil")],
        {"l": "-> ../victim/", **ways(b"victim/secret", EVIL)}),
    "link to itself by way of .": lambda v: (
        [symlink(b"l", b"."), file(b"l/l/l/x", b"evil")], {"l": "-> .", "x": EVIL}),
    "file by the name of a link": lambda v: (
        [symlink(b"l", v + b"/secret"), file(b"l", b"evil")], {"l": EVIL}),
    "directory by the name of a link": lambda v: (
        [symlink(b"l", v), folder(b"l", 0o777)], {"l": "dir"}),
    "directory by the name of a link, and in it": lambda v: (
        [symlink(b"l", v), folder(b"l", 0o777), file(b"l/secret", b"evil")], {"l": "dir", "l/secret": EVIL}),
    "directory through a link": lambda v: (
        [symlink(b"l", v), folder(b"l/dir", 0o777)], {"l": "-> " + v.decode(), **ways(v + b"/dir")}),
    "link through a link": lambda v: (
        [symlink(b"l", v), symlink(b"l/secret", b"evil")],
        {"l": "-> " + v.decode(), **ways(v + b"/secret", "-> evil")}),
    "FIFO through a link": lambda v: (
        [symlink(b"l", v), fifo(b"l/secret", mode=0o4777)],
        {"l": "-> " + v.decode(), **ways(v + b"/secret", "fifo")}),
    "hard link through a link": lambda v: (
        [file(b"f", b"evil"), symlink(b"l", v), hardlink(b"l/secret", b"f")],
        {"f": EVIL, "l": "-> " + v.decode(), **ways(v + b"/secret", EVIL)}),
    "dangling links": lambda v: (
        [symlink(b"a", b"b/../../victim"), symlink(b"b", b"/c/d"), file(b"a/secret", b"evil")],
        {"a": "-> b/../../victim", "b": "-> /c/d", "c": "dir", "c/d": "dir", **ways(b"victim/secret", EVIL)}),
    # HL03
    "links in a circle": lambda v: (
        [symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x", b"evil")], "a/x: too many links on the way"),
    "link to itself": lambda v: ([symlink(b"a", b"a"), folder(b"a/x")], "too many links on the way"),
    "many links": lambda v: (
        [folder(b"d"), chain(200), file(b"l0/x", b"evil")],
        {"d": "dir", "d/x": EVIL, **{"l%d" % n: "-> l%d" % (n + 1) for n in range(199)}, "l199": "-> d"}),
    "too many links": lambda v: (
        [folder(b"d"), chain(300), file(b"l0/x", b"evil")], "too many links on the way"),
    "links that grow": lambda v: (
        [pax(linkpath=b"a/" * 2000) + symlink(b"a", b"a"), file(b"a/x", b"evil")], "too many links on the way"),
    "way that escapes when one more link is there": lambda v: (
        [folder(b"a/b/c"), symlink(b"l", b"a/b/c/../../../.."), symlink(b"m", b"l/victim"),
         file(b"m/secret", b"evil")],
        {**ways(b"a/b/c"), "l": "-> a/b/c/../../../..", "m": "-> l/victim", **ways(b"victim/secret", EVIL)}),
    # HL04
    "link instead of the root": lambda v: (
        [symlink(b".", v), file(b"secret", b"evil")], "would replace the root"),
    "link instead of the root, ./": lambda v: ([symlink(b"./", v)], "would replace the root"),
    "link instead of the root, /": lambda v: ([symlink(b"/", v)], "would replace the root"),
    "link instead of the root, a/..": lambda v: ([symlink(b"a/..", v)], "would replace the root"),
    "file instead of the root": lambda v: ([file(b"/", b"evil")], "would replace the root"),
    "hard link instead of the root": lambda v: ([hardlink(b".", v)], "would replace the root"),
    "device instead of the root": lambda v: ([head(b".", b"3", major=1, minor=3)], "would replace the root"),
    # HL05
    "hard link to the victim": lambda v: ([hardlink(b"h", v + b"/secret")], "which is not there"),
    "hard link up and out": lambda v: ([hardlink(b"h", b"../victim/secret")], "which is not there"),
    "hard link to a file through a link": lambda v: (
        [symlink(b"l", v), hardlink(b"h", b"l/secret"), file(b"h", b"evil")], "which is not there"),
    "hard link to a system's file": lambda v: ([hardlink(b"h", b"/etc/passwd")], "which is not there"),
    "hard link to a link": lambda v: (
        [symlink(b"s", v + b"/secret"), hardlink(b"h", b"s", mode=0o4777, uid=1, mtime=5)],
        {"s": "-> %s/secret" % v.decode(), "h": "-> %s/secret" % v.decode()}),  # HL07
    "file by the name of a hard link to a link": lambda v: (
        [symlink(b"s", v + b"/secret"), hardlink(b"h", b"s"), file(b"h", b"evil")],
        {"s": "-> %s/secret" % v.decode(), "h": EVIL}),
    # HL06
    "hard link to bait": lambda v: ([hardlink(b"h", b"secret")], "which is no file there"),
    "hard link to bait, from below": lambda v: ([hardlink(b"d/h", b"f")], "which is no file there"),
    "hard link to bait in a directory": lambda v: ([hardlink(b"h", b"dir/inner")], "which is not there"),
    # HL09
    "hard link before its file": lambda v: (
        [hardlink(b"h", b"f2"), file(b"f2")], "h: a link to 'f2', which is no file there"),
    "hard link to itself": lambda v: ([file(b"h"), hardlink(b"h", b"h")], "a link to 'h', which is no file there"),
    "hard link to itself by another way": lambda v: (
        [file(b"h"), symlink(b"l", b"."), hardlink(b"./l/h", b"l/../h")], "a link to"),
    "hard link to a directory": lambda v: ([folder(b"d"), hardlink(b"h", b"d")], "which is no file there"),
    "hard link to the root": lambda v: ([hardlink(b"h", b"/")], "which is no"),
    "hard link to what it replaces": lambda v: (
        [file(b"d/f"), hardlink(b"d", b"d/f")], "a link to 'd/f', which is not there"),
    "hard link to what lies in a file": lambda v: ([file(b"f"), hardlink(b"h", b"f/x")], "which is not there"),
    # HL16
    "whiteout through a link": lambda v: (
        [symlink(b"l", v) + symlink(b"m", b"../victim"), file(b"l/.wh.secret") + file(b"m/.wh.dir")],
        {"l": "-> " + v.decode(), "m": "-> ../victim"}),
    "opaque directory through a link": lambda v: (
        [symlink(b"l", b"../victim"), file(b"l/.wh..wh..opq")], {"l": "-> ../victim"}),
    "whiteout of a link": lambda v: (
        [symlink(b"l", v) + file(b"f"), file(b".wh.l") + file(b"g")], {"f": "''", "g": "''"}),
    "whiteout up and out": lambda v: (
        [file(b"f"), file(b"../victim/.wh.secret") + file(b"/../.wh.victim") + file(v + b"/.wh.dir")],
        {"f": "''"}),
    # what no file system could have
    "name of 256 bytes": lambda v: ([pax(path=b"n" * 256) + file(b"f")], "File name too long"),
    "directory of 256 bytes": lambda v: ([pax(path=b"n" * 256 + b"/f") + file(b"f")], "File name too long"),
    "link to 4096 bytes": lambda v: ([pax(linkpath=b"n" * 4096) + symlink(b"l", b"t")], "File name too long"),
    "file in a file": lambda v: ([file(b"f"), file(b"f/x", b"evil")], {"f": "dir", "f/x": EVIL}),
    "file in a FIFO": lambda v: ([fifo(b"p"), file(b"p/x", b"evil")], {"p": "dir", "p/x": EVIL}),
}
#: Those in which it matters what is a lower layer's.
LAYERED = {"whiteout of a link", "whiteout through a link", "whiteout up and out"}


@pytest.mark.parametrize("split", [False, True], ids=["one layer", "layer by layer"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_is_touched(world: World, name: str, split: bool) -> None:
    layers, expected = OUTSIDE[name](os.fsencode(world.victim))
    if not split and name not in LAYERED:
        layers = [b"".join(layers)]
    if isinstance(expected, str):
        with pytest.raises(InvalidDocument, match="^layer entry .*" + expected) as caught:
            world.build(*layers)
        assert str(caught.value).isprintable()
    else:
        assert world.build(*layers) == expected


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_directory_that_somebody_swaps_for_a_link_is_not_followed(base: Path, user: str) -> None:
    """HL11: between two layers ``d``, which we know, becomes a link to the victim."""
    world = make_world(base, user)

    def swap(number: int) -> None:
        if number == 0:
            os.rename(str(world.target / "d"), str(world.target / "old"))
            os.symlink(str(world.victim), str(world.target / "d"))

    many = b"".join(folder(b"many/%d" % n) for n in range(200))  # d is no longer open
    all_at_once = file(b"d/.wh..wh..opq") + hardlink(b"h", b"d/secret")
    for layers in ([folder(b"d"), file(b"d/secret", b"evil")],
                   [folder(b"d") + many, file(b"d/secret", b"evil")],
                   [folder(b"d") + file(b"d/f") + many, many + file(b"d/secret", b"evil")],
                   [folder(b"d", 0o777) + file(b"d/f") + many, all_at_once],
                   [folder(b"d", 0o777) + many, file(b"d/dir/x", b"evil")]):
        try:
            world.build(*layers, between=swap)
        except (InvalidDocument, StorageError):
            pass
        assert not (world.target / "h").exists()
        world.clear()


@pytest.mark.parametrize("kind", ["file", "folder", "symlink", "fifo"])
def test_a_thing_that_somebody_plants_is_not_written_to(as_root: World, kind: str) -> None:
    """HL11: a link with the name of the next entry appears just now."""
    entries = {"file": file(b"p", b"evil", uid=1, mode=0o4777), "folder": folder(b"p", 0o777, uid=1),
               "symlink": symlink(b"p", b"t", uid=1), "fifo": fifo(b"p", mode=0o777, uid=1)}

    def plant(number: int) -> None:
        if number == 0:
            os.symlink(str(as_root.victim / "secret"), str(as_root.target / "p"))

    as_root.build(b"", entries[kind], between=plant)
    assert as_root.thing("p").uid == 1
