# SPDX-License-Identifier: Apache-2.0
"""Archives as ends of a copy, read or written; reached by name, since a build may leave ``archive/`` out."""
import contextlib
import functools
import os
from typing import Iterator, List

from ..archive.reader import Named
from ..archive.save import Contents
from ..cancel import Cancel
from ..digest import Verifier
from ..errors import Cancelled, Error, RateLimited, StorageError, file_errors, storage_errors
from ..files import directory_beside, remove, write_file
from ..image.descriptor import Descriptor
from ..parts import shutil
from ..progress import Output, Progress
from ..reference import Reference
from ..store.compression import packing
from ..store.references import named
from ..store.store import Store, host_platform
from ..xfer.transfer import TransferManager
from .ends import LayoutEnd
from .places import Place


class ArchiveEnd(LayoutEnd):
    """The images of an archive, read only."""

    def _label(self, tag: str) -> str:
        tag = super()._label(tag)
        exact = not tag or tag in [label for label, _ in self.images()]
        return tag if exact else str(Reference.parse(tag).with_default_tag())


@contextlib.contextmanager
def archive_end(place: Place, transfers: TransferManager, output: Output, cancel: Cancel,
                dry_run: bool = False, costly: bool = False) -> Iterator[LayoutEnd]:
    """Make a layout beside an archive to be written, and write it when the block has ended well.

    The layout goes when no transfer writes to it any longer, even one that outlives the copy.
    A dry run has none.  One of ``costly`` bytes, as from a registry, stays for the next run
    after an interrupt or an error that may pass, as it does after kill -9.
    """
    with file_errors("write %s" % place.folder):
        path, pack = os.path.realpath(place.folder), packing(place.folder)
    if os.path.isdir(path):
        raise StorageError("write %s: Is a directory" % place.folder)
    if dry_run:
        yield LayoutEnd(place, None, dry_run)
        return
    costly = costly and (os.path.isfile(path) or not os.path.lexists(path))  # nothing stays beside a device
    kept: List[str] = []
    with contextlib.ExitStack() as stack:
        with file_errors("write %s" % place.folder):
            remover = functools.partial(_remove, output=output, cancel=cancel, kept=kept)
            _, folder = stack.enter_context(directory_beside(path, remover, costly))
        stack.callback(transfers.settle, folder)
        end = LayoutEnd(place._replace(folder=folder), None)
        try:
            _take_over(end.store, cancel)
            yield end
            images: List[Named] = []
            for entry in end.store.references.descriptors():
                label = named(entry)
                images.append((Reference.parse(label).with_default_tag() if label else None,
                               Descriptor.from_json(entry, "index.json")))
            write_file(place.folder, pack(Contents(end.store, images, host_platform(), output).pieces(cancel)))
        except Error as exc:
            again = isinstance(exc, (Cancelled, RateLimited)) or exc.retry
            with contextlib.suppress(OSError):  # somebody has removed it
                kept += [folder] if costly and again and _has_bytes(end.store) else []
            if kept and not isinstance(exc, Cancelled):
                output(Progress(message="what came is kept in %s; the same command goes on" % folder))
            raise


def _has_bytes(store: Store) -> bool:
    """Whether anything of a blob has come."""
    sizes = (os.lstat(os.path.join(folder, name)).st_size for part in ("blobs", "ingest")
             for folder, _, names in os.walk(os.path.join(store.root, part))
             for name in names if not name.endswith(".json"))
    return any(sizes)


def _take_over(store: Store, cancel: Cancel) -> None:
    """Forget all that a former run left in a layout but its blobs, and of those what is not sound."""
    with storage_errors("write %s" % store.root), store.reading(cancel):
        for name in set(os.listdir(store.root)) - {"blobs", "ingest"}:
            remove(os.path.join(store.root, name))
        for digest in store.content.digests():
            verifier = Verifier(digest.algorithm)
            with contextlib.suppress(StorageError):
                store.content.hash(digest, verifier, cancel)
            if verifier.digest != digest:
                remove(store.content.path(digest))


@contextlib.contextmanager
def in_terms_of(place: Place, folder: str) -> Iterator[None]:
    """Tell errors on the directory beside an archive, of which the user does not know, as its own."""
    try:
        yield
    except StorageError as exc:
        if folder not in str(exc) or not isinstance(exc.__cause__, OSError):
            raise
        raise exc.reworded("write %s: %s" % (place.folder, exc.__cause__.strerror)) from exc


def _remove(folder: str, output: Output, cancel: Cancel, kept: List[str]) -> None:
    """Remove a directory that is not kept, as far as that goes: there is an archive, or a worse error."""
    if folder in kept:
        return
    with cancel.local():
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        output(Progress(message="warning: %s could not be removed" % folder))
