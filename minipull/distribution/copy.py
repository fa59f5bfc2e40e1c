# SPDX-License-Identifier: Apache-2.0
"""copy(): an image from one place to another, without keeping it.

Blobs are copied first, then the manifests, children before their index, and the
name last.  Blobs that the target has are not sent.

Mirrors skopeo's copy; moby has none.  Spec: image-spec; distribution-spec
"Listing Referrers" and its fallback tags.

Where this leaves skopeo: an index is copied whole, entries of unknown kinds included,
unless platforms are asked for; manifests are converted and foreign layers copied on
request only; a copy that was interrupted is continued within its blobs.
"""
import contextlib
import functools
import sys
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from ..cancel import Cancel
from ..digest import Digest
from ..errors import ContentMismatch, Error, InvalidReference, NotFound, PolicyError
from ..image import manifest
from ..image.descriptor import INDEX_TYPES, OCI_INDEX, Descriptor, select
from ..image.manifest import Document, Index, Manifest
from ..image.platform import Platform
from ..image.walk import Bounds, Seen, walk
from ..image.strictjson import compact
from ..parts import part
from ..progress import Output, Progress, discard, serialized
from ..registry.auth import Keyring
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint, RegistryService
from ..registry.errors import RegistryError
from ..registry.v2 import MAX_REFERRERS, Received
from ..store.store import Store, host_platform
from ..xfer.transfer import Transfer
from ..xfer.upload import LayerUploadManager, UploadDescriptor
from .convert import FORMATS, converted, rewritten
from .ends import End, LayoutEnd, RegistryEnd, copied_as_manifest
from .places import ARCHIVES, Place

_ATTESTED = "vnd.docker.reference.digest"
_COSIGN = (".sig", ".att", ".sbom")


class Options(NamedTuple):
    """The parts of an image to copy, and the way to copy them."""
    platforms: Sequence[Platform] = ()  # of an index; all of it if there are none
    format: str = ""  # "oci" or "docker"; as it is if empty
    referrers: bool = False  # signatures and attestations as well
    chunk_size: int = 0  # bytes, the most that one request brings
    foreign: bool = False  # foreign layers as well, as far as the source has them


class Copied(NamedTuple):
    """The manifest of an image at the target, and its digest at the source."""
    descriptor: Descriptor
    source: Digest


def copy(source: str, target: str, *, store: Optional[Store] = None,
         platforms: Sequence[Union[str, Platform]] = (), format: str = "", referrers: bool = False,
         chunk_size: int = 0, foreign: bool = False, progress: Output = discard,
         service: Optional[RegistryService] = None, credentials: Optional[Keyring] = None,
         uploads: Optional[LayerUploadManager] = None, cancel: Optional[Cancel] = None) -> Copied:
    """Copy from ``docker://REF``, ``store:REF``, ``oci:DIR[:NAME]`` or ``oci-archive:FILE[:REF]`` to another.

    ``platforms`` select images of an index; ``format`` is "oci" or "docker" to convert;
    ``chunk_size`` (bytes) is the most that one request sends; ``foreign`` copies foreign
    layers, too.  An archive without REF is copied whole, and its last image returned.
    Raises any minipull.Error; its text is one line that names the operation and its subject.
    """
    chosen = [platform if isinstance(platform, Platform) else Platform.parse(platform, host_platform())
              for platform in platforms]
    with Client(service or RegistryService(), credentials or Keyring()) as client:
        return copy_with(
            Place.parse(source), Place.parse(target), (client, client), store,
            Options(chosen, format, referrers, chunk_size, foreign), uploads or LayerUploadManager(),
            serialized(progress), cancel or Cancel())[-1]


def copy_with(source: Place, target: Place, clients: Tuple[Client, Client], store: Optional[Store],
              options: Options, uploads: LayerUploadManager, output: Output,
              cancel: Cancel) -> List[Copied]:
    """Copy as copy() does, with a client for either end; return every image of the target."""
    if options.format and options.format not in FORMATS:
        raise InvalidReference("invalid format %s, not oci or docker" % ascii(options.format))
    if options.format and options.referrers:
        raise InvalidReference("what refers to an image does not follow it into another format")
    subject = "copy %s to %s" % (source, target)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_within(subject))
        source_end = _source_end(source, clients[0], store, subject, stack, output, cancel)
        images = [(source.tag, target)]
        if isinstance(source_end, LayoutEnd) and source.kind in ARCHIVES and not source.tag:
            images = _images(source_end, source, target)
        elif target.kind == "docker" and not target.tag:
            raise InvalidReference("a target that ends in a slash is for all images of an archive")
        layout: Optional[LayoutEnd] = None
        if target.kind in ARCHIVES:
            layout = stack.enter_context(part("distribution.archives").archive_end(
                target, uploads.transfers, output, cancel))
        elif target.kind != "docker":
            layout = LayoutEnd(target, store)
            stack.enter_context(layout.holding(cancel))
        copied = []
        for reference, place in images:
            job = _Copy(source_end, reference, options, uploads, output, cancel)
            if layout is not None:
                copied.append(job.to(layout, place.tag))
            else:
                copied.append(over_endpoints(
                    clients[1], place.name, subject, functools.partial(job.to_registry, clients[1], place),
                    cancel, output, push=True))
        return copied


def _source_end(source: Place, client: Client, store: Optional[Store], subject: str,
                stack: contextlib.ExitStack, output: Output, cancel: Cancel) -> End:
    """Open the source; of the endpoints of a registry, the first that has the image."""
    if source.kind in ARCHIVES:
        zstd = store.layers.zstd if store else None
        archive: LayoutEnd = stack.enter_context(
            part("distribution.archives").opened_end(source, cancel, zstd))
        return archive
    if source.kind != "docker":
        layout = LayoutEnd(source, store)
        stack.enter_context(layout.store.reading(cancel))
        return layout

    def answering(endpoint: Endpoint) -> End:
        end = RegistryEnd(client.repository(endpoint, source.name))
        end.get(source.tag, cancel)
        return end

    return over_endpoints(client, source.name, subject, answering, cancel, output)


def _images(archive: LayoutEnd, source: Place, target: Place) -> List[Tuple[str, Place]]:
    """List the images of an archive by digest, each with the place that it is copied to."""
    images = archive.images()
    if target.tag and len(images) > 1:
        raise InvalidReference("%s has several images, so name one: %s" % (
            source, ", ".join(sorted(label for label, _ in images if label))))
    return [(digest, target if target.tag else target.of(label)) for label, digest in images]


@contextlib.contextmanager
def _within(subject: str) -> Iterator[None]:
    """Begin the text of every error of the block with ``subject``, once."""
    try:
        yield
    except Error as exc:
        if str(exc).startswith(subject):
            raise
        raise exc.within(subject) from exc


class _Copy:
    """An image to be copied, all its manifests in memory."""

    def __init__(self, source: End, reference: str, options: Options, uploads: LayerUploadManager,
                 output: Output, cancel: Cancel) -> None:
        self._source = source
        self._options = options
        self._uploads = uploads
        self._output = output
        self._cancel = cancel
        top = source.get(reference, cancel).document()
        self._top = top.digest
        self._documents = self._below(self._filtered(top), set(), Bounds())
        if options.format:
            self._documents = converted(self._documents, options.format, output)

    def to_registry(self, client: Client, place: Place, endpoint: Endpoint) -> Copied:
        repository = client.repository(endpoint, place.name, push=True)
        return self.to(RegistryEnd(repository, self._options.chunk_size), place.tag)

    def to(self, target: End, tag: str) -> Copied:
        """Copy the image to ``target``; its name, a tag or a digest, comes last."""
        self._target = target
        *below, top = self._documents
        if isinstance(tag, Digest) and Digest.of(top.raw, tag.algorithm) != tag:
            raise ContentMismatch("the image is %s, not %s" % (top.digest, tag))
        for document in self._documents:
            if isinstance(document, Manifest):
                # One request alone first, so that the others find the connection and a token.
                target.has(document.config, self._cancel)
                break
        self._blobs(self._documents)
        for document in below:
            target.put(document, self._cancel)
        if self._options.referrers:
            self._referrers([document.digest for document in self._documents])
        target.tag(tag, top, self._cancel)
        return Copied(top.descriptor, self._top)

    def _get(self, entry: Descriptor) -> Document:
        return (Received.inline(entry) or self._source.get(entry.digest, self._cancel)).document()

    def _below(self, top: Document, seen: Seen, bounds: Bounds) -> List[Document]:
        """List the manifests below ``top`` that have not been seen, children first, and ``top`` itself."""
        entries = walk(
            top, lambda entry: self._get(entry) if entry.is_document else None, seen=seen, bounds=bounds)
        return [document for _, document in entries if document]

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

    def _blobs(self, documents: Sequence[Document]) -> None:
        jobs: Dict[Digest, CopyDescriptor] = {}
        for document in documents:
            for blob in document.blobs:
                jobs[blob.digest] = CopyDescriptor(self._source, self._target, blob, self._options.foreign)
            for entry in document.unknown if isinstance(document, Index) else ():
                jobs[entry.digest] = EntryDescriptor(self._source, self._target, entry, self._options.foreign)
        self._uploads.upload(list(jobs.values()), self._output, self._cancel, self._target.holding)

    # Referrers.

    def _referrers(self, digests: Sequence[Digest]) -> None:
        """Copy the referrers of manifests, and theirs, and signatures under cosign's tags."""
        pending, seen, asked = list(digests), set(digests), 0
        sent: Seen = {document.descriptor[:3] for document in self._documents}
        bounds = Bounds(sys.maxsize)  # of referrers there may be many; their bytes have one bound
        while pending:
            subject = pending.pop()
            for suffix in _COSIGN:
                tag = subject.replace(":", "-") + suffix
                document = self._found(tag)
                if document is not None:
                    self._send_below(document, sent, bounds)
                    self._target.tag(tag, document, self._cancel)
            unlisted = []
            for entry in self._listed(subject):
                asked += 1
                if asked > MAX_REFERRERS:
                    raise PolicyError("more than %d referrers" % MAX_REFERRERS)
                document = self._found(entry.digest)
                if document is None or document.subject is None or document.subject.digest != subject:
                    continue  # a registry may list manifests that don't refer to the subject
                self._send_below(document, sent, bounds)
                if not self._target.put(document, self._cancel):
                    unlisted.append(entry._replace(
                        media_type=document.media_type, size=len(document.raw)))
                if entry.digest not in seen:
                    seen.add(entry.digest)
                    pending.append(entry.digest)
            self._list(subject, unlisted)

    def _send_below(self, document: Document, sent: Seen, bounds: Bounds) -> None:
        """Copy every blob and manifest that a manifest needs."""
        documents = self._below(document, sent, bounds)
        self._blobs(documents)
        for child in documents[:-1]:
            self._target.put(child, self._cancel)

    def _found(self, reference: str, end: Optional[End] = None) -> Optional[Document]:
        with contextlib.suppress(NotFound):
            try:
                return (end or self._source).get(reference, self._cancel).document()
            except RegistryError as exc:
                if exc.status != 404:
                    raise
        return None

    def _listed(self, subject: Digest) -> Sequence[Descriptor]:
        """List the referrers of a manifest at the source, from the fallback tag if it has no API for them."""
        listed = self._source.referrers(subject, self._cancel)
        if listed is None:
            index = self._found(subject.replace(":", "-"))
            return index.manifests if isinstance(index, Index) else ()
        return listed

    def _list(self, subject: Digest, entries: Sequence[Descriptor]) -> None:
        """Add referrers to the fallback tag of a target that does not list them itself."""
        tag = subject.replace(":", "-")
        index = self._found(tag, self._target) if entries else None
        listed = list(index.manifests) if isinstance(index, Index) else []
        added = [entry for entry in entries if entry.digest not in {item.digest for item in listed}]
        if added:
            raw = compact({"schemaVersion": 2, "mediaType": OCI_INDEX,
                           "manifests": [item.to_json() for item in listed + added]})
            self._target.tag(tag, manifest.parse(raw, OCI_INDEX), self._cancel)


class CopyDescriptor(UploadDescriptor):
    """A blob to be copied from end to end."""

    def __init__(self, source: End, target: End, blob: Descriptor, foreign: bool) -> None:
        self.blob = blob
        self.key = "copy:%s %s %s %s" % (source, target, blob.digest, foreign)
        self._foreign = foreign
        self.id = blob.digest.short
        self._source = source
        self._target = target

    def upload(self, transfer: Transfer) -> str:
        blob, cancel = self.blob, transfer.cancel
        if blob.is_foreign and not (self._foreign and self._source.offers(blob, cancel)):
            result = "Skipped foreign layer"
        elif self._target.has(blob, cancel):
            result = "Layer already exists"
        else:
            result = self._target.receive(blob, self._source, transfer)
        transfer.progress(Progress(id=self.id, action=result))
        return result


class EntryDescriptor(CopyDescriptor):
    """An entry of an index that is of an unknown kind: a manifest for the target, or else a blob."""

    def upload(self, transfer: Transfer) -> str:
        moved = copied_as_manifest(self.blob, self._source, self._target, transfer.cancel)
        return "Pushed" if moved else super().upload(transfer)
