# SPDX-License-Identifier: Apache-2.0
"""Layers: the DiffID of a blob's tar stream, and the parents below it.

A layer is kept as the blob that it arrived as; its tar stream is that blob
decompressed, bit for bit.  The record of a layer, one JSON file for each ChainID,
is a cache: validated when it is read, and rebuilt where it is missing.

Mirrors moby's layer/ without mounts, tar-split and reference counts: the
store's shared lock keeps every layer in its place.
"""
import contextlib
import os
from typing import Callable, NamedTuple, Optional, Tuple

from .. import files
from ..cancel import Cancel
from ..digest import ChainID, DiffID, Digest, Verifier, next_chain_id
from ..errors import Error, InvalidDocument
from ..image.descriptor import Descriptor
from ..image.strictjson import compact, digest_at, int_at, objects_at, parse_json
from ..parts import part
from .source import BlobSource


class Diff(NamedTuple):
    """The name of a layer's tar stream; not ``verified`` if the config claims it and no decoder was there."""
    diff_id: DiffID
    verified: bool = True


class Layer(NamedTuple):
    """A layer on top of its parents, and every known blob of it: digest and size in bytes."""
    chain_id: ChainID
    parent: Optional[ChainID]
    diff: Diff
    blobs: Tuple[Tuple[Digest, int], ...]


class LayerSource:
    """The layers among some blobs.  ``zstd`` is the path of that program, if any."""

    def __init__(self, content: BlobSource, zstd: Optional[str] = None) -> None:
        self._content = content
        self.zstd = zstd

    def diff(self, blob: Digest, cancel: Cancel, raw: Optional[Verifier] = None,
             move: Callable[[int], None] = lambda position: None) -> Diff:
        """Decompress a blob to find its DiffID; ``move`` is told how many bytes are read so far.

        ``raw`` hashes the stored bytes.  Raises InvalidDocument for a damaged layer,
        Unsupported for zstd without a decoder, StorageError, Cancelled.
        """
        verifier = Verifier()
        with self._content.open(blob) as file:
            for piece in part("store.compression").decompressed(file, cancel, self.zstd, raw):
                verifier.update(piece)
                move(file.tell())
        return Diff(DiffID(verifier.digest))


class LayerStore(LayerSource):
    """Layer records of one root.  ``scratch`` is the directory for unfinished files."""

    def __init__(self, root: str, scratch: str, content: BlobSource, zstd: Optional[str] = None) -> None:
        super().__init__(content, zstd)
        self.root = root
        self._scratch = scratch

    def path(self, chain_id: ChainID) -> str:
        return os.path.join(self.root, chain_id.algorithm, chain_id.encoded)

    def get(self, chain_id: ChainID) -> Optional[Layer]:
        """Return the record of a layer, or None if it is missing or unsound."""
        with contextlib.suppress(Error):
            return parse_layer(chain_id, files.read_bytes(self.path(chain_id), 1 << 20) or b"")
        return None

    def register(self, parent: Optional[ChainID], diff: Diff, blob: Optional[Descriptor]) -> Layer:
        """Record that ``blob`` carries ``diff`` on top of ``parent``; nothing is written without a blob."""
        chain = next_chain_id(parent, diff.diff_id)
        before = self.get(chain)
        blobs = set(before.blobs) if before else set()
        if blob is not None:
            blobs.add((blob.digest, blob.size))
        verified = diff.verified or before is not None and before.diff.verified
        layer = Layer(chain, parent, Diff(diff.diff_id, verified), tuple(sorted(blobs)))
        if blob is not None and layer != before:
            self.write(layer)
        return layer

    def write(self, layer: Layer) -> None:
        path = self.path(layer.chain_id)
        files.make_directory(os.path.dirname(path))
        # Without blanks every byte has a meaning, so that check finds each one that flips.
        record = compact({
            "diff_id": layer.diff.diff_id, "parent": layer.parent, "verified": layer.diff.verified,
            "blobs": [{"digest": digest, "size": size} for digest, size in layer.blobs]})
        files.write_atomic(path, record, self._scratch, durable=False, settle=False)


def parse_layer(chain_id: ChainID, data: bytes) -> Layer:
    """Parse a record and compare it with the ChainID in its path; raises InvalidDocument."""
    source = "layer record"
    record = parse_json(data, source)
    verified = record.get("verified")
    if set(record) != {"diff_id", "parent", "verified", "blobs"} or not isinstance(verified, bool):
        raise InvalidDocument("not a layer record")
    diff = Diff(DiffID(digest_at(record, "diff_id", source)), verified)
    parent = None if record["parent"] is None else ChainID(digest_at(record, "parent", source))
    items = objects_at(record, "blobs", source)
    blobs = tuple((digest_at(item, "digest", source), int_at(item, "size", source)) for item in items)
    if chain_id != next_chain_id(parent, diff.diff_id):
        raise InvalidDocument("layer record belongs to another ChainID")
    return Layer(chain_id, parent, diff, blobs)
