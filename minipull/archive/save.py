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
import stat
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from ..cancel import Cancel
from ..digest import Buffer, Digest, Verifier
from ..errors import (
    ContentMismatch, InvalidReference, NotFound, StorageError, corrupt, file_errors, storage_errors)
from ..files import replacing, write_all
from ..image.descriptor import OCI_INDEX, Descriptor
from ..image.manifest import Manifest, is_runnable
from ..image.platform import Platform
from ..image.strictjson import compact
from ..image.tar import DIRECTORY, END, FILE, Entry, header, padding
from ..progress import Meter, Output, Progress, discard, serialized
from ..reference import Reference
from ..store.compression import BUFFER, pieces
from ..store.references import IMAGE_NAME, LAYOUT, REF_NAME
from ..store.store import ImageSource, host_platform

Named = Tuple[Optional[Reference], Descriptor]  # an image and its name, if it has one


def save(refs: Sequence[Union[str, Reference]], store: ImageSource, file: Union[str, BinaryIO], *,
         platform: Union[str, Platform, None] = None, progress: Output = discard,
         cancel: Optional[Cancel] = None) -> None:
    """Write stored images to an archive; ``file`` is a path or an open file.

    A name without a tag means all its tags.  An index is saved as a whole, or its
    image for ``platform``.  A file at the path is replaced in one step.  Raises
    NotFound, InvalidReference, StorageError, Cancelled.
    """
    data = saved(refs, store, platform, serialized(progress), cancel or Cancel())
    if isinstance(file, str):
        write_file(file, data)
    else:
        for piece in data:
            file.write(piece)


def saved(refs: Sequence[Union[str, Reference]], store: ImageSource, platform: Union[str, Platform, None],
          output: Output, cancel: Cancel) -> Iterator[Buffer]:
    """Yield the archive of some stored images, piece by piece; raises as save()."""
    if isinstance(platform, str):
        platform = Platform.parse(platform, host_platform())
    images: List[Named] = []
    with store.reading(cancel):
        for ref in refs:
            for name, whole in _images(ref, store):
                top = store.on(platform, whole) if platform else whole
                if top is None:
                    raise NotFound("%s has nothing for %s" % (ref, str(platform)))
                images.append((name.with_digest(top.digest) if name and name.digest else name, top))
        yield from packed(store, images, platform or host_platform(), output, cancel)


def _images(ref: Union[str, Reference], store: ImageSource) -> List[Named]:
    """List the image of a name, those of all its tags, or the unnamed one of an image ID; raises NotFound."""
    with contextlib.suppress(InvalidReference):
        name = ref if isinstance(ref, Reference) else Reference.parse(ref)
        every_tag = not name.tag and not name.digest
        pinned = store.references.find(name) if name.digest else None
        if pinned:  # it keeps its tag
            return [(name._replace(digest=None) if name.tag else name, pinned.descriptor)]
        images = [(stored.name, stored.descriptor) for stored in store.references.all()
                  if stored.name == name.docker_ref()
                  or every_tag and stored.name.name == name.name and stored.name.tag]
        if images:
            return [*images]
    return [(None, store.image(ref).descriptor)]


def packed(store: ImageSource, images: Sequence[Named], platform: Platform, output: Output,
           cancel: Cancel) -> Iterator[Buffer]:
    """Yield the archive of some images, docker's part of it for ``platform``; raises StorageError."""
    contents = _Contents(store, platform, output)
    for name, top in sorted(images, key=lambda pair: (str(pair[0] or ""), pair[1].digest)):
        contents.add(name, top)
    for file, data in contents.documents():
        yield header(Entry(file.encode(), FILE, len(data))) + data + padding(len(data))
    blobs = contents.blobs
    for folder in ["blobs/"] + sorted({"blobs/%s/" % digest.algorithm for digest in blobs}):
        yield header(Entry(folder.encode(), DIRECTORY, mode=0o755))
    meter = Meter(output, "", "Saving", sum(blobs.values()))
    for digest in sorted(blobs):
        yield header(Entry(_member(digest).encode(), FILE, blobs[digest]))
        verifier = Verifier(digest.algorithm)
        with store.content.open(digest) as source, storage_errors("read blob %s" % digest):
            for piece in pieces(source, cancel, verifier, BUFFER):
                yield piece
                meter.advance(len(piece))
        try:
            verifier.verify(digest, blobs[digest], "blob")
        except ContentMismatch as exc:
            raise corrupt(digest) from exc
        yield padding(blobs[digest])
    meter.finish()
    yield END


class _Contents:
    """The blobs of an archive (digest to size in bytes), and the documents that list its images."""

    def __init__(self, store: ImageSource, platform: Platform, output: Output) -> None:
        self.blobs: Dict[Digest, int] = {}
        self._store = store
        self._platform = platform
        self._output = output
        self._entries: List[Dict[str, Any]] = []
        self._docker: Dict[Digest, Dict[str, Any]] = {}
        self._repositories: Dict[str, Dict[str, str]] = {}

    def add(self, name: Optional[Reference], top: Descriptor) -> None:
        """Add an image with all that it needs; raises StorageError if some of that is missing."""
        label = name.familiar if name else top.digest
        for blob in self._store.missing(top, foreign=True):
            raise StorageError("%s lacks blob %s; pull it again, with --foreign if it has URLs" % (
                label, blob.digest))
        notes = {REF_NAME: str(name), IMAGE_NAME: str(name)} if name else None
        entry = Descriptor(top.media_type, top.digest, top.size, annotations=notes).to_json()
        if entry in self._entries:
            return
        self._entries.append(entry)
        self.blobs.update((item.digest, item.size) for item, _ in self._store.walk(top))
        ours = self._store.on(self._platform, top)
        document = self._store.document(ours) if ours else None
        if not isinstance(document, Manifest) or not is_runnable(document):
            text = "warning: %s has nothing for %s, so docker before 25 won't find it"
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

    def documents(self) -> Iterator[Tuple[str, bytes]]:
        yield "oci-layout", LAYOUT
        yield "index.json", compact({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._entries})
        yield "manifest.json", compact(list(self._docker.values()))
        if self._repositories:
            yield "repositories", compact(self._repositories)


def write_file(path: str, data: Iterator[Buffer]) -> None:
    """Replace a file in one step, keeping its mode, or write into a device or pipe; raises StorageError."""
    with file_errors("write %s" % path), contextlib.ExitStack() as stack:
        if os.path.exists(path) and not os.path.isfile(path):
            fd = os.open(path, os.O_WRONLY)
            stack.callback(os.close, fd)
        else:
            real = os.path.realpath(path)  # a symbolic link is kept
            fd = stack.enter_context(replacing(real, os.path.dirname(real)))
            if os.path.exists(real):
                os.fchmod(fd, stat.S_IMODE(os.stat(real).st_mode))
        for piece in data:
            write_all(fd, memoryview(piece))


def _member(digest: Digest) -> str:
    return "blobs/%s/%s" % (digest.algorithm, digest.encoded)
