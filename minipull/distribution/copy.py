# SPDX-License-Identifier: Apache-2.0
"""copy(): an image from one place to another, without keeping it.

Blobs first, then the manifests, children before their index, the name last;
what the other end has is not sent.  Everything is copied as it is, unless a
platform or a format is asked for: then what names the rest is written anew, and
has another digest.

Mirrors skopeo's copy more than anything in moby.  Spec: image-spec; for what
refers to an image, distribution-spec "Listing Referrers" and its tag schema.
"""
import contextlib
import functools
import json
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from ..archive.reader import opened
from ..cancel import Cancel
from ..digest import Digest
from ..errors import ContentMismatch, Error, InvalidReference, NotFound, PolicyError, Unsupported
from ..image import manifest
from ..image.descriptor import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, Descriptor, is_foreign, select
from ..image.manifest import Document, Index, Manifest, is_runnable
from ..image.platform import Platform
from ..progress import Output, Progress, discard, serialized
from ..registry.auth import Keyring
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint, RegistryService
from ..registry.errors import RegistryError
from ..registry.v2 import MAX_REFERRERS
from ..store.store import Store, host_platform
from ..xfer.transfer import Transfer
from ..xfer.upload import LayerUploadManager, UploadDescriptor
from .convert import FORMATS, renamed, rewritten
from .ends import ArchiveEnd, End, LayoutEnd, RegistryEnd, archive_end
from .places import ARCHIVES, Place
from .pull_v2 import check_depth, check_entry

MAX_DOCUMENTS = 64 << 20  # bytes of all manifests
_ATTESTED = "vnd.docker.reference.digest"
_COSIGN = (".sig", ".att", ".sbom")


class Options(NamedTuple):
    """What to copy of an image, and how."""
    platforms: Sequence[Platform] = ()  # of an index; all of it if there are none
    format: str = ""  # "oci" or "docker"; as it is if empty
    referrers: bool = False  # signatures and attestations as well
    chunk_size: int = 0  # bytes, the most that one request brings


class Copied(NamedTuple):
    """What the image is at the other end; ``source`` is what it was."""
    descriptor: Descriptor
    source: Digest


def copy(source: str, target: str, *, store: Optional[Store] = None,
         platforms: Sequence[Union[str, Platform]] = (), format: str = "", referrers: bool = False,
         chunk_size: int = 0, progress: Output = discard, service: Optional[RegistryService] = None,
         credentials: Optional[Keyring] = None, uploads: Optional[LayerUploadManager] = None,
         cancel: Optional[Cancel] = None) -> Copied:
    """Copy from ``docker://REF``, ``store:REF``, ``oci:DIR[:NAME]`` or ``oci-archive:FILE[:REF]`` to another.

    ``platforms`` choose of an index; ``format`` is "oci" or "docker" to convert;
    ``chunk_size`` (bytes) is the most that one request brings.  Of an archive
    without REF all images are copied; what is returned is the last.  Raises any
    minipull.Error; its text is one line that says what failed, on what.
    """
    wanted = [each if isinstance(each, Platform) else Platform.parse(each, host_platform())
              for each in platforms]
    with Client(service or RegistryService(), credentials or Keyring()) as client:
        return copy_with(
            Place.parse(source), Place.parse(target), (client, client), store,
            Options(wanted, format, referrers, chunk_size), uploads or LayerUploadManager(),
            serialized(progress), cancel or Cancel())[-1]


def copy_with(source: Place, target: Place, clients: Tuple[Client, Client], store: Optional[Store],
              options: Options, uploads: LayerUploadManager, output: Output,
              cancel: Cancel) -> List[Copied]:
    """As copy(), with a client for either end; returns what became of each image."""
    if options.format and options.format not in FORMATS:
        raise InvalidReference("invalid format %s, not oci or docker" % ascii(options.format))
    if options.format and options.referrers:
        raise InvalidReference("what refers to an image does not follow it into another format")
    what = "copy %s to %s" % (source, target)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_within(what))
        if source.kind == "docker":

            def answering(endpoint: Endpoint) -> End:
                end = RegistryEnd(clients[0].repository(endpoint, source.name), source.tag)
                end.get(end.tag, cancel)
                return end

            begin = over_endpoints(clients[0], source.name, what, answering, cancel, output)
        elif source.kind in ARCHIVES:
            zstd = store.layers.zstd if store else None
            begin = ArchiveEnd(source, stack.enter_context(opened(source.folder, cancel, zstd)))
        else:
            begin = LayoutEnd(source, store)
            stack.enter_context(begin.store.using(cancel))
        jobs: List[Tuple[str, Place]] = [(source.tag, target)]
        if isinstance(begin, ArchiveEnd) and not source.tag:
            images = begin.images()
            if target.tag and len(images) > 1:
                raise InvalidReference("%s has several images, so name one: %s" % (
                    source, ", ".join(sorted(filter(None, (label for label, _ in images))))))
            jobs = [(digest, target if target.tag else target.of(label)) for label, digest in images]
        elif target.kind == "docker" and not target.tag:
            raise InvalidReference("a target that ends in a slash is for all images of an archive")
        end: Optional[LayoutEnd] = None
        if target.kind in ARCHIVES:
            end = stack.enter_context(archive_end(target, output, cancel))
        elif target.kind != "docker":
            end = LayoutEnd(target, store)
            stack.enter_context(end.store.using(cancel, writing=target.kind == "store"))
        copied = []
        for begin.tag, place in jobs:
            job = _Copy(begin, options, uploads, output, cancel)
            if end is not None:
                end.tag = place.tag
                copied.append(job.to(end))
            else:
                copied.append(over_endpoints(
                    clients[1], place.name, what, functools.partial(job.to_registry, clients[1], place),
                    cancel, push=True))
        return copied


@contextlib.contextmanager
def _within(what: str) -> Iterator[None]:
    """Let what goes wrong in the block say what that was, unless it does."""
    try:
        yield
    except Error as exc:
        if str(exc).startswith(what):
            raise
        raise exc.within(what) from exc


class _Copy:
    """What is to be copied, known down to the last manifest."""

    def __init__(self, source: End, options: Options, uploads: LayerUploadManager, output: Output,
                 cancel: Cancel) -> None:
        self._source = source
        self._options = options
        self._uploads = uploads
        self._output = output
        self._cancel = cancel
        self._seen: Set[Digest] = set()
        self._room = MAX_DOCUMENTS
        top = self._get(source.tag)
        self._top = top.digest
        self._documents = list(self._below(self._filtered(top)))
        if options.format:
            self._documents = self._converted(self._documents)

    def to_registry(self, client: Client, place: Place, endpoint: Endpoint) -> Copied:
        repository = client.repository(endpoint, place.name, push=True)
        return self.to(RegistryEnd(repository, place.tag, self._options.chunk_size))

    def to(self, target: End) -> Copied:
        """Copy all of it; the name comes last."""
        self._target = target
        *below, top = self._documents
        wanted = target.tag
        if isinstance(wanted, Digest) and Digest.of(top.raw, wanted.algorithm) != wanted:
            raise ContentMismatch("the image is %s, not %s" % (top.digest, wanted))
        for document in self._documents:
            if isinstance(document, Manifest):
                # One question alone first: is anybody there, and who do we have to be?
                target.has(document.config, self._cancel)
                break
        self._blobs(self._documents)
        for document in below:
            self._put(document.digest, document)
        if self._options.referrers:
            self._referrers([document.digest for document in self._documents])
        self._put(target.tag, top)
        return Copied(top.descriptor._replace(digest=top.digest), self._top)

    def _get(self, reference: str) -> Document:
        received = self._source.get(reference, self._cancel)
        self._room -= len(received.raw)
        if self._room < 0:
            raise PolicyError("more than %d bytes of manifests" % MAX_DOCUMENTS)
        document = manifest.parse(received.raw, received.content_type)
        return document._replace(digest=received.digest)

    def _put(self, reference: str, document: Document) -> bool:
        return self._target.put(reference, document.raw, document.media_type, self._cancel)

    def _below(self, top: Document, depth: int = 0) -> Iterator[Document]:
        """Every manifest below ``top``, each once, and then itself."""
        if isinstance(top, Index):
            check_depth(depth)
            for child in top.manifests:
                if child.digest not in self._seen:
                    if child.media_type not in MANIFEST_TYPES | INDEX_TYPES:
                        raise Unsupported("an index of %s can't be copied" % ascii(child.media_type)[:100])
                    self._seen.add(child.digest)
                    document = self._get(child.digest)
                    check_entry(child, document.media_type, document.raw)
                    yield from self._below(document, depth + 1)
        yield top

    def _filtered(self, top: Document) -> Document:
        """The one image of an index that is wanted, or the index without the others."""
        wanted = self._options.platforms
        if not wanted or isinstance(top, Manifest):
            return top
        children = list(self._leaves(top))
        offered = [child for child in children
                   if child.platform and child.platform.os != "unknown"]  # no attestation
        chosen = []
        for platform in wanted:
            found = select(platform, offered)
            if not found:
                there = ", ".join(sorted({str(child.platform) for child in offered}))
                raise NotFound("no %s in the index; there is %s" % (str(platform), there or "none"))
            chosen.append(found[0].digest)
        if len(chosen) == 1:
            return self._get(chosen[0])
        kept = [child for child in children
                if child.digest in chosen or (child.annotations or {}).get(_ATTESTED) in chosen]
        self._output(Progress(message="the index is rewritten, with %d of its %d manifests" % (
            len(kept), len(children))))
        return rewritten(top, top.media_type, manifests=kept)

    def _leaves(self, top: Document, depth: int = 0) -> Iterator[Descriptor]:
        """What is in an index, and in the indexes within."""
        check_depth(depth)
        for child in top.manifests if isinstance(top, Index) else ():
            if child.media_type in INDEX_TYPES:
                yield from self._leaves(self._get(child.digest), depth + 1)
            else:
                yield child

    def _blobs(self, documents: Sequence[Document]) -> None:
        jobs: Dict[Digest, CopyDescriptor] = {}
        for document in documents:
            for blob in (document.config, *document.layers) if isinstance(document, Manifest) else ():
                jobs[blob.digest] = CopyDescriptor(self._source, self._target, blob)
        self._uploads.upload(None, list(jobs.values()), self._output, self._cancel)

    # Formats.

    def _converted(self, documents: List[Document]) -> List[Document]:
        """The same images in another format: only what names things changes."""
        names = FORMATS[self._options.format]
        kinds = [document.media_type for document in documents]
        for document in documents:
            if isinstance(document, Manifest) and is_runnable(document):
                kinds += [blob.media_type for blob in (document.config, *document.layers)]
        if all(renamed(kind, names) == kind for kind in kinds):
            return documents
        others: Dict[Digest, Descriptor] = {}  # by what they were
        found: List[Document] = []
        for document in documents:
            if isinstance(document, Index):
                kept = [others[child.digest]._replace(platform=child.platform)
                        for child in document.manifests if child.digest in others]
                lost = len(document.manifests) - len(kept)
                if not kept:
                    raise Unsupported("only an image can have another format")
                if lost:
                    self._output(Progress(message="left out: %d that are no images" % lost))
                other = rewritten(document, renamed(document.media_type, names), manifests=kept)
            elif not is_runnable(document) and document is not documents[-1]:
                continue
            elif not is_runnable(document):
                raise Unsupported("only an image can have another format")
            else:
                config, *layers = [blob._replace(media_type=renamed(blob.media_type, names))
                                   for blob in (document.config, *document.layers)]
                other = rewritten(
                    document, renamed(document.media_type, names), config=config, layers=layers)
            others[document.digest] = other.descriptor
            found.append(other)
        return found

    # What refers to an image.

    def _referrers(self, digests: Sequence[Digest]) -> None:
        """Take along what is about these manifests, and what is about that in turn."""
        pending, seen, asked = list(digests), set(digests), 0
        while pending:
            subject = pending.pop()
            for suffix in _COSIGN:
                tag = subject.replace(":", "-") + suffix
                document = self._found(tag)
                if document is not None:
                    self._send(tag, document)
            unlisted = []
            for entry in self._listed(subject):
                asked += 1
                if asked > MAX_REFERRERS:
                    raise PolicyError("more than %d referrers" % MAX_REFERRERS)
                document = self._found(entry.digest)
                if document is None or document.subject is None or document.subject.digest != subject:
                    continue  # a list can say anything
                if not self._send(entry.digest, document):
                    unlisted.append(entry._replace(
                        media_type=document.media_type, size=len(document.raw)))
                if entry.digest not in seen:
                    seen.add(entry.digest)
                    pending.append(entry.digest)
            self._list(subject, unlisted)

    def _send(self, reference: str, document: Document) -> bool:
        documents = list(self._below(document))
        self._blobs(documents)
        for child in documents[:-1]:
            self._put(child.digest, child)
        return self._put(reference, document)

    def _found(self, reference: str, end: Optional[End] = None) -> Optional[Document]:
        with contextlib.suppress(NotFound):
            try:
                received = (end or self._source).get(reference, self._cancel)
                document = manifest.parse(received.raw, received.content_type)
                return document._replace(digest=received.digest)
            except RegistryError as exc:
                if exc.status != 404:
                    raise
        return None

    def _listed(self, subject: Digest) -> Sequence[Descriptor]:
        found = self._source.referrers(subject, self._cancel)
        if found is None:
            index = self._found(subject.replace(":", "-"))
            return index.manifests if isinstance(index, Index) else ()
        return found

    def _list(self, subject: Digest, entries: Sequence[Descriptor]) -> None:
        """Keep the list under its tag, for an end that keeps none itself."""
        tag = subject.replace(":", "-")
        index = self._found(tag, self._target) if entries else None
        known = list(index.manifests) if isinstance(index, Index) else []
        added = [entry for entry in entries if entry.digest not in {item.digest for item in known}]
        if added:
            members = {"schemaVersion": 2, "mediaType": OCI_INDEX,
                       "manifests": [item.to_json() for item in known + added]}
            raw = json.dumps(members, separators=(",", ":")).encode()
            self._target.put(tag, raw, OCI_INDEX, self._cancel)


class CopyDescriptor(UploadDescriptor):
    """One blob on its way from end to end."""

    def __init__(self, source: End, target: End, blob: Descriptor) -> None:
        self.blob = blob
        self.key = "copy:%s %s %s" % (source, target, blob.digest)
        self.id = blob.digest.short
        self._source = source
        self._target = target

    def upload(self, transfer: Transfer) -> str:
        if is_foreign(self.blob.media_type):
            result = "Skipped foreign layer"
        elif self._target.has(self.blob, transfer.cancel):
            result = "Layer already exists"
        else:
            result = self._target.receive(self.blob, self._source, transfer)
        transfer.progress(Progress(id=self.id, action=result))
        return result
