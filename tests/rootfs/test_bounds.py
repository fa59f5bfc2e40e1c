# SPDX-License-Identifier: Apache-2.0
"""What is kept of layers is bounded in all, and its time is linear in what came in."""
import os
import tracemalloc
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

from minipull.errors import PolicyError
from minipull.image.tar import Reader
from minipull.rootfs import overlay
from minipull.rootfs.overlay import Folder, Overlay, path_of
from minipull.rootfs.rootfs import RootFS, clear
from tests.kit.layers import file, folder, hardlink, pax, symlink, xattrs

DEEP = b"x/" * 500
#: By what they fill a memory with: streams without an end, each entry of which is small once compressed.
FLOODS = {
    "attributes of directories": lambda n: xattrs(a=bytes(1 << 19), b=bytes(1 << 18)) + folder(b"%d" % n),
    "attributes of links": lambda n: xattrs(a=bytes(1 << 19), b=bytes(1 << 18)) + symlink(b"%d" % n, b"x"),
    "attributes of one directory again and again": lambda n: xattrs(a=bytes(1 << 19)) + folder(b"d"),
    "targets of links": lambda n: pax(linkpath=b"%04d" % n * 1000) + symlink(b"%d" % n, b"x"),
    "names of owners": lambda n: pax(uname=b"%04d" % n * 10000) + folder(b"%d" % n),
    "directories that are only named": lambda n: pax(path=b"%d/" % n + DEEP) + file(b"x"),
    "long names": lambda n: pax(path=b"/".join([b"%07d" % n * 35] * 16)) + file(b"x")}


def lie(tree: Overlay, number: int, layer: Iterator[bytes]) -> None:
    for position, entry in enumerate(Reader(layer)):
        tree.add(number, position, entry)
    tree.finish_layer()


@pytest.mark.parametrize("flood", list(FLOODS.values()), ids=list(FLOODS))
def test_what_is_kept_of_layers_has_one_bound(
        flood: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    assert overlay.MAX_KEPT == 32 << 20
    monkeypatch.setattr(overlay, "MAX_KEPT", 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError, match="names, links and attributes of more than %d bytes" % (1 << 20)):
            lie(Overlay(), 0, (flood(n) for n in range(300000)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


#: And streams of entries that have next to no text.
EMPTY: Dict[str, Callable[[int], bytes]] = {
    "files": lambda n: file(b"%d" % n),
    "directories": lambda n: folder(b"%d" % n),
    "directories that are only named": lambda n: file(b"%d/x" % n),
    "links": lambda n: symlink(b"%d" % n, b"x")}


@pytest.mark.parametrize("flood", list(EMPTY.values()), ids=list(EMPTY))
def test_what_entries_take_has_one_bound_however_short_they_are(
        flood: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    assert overlay.MAX_MEMORY == 256 << 20
    monkeypatch.setattr(overlay, "MAX_MEMORY", 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError, match="take more than %d bytes of memory" % (1 << 20)):
            lie(Overlay(), 0, (flood(n) for n in range(300000)))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_unpack_keeps_little_more_of_a_file_than_its_name(tmp_path: Path) -> None:
    fd, count = os.open(str(tmp_path), os.O_RDONLY), 5000
    root = RootFS(fd, 1 << 20, lambda text: None)
    tracemalloc.start()
    try:
        root.apply(Reader(file(b"%d/file-%d" % (n // 100, n)) for n in range(count)))
        assert tracemalloc.get_traced_memory()[0] < 120 * count, "150 with a number for each"
    finally:
        tracemalloc.stop()
        root.close()
        os.close(fd)
    assert len(list(tmp_path.glob("*/*"))) == count


def test_files_of_any_number_of_attributes_take_none_of_the_bound() -> None:
    tree = Overlay()
    lie(tree, 0, (xattrs(a=bytes(1 << 19)) + file(b"%d" % n) for n in range(200)))
    assert sum(isinstance(thing, int) for _, thing in tree.walk()) == 200


def test_deep_paths_are_not_kept_once_for_each_directory_on_them() -> None:
    tree = Overlay()
    lie(tree, 0, (pax(path=b"%d/" % n + DEEP + b"f") + file(b"x") for n in range(4)))
    tracemalloc.start()
    try:
        trails = [trail for trail, _ in tree.walk()]
        assert tracemalloc.get_traced_memory()[1] < 200 * len(trails) and len(trails) > 4 * 500
    finally:
        tracemalloc.stop()
    assert max(map(len, map(path_of, trails))) == len(b"3/" + DEEP + b"f")


@pytest.mark.parametrize("entry", [
    lambda n: file(b"l%d/f" % (n % 2)), lambda n: file(b"l%d/.wh.f" % (n % 2)),
    lambda n: file(b"f") + hardlink(b"h", b"l0/f")], ids=["files", "whiteouts", "hard links"])
def test_the_steps_through_links_have_one_bound_however_small_the_entries(
        entry: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    assert overlay.MAX_STEPS <= 10 ** 7, "a few seconds"
    monkeypatch.setattr(overlay, "MAX_STEPS", 10 ** 6)
    links = [pax(linkpath=b"a/../" * 800 + (b"l%d" % (n + 1) if n < 99 else b"a")) + symlink(b"l%d" % n, b"x")
             for n in range(100)]
    tree = Overlay()
    lie(tree, 0, iter([folder(b"a"), file(b"a/f"), *links, *map(entry, range(3))]))
    with pytest.raises(PolicyError, match="links that lead over more than 1000000 names in all"):
        lie(tree, 1, map(entry, range(10)))


def test_the_links_of_a_large_distribution_come_nowhere_near_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of 118,000 files, all through a link and none beside the one before, in a hundredth of the bound."""
    monkeypatch.setattr(overlay, "MAX_STEPS", overlay.MAX_STEPS // 100)
    tree = Overlay()
    lie(tree, 0, iter([folder(b"usr/lib/%d" % n) for n in range(2)] + [symlink(b"lib", b"usr/lib")]))
    lie(tree, 1, (file(b"lib/%d/f" % (n % 2)) for n in range(11800)))


@pytest.mark.parametrize("deeper", [b"", b"/y"], ids=["beside each other", "each with one below"])
def test_a_deep_directory_is_walked_to_once_for_many_in_it(
        deeper: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of them: of 4,000 that lie 1,990 deep that is eight million."""
    opened, depth, count, real = [0], 300, 500, os.open

    def counted(*args: Any, **kwargs: Any) -> int:
        opened[0] += 1
        return real(*args, **kwargs)

    fd = os.open(str(tmp_path), os.O_RDONLY)
    root = RootFS(fd, 0, lambda text: None)
    try:
        entries = [symlink(b"s", b"d/" * depth), *(
            folder(b"s/%d" % n) + folder(b"s/%d%s" % (n, deeper)) for n in range(count))]
        root.apply(Reader(iter(entries)))
        monkeypatch.setattr(os, "open", counted)
        root.close()
        assert opened[0] < 3 * depth + 4 * count
    finally:
        monkeypatch.undo()
        clear(str(tmp_path))
        os.close(fd)


class Counted(Dict[bytes, Any]):
    """A directory's names; counts how many of them were looked through."""
    looked = 0

    def __iter__(self) -> Iterator[bytes]:
        Counted.looked += len(self)
        return super().__iter__()

    def items(self) -> Any:
        Counted.looked += len(self)
        return super().items()


@pytest.mark.parametrize("marker", [b"d/.wh..wh..opq", b".wh.d", b".wh..wh..opq"])
def test_the_time_of_whiteouts_is_linear_however_many_hide_nothing(
        marker: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class CountedFolder(Folder):
        def __init__(self) -> None:
            super().__init__()
            self.names = Counted()

    monkeypatch.setattr(overlay, "Folder", CountedFolder)
    monkeypatch.setattr(Counted, "looked", 0)
    tree, count = Overlay(), 500
    lie(tree, 0, iter([file(b"d/old"), file(b"gone")]))
    lie(tree, 1, (file(b"d/%d" % n) + file(marker) for n in range(count)))
    assert Counted.looked < 4 * count, "not once for each marker"
    names = [path_of(trail) for trail, _ in tree.walk()]
    assert len(names) >= count + 2 and b"d/old" not in names


def test_a_whiteout_in_a_later_layer_hides_what_an_earlier_one_kept() -> None:
    tree = Overlay()
    for number, layer in enumerate((file(b"d/a"), file(b"d/b") + file(b"d/.wh..wh..opq"),
                                    file(b"d/c") + file(b"d/.wh..wh..opq"))):
        lie(tree, number, iter([layer]))
    assert [path_of(trail) for trail, _ in tree.walk()] == [b"", b"d", b"d/c"]


def test_a_walk_holds_no_more_than_the_names_of_the_directories_above() -> None:
    tree = Overlay()
    lie(tree, 0, (file(b"d/%d" % n) for n in range(50000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in tree.walk()) == 50002
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
