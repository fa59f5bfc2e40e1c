# SPDX-License-Identifier: Apache-2.0
"""Sparse files, owners that no system has, and a layer's whole stream: how much may come of a small layer."""
import gzip
import os
from typing import Callable, Dict, List

import pytest

from minipull.cancel import Cancel
from minipull.errors import InvalidDocument, PolicyError
from minipull.image.tar import Reader
from minipull.progress import Progress
from minipull.rootfs import flatten
from minipull.rootfs.flatten import Flattened
from minipull.rootfs.layers import layers_of
from minipull.store.store import Store
from tests.kit.images import Spec
from tests.kit.layers import BLOCK, END, base256, extended, file, needs_root, pax, record, sparse
from tests.kit.places import NAME, Place, packed

MEGABYTE = 1 << 20
EXTENTS = [(MEGABYTE, b"abc" * 1000), (3 * MEGABYTE, b"x" * 70000)]
SIZE = 9 * MEGABYTE + 1
VERSIONS = ["0.0", "0.1", "1.0"]


def expanded() -> bytes:
    data = bytearray(SIZE)
    for offset, piece in EXTENTS:
        data[offset:offset + len(piece)] = piece
    return bytes(data)


def flattened(place: Place, seen: List[Progress]) -> Flattened:
    store = Store(str(place.root))
    return Flattened(store, layers_of(store.image(NAME), store), seen.append, Cancel())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sparse_file_is_unpacked_with_its_holes(place: Place, version: str) -> None:
    place.set(packed(sparse(version, SIZE, EXTENTS) + file(b"g", b"next") + END))
    place.unpack()
    assert (place.target / "f").read_bytes() == expanded()
    assert (place.target / "g").read_bytes() == b"next"
    assert (place.target / "f").stat().st_blocks * 512 < MEGABYTE


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sparse_file_is_exported_and_shown_as_a_whole_one(place: Place, version: str) -> None:
    place.set(packed(sparse(version, SIZE, EXTENTS) + END))
    flat = flattened(place, [])
    reader = Reader(iter([b"".join(map(bytes, flat.tar()))]))
    assert [(entry.name, entry.size, b"".join(map(bytes, reader.data())) == expanded()) for entry in reader] == [
        (b"f", SIZE, True)]
    assert b"".join(map(bytes, flat.file("f"))) == expanded()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sparse_file_counts_with_its_holes(
        place: Place, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place.set(packed(sparse(version, 1 << 58, EXTENTS) + END))
    with pytest.raises(PolicyError, match="layer entry f: the image is larger than allowed; see --max-unpacked$"):
        place.unpack()
    assert flatten.MAX_HOLES == 64 << 30
    with pytest.raises(PolicyError, match="holes of more than %d bytes" % (64 << 30)):
        flattened(place, [])
    monkeypatch.setattr(flatten, "MAX_HOLES", 3 * MEGABYTE)
    half = packed(sparse(version, 2 * MEGABYTE, []) + END)
    place.set(half)
    flattened(place, [])
    place.set(half, packed(sparse(version, 2 * MEGABYTE, [(0, b"x")]) + END))
    with pytest.raises(PolicyError, match="holes of more"):
        flattened(place, [])


def test_a_map_that_is_wrong_is_refused_by_unpack_and_export(place: Place) -> None:
    place.set(packed(sparse("1.0", 10, [(0, b"ab"), (1, b"cd")]) + END))
    for act in (place.unpack, lambda: flattened(place, [])):
        with pytest.raises(InvalidDocument, match="sparse file 'f' is not what its map says"):
            act()


def test_owners_that_no_system_has_are_nobodys_and_one_warning_for_each_layer_says_so(place: Place) -> None:
    needs_root()
    place.set(packed(pax(uid=b"-1") + file(b"a", gid=3) + file(b"b", gid=base256(1 << 40, 8)) + END),
              packed(file(b"c", uid=5) + END), packed(pax(uid=b"9" * 30, gid=b"-5") + file(b"d") + END))
    seen: List[Progress] = []
    place.unpack(progress=seen.append)
    owners = {name: (status.st_uid, status.st_gid) for name in "abcd"
              for status in [(place.target / name).stat()]}
    assert owners == {"a": (65534, 3), "b": (0, 65534), "c": (5, 0), "d": (65534, 65534)}
    exported: List[Progress] = []
    flat = flattened(place, exported)
    assert sorted((entry.name, entry.uid) for entry in Reader(iter([b"".join(map(bytes, flat.tar()))]))) == [
        (b"a", 65534), (b"b", 0), (b"c", 5), (b"d", 65534)]
    for events in (seen, exported):
        assert [event.message for event in events if event.message] == [
            "warning: layer %s: %d owners are out of range, and are 65534 instead" % (
                place.image.layers[number].descriptor["digest"][7:19], count) for number, count in ((0, 2), (2, 1))]


# -- the whole stream ------------------------------------------------------------

F = file(b"f", b"x")
STREAMS: Dict[str, Callable[[], bytes]] = {
    "zeros behind the end": lambda: gzip.compress(F + END + bytes(4 * MEGABYTE)),
    "garbage behind the end": lambda: gzip.compress(F + END + b"x" * (4 * MEGABYTE)),
    "members behind the end": lambda: gzip.compress(F + END) + gzip.compress(bytes(MEGABYTE)) * 4,
    "zeros behind the end, as they are": lambda: F + END + bytes(4 * MEGABYTE),
    "comments": lambda: gzip.compress((extended(record(b"comment", b"x" * 500000)) + F) * 8 + END),
    "headers": lambda: gzip.compress(file(b"f") * (4 * MEGABYTE // BLOCK) + END),
    "whiteouts with data": lambda: gzip.compress(file(b".wh.a", bytes(4 * MEGABYTE)) + END)}


@pytest.mark.parametrize("name", STREAMS)
def test_the_whole_stream_of_a_layer_counts(place: Place, name: str) -> None:
    data = STREAMS[name]()
    place.set(Spec(raw=data) if data.startswith(b"\x1f\x8b") else Spec(raw=data, compression=""))
    with pytest.raises(PolicyError, match="the image is larger than allowed; see --max-unpacked$") as caught:
        place.unpack(max_unpacked=MEGABYTE)
    assert caught.value.exit_code == 9 and os.listdir(str(place.parent)) == []
    place.unpack(max_unpacked=5 * MEGABYTE)


def test_a_record_of_padding_counts_for_nothing(place: Place) -> None:
    place.set(packed(file(b"f", b"x" * 6000) + bytes(20 * BLOCK)))
    place.unpack(max_unpacked=6000)
