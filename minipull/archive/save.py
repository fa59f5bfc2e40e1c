# SPDX-License-Identifier: Apache-2.0
"""save(): images in one tar, which every tool loads.

It is an image layout with the blobs as they are stored, and has besides what
docker itself reads: manifest.json, and repositories for what is older still.
Layers stay compressed; docker, podman and skopeo take them so.  Nothing in it
tells when, where or in which order it was asked for: the same images are the
same bytes.  What is written is verified on the way.

Mirrors moby's image/tarexport/save.go.  Spec: image-spec image-layout.md.
"""
import contextlib
import os
import stat
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Sequence, Union

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
from ..store.references import IMAGE_NAME, LAYOUT, REF_NAME, Named
from ..store.source import ImageSource, host_platform


def save(refs: Sequence[Union[str, Reference]], store: ImageSource, file: Union[str, BinaryIO], *,
         platform: Union[str, Platform, None] = None, progress: Output = discard,
         cancel: Optional[Cancel] = None) -> None:
    """Write stored images to an archive; ``file`` is a path or an open file.

    A name without a tag means all its tags; of what is stored for many
    platforms all is taken, or that for ``platform``.  A file at the path is
    replaced in one step.  Raises NotFound, InvalidReference, StorageError, Cancelled.
    """
    data = saved(refs, store, platform, serialized(progress), cancel or Cancel())
    if isinstance(file, str):
        write_file(file, data)
    else:
        for piece in data:
            file.write(piece)


def saved(refs: Sequence[Union[str, Reference]], store: ImageSource, platform: Union[str, Platform, None],
          output: Output, cancel: Cancel) -> Iterator[Buffer]:
    """What save() writes, piece by piece."""
    wanted = Platform.parse(platform, host_platform()) if isinstance(platform, str) else platform
    images: List[Named] = []
    with store.reading(cancel):
        for ref in refs:
            for name, whole in _meant(ref, store):
                top = store.on(wanted, whole) if wanted else whole
                if top is None:
                    raise NotFound("%s has nothing for %s" % (ref, str(wanted)))
                images.append((name.with_digest(top.digest) if name and name.digest else name, top))
        yield from packed(store, images, wanted or host_platform(), output, cancel)


def _meant(ref: Union[str, Reference], store: ImageSource) -> List[Named]:
    """A name, all tags of one, or without a name what an image ID stands for; raises NotFound."""
    with contextlib.suppress(InvalidReference):
        name = ref if isinstance(ref, Reference) else Reference.parse(ref)
        every = not name.tag and not name.digest
        found = [known for known in store.references.all() if known.name == name.docker_ref()
                 or every and known.name.name == name.name and known.name.tag]
        if found:
            return [(known.name, known.descriptor) for known in found]
    return [(None, store.image(ref).descriptor)]


def packed(store: ImageSource, images: Sequence[Named], platform: Platform, output: Output,
           cancel: Cancel) -> Iterator[Buffer]:
    """The archive of some images of a store; docker's part of it has those for ``platform``."""
    blobs: Dict[Digest, int] = {}
    entries: List[Dict[str, Any]] = []
    docker: Dict[Digest, Dict[str, Any]] = {}
    repositories: Dict[str, Dict[str, str]] = {}
    for name, top in sorted(images, key=lambda pair: (str(pair[0] or ""), pair[1].digest)):
        shown = name.familiar if name else top.digest
        for lost in store.missing(top, foreign=True):
            raise StorageError("%s lacks blob %s; pull it again, with --foreign if it has URLs" % (
                shown, lost.digest))
        notes = {REF_NAME: str(name), IMAGE_NAME: str(name)} if name else None
        entry = Descriptor(top.media_type, top.digest, top.size, annotations=notes).to_json()
        if entry in entries:
            continue
        entries.append(entry)
        blobs.update((item.digest, item.size) for item, _ in store.walk(top))
        ours = store.on(platform, top)
        document = store.document(ours) if ours else None
        if not isinstance(document, Manifest) or not is_runnable(document):
            output(Progress(message="warning: %s has nothing for %s, so docker before 25 won't find it" % (
                shown, str(platform))))
            continue
        layers = [_member(layer.digest) for layer in document.layers]
        item = docker.setdefault(document.digest, {
            "Config": _member(document.config.digest), "RepoTags": None, "Layers": layers})
        if name and name.tag:
            item["RepoTags"] = (item["RepoTags"] or []) + [name.familiar]
            if layers:
                repositories.setdefault(name.familiar_name, {})[name.tag] = document.layers[-1].digest.encoded
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    for file, data in (("oci-layout", LAYOUT), ("index.json", compact(index)),
                       ("manifest.json", compact(list(docker.values()))),
                       ("repositories", compact(repositories) if repositories else b"")):
        if data:
            yield header(Entry(file.encode(), FILE, len(data))) + data + padding(len(data))
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


def write_file(path: str, data: Iterator[Buffer]) -> None:
    """Put ``data`` at ``path`` in one step, with the mode of what is there; or into what is no file.

    Raises StorageError.
    """
    with file_errors("write %s" % path), contextlib.ExitStack() as stack:
        if os.path.exists(path) and not os.path.isfile(path):
            fd = os.open(path, os.O_WRONLY)
            stack.callback(os.close, fd)
        else:
            real = os.path.realpath(path)  # a link stays one
            fd = stack.enter_context(replacing(real, os.path.dirname(real)))
            if os.path.exists(real):
                os.fchmod(fd, stat.S_IMODE(os.stat(real).st_mode))
        for piece in data:
            write_all(fd, memoryview(piece))


def _member(digest: Digest) -> str:
    return "blobs/%s/%s" % (digest.algorithm, digest.encoded)
