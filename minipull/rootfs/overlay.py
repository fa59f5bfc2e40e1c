# SPDX-License-Identifier: Apache-2.0
"""The names of a root file system in memory, as its layers leave them.

A whiteout hides entries of lower layers and none of its own layer, wherever in
the layer it stands.  A parent that is a file, FIFO or device is replaced by a
directory; a whiteout below one hides nothing.  A character device 0:0, which an
overlay takes for a whiteout, is left out, and removes an entry of that name.
Links are followed within the root, as the kernel would after chroot(2).

Mirrors umoci's oci/layer and moby's pkg/archive (diff.go).  Spec: image-spec
layer.md.
"""
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

from ..errors import InvalidDocument
from ..image.tar import CHAR, DIRECTORY, FILE, LINK, MAX_NAME, SYMLINK, Entry

MAX_HOPS = 255  # links followed on the way to one parent
_MAX_PART = 255  # bytes of one name, as file systems have it
WHITEOUT, META, OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"
PLNK = b".wh..wh.plnk"  # where AUFS kept what it hard-linked; gone when its layer is done


class Folder:
    """A directory: its children by name, each with the layer that named it last."""
    __slots__ = ("entry", "names")

    def __init__(self, entry: Optional[Entry] = None) -> None:
        self.entry = entry
        self.names: Dict[bytes, Tuple[Thing, int]] = {}


#: A directory, a file by its layer and position there, or an entry without data.
Thing = Union[Folder, int, Entry]
POSITION = 32  # bits of a file's number that hold its position in the layer


class Overlay:
    """The tree that layers make, bottom first."""

    def __init__(self) -> None:
        self.root = Folder()

    def finish_layer(self) -> None:
        self.root.names.pop(PLNK, None)

    def walk(self) -> Iterator[Tuple[bytes, Thing]]:
        """Yield paths in order, parents first."""
        pending: List[Tuple[bytes, Thing]] = [(b"", self.root)]
        while pending:
            path, thing = pending.pop()
            yield path, thing
            if isinstance(thing, Folder):
                pending += [(join(path, name), thing.names[name][0])
                            for name in sorted(thing.names, reverse=True)]

    def add(self, layer: int, position: int, entry: Entry) -> None:
        """Apply an entry of a layer; raises InvalidDocument for what no layer may have."""
        parts = parts_of(entry.name)
        if not parts:
            if entry.kind != DIRECTORY:
                raise InvalidDocument("it would reposition the root")
            self.root.entry = entry
            return
        *above, name = parts
        if name.startswith(WHITEOUT) and parts != [PLNK]:
            hidden = name[len(WHITEOUT):]
            if hidden in (b"", b".", b".."):
                raise InvalidDocument("a whiteout of nothing")
            parent = self.find(above)
            if isinstance(parent, Folder) and name == OPAQUE:
                _hide(parent, list(parent.names), layer)
            elif isinstance(parent, Folder) and not name.startswith(META):
                _hide(parent, [hidden], layer)
            return
        folder = self.find(above, layer)
        assert isinstance(folder, Folder)
        if len(name) > _MAX_PART:
            raise InvalidDocument("File name too long")
        known = folder.names.get(name, (None, 0))[0]
        thing: Optional[Thing] = entry
        if entry.kind == DIRECTORY:
            thing = known if isinstance(known, Folder) else Folder()
            thing.entry = entry
        elif entry.kind == FILE:
            thing = layer << POSITION | position
        elif entry.kind == LINK:
            folder.names.pop(name, None)  # the way to the target may have led through it
            *source, last = parts_of(entry.linkname) or [b""]
            there = self.find(source)
            thing = there.names.get(last, (None, 0))[0] if isinstance(there, Folder) else None
            if thing is None or isinstance(thing, Folder) or (there, last) == (folder, name):
                raise InvalidDocument("a link to %s, which is no file there" % ascii(entry.linkname)[1:])
        elif entry.kind == CHAR and entry.major == entry.minor == 0:
            folder.names.pop(name, None)
            return
        assert thing is not None
        folder.names[name] = thing, layer

    def find(self, parts: Sequence[bytes], layer: int = -1) -> Optional[Thing]:
        """Follow a path and the links on it; for a ``layer``, make the directories that lack.

        Returns None where there is nothing; raises InvalidDocument.
        """
        way, sizes = [self.root], [0]  # directories walked through, and the lengths of their paths
        left, hops = list(reversed(parts)), 0
        thing: Thing = self.root
        while left:
            part = left.pop()
            if part == b"..":
                way, sizes = way[:-1] or way, sizes[:-1] or sizes
                thing = way[-1]
                continue
            if part in (b"", b"."):
                continue
            folder, size = way[-1], sizes[-1] + bool(sizes[-1]) + len(part)
            if size > MAX_NAME or len(part) > _MAX_PART:
                raise InvalidDocument("too deep")
            found = folder.names.get(part, (None, 0))[0]
            if found is None:
                if layer < 0:
                    return None
                found = Folder()
            if isinstance(found, Entry) and found.kind == SYMLINK:
                hops += 1
                if hops > MAX_HOPS:
                    raise InvalidDocument("too many links on the way")
                if found.linkname.startswith(b"/"):
                    way, sizes = way[:1], sizes[:1]
                thing = way[-1]
                left += found.linkname.split(b"/")[::-1]
                continue
            if layer >= 0:
                found = found if isinstance(found, Folder) else Folder()
                folder.names[part] = found, layer
            thing = found
            if isinstance(found, Folder):
                way.append(found)
                sizes.append(size)
            elif left:
                return None
        return thing


def _hide(folder: Folder, names: Sequence[bytes], layer: int) -> None:
    """Remove what lower layers have of these names."""
    pending = [(folder, list(names))]
    while pending:
        there, names = pending.pop()
        for name in names:
            thing, said = there.names.get(name, (None, 0))
            if thing is None:
                continue
            if said < layer:
                del there.names[name]
            elif isinstance(thing, Folder):
                pending.append((thing, list(thing.names)))


def parts_of(name: bytes) -> List[bytes]:
    """A name within the root, whatever it says of a way out."""
    parts: List[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


def join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
