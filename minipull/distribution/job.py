# SPDX-License-Identifier: Apache-2.0
"""A copy job: one image on its way from end to end.

Blobs are copied first, then the manifests, children before their index, and the
name last.  Blobs that the target has are not sent.

Layers in zstd, and plain ones, may become gzip on their way, for engines that know no
zstd.  Configs and DiffIDs stay, and are verified before the new blob has a name.  The same
layer becomes the same bytes (as far as zlib is the same), with neither name nor time.

Mirrors skopeo's copy; moby has none.  Spec: image-spec.
"""
import sys
import zlib
from typing import Any, Container, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from ..cancel import Cancel
from ..digest import DiffID, Digest, Verifier
from ..errors import ContentMismatch, Error, NotFound, file_errors
from ..image.config import ImageConfig
from ..image.descriptor import DOCKER_LAYER, DOCKER_TAR, INDEX_TYPES, OCI_LAYER, Descriptor, select
from ..image.manifest import Document, Index, Manifest, is_runnable
from ..image.platform import Platform
from ..image.signature import Key, first_good
from ..image.walk import Bounds, Seen, walk
from ..parts import tempfile
from ..progress import Meter, Output, Progress, discard
from ..registry.v2 import Received
from ..store.compression import decompressed
from ..store.ingest import Ingest
from ..store.store import MAX_CONFIG
from ..xfer.transfer import Transfer
from ..xfer.upload import LayerUploadManager, UploadDescriptor
from .blobs import moved_as_manifest
from .convert import converted, rewritten, without_zstd
from .documents import Ahead, Held, put_below
from .ends import End, LayoutEnd, RegistryEnd, beside
from .places import Place
from .referrers import Referrers

Sizes = Dict[Digest, int]  # of blobs, in bytes
_MOVED, _THERE, _MOUNTED = range(3)
_KINDS = {"Layer": _THERE, "Mounted": _MOUNTED}  # by the first word of a result
_ATTESTED = "vnd.docker.reference.digest"
_GZIP = {OCI_LAYER: OCI_LAYER + "+gzip", OCI_LAYER + "+zstd": OCI_LAYER + "+gzip",
         DOCKER_TAR: DOCKER_LAYER, DOCKER_TAR + ".zstd": DOCKER_LAYER}


class Options(NamedTuple):
    """The parts of an image to copy, and the way to copy it."""
    platforms: Sequence[Platform] = ()  # of an index; all of it if there are none
    format: str = ""  # "oci" or "docker"; as it is if empty
    referrers: bool = False  # signatures and attestations as well
    chunk_size: int = 0  # bytes, the most that one request brings
    foreign: bool = False  # foreign layers as well, as far as the source has them
    compress: str = ""  # "gzip" for layers in zstd and plain ones
    keys: Sequence[Key] = ()  # if there are any, one must have signed the image or its index
    covered: Container[str] = ()  # digests of which that is known
    zstd: Optional[str] = None  # the path of that program
    dry_run: bool = False  # ask, but send and write nothing
    no_clobber: bool = False  # let an image alone whose name the target has
    keep_going: bool = False  # after an image that failed


class Copied(NamedTuple):
    """The manifest of an image at the target, and its digest at the source."""
    descriptor: Descriptor
    source: Digest


class Outcome(NamedTuple):
    """The end of one image: ``result`` is copied, would copy, there (so it was let alone) or failed."""
    source: Place
    target: Place
    result: str
    sizes: Tuple[Sizes, Sizes, Sizes] = ({}, {}, {})  # of what moved, was there, was mounted
    digest: Optional[Digest] = None  # at the target
    copied: Optional[Copied] = None
    error: Optional[Error] = None
    covered: Container[str] = ()  # digests, by signatures that have been verified with all of its source


class Tally:
    """The repositories that have a blob, and what the present image took."""

    def __init__(self) -> None:
        self._known: Dict[Tuple[object, ...], Dict[str, bool]] = {}  # by digest and size
        self._sizes: Tuple[Sizes, Sizes, Sizes] = ({}, {}, {})

    def known(self, blob: Descriptor) -> Dict[str, bool]:
        """Return the repositories that have a blob, and whether this command brought it there."""
        return self._known.get(blob[1:3], {})

    def add(self, blob: Descriptor, path: str, result: str) -> None:
        """Note what became of a blob at the repository ``path``."""
        word = result.partition(" ")[0]
        if word != "Skipped":
            kind = _KINDS.get(word, _MOVED)
            self._sizes[kind][blob.digest] = blob.size
            self._known.setdefault(blob[1:3], {}).setdefault(path, kind != _THERE)

    def sizes(self) -> Tuple[Sizes, Sizes, Sizes]:
        """Return what the present image took, and begin with the next."""
        sizes, self._sizes = self._sizes, ({}, {}, {})
        return sizes


class CopyJob:
    """An image to be copied; its manifests are read before anything is written."""
    _sent: Container[Digest] = ()  # layers that the target has already

    def __init__(self, source: End, reference: str, options: Options, uploads: LayerUploadManager,
                 output: Output, cancel: Cancel, tally: Tally) -> None:
        self._source = source
        self._reference = reference
        self._tally = tally
        self._options = options
        self._uploads = uploads
        self._output = output
        self._cancel = cancel
        top = source.get(reference, cancel).document()
        self._top = top.digest
        filtered = self._filtered(top)
        if options.keys and top.digest not in options.covered:
            signatures = source.signatures(cancel).of([top.digest, filtered.digest], options.keys)
            output(Progress(message=str(first_good(signatures, options.keys))))
        self._documents = self._below(filtered, set(), Bounds())
        if options.format and not options.compress:
            self._documents = converted(self._documents, options.format, output)

    def to(self, target: End, tag: str) -> Copied:
        """Copy the image to ``target``; its name, a tag or a digest, comes last."""
        self._target = target
        documents, top = self._documents, self._documents.top
        if isinstance(tag, Digest) and Digest.of(top.raw, tag.algorithm) != tag:
            raise ContentMismatch("the image is %s, not %s" % (top.digest, tag))
        config = next((document.config for document in documents if isinstance(document, Manifest)), None)
        if config is not None:
            # One request alone first, so that the others find the connection and a token.
            target.has(config, self._cancel)
        self._blobs(documents)
        self._put(documents)
        if self._options.referrers:
            sent: Seen = {document.descriptor[:3] for document in documents}
            bounds = Bounds(sys.maxsize)  # of referrers there may be many; their bytes have one bound
            referrers = Referrers(
                beside(self._source, self._reference), beside(target, tag),
                lambda document: self._send_below(document, sent, bounds), self._cancel,
                bool(self._options.keys))
            referrers.copy([document.digest for document in documents])
        target.tag(tag, top, self._cancel)
        return Copied(top.descriptor, self._top)

    def _get(self, entry: Descriptor) -> Document:
        return (Received.inline(entry) or self._source.get(entry.digest, self._cancel)).document()

    def _below(self, top: Document, seen: Seen, bounds: Bounds) -> Held:
        """List the manifests below ``top`` that have not been seen, children first, and ``top`` itself."""
        repository = self._source.repository if isinstance(self._source, RegistryEnd) else None
        with Ahead(self._get, repository, self._uploads.transfers, self._cancel, seen=seen) as ahead:
            entries = walk(top, lambda entry: ahead.get(entry) if entry.is_document else None, ahead.below,
                           seen, bounds)
            documents = Held()
            for _, document in entries:
                if document:
                    documents.append(document)
            return documents

    def _filtered(self, top: Document) -> Document:
        """Return the one image of an index that was asked for, or the index without the others."""
        if not self._options.platforms or isinstance(top, Manifest):
            return top
        entries = self._leaves(top)
        images = [entry for entry in entries
                  if entry.is_document and entry.platform and entry.platform.os != "unknown"]
        chosen: List[Descriptor] = []
        for platform in self._options.platforms:
            fitting = select(platform, images)
            if not fitting:
                offered = ", ".join(sorted({str(entry.platform) for entry in images}))
                raise NotFound("no %s in the index; there is %s" % (str(platform), offered or "none"))
            chosen.append(fitting[0])
        if len(chosen) == 1:
            return self._get(chosen[0])
        digests = {entry.digest for entry in chosen}
        kept = [entry for entry in entries
                if entry.digest in digests or (entry.annotations or {}).get(_ATTESTED) in digests]
        self._output(Progress(message="the index is rewritten, with %d of its %d manifests" % (
            len(kept), len(entries))))
        return rewritten(top, top.media_type, manifests=kept)

    def _leaves(self, top: Index) -> List[Descriptor]:
        """List the entries of an index and of the indexes within, in order, without these indexes."""
        leaves: List[Descriptor] = []

        def indexes(index: Index) -> Iterator[Descriptor]:
            for entry in index.manifests:
                if entry.media_type in INDEX_TYPES:
                    yield entry  # its own leaves are added before we go on
                else:
                    leaves.append(entry)

        for _ in walk(top, self._get, indexes):
            pass
        return leaves

    def _blobs(self, documents: Held) -> None:
        jobs: Dict[Tuple[object, ...], CopyDescriptor] = {}  # by digest and size, of which one may be wrong
        ends = self._source, self._target, self._tally, self._options.foreign
        for document in documents:
            for blob in (blob for blob in document.blobs if blob.digest not in self._sent):
                jobs[blob[1:3]] = CopyDescriptor(blob.bare, *ends)
            for entry in document.unknown if isinstance(document, Index) else ():
                jobs[entry[1:3]] = EntryDescriptor(entry.bare, *ends)
        output = discard if self._options.dry_run else self._output
        self._uploads.upload(list(jobs.values()), output, self._cancel, self._target.holding)

    def _send_below(self, document: Document, sent: Seen, bounds: Bounds) -> None:
        """Copy every blob and manifest that a manifest needs."""
        documents = self._below(document, sent, bounds)
        self._blobs(documents)
        self._put(documents)

    def _put(self, documents: Held) -> None:
        target = self._target
        put_below(documents.below(), target.put, str(target), self._uploads.transfers, self._cancel, target.holding)


class CopyDescriptor(UploadDescriptor):
    """A blob to be copied from end to end."""

    def __init__(self, blob: Descriptor, source: End, target: End, tally: Tally, foreign: bool) -> None:
        self.blob = blob
        self.key = "copy:%s %s %s %d %s" % (source, target, blob.digest, blob.size, foreign)
        self._foreign = foreign
        self.id = blob.digest.short
        self.size = blob.size
        self._source = source
        self._target = target
        self._tally = tally

    def upload(self, transfer: Transfer) -> Any:
        if self.blob.is_foreign and not (self._foreign and self._source.offers(self.blob, transfer.cancel)):
            result = "Skipped foreign layer"
        else:
            result = self._bring(self.blob, self._source, transfer)
        transfer.progress(Progress(id=self.id, action=result))
        return result

    def _bring(self, blob: Descriptor, source: End, transfer: Transfer) -> str:
        """Bring a blob to the target, unless it is there; returns the last word of its progress."""
        path, known = self._target.path, self._tally.known(blob)
        brought = [sibling for sibling in known if known[sibling]]
        if path in known or not brought and self._target.has(blob, transfer.cancel):
            result = "Layer already exists"
        else:
            result = self._target.receive(blob, source, transfer, [*brought, *known, ""][0])
        self._tally.add(blob, path, result)
        return result


class EntryDescriptor(CopyDescriptor):
    """An entry of an index that is of an unknown kind: a manifest for the target, or else a blob."""

    def upload(self, transfer: Transfer) -> str:
        entry, cancel = self.blob, transfer.cancel
        moved = moved_as_manifest(
            entry, lambda digest: self._source.get(digest, cancel).raw,
            lambda raw: self._target.put(Index(raw, entry.digest, entry.media_type, ()), cancel),
            isinstance(self._source, RegistryEnd))
        return "Pushed" if moved else super().upload(transfer)


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
