# SPDX-License-Identifier: Apache-2.0
"""unpack(): the root file system of a stored image, in a directory.

Layers are applied in order, each verified on the way: the blob against its
digest, its tar stream against its DiffID.  One thread inflates while another
writes.  The directory is built beside its final name and renamed, over an empty
one too, unless that is a mount; nothing is left of one that fails, and what a
kill leaves goes with the next unpack there.

Mirrors umoci's raw unpack.  Spec: image-spec layer.md.
"""
import contextlib
import os
import stat
from typing import Iterator, Optional, Union

from ..cancel import Cancel
from ..digest import DiffID
from ..errors import Error, PolicyError, Unsupported, file_errors
from ..files import directory_beside, sweep, sync_directory
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.platform import Platform
from ..progress import Output, Progress, discard, serialized
from ..reference import Reference
from ..store.store import ImageSource
from .layers import announce, layers_for, reading, warn_of_owners
from .rootfs import RootFS, clear

MAX_UNPACKED = 64 << 30  # bytes
_CLOSED = 0o1700  # the mode of a directory that is filled where it is, and that no image is likely to ask for


def unpack(image: Union[Image, str, Reference], store: ImageSource, directory: str, *,
           platform: Union[str, Platform, None] = None, max_unpacked: int = MAX_UNPACKED,
           durable: bool = False, progress: Output = discard, cancel: Optional[Cancel] = None) -> None:
    """Make the root file system of an image in ``directory``, new or empty.

    ``platform`` (the host's) chooses from an index; ``max_unpacked`` (bytes) bounds the
    data, and the tar of each layer; ``durable`` waits until a power cut can't take any
    of it.  As root, entries keep their owners; else the caller owns them, without
    devices and setuid bits.  Raises NotFound, PolicyError, InvalidDocument,
    ContentMismatch, StorageError, Cancelled.

    Example::

        minipull.unpack("registry.lan/app:1.0", store, "rootfs")
    """
    cancel, output = cancel or Cancel(), serialized(progress)
    if os.name != "posix":
        raise Unsupported("unpack needs a POSIX system")
    with store.reading(cancel), cancel.local():
        layers = layers_for(image, store, platform)
        with _building(directory, store, durable) as fd:
            root = RootFS(fd, max_unpacked, lambda text: output(Progress(message="warning: " + text)))
            announce(layers, output)
            try:
                for blob, diff_id in layers:
                    apply(root, store, blob, diff_id, output, cancel)
                root.close()
            finally:
                root.drop()


def apply(root: RootFS, store: ImageSource, blob: Descriptor, diff_id: DiffID, output: Output,
          cancel: Cancel) -> None:
    """Put one more layer of an image on a root file system."""
    try:
        with reading(store, blob, diff_id, output, cancel, root.room) as reader:
            root.apply(reader)
            warn_of_owners(reader, blob, output)
    except Error as exc:
        cancel.check()
        raise exc.within("layer %s" % blob.digest.short) from exc
    output(Progress(id=blob.digest.short, action="Extracted"))


@contextlib.contextmanager
def _building(directory: str, store: ImageSource, durable: bool) -> Iterator[int]:
    """Open an empty directory for the block, which becomes ``directory`` if that ends well."""
    path = os.path.abspath(directory)
    with file_errors("unpack to %s" % directory):
        if (os.path.realpath(path) + os.sep).startswith(os.path.realpath(store.root) + os.sep):
            raise PolicyError("%s lies in the store" % directory)
    with contextlib.ExitStack() as stack:
        with file_errors("unpack to %s" % directory):
            sweep(os.path.dirname(path), path, _remove)  # also where the directory is complete, and refused
            former = os.lstat(path) if os.path.lexists(path) else None
            if former and (not stat.S_ISDIR(former.st_mode) or os.listdir(path)):
                raise PolicyError("%s is there, and is no empty directory" % directory)
            mine = not former or os.geteuid() in (0, former.st_uid)
            # What is mounted, or somebody else's, or in a directory that we can't write to, stays in its place.
            above = ""
            if mine and not os.path.ismount(path):
                try:
                    above = stack.enter_context(directory_beside(path, _remove))[1]
                except PermissionError:
                    if not former:
                        raise
            build = os.path.join(above, "rootfs") if above else path
            if above:
                os.mkdir(build)
            fd = os.open(build, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, fd)
            mode = stat.S_IMODE(former.st_mode) if former else 0o755
            if above and former and os.geteuid() == 0:
                os.fchown(fd, former.st_uid, former.st_gid)
            if mine:
                os.fchmod(fd, mode if above else _CLOSED)
        try:
            yield fd
            with file_errors("unpack to %s" % directory):
                _finish(fd, build, path, mode, durable)
        except BaseException:
            if not above:  # the first error is the one that is told
                with contextlib.suppress(OSError):
                    clear(path)
                with contextlib.suppress(OSError):
                    os.fchmod(fd, mode)
            raise


def _finish(fd: int, build: str, path: str, mode: int, durable: bool) -> None:
    """Give a complete directory its place, and its former ``mode`` if it has been closed."""
    if durable:
        os.sync()
    final = stat.S_IMODE(os.fstat(fd).st_mode)
    if build != path:
        os.fchmod(fd, final | 0o700)  # elsewhere goes only a directory that one may write to
        os.rename(build, path)
        os.fchmod(fd, final)
    elif final == _CLOSED:
        os.fchmod(fd, mode)
    if durable:
        sync_directory(os.path.dirname(path))


def _remove(folder: str) -> None:
    clear(folder)
    os.rmdir(folder)
