# SPDX-License-Identifier: Apache-2.0
"""Archives compressed with bzip2 or xz, as docker and skopeo take them."""
import bz2
import gzip
import io
import lzma
import os
import sys
import tracemalloc
from pathlib import Path
from typing import BinaryIO, Callable, Dict, cast

import pytest

import minipull
from minipull.archive import stream
from minipull.archive.check import check_archive
from minipull.archive.load import load
from minipull.cancel import Cancel
from minipull.errors import InvalidDocument, PolicyError, Unsupported
from minipull.store import compression
from minipull.store.check import check
from minipull.store.compression import decompressed
from minipull.store.source import BUFFER
from minipull.store.store import Store
from tests.archive.test_bounds import Pipe
from tests.kit.archives import docker_members, pack
from tests.kit.images import Layout
from tests.kit.stores import text_layer

Pack = Callable[[bytes], bytes]
PACKS: Dict[str, Pack] = {
    "bzip2": bz2.compress, "xz": lzma.compress, "xz of most memory": lambda data: lzma.compress(data, preset=9),
    "bzip2 in many streams": lambda data: b"".join(bz2.compress(data[n:n + 999]) for n in range(0, len(data), 999)),
    "xz in many streams": lambda data: b"".join(
        lzma.compress(data[n:n + 999]) + bytes(4) for n in range(0, len(data), 999))}


def unpacked(data: bytes) -> bytes:
    file = cast(BinaryIO, stream.Pipe(cast(BinaryIO, io.BytesIO(data))))
    return b"".join(map(bytes, decompressed(file, Cancel(), source="archive", others=stream.DECODERS)))


@pytest.fixture
def archive(layout: Layout) -> bytes:
    return pack(docker_members(layout, {"busybox:latest": layout.image([text_layer("one")])}))


@pytest.mark.parametrize("way", PACKS)
def test_an_archive_compressed_with_bzip2_or_xz_is_loaded_checked_and_copied(
        way: str, archive: bytes, store: Store, path: Path, tmp_path: Path) -> None:
    path.write_bytes(PACKS[way](archive))
    assert check_archive(str(path), Cancel()) == []
    assert [image.name.familiar for image in load(str(path), store)] == ["busybox:latest"]
    minipull.copy("docker-archive:%s" % path, "oci:%s" % (tmp_path / "copy"))
    assert check(store) == []
    pipe = Pipe(iter([path.read_bytes()]))
    assert load(cast(BinaryIO, pipe), Store(str(tmp_path / "other")))


@pytest.mark.parametrize("way", ["bzip2", "xz"])
def test_damaged_archives_are_an_error_in_one_line(way: str, archive: bytes) -> None:
    data = PACKS[way](archive)
    assert unpacked(data) == unpacked(data + bytes(8)) == archive
    damaged = [data[:end] for end in (6, 20, len(data) // 2, len(data) - 1)]
    damaged += [data + b"garbage", data + bytes(8) + b"x", data[:9] + b"\xff\xff\xff" + data[12:],
                data[:-3] + b"\xff\xff\xff"]
    for each in damaged:
        with pytest.raises(InvalidDocument, match="^archive's %s stream is (damaged|cut short)" % way) as caught:
            unpacked(each)
        assert caught.value.exit_code == 6 and str(caught.value).isprintable()


@pytest.mark.parametrize("way", [*PACKS, "gzip"])
def test_a_file_is_read_to_its_checksum_though_its_tar_ends_before(
        way: str, archive: bytes, store: Store, path: Path) -> None:
    data = PACKS.get(way, gzip.compress)(archive)
    for damaged in (data.rstrip(b"\0")[:-1], data + b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(InvalidDocument, match="stream is (damaged|cut short)|garbage after"):
            load(str(path), store)
        assert store.references.all() == [] and os.listdir(store.content.scratch) == []


def test_a_disk_that_fails_is_not_the_archives_fault() -> None:
    class Failing(Pipe):
        def readinto(self, buffer: object) -> int:
            if self.taken:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer)

    file = cast(BinaryIO, stream.Pipe(cast(BinaryIO, Failing(iter([bz2.compress(os.urandom(99999))])))))
    with pytest.raises(minipull.StorageError, match="Input/output error"):
        list(decompressed(file, Cancel(), others=stream.DECODERS))


def test_xz_that_wants_too_much_memory_is_refused(archive: bytes) -> None:
    assert stream._MEMORY == 80 << 20
    with pytest.raises(PolicyError, match="^archive needs more than 80 MiB to unpack it$"):
        unpacked(lzma.compress(archive, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20}]))


@pytest.mark.parametrize("way", ["bzip2", "xz"])
def test_a_bomb_of_bzip2_or_xz_takes_little_memory_and_ends_soon(
        way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (compression.MAX_GROWTH, compression.FREE_GROWTH) == (1032, 4 << 30)
    monkeypatch.setattr(compression, "FREE_GROWTH", 8 << 20)
    bomb = PACKS[way](bytes(48 << 20))
    size = 0
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError, match="^archive grows from [0-9]+ to more than [0-9]+ bytes$"):
            file = cast(BinaryIO, stream.Pipe(cast(BinaryIO, io.BytesIO(bomb))))
            for piece in decompressed(file, Cancel(), source="archive", others=stream.DECODERS):
                size += len(piece)
        assert tracemalloc.get_traced_memory()[1] < 16 * BUFFER  # 8 of them for xz itself
    finally:
        tracemalloc.stop()
    assert size <= (8 << 20) + 1032 * len(bomb)


def test_a_python_without_the_module_names_the_remedy(
        archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for way, module in (("bzip2", "bz2"), ("xz", "lzma")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(Unsupported, match="^archive is compressed with %s, which this Python lacks: "
                                              "pipe it through %s -dc$" % (way, way)):
            unpacked(PACKS[way](archive))
