# SPDX-License-Identifier: Apache-2.0
"""save(): images in one tar, which every tool loads.

The archive is an image layout with the blobs as they are stored, and manifest.json
and repositories besides, for docker before 25 and before 1.10.  Layers stay
compressed: docker, podman and skopeo take them so.  No time, host or order of
arguments is written: the same images are the same bytes.  Each blob is verified
while it is written.

Mirrors moby's image/tarexport/save.go.  Spec: image-spec image-layout.md.
"""
import contextlib
import os
import re
from typing import Any, BinaryIO, Container, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

from ..cancel import Cancel
from ..digest import Buffer, Digest, Verifier
from ..errors import (
    ContentMismatch, InvalidDocument, InvalidReference, NotFound, StorageError, corrupt, file_errors, shown,
    storage_errors, within)
from ..files import write_file
from ..image.descriptor import OCI_INDEX, Descriptor
from ..image.manifest import Manifest, is_runnable
from ..image.platform import Platform
from ..image.strictjson import check_memory, compact
from ..image.tar import DIRECTORY, END, FILE, Entry, header, padding, write_pieces
from ..parts import part
from ..progress import Meter, Output, Progress, discard, serialized
from ..reference import Reference
from ..store.compression import is_compressed, packing
from ..store.references import IMAGE_NAME, LAYOUT, REF_NAME, SOURCE_DIGEST, UNNAMED, Association
from ..store.source import BUFFER, pieces
from ..store.store import ImageSource, Store, host_platform, platform_of
from .reader import DELTA, Named, opened

#: The hexadecimal part of a digest, in what find, ls, tar, sha256sum or minipull print.
_ENCODED = re.compile(rb"\b(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})\b")


def save(refs: Sequence[Union[str, Reference]], store: ImageSource, file: Union[str, BinaryIO], *,
         platform: Union[str, Platform, None] = None, bases: Sequence[str] = (), bundle: bool = False,
         without: Sequence[str] = (), referrers: bool = False, progress: Output = discard,
         cancel: Optional[Cancel] = None) -> None:
    """Write stored images to an archive; ``file`` is a path or an open file.

    A name without a tag means all its tags.  An index is saved as a whole, or its
    image for ``platform``.  Blobs are left out that one of ``bases`` has, each the
    path of a store, layout, archive or list of digests.  A ``bundle`` has this package at its end,
    less the parts ``without``.  With ``referrers`` come the signatures, attestations and SBOMs that
    the store has of the images.  A file at the path is replaced in one step, and compressed if its
    name ends in .gz or .tgz.  Raises NotFound, InvalidReference, InvalidDocument, StorageError, Cancelled.

    Example::

        minipull.save(["registry.lan/app"], store, "app.tar")
    """
    cancel = cancel or Cancel()
    pack = packing(file if isinstance(file, str) else "", bundle)
    with contents(refs, store, platform, serialized(progress), cancel, bases, bundle, without,
                  referrers) as archive:
        if isinstance(file, str):
            write_file(file, pack(archive.pieces(cancel)))
        else:
            write_pieces(archive.pieces(cancel), file)


@contextlib.contextmanager
def contents(refs: Sequence[Union[str, Reference]], store: ImageSource, platform: Union[str, Platform, None],
             output: Output, cancel: Cancel, bases: Sequence[str] = (), bundle: bool = False,
             without: Sequence[str] = (), referrers: bool = False) -> Iterator["Contents"]:
    """Yield the archive of some stored images, to be read in the block; raises as save()."""
    chosen = platform_of(platform)
    if bundle and "archive" in without:
        raise InvalidReference("a bundle reads itself, so it can't be without the part archive")
    tail = part("archive.bundle").program(without) if bundle else b""
    images: List[Named] = []
    with store.reading(cancel):
        for ref in refs:
            for name, whole in _images(ref, store):
                top = store.on(chosen, whole) if chosen else whole
                if top is None:
                    raise NotFound("%s has nothing for %s" % (ref, str(chosen)))
                images.append((name.with_digest(top.digest) if name and name.digest else name,
                               top._replace(annotations=whole.annotations)))
        if referrers:
            images += _referrers(images, store)
        had: Set[Digest] = set()
        for path in bases:
            with within("base %s" % path):
                had.update(_had(path, cancel, store.layers.zstd))
        names = sorted(shown(os.path.basename(os.path.abspath(path)), 200) for path in bases)
        yield Contents(store, images, chosen or host_platform(), output, had, names, tail)


def _had(base: str, cancel: Cancel, zstd: Optional[str]) -> Iterator[Digest]:
    """Yield the blobs of a store or layout, of the images of an archive, or those that a text lists."""
    if os.path.isdir(base):
        if not os.path.isdir(os.path.join(base, "blobs")):
            raise NotFound("it is neither a store nor an image layout")
        yield from Store(base).content.digests()
        return
    with file_errors("open"), open(base, "rb") as file:
        head = file.peek(512)
        if b"\0" in head or is_compressed(head[:6]):
            with opened(file, cancel, zstd) as archive:
                for image in archive.references.all():
                    for item, _ in archive.walk(image.descriptor):
                        # Who has loaded a delta has what that leaves out.
                        if archive.content.size(item.digest) or item.digest in archive.content.left_out:
                            yield item.digest
            return
        digests: Set[str] = set()
        before = b""
        for piece in iter(lambda: file.read(1 << 20), b""):  # there may be no lines
            digests.update("sha%d:%s" % (4 * len(text), text.decode())
                           for text in _ENCODED.findall(before + piece))
            before = piece[-128:]
    if not digests:
        raise InvalidDocument("it is no archive, and there is no digest in it")
    yield from map(Digest, digests)


def _images(ref: Union[str, Reference], store: ImageSource) -> List[Named]:
    """List the image of a name, those of all its tags, or the unnamed one of an image ID; raises NotFound."""
    with contextlib.suppress(InvalidReference):
        name = ref if isinstance(ref, Reference) else Reference.parse(ref)
        whole, every_tag = name.docker_ref(), not name.tag and not name.digest
        pinned = store.references.find(name) if name.digest else None
        if pinned:  # it keeps its tag
            top = pinned.descriptor._replace(annotations={SOURCE_DIGEST: str(name.digest)})
            return [(name._replace(digest=None) if name.tag else name, top)]
        images = [(stored.name, stored.descriptor) for stored in store.references.all()
                  if stored.name == whole
                  or every_tag and stored.name.name == name.name and stored.name.tag]
        if images:
            return [*images]
    return [(None, store.image(ref).descriptor)]


def _referrers(images: Sequence[Named], store: ImageSource) -> List[Named]:
    """List the referrers of images, and theirs, in the repository of each image; raises InvalidReference."""
    stored = {item.name: item for item in store.references.all()}
    about: Dict[Tuple[str, Optional[Digest]], List[Association]] = {}
    for item in stored.values():
        about.setdefault((item.name.name, store.subject(*item[:2])), []).append(item)
    pending = list(images)
    for name, top in pending:  # grows
        if name is None:
            raise InvalidReference("referrers go with the name of an image, not with its ID %s" % top.digest)
        subjects = {below.digest for below, document in store.walk(top) if document is not None}
        if name in stored:
            subjects.add(stored[name].source)  # the index of a platform
        for subject in sorted(subjects):
            pending += [(item.name, item.descriptor) for item in about.pop((name.name, subject), [])]
    return pending[len(images):]


class Contents:
    """The members of an archive: documents that list its images, and ``blobs`` (digest to size in bytes)."""

    def __init__(self, store: ImageSource, images: Sequence[Named], platform: Platform, output: Output,
                 had: Container[Digest] = (), bases: Sequence[str] = (), tail: bytes = b"") -> None:
        """Collect the blobs of ``images``, all but those that the ``bases`` ``had``.

        ``platform`` is that of docker's part; ``tail`` follows the tar.  Raises an Error for a missing blob.
        """
        unique = {(str(name or ""), top.digest): (name, top) for name, top in images}
        # Referrers come last, since some tools take the first image.
        self.images = [unique[key] for key in sorted(unique)]
        self.images.sort(key=lambda pair: bool(store.subject(*pair)))
        self.blobs: Dict[Digest, int] = {}
        self._store = store
        self._platform = platform
        self._output = output
        self._bases = bases
        self._tail = tail
        self._entries: List[Dict[str, Any]] = []
        self._docker: Dict[Digest, Dict[str, Any]] = {}
        self._repositories: Dict[str, Dict[str, str]] = {}
        kept: Set[Digest] = set()
        for name, top in self.images:
            for blob in store.missing(top, foreign=True):
                raise StorageError("%s lacks blob %s; pull it again, with --foreign if it has URLs" % (
                    name.familiar if name else top.digest, blob.digest))
            for item, document in store.walk(top):
                self.blobs[item.digest] = item.size
                if item.is_document:
                    kept.add(item.digest)
                if isinstance(document, Manifest):
                    kept.add(document.config.digest)
        self.left_out = {digest: self.blobs.pop(digest) for digest in set(self.blobs) - kept if digest in had}
        for name, top in self.images:
            self._list(name, top)

    def _list(self, name: Optional[Reference], top: Descriptor) -> None:
        """List an image in index.json, and for docker unless this is a delta."""
        notes = {REF_NAME: str(name), IMAGE_NAME: str(name)} if name else None
        if notes and top.annotations:  # what was pinned, and the index that proves it
            with contextlib.suppress(InvalidDocument):
                source = Digest.parse(top.annotations.get(SOURCE_DIGEST, top.digest))
                size = self._store.content.size(source)
                if source != top.digest and size is not None:
                    notes[SOURCE_DIGEST] = source
                    self.blobs[source] = size
        self._entries.append(Descriptor(top.media_type, top.digest, top.size, annotations=notes).to_json())
        if self.left_out:
            return
        ours = self._store.on(self._platform, top)
        document = self._store.document(ours) if ours else None
        if not isinstance(document, Manifest) or not is_runnable(document):
            text = "warning: %s has nothing for %s, so docker before 25 won't find it"
            if not self._store.subject(name, top):
                label = name.familiar if name else top.digest
                self._output(Progress(message=text % (label, str(self._platform))))
            return
        item = self._docker.setdefault(document.digest, {
            "Config": _member(document.config.digest), "RepoTags": None,
            "Layers": [_member(layer.digest) for layer in document.layers]})
        if name and name.tag:
            item["RepoTags"] = (item["RepoTags"] or []) + [name.familiar]
            if document.layers:
                tags = self._repositories.setdefault(name.familiar_name, {})
                tags[name.tag] = document.layers[-1].digest.encoded

    def needed(self) -> Iterator[Tuple[str, Digest, Dict[Digest, int]]]:
        """Yield the name and digest of each image, and the sizes of its blobs, those left out as well."""
        for name, top in self.images:
            sizes = {item.digest: item.size for item, _ in self._store.walk(top)}
            yield str(name or UNNAMED), top.digest, sizes

    @property
    def size(self) -> int:
        """The size of the archive in bytes."""
        members = sum(len(head) + size + len(padding(size)) for head, size, _ in self._members())
        return members + len(END) + len(self._tail)

    def pieces(self, cancel: Cancel) -> Iterator[Buffer]:
        """Yield the archive, piece by piece; each blob is verified.  Raises StorageError, Cancelled."""
        meter = Meter(self._output, "", "Saving", sum(self.blobs.values()))
        for head, size, source in self._members():
            yield head
            if isinstance(source, Digest):
                verifier = Verifier(source.algorithm)
                with self._store.content.open(source) as file, storage_errors("read blob %s" % source):
                    for piece in pieces(file, cancel, verifier, BUFFER):
                        yield piece
                        meter.advance(len(piece))
                try:
                    verifier.verify(source, size, "blob")
                except ContentMismatch as exc:
                    raise corrupt(source) from exc
            elif source:
                yield source
            yield padding(size)
        meter.finish()
        yield END
        yield self._tail

    def _members(self) -> Iterator[Tuple[bytes, int, Union[bytes, Digest]]]:
        """Yield the header of each member, and its data or the digest of a blob with their size in bytes."""
        for name, data in self._documents():
            yield header(Entry(name.encode(), FILE, len(data))), len(data), data
        for folder in ["blobs/"] + sorted({"blobs/%s/" % digest.algorithm for digest in self.blobs}):
            yield header(Entry(folder.encode(), DIRECTORY, mode=0o755)), 0, b""
        for digest in sorted(self.blobs):
            yield header(Entry(_member(digest).encode(), FILE, self.blobs[digest])), self.blobs[digest], digest

    def _documents(self) -> Iterator[Tuple[str, bytes]]:
        yield "oci-layout", LAYOUT
        yield "index.json", compact({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._entries})
        if self.left_out:
            delta = compact({"version": 1, "bases": self._bases, "blobs": dict(sorted(self.left_out.items()))})
            check_memory(delta, DELTA)  # as its reader does
            yield DELTA, delta
            return
        yield "manifest.json", compact(list(self._docker.values()))
        if self._repositories:
            yield "repositories", compact(self._repositories)


def _member(digest: Digest) -> str:
    return "blobs/%s/%s" % (digest.algorithm, digest.encoded)
