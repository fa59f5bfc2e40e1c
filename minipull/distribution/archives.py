# SPDX-License-Identifier: Apache-2.0
"""Archives as ends of a copy, read or written; reached by name, since a build may leave ``archive/`` out."""
import contextlib
import functools
import os
import shutil
from typing import Iterator, List, Optional

from ..archive.reader import Named, opened
from ..archive.save import Contents, write_file
from ..cancel import Cancel
from ..errors import StorageError, file_errors
from ..files import directory_beside
from ..image.descriptor import Descriptor
from ..progress import Output, Progress
from ..reference import Reference
from ..store.references import named
from ..store.store import host_platform
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
def opened_end(place: Place, cancel: Cancel, zstd: Optional[str]) -> Iterator[ArchiveEnd]:
    """Open an archive to copy from; ``zstd`` is the path of that program, if any."""
    with opened(place.folder, cancel, zstd) as archive:
        yield ArchiveEnd(place, archive)


@contextlib.contextmanager
def archive_end(place: Place, transfers: TransferManager, output: Output,
                cancel: Cancel, dry_run: bool = False) -> Iterator[LayoutEnd]:
    """Make a layout beside an archive to be written, and write it when the block has ended well.

    The layout goes when no transfer writes to it any longer, even one that outlives the copy.
    A dry run has none.
    """
    path = os.path.realpath(place.folder)
    if os.path.isdir(path):
        raise StorageError("write %s: Is a directory" % place.folder)
    if dry_run:
        yield LayoutEnd(place, None, dry_run)
        return
    with contextlib.ExitStack() as stack:
        with file_errors("write %s" % place.folder):
            remove = functools.partial(_remove, output=output, cancel=cancel)
            _, folder = stack.enter_context(directory_beside(path, remove))
        stack.callback(transfers.settle, folder)
        end = LayoutEnd(place._replace(folder=folder), None)
        yield end
        images: List[Named] = []
        for entry in end.store.references.descriptors():
            label = named(entry)
            images.append((Reference.parse(label).with_default_tag() if label else None,
                           Descriptor.from_json(entry, "index.json")))
        write_file(place.folder, Contents(end.store, images, host_platform(), output).pieces(cancel))


@contextlib.contextmanager
def in_terms_of(place: Place, folder: str) -> Iterator[None]:
    """Tell errors on the directory beside an archive, of which the user does not know, as its own."""
    try:
        yield
    except StorageError as exc:
        if folder not in str(exc) or not isinstance(exc.__cause__, OSError):
            raise
        raise exc.reworded("write %s: %s" % (place.folder, exc.__cause__.strerror)) from exc


def _remove(folder: str, output: Output, cancel: Cancel) -> None:
    """Remove a directory as far as that goes: the archive is complete, or there is a worse error."""
    with cancel.local():
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        output(Progress(message="warning: %s could not be removed" % folder))
