# SPDX-License-Identifier: Apache-2.0
"""Layers on a root file system: nothing outside is touched, whatever they say.

Every test has a victim beside the root, and the current directory is full of bait.
As root the tests run twice: as root, and as somebody without any rights.
"""
import os
from pathlib import Path
from typing import Any, Callable, Dict, Tuple, Union

import pytest

from tests.kit.layers import END, file, folder, hardlink, head, pax, symlink
from minipull.errors import InvalidDocument, StorageError
from minipull.image.tar import Reader
from minipull.rootfs.rootfs import RootFS
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


#: By the call that makes it, what somebody swaps for something else before it has its owner and mode.
SWAPPED: Dict[str, Tuple[str, bytes]] = {
    "FIFO": ("mkfifo", fifo(b"p", mode=0o666)),
    "FIFO of another owner": ("mkfifo", fifo(b"p", mode=0o4600, uid=1)),
    "device": ("mknod", head(b"p", b"3", major=1, minor=3, mode=0o666)),
    "link of another owner": ("symlink", symlink(b"p", b"t", uid=1)),
    "parent": ("mkdir", file(b"p/f", b"evil"))}


def swap_what(call: str, other: Callable[[int, bytes], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """After each call for the name ``p``, replace what has it by what ``other`` makes there."""
    real = getattr(os, call)

    def swapped(*args: Any, dir_fd: int, **kwargs: Any) -> object:
        result = real(*args, dir_fd=dir_fd, **kwargs)
        if b"p" in args:
            os.rename(b"p", b"old", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            other(dir_fd, b"p")
        return result

    monkeypatch.setattr(os, call, swapped)


@pytest.mark.parametrize("name", SWAPPED)
def test_what_somebody_swaps_for_a_link_gives_no_owner_and_mode_to_what_it_leads_to(
        as_root: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, layer = SWAPPED[name]
    symlinked = os.symlink
    with monkeypatch.context() as patch:
        swap_what(call, lambda fd, new: symlinked(str(as_root.victim / "secret"), new, dir_fd=fd), patch)
        before = os.umask(0o077)
        try:
            as_root.apply(layer)
        except InvalidDocument:
            assert name == "parent"
        finally:
            os.umask(before)
    assert as_root.thing("p").kind == "link"


@pytest.mark.parametrize("name", ["FIFO", "FIFO of another owner", "device", "link of another owner"])
def test_what_somebody_swaps_for_a_second_name_of_a_file_gives_that_no_owner_and_mode(
        as_root: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, layer = SWAPPED[name]
    secret = as_root.base / "shared"
    secret.write_text("secret")
    secret.chmod(0o600)
    fd = os.open(str(as_root.target), os.O_RDONLY)
    try:
        swap_what(call, lambda fd, new: os.link(str(secret), new, dst_dir_fd=fd), monkeypatch)
        root = RootFS(fd, len(layer), lambda text: None)
        root.apply(Reader(iter([layer + END])))
        root.close()
    finally:
        os.close(fd)
    status = secret.stat()
    assert (status.st_nlink, status.st_mode & 0o7777, status.st_uid) == (2, 0o600, 0)


def test_where_the_trash_is_swapped_for_a_link_nothing_is_begun(
        as_root: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(name: bytes, mode: int, dir_fd: int) -> None:
        os.symlink(str(as_root.victim), name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StorageError):
        as_root.apply(file(b"f"))


def test_what_is_swapped_for_a_link_while_it_is_cleared_away_keeps_what_it_leads_to(
        as_root: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for parent in (b"", b"d/"):
        as_root.build(folder(parent + b"p", 0))
        with monkeypatch.context() as patch:
            real = os.lstat

            def lstat(name: Any, dir_fd: int) -> os.stat_result:
                status = real(name, dir_fd=dir_fd)
                if os.fsdecode(name) == "p":
                    os.rename(b"p", b"old", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
                    os.symlink(str(as_root.victim / "secret"), b"p", dir_fd=dir_fd)
                return status

            patch.setattr(os, "lstat", lstat)
            with pytest.raises(OSError):
                as_root.clear()
        as_root.clear()


@pytest.mark.parametrize("lost", ["O_PATH", "/proc"])
def test_where_a_thing_can_not_be_held_it_still_has_its_owner_and_no_link_is_followed(
        as_root: World, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lost == "O_PATH":
        monkeypatch.delattr(os, "O_PATH")
    else:
        chown = os.chown

        def without(path: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(path, str) and path.startswith("/proc/"):
                raise FileNotFoundError
            chown(path, *args, **kwargs)

        monkeypatch.setattr(os, "chown", without)
    as_root.apply(fifo(b"p", mode=0o666, uid=1) + symlink(b"l", b"t", uid=2))
    assert (as_root.thing("p").uid, as_root.thing("l").uid) == (1, 2)
    as_root.clear()
    secret, symlinked = str(as_root.victim / "secret"), os.symlink
    swap_what("mkfifo", lambda fd, new: symlinked(secret, new, dir_fd=fd), monkeypatch)
    as_root.apply(fifo(b"p", mode=0o666, uid=1))
