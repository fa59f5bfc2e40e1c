# SPDX-License-Identifier: Apache-2.0
"""The layers of an image, and the entries of one, verified on the way."""
import contextlib
import errno
from typing import Generator, Iterator, List, Optional, Sequence, Tuple, Union

from ..cancel import Cancel
from ..digest import Buffer, ChainID, DiffID, Verifier
from ..errors import ContentMismatch, InvalidDocument, NotFound, PolicyError, StorageError, corrupt
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.manifest import Manifest
from ..image.platform import Platform, preference
from ..image.tar import NOBODY, Entry, Reader
from ..parts import futures
from ..progress import Meter, Output, Progress
from ..reference import Reference
from ..store.compression import decompressed
from ..store.layer import Diff
from ..store.metadata import V2Metadata
from ..store.references import Association
from ..store.store import ImageSource, Store, host_platform, platform_of

TOO_LARGE = "the image is larger than allowed; see --max-unpacked"
_FRAME = 64 << 10  # bytes of headers and padding that a layer has for nothing
#: Errors of names that no file system takes, rather than of this disk just now.
_IMPOSSIBLE = frozenset((errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EILSEQ, errno.EINVAL))


def for_platform(image: Image, store: ImageSource, platform: Platform, exact: bool = False) -> Image:
    """Choose the image for a platform from an index; raises NotFound.

    With ``exact``, an image that is none of an index must be for that platform too.
    """
    descriptor = store.on(platform, image.descriptor)
    chosen = descriptor and store.load(Association(image.name, descriptor, image.source))
    if not chosen or exact and chosen.config and not any(
            runnable.matches(chosen.config.platform) for runnable in preference(platform)):
        raise NotFound("%s has nothing for %s" % (image.name.familiar, str(platform)))
    return chosen


def layers_for(image: Union[Image, str, Reference], store: ImageSource,
               platform: Union[str, Platform, None]) -> List[Tuple[Descriptor, DiffID]]:
    """Return the layers of a stored image for a platform, by default the host's; raises as layers_of()."""
    stored = image if isinstance(image, Image) else store.image(image)
    wanted = platform_of(platform)
    return layers_of(
        for_platform(stored, store, wanted or host_platform(), exact=wanted is not None), store)


def layers_of(image: Image, store: ImageSource) -> List[Tuple[Descriptor, DiffID]]:
    """Return an image's layers, bottom first, with DiffIDs; raises NotFound for what is none, StorageError."""
    document, config = store.document(image.descriptor), store.load(Association(*image[:3])).config
    if config is None or not isinstance(document, Manifest):
        raise NotFound("%s is no image that has a root file system" % image.name.familiar)
    layers = config.paired(document.layers)
    for blob in document.layers:
        if not store.content.has(blob.digest, blob.size):
            raise StorageError("layer %s of %s is not stored; pull it, with --foreign if it has URLs" % (
                blob.digest, image.name.familiar))
    return layers


def remember(image: Image, store: Store, layers: Sequence[Tuple[Descriptor, DiffID]]) -> None:
    """Record the DiffIDs of an image just pulled, which reading its layers has verified."""
    chain: Optional[ChainID] = None
    with contextlib.suppress(StorageError):  # a cache
        for blob, diff_id in layers:
            chain = store.layers.register(chain, Diff(diff_id), blob).chain_id
            store.metadata.add(diff_id, V2Metadata(blob.digest, image.name.name))


def announce(layers: Sequence[Tuple[Descriptor, DiffID]], output: Output) -> None:
    """Tell the sizes of the layers that will be read, so that the time left is that of all."""
    for blob, _ in layers:
        output(Progress(id=blob.digest.short, action="Waiting", expected=blob.size))


@contextlib.contextmanager
def reading(store: ImageSource, blob: Descriptor, diff_id: DiffID, output: Output, cancel: Cancel,
            limit: Optional[int] = None, action: str = "Extracting") -> Iterator[Reader]:
    """Read the entries of a layer; the block ends well only if blob and DiffID are right.

    ``action`` names the progress; ``limit`` (bytes) bounds the whole stream, with what
    lies behind the tar's end.
    Raises InvalidDocument, PolicyError, ContentMismatch for the layer, StorageError
    if the disk has changed it, Cancelled.
    """
    raw, verifier = Verifier(blob.digest.algorithm), Verifier()
    meter = Meter(output, blob.digest.short, action, blob.size)

    def inflated() -> Generator[Buffer, None, None]:
        size = 0
        with store.content.open(blob.digest) as file, futures.ThreadPoolExecutor(1, "hash") as pool:
            hashing = pool.submit(verifier.update, b"")
            for piece in decompressed(file, cancel, store.layers.zstd, raw):
                size += len(piece)
                if limit is not None and size > limit + _FRAME:
                    raise PolicyError(TOO_LARGE)
                meter.move(raw.size)
                stable = piece if isinstance(piece, bytes) else bytes(piece)
                hashing.result()  # a piece is hashed while the next one is inflated
                hashing = pool.submit(verifier.update, stable)
                yield stable
            hashing.result()

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
        raise corrupt(blob.digest) from exc
    if verifier.digest != diff_id:
        raise ContentMismatch("layer %s is %s, not %s as its config says" % (
            blob.digest, verifier.digest, diff_id))


def warn_of_owners(reader: Reader, blob: Descriptor, output: Output) -> None:
    """Warn, once for a layer, of owners that are not as the layer has them."""
    if reader.replaced_owners:
        output(Progress(message="warning: layer %s: %d owners are out of range, and are %d instead" % (
            blob.digest.short, reader.replaced_owners, NOBODY)))


@contextlib.contextmanager
def ahead(pieces: Generator[Buffer, None, None], depth: int = 4) -> Iterator[Iterator[Buffer]]:
    """Make pieces by a thread that is up to ``depth`` of them ahead of the reader.

    Pieces must not change once they are made.  Thread and generator end with the block.
    """
    with contextlib.closing(pieces), futures.ThreadPoolExecutor(1, "ahead") as pool:
        pending = [pool.submit(next, pieces, None) for _ in range(depth + 1)]

        def take() -> Iterator[Buffer]:
            while True:
                piece = pending.pop(0).result()
                if piece is None:
                    return
                pending.append(pool.submit(next, pieces, None))
                yield piece

        try:
            yield take()
        finally:
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def entry_errors(entry: Optional[Entry]) -> Iterator[None]:
    """Map errors to InvalidDocument, which is the layer's fault, or StorageError, the disk's."""
    try:
        yield
    except (InvalidDocument, PolicyError, OSError) as exc:
        source = "layer entry %s" % (entry,) if entry else "unpack"
        if not isinstance(exc, OSError):
            raise exc.within(source) if not str(exc).startswith("tar:") else exc
        if exc.errno in _IMPOSSIBLE and entry is not None:
            raise InvalidDocument("%s: %s" % (source, exc.strerror)) from exc
        raise StorageError("%s: %s" % (source, exc.strerror or exc)) from exc
