# SPDX-License-Identifier: Apache-2.0
"""The tree on disk and the overlay in memory are one on 3,000 random stacks of layers, and refuse the same."""
import os
import random
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from minipull.errors import InvalidDocument
from minipull.image.tar import Entry, Reader
from minipull.rootfs.overlay import POSITION, Overlay
from minipull.rootfs.rootfs import RootFS
from tests.kit.layers import END, fast_folder, file, folder, hardlink, head, needs_root, symlink

FIFO, DEVICE, FOLDER, DATA, LINKED = 1, 2, 4, 8, 10  # st_mode >> 12
#: By path: the kind, and the data and number of names of a file or the target of a link.
Tree = Dict[bytes, Tuple[int, bytes, int]]
NAMES = [b"a", b"b", b"c", b"a/b", b"a/c", b"b/a", b"b/c", b"a/b/c", b"c/a/b", b"../a", b"a/../b/d", b".wh..wh.plnk/1"]
MARKERS = [b".wh.a", b".wh.b", b".wh..wh..opq", b"a/.wh.b", b"a/.wh..wh..opq", b"b/.wh.c", b"a/b/.wh.c", b"c/.wh..wh..opq"]
TARGETS = [b"a", b"/b", b"../c", b"b/c", b"a/b", b"/no", b"."]


def layer(rng: random.Random) -> bytes:
    entries = b""
    for _ in range(rng.randrange(1, 6)):
        name, kind = rng.choice(NAMES), rng.randrange(9)
        if kind < 3:
            entries += file(name, b"%d" % rng.randrange(1000))
        elif kind < 5:
            entries += folder(name)
        elif kind == 5:
            entries += symlink(name, rng.choice(TARGETS))
        elif kind == 6:
            entries += hardlink(name, rng.choice(NAMES)) if rng.random() < .4 else head(name, b"6")
        elif kind == 7:
            entries += head(name, b"3", minor=rng.randrange(2))
        else:
            entries += file(rng.choice(MARKERS))
    return entries + END


def on_disk(base: Path, layers: List[bytes]) -> Optional[Tree]:
    base.mkdir()
    fd = os.open(str(base), os.O_RDONLY)
    root = RootFS(fd, 1 << 30, lambda text: None)
    try:
        for data in layers:
            root.apply(Reader(iter([data])))
        root.close()
    except InvalidDocument:
        return None
    finally:
        root.drop()
        os.close(fd)
    top = os.fsencode(str(base))
    tree: Tree = {}
    for path, folders, files in os.walk(top):
        for name in folders + files:
            full = os.path.join(path, name)
            status = os.lstat(full)
            kind = status.st_mode >> 12
            data = os.readlink(full) if kind == LINKED else Path(os.fsdecode(full)).read_bytes() if kind == DATA else b""
            tree[os.path.relpath(full, top)] = kind, data, status.st_nlink if kind == DATA else 0
    return tree


def in_memory(layers: List[bytes]) -> Optional[Tree]:
    overlay, texts = Overlay(), {}
    try:
        for number, data in enumerate(layers):
            reader = Reader(iter([data]))
            for position, entry in enumerate(reader):
                texts[number, position] = b"".join(map(bytes, reader.data()))
                overlay.add(number, position, entry)
            overlay.finish_layer()
    except InvalidDocument:
        return None
    kinds = {b"2": LINKED, b"3": DEVICE, b"6": FIFO}
    things = dict(overlay.walk())
    tree: Tree = {}
    for path, thing in things.items():
        if isinstance(thing, int):
            text = texts[thing >> POSITION, thing & (1 << POSITION) - 1]
            tree[path] = DATA, text, list(things.values()).count(thing)
        elif isinstance(thing, Entry):
            tree[path] = kinds[thing.kind], thing.linkname if thing.kind == b"2" else b"", 0
        elif path:
            tree[path] = FOLDER, b"", 0
    return tree


def test_the_tree_on_disk_is_the_one_in_memory_and_both_refuse_the_same_layers() -> None:
    needs_root()
    refused = 0
    with fast_folder() as base:
        for seed in range(3000):
            rng = random.Random(seed)
            layers = [layer(rng) for _ in range(rng.randrange(1, 5))]
            tree = on_disk(base / str(seed), layers)
            assert tree == in_memory(layers), "seed %d" % seed
            refused += tree is None
    assert 300 < refused < 1500
