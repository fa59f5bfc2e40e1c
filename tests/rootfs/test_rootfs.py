# SPDX-License-Identifier: Apache-2.0
"""Layers on a root file system: what becomes of their entries.

Every test has a victim beside the root, and the current directory is full of bait.
As root the tests run twice: as root, and as somebody without any rights.
"""
import errno
import os
import resource
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

from tests.kit.layers import (
    END, MTIME, base256, extended, file, folder, hardlink, head, in_child, needs_root, pax, record, shown, symlink, things, xattrs)
from minipull.errors import InvalidDocument, PolicyError, StorageError
from minipull.rootfs.rootfs import RootFS
from minipull.image.tar import MAX_NAME, Reader
from tests.kit.worlds import SECOND, UNLIMITED, World, fifo, make_world


# -- one thing instead of another --------------------------------------------------

KINDS: Dict[str, Tuple[bytes, Dict[str, str]]] = {
    "file": (file(b"x", b"new"), {"x": "'new'"}),
    "directory": (folder(b"x") + file(b"x/in", b"new"), {"x": "dir", "x/in": "'new'"}),
    "link to a directory": (symlink(b"x", b"other"), {"x": "-> other"}),
    "link to nothing": (symlink(b"x", b"nowhere"), {"x": "-> nowhere"}),
    "hard link": (hardlink(b"x", b"other/f"), {"x": "''"}),
    "FIFO": (fifo(b"x"), {"x": "fifo"}),
}
OTHER = folder(b"other") + file(b"other/f")


@pytest.mark.parametrize("split", [False, True], ids=["one layer", "layer by layer"])
@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_what_comes_later_replaces_what_was_there(world: World, old: str, new: str, split: bool) -> None:
    """HL10, HL37: also within a layer, and never what a link points to."""
    expected = {"other": "dir", "other/f": "''", **KINDS[new][1]}
    if old == new == "directory":
        expected["x/in"] = "'new'"
    layers = [OTHER + KINDS[old][0].replace(b"new", b"old"), KINDS[new][0]]
    assert world.build(*layers if split else [b"".join(layers)]) == expected


def test_a_file_that_is_replaced_leaves_its_other_names(world: World) -> None:
    layers = [file(b"a", b"old") + hardlink(b"b", b"a"), file(b"a", b"new"), hardlink(b"c", b"b")]
    assert world.build(*layers) == {"a": "'new'", "b": "'old'", "c": "'old'"}
    assert (world.thing("a").links, world.thing("b").links, world.thing("c").same) == (1, 2, b"b")


def test_a_directory_that_is_said_again_keeps_what_is_in_it_and_nothing_of_what_it_was(world: World) -> None:
    ours, other = world.owner, 1 if world.root else world.owner[0]
    world.build(xattrs(a=b"1", b=b"1") + folder(b"d", 0o700, uid=1, gid=1, mtime=5) + file(b"d/f"),
                xattrs(b=b"2", c=b"2") + folder(b"d", 0o751, uid=0, gid=0, mtime=6))
    thing = world.thing("d")
    assert (thing.mode, thing.uid, thing.mtime) == (0o751, ours[0], 6 * SECOND)
    assert dict(thing.xattrs) == {"user.b": b"2", "user.c": b"2"}
    assert world.thing("d/f").kind == "file" and other in (1, ours[0])


# -- whiteouts -----------------------------------------------------------------------

LOWER = (folder(b"d") + file(b"d/a", b"low") + folder(b"d/e") + file(b"d/e/b", b"low") + file(b"x", b"low")
         + symlink(b"l", b"d"))
ALL = {"d": "dir", "d/a": "'low'", "d/e": "dir", "d/e/b": "'low'", "x": "'low'", "l": "-> d"}


def without(*names: str, **more: str) -> Dict[str, str]:
    return {**{name: word for name, word in ALL.items() if name not in names}, **more}


NEW = {"d/n": "'new'"}
WHITEOUTS: Dict[str, Tuple[bytes, Dict[str, str]]] = {
    # HL12
    "of a file": (file(b".wh.x"), without("x")),
    "of a directory": (file(b".wh.d"), {"x": "'low'", "l": "-> d"}),
    "of a link": (file(b".wh.l"), without("l")),
    "of what lies deep": (file(b"d/e/.wh.b"), without("d/e/b")),
    "of what is not there": (file(b".wh.y") + file(b"d/.wh.y"), ALL),
    "in what is not there": (file(b"y/z/.wh.x"), ALL),
    "twice": (file(b".wh.x") * 2, without("x")),
    "with a dot before it": (file(b"./d/../.wh.x"), without("x")),
    # HL13
    "and then the file": (file(b".wh.x") + file(b"x", b"new"), without("x", x="'new'")),
    "after the file": (file(b"x", b"new") + file(b".wh.x"), without("x", x="'new'")),
    "and then the directory": (
        file(b".wh.d") + folder(b"d") + file(b"d/n", b"new"), {"x": "'low'", "l": "-> d", "d": "dir", **NEW}),
    "after the directory": (
        folder(b"d") + file(b"d/n", b"new") + file(b".wh.d"), {"x": "'low'", "l": "-> d", "d": "dir", **NEW}),
    "after what lies in it": (
        file(b"d/n", b"new") + file(b".wh.d"), {"x": "'low'", "l": "-> d", "d": "dir", **NEW}),
    "after what lies deep in it": (
        file(b"d/e/n", b"new") + file(b".wh.d"),
        {"x": "'low'", "l": "-> d", "d": "dir", "d/e": "dir", "d/e/n": "'new'"}),
    "after a link that is new": (
        symlink(b"d", b"x") + file(b".wh.d"), {"x": "'low'", "l": "-> d", "d": "-> x"}),
    "of a directory that is a file now": (
        file(b"d", b"new") + file(b".wh.d"), {"x": "'low'", "l": "-> d", "d": "'new'"}),
    "of what a hard link was made of": (hardlink(b"h", b"x") + file(b".wh.x"), without("x", h="'low'")),
    # HL14
    "opaque first": (file(b"d/.wh..wh..opq") + file(b"d/n", b"new"), without("d/a", "d/e", "d/e/b", **NEW)),
    "opaque last": (file(b"d/n", b"new") + file(b"d/.wh..wh..opq"), without("d/a", "d/e", "d/e/b", **NEW)),
    "opaque between": (
        folder(b"d") + file(b"d/a", b"new") + file(b"d/.wh..wh..opq") + folder(b"d/e"),
        without("d/e/b", **{"d/a": "'new'"})),
    "opaque, additions deep within": (
        file(b"d/e/n", b"new") + file(b"d/.wh..wh..opq"), without("d/a", "d/e/b", **{"d/e/n": "'new'"})),
    "opaque twice": (file(b"d/.wh..wh..opq") * 2, without("d/a", "d/e", "d/e/b")),
    "opaque and empty": (folder(b"d") + file(b"d/.wh..wh..opq"), without("d/a", "d/e", "d/e/b")),
    "opaque where nothing is": (file(b"y/.wh..wh..opq"), ALL),
    "opaque root": (file(b".wh..wh..opq") + file(b"n", b"new"), {"n": "'new'"}),
    "opaque root last": (file(b"d/n", b"new") + file(b".wh..wh..opq"), {"d": "dir", **NEW}),
    "opaque through a link": (file(b"l/.wh..wh..opq"), without("d/a", "d/e", "d/e/b")),
    # HL16
    "through a link": (file(b"l/.wh.a"), without("d/a")),
    "through a link, of what is new": (file(b"l/a", b"new") + file(b"d/.wh.a"), without(**{"d/a": "'new'"})),
    # HL17
    "that is a directory": (folder(b".wh.x"), without("x")),
    "that is a link": (symlink(b".wh.x", b"d"), without("x")),
    "that is a hard link": (hardlink(b".wh.x", b"d/a"), without("x")),
    "that is a FIFO": (fifo(b".wh.x"), without("x")),
    "with content": (file(b".wh.x", b"data" * 1000), without("x")),
    "as the name of a directory": (file(b".wh.d/f", b"new"), without(**{".wh.d": "dir", ".wh.d/f": "'new'"})),
    "almost": (file(b".wh", b"new") + file(b"x.wh.x", b"new"), without(**{".wh": "'new'", "x.wh.x": "'new'"})),
    # HL18
    "of AUFS": (file(b".wh..wh.aufs") + folder(b".wh..wh.orph") + file(b"d/.wh..wh.x"), ALL),
    "links of AUFS": (
        folder(b".wh..wh.plnk") + file(b".wh..wh.plnk/1.2", b"new") + hardlink(b"d/n", b".wh..wh.plnk/1.2")
        + hardlink(b"n", b".wh..wh.plnk/1.2"), without(**NEW, n="'new'")),
    "links of AUFS, opaque": (
        file(b".wh..wh.plnk/1.2", b"new") + hardlink(b"n", b".wh..wh.plnk/1.2") + file(b".wh..wh..opq"),
        {"n": "'new'"}),
    "links of AUFS that are none": (
        symlink(b".wh..wh.plnk", b"/d") + file(b".wh..wh.plnk/n", b"new"), without(**NEW)),
    "links of AUFS elsewhere": (folder(b"d/.wh..wh.plnk") + file(b"d/.wh..wh.plnk"), ALL),
}


@pytest.mark.parametrize("name", WHITEOUTS)
def test_whiteouts_hide_what_is_in_lower_layers_only(world: World, name: str) -> None:
    layer, expected = WHITEOUTS[name]
    assert world.build(LOWER, layer) == expected
    world.clear()
    assert world.build(b"", LOWER, b"", layer, b"") == expected


def test_in_the_lowest_layer_there_is_nothing_to_hide(world: World) -> None:
    for layer in (LOWER + file(b".wh.x") + file(b"d/.wh..wh..opq") + file(b".wh..wh..opq"),
                  file(b".wh.x") + file(b"d/.wh..wh..opq") + LOWER):
        assert world.build(layer) == ALL
        world.clear()


@pytest.mark.parametrize("name", ["", ".", ".."])
@pytest.mark.parametrize("place", ["", "d/", "y/"])
def test_a_whiteout_of_nothing_is_refused_and_hides_nothing(world: World, place: str, name: str) -> None:
    """HL15"""
    entry = (place + ".wh." + name).encode()
    with pytest.raises(InvalidDocument, match="a whiteout of nothing"):
        world.build(LOWER, file(entry))
    assert {path for path in shown(world.target) if not path.startswith(".minipull-")} == set(ALL)


def test_a_layer_may_undo_what_another_did_and_the_next_do_it_again(world: World) -> None:
    layers = [LOWER, file(b".wh.d"), LOWER, file(b"d/.wh..wh..opq") + file(b".wh.x"), file(b"d/e/b", b"low")]
    assert world.build(*layers) == without("d/a", "x")
    world.clear()
    assert world.build(*layers * 3) == without("d/a", "x")


def test_a_directory_keeps_its_time_when_something_in_it_is_hidden_or_added(world: World) -> None:
    world.build(folder(b"d", mtime=7) + file(b"d/a") + file(b"d/b") + folder(b"."),
                file(b"d/.wh.a") + file(b"d/c"))
    assert world.thing("d").mtime == 7 * SECOND and world.thing(".").mtime == MTIME * SECOND


# -- what a thing is like -----------------------------------------------------------

MODES = [0, 0o1, 0o400, 0o644, 0o666, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_modes_are_the_layers_whatever_the_umask(world: World, umask: int) -> None:
    """HL21: without root nothing runs as its owner, who would be another one."""
    needs_root()
    entries = b"".join(
        file(b"f%o" % mode, b"x", mode=mode, uid=1, gid=1) + folder(b"d%o" % mode, mode, uid=1, gid=1)
        + fifo(b"p%o" % mode, mode=mode, uid=1, gid=1) for mode in MODES)
    before = os.umask(umask)
    try:
        world.build(entries + file(b"new/f"))
    finally:
        os.umask(before)
    found = things(world.target)
    for mode in MODES:
        for kind in "fdp":
            assert found[b"%s%o" % (kind.encode(), mode)].mode == mode & (0o7777 if world.root else 0o1777)
    assert found[b"new"].mode == 0o755


def test_links_and_what_is_linked_have_the_mode_of_the_first(world: World) -> None:
    world.build(file(b"f", mode=0o640, mtime=5) + hardlink(b"h", b"f", mode=0o4777, uid=3, mtime=6))
    thing = world.thing("h")
    assert (thing.mode, thing.mtime, thing.uid) == (0o640, 5 * SECOND, world.owner[0])


def test_owners_are_the_layers_for_root_and_the_callers_for_others(world: World) -> None:
    owners = [(0, 0), (0, 5), (1000, 0), (1000, 1000), (2 ** 32 - 2, 2 ** 32 - 2)]
    world.build(b"".join(
        pax(uid=b"%d" % uid, gid=b"%d" % gid) + make(b"%s-%d-%d" % (make.__name__.encode(), uid, gid))
        for uid, gid in owners for make in (file, folder, fifo, lambda name: symlink(name, b"t"))))
    for name, thing in things(world.target).items():
        if name != b".":
            wanted = tuple(map(int, name.split(b"-")[1:]))
            assert (thing.uid, thing.gid) == (wanted if world.root else world.owner)


def test_a_group_that_the_target_passes_on_is_no_files(as_root: World) -> None:
    os.chown(str(as_root.target), 0, 7)
    as_root.target.chmod(0o2755)
    as_root.build(file(b"f") + folder(b"d") + file(b"d/f") + symlink(b"l", b"t") + fifo(b"p"))
    assert {thing.gid for name, thing in things(as_root.target).items() if name != b"."} == {0}


def test_times_are_the_layers_to_the_nanosecond(world: World) -> None:
    """HL23: those of a directory too, whatever came into it later."""
    stamp = pax(mtime=b"1500000000.123456789")
    world.build(stamp + folder(b"d") + stamp + file(b"d/f", b"x") + stamp + symlink(b"d/l", b"t") + stamp
                + fifo(b"d/p") + stamp + folder(b"."), file(b"d/g") + hardlink(b"d/h", b"d/f") + file(b"e/x"))
    for name in (".", "d", "d/f", "d/l", "d/p", "d/h"):
        assert world.thing(name).mtime == 1500000000123456789
    world.clear()
    far = {b"-1.5": -1500000000, b"-99999999999": -SECOND << 31, b"99999999999": SECOND << 33}
    world.build(b"".join(pax(mtime=text) + file(text) for text in far))
    for text, time in far.items():
        assert world.thing(text.decode()).mtime == time


# -- devices and attributes ------------------------------------------------------------

DEVICES = head(b"c", b"3", major=1, minor=3, mode=0o666) + head(b"b", b"4", major=8, minor=1, mode=0o660, uid=1)


def test_root_makes_devices(as_root: World) -> None:
    """HL20"""
    assert as_root.build(DEVICES) == {"c": "char", "b": "block"}
    assert as_root.thing("c").device == os.makedev(1, 3) and as_root.thing("c").mode == 0o666
    assert as_root.thing("b")[:3] == ("block", 0o660, 1) and as_root.warnings == []


def test_others_leave_devices_out_and_are_told_once(unprivileged: World) -> None:
    world = unprivileged
    lower = file(b"c") + file(b"d/x") + file(b"f")
    assert world.build(lower, DEVICES + head(b"d", b"4", major=8)) == {"f": "''"}
    assert world.warnings == ["devices are left out"]


def test_a_device_that_an_overlay_takes_for_a_whiteout_is_left_out(world: World) -> None:
    """HL19"""
    assert world.build(file(b"x"), head(b"x", b"3") + file(b"f") + file(b".wh.x")) == {"f": "''"}
    assert world.warnings == ["devices are left out"]


def test_a_root_that_may_not_make_devices_goes_on(as_root: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    assert as_root.build(file(b"b"), DEVICES + file(b"f")) == {"f": "''"}
    assert as_root.warnings == ["devices are left out: this root may not make them"]


def test_a_fifo_is_made_and_never_opened(world: World) -> None:
    assert world.build(fifo(b"p"), fifo(b"p") + fifo(b"q"), file(b".wh.q")) == {"p": "fifo"}


CAPABILITY = b"\x01\x00\x00\x02\x00\x20" + bytes(14)


def test_attributes_of_users_are_set_and_all_others_are_left_out_with_a_warning(world: World) -> None:
    """HL24"""
    def named(key: bytes, value: bytes = b"x") -> bytes:
        return record(b"SCHILY.xattr." + key, value)

    others = [b"trusted.overlay.opaque", b"security.selinux", b"system.posix_acl_access", b"nothing"]
    world.build(extended(named(b"user.a", b"1\0") + named(b"user.b", b"")) + file(b"f", b"x", mode=0o444)
                + xattrs(c=b"3") + folder(b"d")
                + extended(named(b"security.capability", CAPABILITY) + b"".join(map(named, others)))
                + file(b"g", b"x", mode=0o4755, uid=1))
    assert dict(world.thing("f").xattrs) == {"user.a": b"1\0", "user.b": b""}
    assert dict(world.thing("d").xattrs) == {"user.c": b"3"}
    assert dict(world.thing("g").xattrs) == ({"security.capability": CAPABILITY} if world.root else {})
    left = others if world.root else [b"security.capability", *others]
    told = [] if world.root else ["setuid and setgid bits are left out"]
    assert world.warnings == told + [
        "extended attributes such as %s are left out" % key.decode() for key in left]
    assert world.thing("f").mode == 0o444


def test_a_flood_of_attributes_is_warned_of_a_few_times(world: World) -> None:
    flood = b"".join(record(b"SCHILY.xattr.x%d" % n, b"") for n in range(10000))
    world.build(extended(flood) + file(b"f"), extended(flood) + folder(b"d"))
    assert len(world.warnings) == 20
    long = record(b"SCHILY.xattr.user.x", b"x" * 70000) + record(b"SCHILY.xattr.user." + b"x" * 300, b"")
    world.build(extended(long) + file(b"g"))
    assert world.warnings == ["extended attributes can't be set here"]
    assert world.thing("g").xattrs == ()


@pytest.mark.parametrize("error", [OSError(errno.ENOTSUP, "no"), PermissionError(errno.EPERM, "no"), None])
def test_a_file_system_without_attributes_is_told_of_once(
        as_root: World, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    """HL42; of some systems Python knows no attributes at all."""
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        if error is None:
            patch.delattr(os, "setxattr")
        else:
            patch.setattr(os, "setxattr", refuse)
        fd = os.open(str(as_root.target), os.O_RDONLY)
        root = RootFS(fd, UNLIMITED, as_root.warnings.append)
        for _ in range(2):
            root.apply(Reader(iter([xattrs(a=b"1") + file(b"f") + xattrs(a=b"1") + folder(b"d") + END])))
        root.close()
        os.close(fd)
    assert shown(as_root.target) == {"f": "''", "d": "dir"}
    assert as_root.warnings == ["extended attributes can't be set here"]


# -- what the disk says -------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "mkdir", "symlink", "mkfifo", "link", "chown", "utime", "write"])
def test_a_disk_that_fails_is_an_error_of_the_storage(
        as_root: World, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """HL08: a link that can't be made is not copied either."""
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EXDEV if call == "link" else errno.ENOSPC, "No room")

    fd = os.open(str(as_root.target), os.O_RDONLY)
    root = RootFS(fd, UNLIMITED, as_root.warnings.append)
    layer = (file(b"f", b"x", uid=1) + hardlink(b"h", b"f") + folder(b"d") + symlink(b"l", b"t") + fifo(b"p"))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(StorageError, match="^layer entry .*: No room$") as caught:
                root.apply(Reader(iter([layer + END])))
        assert caught.value.exit_code == 7
    finally:
        root.drop()
        os.close(fd)
    assert call != "link" or not (as_root.target / "h").exists()


def test_a_target_that_can_not_be_written_to_is_an_error_of_the_storage(unprivileged: World) -> None:
    unprivileged.target.chmod(0o555)
    with pytest.raises(StorageError, match="^unpack: Permission denied$"):
        unprivileged.build(file(b"f"))


def test_what_fails_at_the_end_is_an_error_of_the_storage(
        as_root: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    fd = os.open(str(as_root.target), os.O_RDONLY)
    root = RootFS(fd, UNLIMITED, as_root.warnings.append)
    root.apply(Reader(iter([folder(b"d") + END])))
    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(StorageError, match="^unpack: Read-only file system$"):
        root.close()
    root.drop()
    os.close(fd)


# -- bounds ------------------------------------------------------------------------


def test_data_is_counted_over_all_layers_once(world: World) -> None:
    layers = [file(b"a", b"x" * 600), file(b"a", b"y" * 400), hardlink(b"b", b"a") + file(b"c", b"")]
    assert set(world.build(*layers, limit=1000)) == {"a", "b", "c"}
    world.clear()
    with pytest.raises(PolicyError, match="^layer entry a: the image is larger than allowed; see --max-"):
        world.build(*layers, limit=999)
    assert world.thing("a").size == 600
    world.clear()
    with pytest.raises(PolicyError, match="larger than allowed"):  # before a byte of it is written
        world.build(head(b"bomb", size=base256(1 << 62, 12)))


def test_few_descriptors_do(base: Path) -> None:
    """RX08: 64 are enough for directories as wide and as deep as they come."""
    world = make_world(base, "root" if os.geteuid() == 0 else "nobody")
    layer = b"".join(folder(b"w/%d" % n) + file(b"w/%d/f" % n) for n in range(300))
    layer += folder(b"d/" * 300) + file(b"d/" * 300 + b"f") + file(b"d/" * 150 + b"e/" * 150 + b"f")

    def act() -> Dict[str, str]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        return world.build(layer, layer, file(b"d/d/.wh..wh..opq") + file(b"w/.wh..wh..opq") + folder(b"w/x"))

    assert in_child(act) == {"d": "dir", "d/d": "dir", "w": "dir", "w/x": "dir"}


def deep(parts: int, name: bytes) -> bytes:
    return pax(path=b"d/" * parts + name)


def test_deep_directories_are_made_and_removed(world: World) -> None:
    """RX12"""
    depth = MAX_NAME // 2 - 1
    world.apply(deep(depth, b"f") + file(b"f", b"x"), deep(depth, b"g") + file(b"g", b"x"))
    assert world.deepest() == depth
    world.clear()
    assert world.build(deep(depth, b"f") + file(b"f"), file(b".wh.d")) == {}
    assert world.build(deep(depth, b"f") + folder(b"f"), file(b".wh..wh..opq")) == {}
    assert world.build(deep(depth, b"f") + file(b"f"), file(b"d", b"x")) == {"d": "'x'"}


def test_directories_past_all_depth_are_refused(world: World) -> None:
    """HL38: by links one could nest them without end."""
    half = b"d/" * 1000
    layer = pax(path=half) + folder(b"x") + pax(linkpath=half) + symlink(b"l0", b"x")
    for n in range(50):
        layer += pax(path=b"l%d/%s" % (n, half)) + folder(b"x")
        layer += pax(linkpath=b"l%d/%s" % (n, half)) + symlink(b"l%d" % (n + 1), b"x")
    with pytest.raises(InvalidDocument, match="^layer entry l1/d.*: too deep$"):
        world.build(layer)


def test_many_files_are_hidden_at_once(world: World) -> None:
    """RX12"""
    lower = folder(b"d") + b"".join(file(b"d/%d" % n) for n in range(5000)) + b"".join(
        file(b"d/%d.d/f" % n) for n in range(500))
    assert world.build(lower, file(b"d/.wh..wh..opq")) == {"d": "dir"}
    assert world.build(lower, file(b"d/n") + file(b".wh.d")) == {"d": "dir", "d/n": "''"}


def test_many_links_to_one_file(world: World) -> None:
    """HL38"""
    world.build(file(b"f", b"x") + b"".join(hardlink(b"%d" % n, b"f") for n in range(5000)))
    assert world.thing("f").links == 5001


def test_ways_are_remembered_up_to_a_bound(world: World) -> None:
    assert len(world.build(b"".join(file(b"%d/f" % n) for n in range(5000)) + file(b"0/g"))) == 10001


# -- clear() -----------------------------------------------------------------------


def test_all_is_cleared_away_whatever_its_modes(world: World) -> None:
    world.apply(deep(500, b"f") + file(b"f") + folder(b"a/b/c", 0) + file(b"a/b/f", mode=0) + folder(b"a/b", 0)
                + folder(b"a", 0o500) + symlink(b"l", os.fsencode(world.victim)) + symlink(b"a/l", b"/")
                + fifo(b"p") + b"".join(folder(b"%d" % n, 0) for n in range(100)))
    world.clear()
    assert shown(world.target) == {}
