# SPDX-License-Identifier: Apache-2.0
"""export(): the root file system of an image without a directory, as one tar; or one file of it.

Layers are read twice: first their headers, to learn what is left of each when
all lie on top of each other, then the data of what is.  Nothing touches the
disk, so owners and devices are the image's, whoever asks.

Mirrors crane's export.  Spec: image-spec layer.md.
"""
import functools
from typing import BinaryIO, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from ..cancel import Cancel
from ..digest import Buffer, DiffID
from ..errors import InvalidDocument, NotFound, PolicyError
from ..files import write_file
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.platform import Platform
from ..image.tar import DIRECTORY, END, LINK, Entry, header, padding, write_pieces
from ..progress import Output, Progress, discard, serialized
from ..reference import Reference
from ..store.compression import packing
from ..store.store import ImageSource
from .layers import announce, layers_for, reading, warn_of_owners
from .overlay import POSITION, Folder, Overlay, Trail, path_of

MAX_HOLES = 64 << 30  # bytes, which take next to none in a layer
Layers = Sequence[Tuple[Descriptor, DiffID]]


def export(image: Union[Image, str, Reference], store: ImageSource, file: Union[str, BinaryIO], *,
           platform: Union[str, Platform, None] = None, progress: Output = discard,
           cancel: Optional[Cancel] = None) -> None:
    """Write the root file system of a stored image as one tar; ``file`` is a path or an open file.

    ``platform`` (the host's) chooses from an index.  A file at the path is replaced in one step, and
    compressed if its name ends in .gz or .tgz.  Raises InvalidReference, and as unpack().

    Example::

        minipull.export("registry.lan/app:1.0", store, "rootfs.tar")
    """
    cancel = cancel or Cancel()
    pack = packing(file if isinstance(file, str) else "")
    with store.reading(cancel):
        tree = Flattened(store, layers_for(image, store, platform), serialized(progress), cancel)
        if isinstance(file, str):
            write_file(file, pack(tree.tar()))
        else:
            write_pieces(tree.tar(), file)


class Flattened:
    """The tree that the layers of a stored image, bottom first, make.  Raises as unpack()."""

    def __init__(self, store: ImageSource, layers: Layers, output: Output, cancel: Cancel) -> None:
        self._layers = layers
        self._output = output
        self._reading = functools.partial(reading, store, output=output, cancel=cancel)
        self._overlay = Overlay()
        room = MAX_HOLES
        for number, (blob, diff_id) in enumerate(layers):
            with self._reading(blob, diff_id, action="Reading") as reader:
                for position, entry in enumerate(reader):
                    try:
                        self._overlay.add(number, position, entry)
                    except (InvalidDocument, PolicyError) as exc:
                        raise exc.within("layer %s: entry %s" % (blob.digest.short, entry)) from exc
                warn_of_owners(reader, blob, output)
                room -= reader.holes
            self._overlay.finish_layer()
        if room < 0:
            raise PolicyError("the image has sparse files with holes of more than %d bytes" % MAX_HOLES)

    def tar(self) -> Iterator[Buffer]:
        """The tar, in pieces: directories, links and devices, then files by layer, and hard links to them.

        Nothing is there twice, which docker and podman refuse to import.  So GNU tar needs
        --delay-directory-restore: it gives a directory times and mode at the first entry elsewhere.
        """
        files: Dict[int, Trail] = {}  # the first name of each; of a thing without data by a number below 0
        links: List[Tuple[Trail, Trail]] = []  # other names, and the first ones
        for trail, thing in self._overlay.walk():
            if isinstance(thing, Folder):
                if trail or thing.entry:
                    entry = thing.entry or Entry(b"", DIRECTORY, mode=0o755)
                    yield _header(entry._replace(name=(path_of(trail) or b".") + b"/"))
                continue
            first = files.setdefault(thing if isinstance(thing, int) else ~id(thing), trail)
            if first is not trail:
                links.append((trail, first))
            elif isinstance(thing, Entry):
                yield _header(thing._replace(name=path_of(trail)))
        announce(self._layers, self._output)
        for number, (blob, diff_id) in enumerate(self._layers):
            with self._reading(blob, diff_id) as reader:
                for position, entry in enumerate(reader):
                    trail = files.get(number << POSITION | position)
                    if trail:
                        yield _header(entry._replace(name=path_of(trail)))
                        yield from reader.data()
                        yield padding(entry.size)
            self._output(Progress(id=blob.digest.short, action="Extracted"))
        for trail, first in links:
            yield _header(Entry(path_of(trail), LINK, linkname=path_of(first)))
        yield END

    def file(self, path: str) -> Iterator[Buffer]:
        """The data of one file; raises NotFound."""
        thing = self._overlay.find(path.encode("utf-8", "surrogateescape"))
        if not isinstance(thing, int):
            raise NotFound("%s: no such file in the image" % path if thing is None else
                           "%s is no file in the image" % path)
        blob, diff_id = self._layers[thing >> POSITION]
        with self._reading(blob, diff_id) as reader:
            for position, _ in enumerate(reader):
                if position == thing & (1 << POSITION) - 1:
                    yield from reader.data()


def _header(entry: Entry) -> bytes:
    """Return the header of an entry without the attributes that an overlay would obey."""
    return header(entry._replace(xattrs={key: value for key, value in entry.xattrs.items()
                                         if not key.startswith(b"trusted.overlay.")}))
