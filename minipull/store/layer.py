# SPDX-License-Identifier: Apache-2.0
"""Layers: a blob, what its tar stream is called, and what it lies on.

A layer is kept as the blob that it arrived as; its tar stream is that blob
decompressed, bit for bit.  What is recorded beside it, one JSON file a
ChainID, is a cache: validated when read, rebuilt by whoever needs it.

Mirrors moby's layer/ without mounts, tar-split and reference counts: the
store's shared lock is what keeps a layer.
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
from .compression import decompressed
from .content import BlobSource


class Diff(NamedTuple):
    """The name of a layer's tar stream.

    ``verified`` is False where nobody could decompress the blob and the
    image's config was taken at its word.
    """
    diff_id: DiffID
    verified: bool = True


class Layer(NamedTuple):
    """One layer on top of its parents, and every blob known to carry it."""
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
             advance: Callable[[int], None] = lambda count: None) -> Diff:
        """Decompress a stored blob to find its DiffID.

        ``raw`` sees the stored bytes, ``advance`` is told how many were read.
        Raises InvalidDocument for a damaged layer, Unsupported for zstd without
        a decoder, StorageError, Cancelled.
        """
        verifier = Verifier()
        with self._content.open(blob) as file:
            position = 0
            for piece in decompressed(file, cancel, self.zstd, raw):
                verifier.update(piece)
                advance(file.tell() - position)
                position = file.tell()
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
        """The record of a layer, or None if there is none that is sound."""
        with contextlib.suppress(Error):
            return parse_layer(chain_id, files.read_bytes(self.path(chain_id), 1 << 20) or b"")
        return None

    def register(self, parent: Optional[ChainID], diff: Diff, blob: Optional[Descriptor]) -> Layer:
        """Record that ``blob`` carries ``diff`` on top of ``parent``.

        Without a blob (it is a foreign layer's, say) only what is known by now
        is said.
        """
        chain = ChainID(diff.diff_id) if parent is None else next_chain_id(parent, diff.diff_id)
        known = self.get(chain)
        blobs = set(known.blobs) if known else set()
        if blob is not None:
            blobs.add((blob.digest, blob.size))
        verified = diff.verified or known is not None and known.diff.verified
        layer = Layer(chain, parent, Diff(diff.diff_id, verified), tuple(sorted(blobs)))
        if blob is not None and layer != known:
            self.write(layer)
        return layer

    def write(self, layer: Layer) -> None:
        path = self.path(layer.chain_id)
        files.make_directory(os.path.dirname(path))
        record = {
            "diff_id": layer.diff.diff_id,
            "parent": layer.parent,
            "verified": layer.diff.verified,
            "blobs": [{"digest": digest, "size": size} for digest, size in layer.blobs]}
        # Without blanks, every byte tells something: check sees each one that flips.
        data = compact(record)
        files.write_atomic(path, data, self._scratch, durable=False)


def parse_layer(chain_id: ChainID, data: bytes) -> Layer:
    """Validate a record against the name that it lies under; raises InvalidDocument."""
    what = "layer record"
    record = parse_json(data, what)
    verified = record.get("verified")
    if set(record) != {"diff_id", "parent", "verified", "blobs"} or not isinstance(verified, bool):
        raise InvalidDocument("not a layer record")
    diff = Diff(DiffID(digest_at(record, "diff_id", what)), verified)
    parent = None if record["parent"] is None else ChainID(digest_at(record, "parent", what))
    items = objects_at(record, "blobs", what)
    blobs = tuple((digest_at(item, "digest", what), int_at(item, "size", what)) for item in items)
    if chain_id != (next_chain_id(parent, diff.diff_id) if parent else diff.diff_id):
        raise InvalidDocument("layer record belongs to another ChainID")
    return Layer(chain_id, parent, diff, blobs)
