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
from typing import Callable, Iterator, Optional, Union

from ..cancel import Cancel
from ..digest import DiffID
from ..errors import Error, PolicyError, Unsupported, storage_errors
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.platform import Platform
from ..progress import Output, Progress, discard, serialized
from ..reference import Reference
from ..store.store import Store, host_platform
from .layers import for_platform, layers_of, reading
from .rootfs import RootFS, clear

MAX_UNPACKED = 64 << 30  # bytes


def unpack(image: Union[Image, str, Reference], store: Store, directory: str, *,
           platform: Union[str, Platform, None] = None, max_unpacked: int = MAX_UNPACKED,
           progress: Output = discard, cancel: Optional[Cancel] = None) -> None:
    """Make the root file system of an image in ``directory``, new or empty.

    ``platform`` (the host's) chooses from an index; ``max_unpacked`` (bytes) is how
    much data it may hold.  As root, entries keep their owners; else the caller
    owns them, without devices and setuid bits.
    Raises NotFound, PolicyError, InvalidDocument, ContentMismatch, StorageError,
    Cancelled.
    """
    cancel, output = cancel or Cancel(), serialized(progress)
    if os.name != "posix":
        raise Unsupported("unpack needs a POSIX system")
    with store.reading(cancel):
        stored = image if isinstance(image, Image) else store.image(image)
        if isinstance(platform, str):
            platform = Platform.parse(platform, host_platform())
        chosen = for_platform(stored, store, platform or host_platform(), exact=platform is not None)
        layers = layers_of(chosen, store)
        with _building(directory, store) as fd:
            root = RootFS(fd, max_unpacked, lambda text: output(Progress(message="warning: " + text)))
            try:
                for blob, diff_id in layers:
                    apply(root, store, blob, diff_id, output, cancel)
                root.close()
            finally:
                root.drop()


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
    """Open an empty directory for the block, which becomes ``directory`` if that ends well."""
    path = os.path.abspath(directory)
    if (os.path.realpath(path) + os.sep).startswith(os.path.realpath(store.root) + os.sep):
        raise PolicyError("%s lies in the store" % directory)
    with contextlib.ExitStack() as stack:
        with storage_errors("unpack to %s" % directory):
            present = os.path.lexists(path)
            if present and (os.path.islink(path) or not os.path.isdir(path) or os.listdir(path)):
                raise PolicyError("%s is there, and is no empty directory" % directory)
            build = path
            if present:
                stack.callback(_quietly, clear, path)
            else:
                # Nobody else gets in before all of it is there.
                above = tempfile.mkdtemp(prefix=".minipull-", dir=os.path.dirname(path))
                stack.callback(_quietly, os.rmdir, above)
                stack.callback(_quietly, clear, above)
                build = os.path.join(above, "rootfs")
                os.mkdir(build)
                os.chmod(build, 0o755)
            fd = os.open(build, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, fd)
        yield fd
        with storage_errors("unpack to %s" % directory):
            if present:
                os.close(fd)
                stack.pop_all()
            else:
                # Elsewhere goes only a directory that one may write to.
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                os.fchmod(fd, mode | 0o700)
                os.rename(build, path)
                os.fchmod(fd, mode)


def _quietly(remove: Callable[[str], None], path: str) -> None:
    with contextlib.suppress(OSError):  # what went wrong before is what the user hears of
        remove(path)
