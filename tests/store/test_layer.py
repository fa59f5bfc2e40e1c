# SPDX-License-Identifier: Apache-2.0
"""Layer records: validated when read, rebuilt when torn, every blob of a layer remembered."""
import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from minipull.store.content import ContentStore
from minipull.image.descriptor import OCI_LAYER, Descriptor
from minipull.digest import ChainID, DiffID, Digest, Verifier
from minipull.errors import Cancelled, InvalidDocument, StorageError
from minipull.store.layer import Diff, Layer, LayerStore, parse_layer
from minipull.cancel import Cancel
from tests.kit.layers import chain_id
from tests.kit.stores import failing

DIFFS = [DiffID(Digest.of(b"tar %d" % n)) for n in range(3)]
BLOBS = [Descriptor(OCI_LAYER, Digest.of(b"blob %d" % n), 10 + n) for n in range(3)]
BASE, CHAIN = chain_id(DIFFS[:1]), chain_id(DIFFS[:2])


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path))


@pytest.fixture
def layers(tmp_path: Path, content: ContentStore) -> LayerStore:
    content.put(Digest.of(b""), b"")
    return LayerStore(str(tmp_path / "layers"), content.scratch, content)


# -- records -------------------------------------------------------------------


def test_a_chain_is_registered_bottom_first(layers: LayerStore) -> None:
    parent: Optional[ChainID] = None
    for position, (diff_id, blob) in enumerate(zip(DIFFS, BLOBS)):
        layer = layers.register(parent, Diff(diff_id), blob)
        assert layer == Layer(chain_id(DIFFS[:position + 1]), parent, Diff(diff_id),
                              ((blob.digest, blob.size),))
        assert layers.get(layer.chain_id) == layer
        parent = layer.chain_id


def test_one_layer_may_come_in_several_blobs(layers: LayerStore) -> None:
    for blob in BLOBS + BLOBS:
        layers.register(None, Diff(DIFFS[0]), blob)
    layer = layers.get(BASE)
    assert layer is not None and set(layer.blobs) == {(blob.digest, blob.size) for blob in BLOBS}


def test_registering_again_writes_nothing(layers: LayerStore) -> None:
    layers.register(None, Diff(DIFFS[0]), BLOBS[0])
    before = os.stat(layers.path(BASE))
    layers.register(None, Diff(DIFFS[0]), BLOBS[0])
    assert os.path.samestat(before, os.stat(layers.path(BASE)))


def test_a_layer_without_a_blob_is_not_recorded(layers: LayerStore) -> None:
    layer = layers.register(None, Diff(DIFFS[0], verified=False), None)
    assert layer == Layer(BASE, None, Diff(DIFFS[0], False), ()) and layers.get(BASE) is None
    known = layers.register(None, Diff(DIFFS[0]), BLOBS[0])
    assert layers.register(None, Diff(DIFFS[0], verified=False), None) == known


def test_a_layer_once_verified_stays_so(layers: LayerStore) -> None:
    assert not layers.register(None, Diff(DIFFS[0], verified=False), BLOBS[0]).diff.verified
    assert layers.register(None, Diff(DIFFS[0]), BLOBS[0]).diff.verified
    assert layers.register(None, Diff(DIFFS[0], verified=False), BLOBS[0]).diff.verified


def test_every_byte_of_a_record_has_a_meaning(layers: LayerStore) -> None:
    layers.register(BASE, Diff(DIFFS[1]), BLOBS[0])
    assert not set(b" \t\r\n") & set(Path(layers.path(CHAIN)).read_bytes())


RECORD: Dict[str, Any] = {"diff_id": DIFFS[1], "parent": BASE, "verified": True,
                          "blobs": [{"digest": BLOBS[0].digest, "size": 10}]}
UNSOUND: List[Any] = [
    dict(RECORD, diff_id=DIFFS[2]), dict(RECORD, parent=DIFFS[2]), dict(RECORD, parent=None),
    dict(RECORD, parent=""), dict(RECORD, parent=5), dict(RECORD, verified=1), dict(RECORD, verified=None),
    dict(RECORD, more=1), dict(RECORD, blobs={}), dict(RECORD, blobs=[5]), dict(RECORD, blobs=[{}]),
    dict(RECORD, blobs=[{"digest": "x", "size": 1}]), dict(RECORD, diff_id="sha256:0"),
    dict(RECORD, blobs=[{"digest": BLOBS[0].digest, "size": True}]),
    dict(RECORD, blobs=[{"digest": BLOBS[0].digest, "size": -1}]),
    {key: RECORD[key] for key in RECORD if key != "blobs"}, [], 5, None]


def test_a_sound_record_parses() -> None:
    layer = parse_layer(CHAIN, json.dumps(RECORD).encode())
    assert layer == Layer(CHAIN, BASE, Diff(DIFFS[1]), ((BLOBS[0].digest, 10),))


@pytest.mark.parametrize("data", [json.dumps(record).encode() for record in UNSOUND] + [
    b"", b"{", b"\xff", b"[" * 100000, b'{"a":1,"a":1}', b" " * (2 << 20)],
    ids=range(len(UNSOUND) + 6))
def test_an_unsound_record_is_none_and_is_replaced(layers: LayerStore, data: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse_layer(CHAIN, data)
    layer = layers.register(BASE, Diff(DIFFS[1]), BLOBS[0])
    Path(layers.path(CHAIN)).write_bytes(data)
    assert layers.get(CHAIN) is None
    assert layers.register(BASE, Diff(DIFFS[1]), BLOBS[0]) == layer == layers.get(CHAIN)


def test_a_record_of_another_chain_is_none(layers: LayerStore) -> None:
    layers.register(None, Diff(DIFFS[0]), BLOBS[0])
    os.rename(layers.path(BASE), layers.path(CHAIN))
    assert layers.get(CHAIN) is None


def test_a_full_disk_is_a_storage_error(layers: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space"):
        layers.register(None, Diff(DIFFS[0]), BLOBS[0])
    monkeypatch.undo()
    assert layers.get(BASE) is None


# -- DiffIDs -------------------------------------------------------------------

TAR = b"\0" * 1024 + bytes(range(256)) * 4000


@pytest.mark.parametrize("data", [
    TAR, gzip.compress(TAR), gzip.compress(TAR[:500]) + gzip.compress(TAR[500:])],
    ids=["plain", "gzip", "members"])
def test_the_diff_id_is_that_of_the_tar_stream(layers: LayerStore, content: ContentStore, data: bytes) -> None:
    blob = Digest.of(data)
    content.put(blob, data)
    raw = Verifier()
    seen: List[int] = []
    assert layers.diff(blob, Cancel(), raw, seen.append) == Diff(DiffID(Digest.of(TAR)))
    assert (raw.digest, seen[-1], seen) == (blob, len(data), sorted(seen))


def test_a_damaged_layer_has_no_diff_id(layers: LayerStore, content: ContentStore) -> None:
    data = gzip.compress(TAR)[:-5]
    content.put(Digest.of(data), data)
    with pytest.raises(InvalidDocument):
        layers.diff(Digest.of(data), Cancel())
    with pytest.raises(StorageError):
        layers.diff(BLOBS[0].digest, Cancel())


def test_a_disk_that_can_not_be_read_is_a_storage_error(
        layers: LayerStore, content: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    content.put(Digest.of(TAR), TAR)
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: real(path, os.O_WRONLY))  # which can't be read
    with pytest.raises(StorageError, match="read layer: Bad file descriptor"):
        layers.diff(Digest.of(TAR), Cancel())


def test_finding_a_diff_id_can_be_cancelled(layers: LayerStore, content: ContentStore) -> None:
    content.put(Digest.of(TAR), TAR)
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        layers.diff(Digest.of(TAR), cancel)
