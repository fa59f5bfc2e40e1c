# SPDX-License-Identifier: Apache-2.0
"""unpack(): the root file system of a stored image, in a directory.

Layers are applied in order, each verified on the way: the blob against its
digest, its tar stream against its DiffID.  One thread inflates while another
writes.  The directory is built beside its final name and renamed, or, where it
is there and empty, built in place; nothing is left of one that fails.

Mirrors umoci's raw unpack.  Spec: image-spec layer.md.
"""
import contextlib
import os
import stat
import tempfile
from typing import Iterator, List, Optional, Sequence, Tuple, Union

from .descriptor import Descriptor, Platform
from .digest import ChainID, DiffID, Verifier
from .distribution import host_platform
from .errors import (ContentMismatch, Error, InvalidDocument, NotFound, PolicyError, StorageError,
                     Unsupported, storage_errors)
from .image import Image
from .layer import Diff
from .manifest import Manifest
from .metadata import V2Metadata
from .progress import Meter, Output, Progress, discard, serialized
from .reference import Reference
from .references import Association
from .rootfs import RootFS, clear
from .store import Store
from .streams import Buffer, Cancel, ahead, decompressed
from .tar import Reader

MAX_UNPACKED = 64 << 30  # bytes


def unpack(image: Union[Image, str, Reference], store: Store, directory: str, *,
           platform: Union[str, Platform, None] = None, max_unpacked: int = MAX_UNPACKED,
           progress: Output = discard, cancel: Optional[Cancel] = None) -> None:
    """Make the root file system of an image in ``directory``, new or empty.

    ``platform`` (the host's) chooses of what is stored for many; ``max_unpacked``
    (bytes) is how much data it may hold.  As root, entries keep
    their owners; else all is the caller's, without devices and setuid bits.
    Raises NotFound, PolicyError, InvalidDocument, ContentMismatch, StorageError,
    Cancelled.
    """
    cancel, output = cancel or Cancel(), serialized(progress)
    if os.name != "posix":
        raise Unsupported("unpack needs a POSIX system")
    with store.using(cancel):
        what = image if isinstance(image, Image) else store.image(image)
        wanted = Platform.parse(platform, host_platform()) if isinstance(platform, str) else platform
        layers = layers_of(for_platform(what, store, wanted or host_platform()), store)
        with _building(directory, store) as fd:
            root = RootFS(fd, max_unpacked, lambda text: output(Progress(message="warning: " + text)))
            try:
                for blob, diff_id in layers:
                    apply(root, store, blob, diff_id, output, cancel)
                root.close()
            finally:
                root.drop()


def for_platform(image: Image, store: Store, platform: Platform) -> Image:
    """Of an image that is stored for many platforms the one for this; raises NotFound."""
    descriptor = store.on(platform, image.descriptor)
    if descriptor is None:
        raise NotFound("%s has nothing for %s" % (image.name.familiar, str(platform)))
    return store.load(Association(image.name, descriptor, image.source))


def layers_of(image: Image, store: Store) -> List[Tuple[Descriptor, DiffID]]:
    """The layers of an image, bottom first; raises NotFound for what is no image or not all there."""
    document = store.document(image.descriptor)
    if image.config is None or not isinstance(document, Manifest):
        raise NotFound("%s is no image that has a root file system" % image.name.familiar)
    if len(document.layers) != len(image.config.diff_ids):
        raise ContentMismatch("layers from manifest don't match image configuration")
    for blob in document.layers:
        if not store.content.has(blob.digest, blob.size):
            raise StorageError("layer %s of %s is not stored; pull it, with --foreign if it has URLs" % (
                blob.digest, image.name.familiar))
    return list(zip(document.layers, image.config.diff_ids))


def remember(image: Image, store: Store, layers: Sequence[Tuple[Descriptor, DiffID]]) -> None:
    """Record of an image just pulled what reading its layers has shown."""
    chain: Optional[ChainID] = None
    with contextlib.suppress(StorageError):  # a cache
        for blob, diff_id in layers:
            chain = store.layers.register(chain, Diff(diff_id), blob).chain_id
            store.metadata.add(diff_id, V2Metadata(blob.digest, image.name.name))


@contextlib.contextmanager
def reading(store: Store, blob: Descriptor, diff_id: DiffID, output: Output,
            cancel: Cancel) -> Iterator[Reader]:
    """The entries of a layer; at the end of the block all of it has been verified."""
    raw, verifier = Verifier(blob.digest.algorithm), Verifier()
    meter = Meter(output, blob.digest.short, "Extracting", blob.size)

    def inflated() -> Iterator[Buffer]:
        with store.content.open(blob.digest) as file:
            for piece in decompressed(file, cancel, store.layers.zstd, raw):
                verifier.update(piece)
                meter.move(raw.size)
                yield piece if isinstance(piece, bytes) else bytes(piece)

    try:
        with ahead(inflated()) as pieces:
            reader = Reader(pieces)
            yield reader
            reader.drain()
        meter.finish()
    except (InvalidDocument, PolicyError):
        # What is wrong with a layer may be the disk's doing.
        raw = Verifier(blob.digest.algorithm)
        store.content.hash(blob.digest, raw, cancel)
        if raw.digest == blob.digest:
            raise
    try:
        raw.verify(blob.digest, blob.size, "layer")
    except ContentMismatch as exc:
        raise StorageError("blob %s in the store is corrupt; run minipull check" % blob.digest) from exc
    if verifier.digest != diff_id:
        raise ContentMismatch("layer %s is %s, not %s as its config says" % (
            blob.digest, verifier.digest, diff_id))


def apply(root: RootFS, store: Store, blob: Descriptor, diff_id: DiffID, output: Output,
          cancel: Cancel) -> None:
    """Put one more layer of an image on a root file system."""
    try:
        with reading(store, blob, diff_id, output, cancel) as reader:
            root.apply(reader)
    except Error as exc:
        cancel.check()
        raise exc.within("layer %s" % blob.digest.short) from exc
    output(Progress(id=blob.digest.short, action="Extracted"))


@contextlib.contextmanager
def _building(directory: str, store: Store) -> Iterator[int]:
    """A descriptor of an empty directory that is ``directory`` when the block has ended well."""
    path = os.path.abspath(directory)
    if (os.path.realpath(path) + os.sep).startswith(os.path.realpath(store.root) + os.sep):
        raise PolicyError("%s lies in the store" % directory)
    with contextlib.ExitStack() as stack:
        with storage_errors("unpack to %s" % directory):
            there = os.path.lexists(path)
            if there and (os.path.islink(path) or not os.path.isdir(path) or os.listdir(path)):
                raise PolicyError("%s is there, and is no empty directory" % directory)
            build = path
            if there:
                stack.callback(_clear, path)
            else:
                # Nobody else gets in before all of it is there.
                above = tempfile.mkdtemp(prefix=".minipull-", dir=os.path.dirname(path))
                stack.callback(_discard, above)
                build = os.path.join(above, "rootfs")
                os.mkdir(build)
                os.chmod(build, 0o755)
            fd = os.open(build, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, fd)
        yield fd
        with storage_errors("unpack to %s" % directory):
            if there:
                os.close(fd)
                stack.pop_all()
            else:
                # Elsewhere goes only a directory that one may write to.
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                os.fchmod(fd, mode | 0o700)
                os.rename(build, path)
                os.fchmod(fd, mode)


def _clear(path: str) -> None:
    with contextlib.suppress(OSError):  # what went wrong before is what the user hears of
        clear(path)


def _discard(path: str) -> None:
    _clear(path)
    with contextlib.suppress(OSError):
        os.rmdir(path)
