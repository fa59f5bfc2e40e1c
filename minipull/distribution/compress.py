# SPDX-License-Identifier: Apache-2.0
"""Layers in zstd, and plain ones, become gzip on their way, for engines that know no zstd.

Configs and DiffIDs stay, and are verified before the new blob has a name.  The same
layer becomes the same bytes (as far as zlib is the same), with neither name nor time.
"""
import zlib
from typing import Dict, Optional, Set

from ..digest import DiffID, Digest, Verifier
from ..errors import ContentMismatch, file_errors
from ..image.config import ImageConfig
from ..image.descriptor import DOCKER_LAYER, DOCKER_TAR, OCI_LAYER, Descriptor
from ..image.manifest import Manifest, is_runnable
from ..parts import tempfile
from ..progress import Meter, Progress
from ..store.compression import decompressed
from ..store.ingest import Ingest
from ..store.store import MAX_CONFIG
from ..xfer.transfer import Transfer
from .convert import converted, without_zstd
from .ends import End, LayoutEnd
from .job import Copied, CopyDescriptor, CopyJob, Tally
from .places import Place

_GZIP = {OCI_LAYER: OCI_LAYER + "+gzip", OCI_LAYER + "+zstd": OCI_LAYER + "+gzip",
         DOCKER_TAR: DOCKER_LAYER, DOCKER_TAR + ".zstd": DOCKER_LAYER}


class GzipJob(CopyJob):
    """An image whose layers are to be gzip at the target."""

    def to(self, target: End, tag: str) -> Copied:
        whole = self._documents
        jobs: Dict[Digest, GzipDescriptor] = {}
        for document in whole:
            if isinstance(document, Manifest) and is_runnable(document):
                for layer, diff_id in self._config(document.config).paired(document.layers):
                    if layer.media_type in _GZIP and not layer.is_foreign:
                        job = GzipDescriptor(layer, self._source, target, self._tally, self._options.zstd)
                        jobs.setdefault(layer.digest, job).claims.add(diff_id)
        try:
            layers = self._uploads.upload(list(jobs.values()), self._output, self._cancel, target.holding)
            self._sent = {layer.digest for layer in layers}
            self._documents = converted(whole, self._options.format, self._output, dict(zip(jobs, layers)))
            return super().to(target, tag)
        finally:
            self._documents = whole
            self._uploads.transfers.settle("gzip:copy:%s" % self._source)  # then no temporary file is left

    def _config(self, config: Descriptor) -> ImageConfig:
        with self._source.reading(config, self._cancel) as read:
            raw = b"".join(read(0, min(config.size, MAX_CONFIG)).pieces())
        if Digest.of(raw, config.digest.algorithm) != config.digest:
            raise self._source.spoiled(config)
        return ImageConfig.parse(raw)


class GzipDescriptor(CopyDescriptor):
    """A layer to be sent as gzip; ``claims`` are the DiffIDs that configs have for it."""

    def __init__(self, blob: Descriptor, source: End, target: End, tally: Tally, zstd: Optional[str]) -> None:
        super().__init__(blob, source, target, tally, False)
        self.key = "gzip:%s %d" % (self.key, id(self))
        self.claims: Set[DiffID] = set()
        self._zstd = zstd

    def upload(self, transfer: Transfer) -> Descriptor:
        """Bring the layer to its target; returns its new descriptor."""
        blob = self.blob
        with file_errors("make a temporary directory"), tempfile.TemporaryDirectory() as folder:
            scratch = LayoutEnd(Place("oci", folder), None)
            scratch.store.lasting = False
            content = scratch.store.content
            self._source.fetch(blob, scratch.store, transfer)
            meter = Meter(transfer.progress, self.id, "Compressing", blob.size)
            verifier, packer = Verifier(), zlib.compressobj(6, wbits=31)
            with content.open(blob.digest) as file, Ingest(content, transfer.cancel, name="gzip") as ingest:
                for piece in decompressed(file, transfer.cancel, self._zstd):
                    verifier.update(piece)
                    ingest.write(packer.compress(piece))
                    meter.move(file.tell())
                for claim in self.claims - {verifier.digest}:
                    raise ContentMismatch("layer %s is %s, not %s as its config says" % (
                        blob.digest, verifier.digest, claim))
                ingest.write(packer.flush())
                made = Descriptor(_GZIP[blob.media_type], ingest.commit(settle=False), ingest.offset,
                                  annotations=without_zstd(blob.annotations))
            id = made.digest.short
            transfer.progress(Progress(id=id, action="Preparing", expected=made.size))
            transfer.progress(Progress(id=id, action=self._bring(made, scratch, transfer)))
        transfer.progress(Progress(id=self.id, action="Compressed to %s" % made.digest.short))
        return made
