# SPDX-License-Identifier: Apache-2.0
"""The rules of an overlay, on names in memory: what layers make when they lie on each other.

unpack carries out on disk what is decided here; export writes what is left:

- a whiteout hides entries of lower layers and none of its own layer, wherever
  in the layer it stands;
- links on the way to an entry are followed within the root, as the kernel would
  after chroot(2); ``..`` in a name is taken as text;
- a parent that is a file, FIFO or device is replaced by a directory, and what a
  link to nothing means becomes one (umoci 0.6 does the same); a whiteout below
  one hides nothing;
- an entry replaces any other of its name, but a directory keeps its children;
  a hard link to itself, to a directory or through what it replaces is refused;
- a character device 0:0, which an overlay takes for a whiteout, is left out and
  removes what has its name.

What is kept of all layers has one bound, so memory has one, however little of a
layer holds it once it is compressed.

Mirrors umoci's oci/layer and moby's pkg/archive.  Spec: image-spec layer.md.
"""
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from ..errors import InvalidDocument, PolicyError
from ..image.tar import CHAR, DIRECTORY, FILE, LINK, MAX_NAME, SYMLINK, Entry

MAX_HOPS = 255  # links followed on the way to one entry
MAX_STEPS = 10 ** 7  # names in the links followed for all entries; a distribution has some ten thousand
MAX_KEPT = 32 << 20  # bytes of names, link targets and attributes
_PER_ENTRY, _PER_IMPLIED = 16, 400  # bytes that an entry counts for besides, and a directory without one
MAX_MEMORY = 256 << 20  # bytes that all entries take
#: Bytes of memory for an entry besides its texts, and for one of another kind (CPython 3.6).
_SIZES, _SIZE = {FILE: 200, LINK: 200, DIRECTORY: 650}, 350
_MAX_PART = 255  # bytes of one name, as file systems have it
WHITEOUT, META, OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"
PLNK = b".wh..wh.plnk"  # where AUFS kept what it hard-linked; gone when its layer is done


class Folder:
    """A directory: its children by name, each with the layer that named it last."""
    __slots__ = ("entry", "names")

    def __init__(self) -> None:
        self.entry: Optional[Entry] = None
        self.names: Dict[bytes, Tuple[Thing, int]] = {}


#: A directory, a file by its layer and, but for unpack, position there, or an entry without data.
Thing = Union[Folder, int, Entry]
POSITION = 32  # bits of a file's number that hold its position in the layer
#: A directory's trail and a name in it; a path would take memory for all of those above.
Trail = Any
#: The path of an entry, and for a hard link, that of its target.
Place = Tuple[bytes, bytes]


class _Way(NamedTuple):
    """The way from the root to a directory, without links; ``length`` is that of its path."""
    folder: Folder
    trail: Trail = ()
    length: int = 0
    parent: Optional["_Way"] = None

    def to(self, name: bytes) -> bytes:
        """Return the path of a thing in the directory."""
        return path_of((self.trail, name))

    def down(self, name: bytes, folder: Folder) -> "_Way":
        length = self.length + 1 + len(name) if self.length else len(name)
        if length >= MAX_NAME:
            raise InvalidDocument("too deep")
        return _Way(folder, (self.trail, name), length, self)


class Overlay:
    """The tree that layers make, bottom first.

    ``removed`` is called with the path of each thing that goes, with all below
    it, and ``implied`` with that of each directory that is only named as a parent.
    """

    def __init__(self, removed: Callable[[bytes], None] = lambda path: None,
                 implied: Callable[[bytes], None] = lambda path: None) -> None:
        self.root = Folder()
        self._removed = removed
        self._implied = implied
        self._room, self._memory, self._steps = MAX_KEPT, MAX_MEMORY, MAX_STEPS
        self._bare: Set[int] = set()  # directories from which this layer has hidden all of those below
        #: The layer, the parent and the way of the entry before: most lie beside it.
        self._last: Tuple[int, List[bytes], _Way] = (-1, [], _Way(self.root))
        #: The file before, shared by all that have its number: unpack gives one to all files of a layer.
        self._file: Tuple[Thing, int] = (-1, 0)

    def finish_layer(self) -> None:
        self._bare.clear()
        if PLNK in self.root.names:
            self._drop(_Way(self.root), PLNK)

    def walk(self) -> Iterator[Tuple[Trail, Thing]]:
        """Yield trails and things in order, parents first; of a directory one at a time."""
        yield (), self.root
        pending: List[Tuple[Trail, Folder, List[bytes]]] = [((), self.root, sorted(self.root.names, reverse=True))]
        while pending:
            trail, folder, names = pending[-1]
            if not names:
                pending.pop()
                continue
            here = trail, names.pop()
            thing = folder.names[here[1]][0]
            yield here, thing
            if isinstance(thing, Folder):
                pending.append((here, thing, sorted(thing.names, reverse=True)))

    def _keep(self, entry: Entry, name: bytes) -> Entry:
        """Count what is kept of an entry, which is returned; raises InvalidDocument, PolicyError past a bound."""
        text = len(name)
        if text > _MAX_PART:
            raise InvalidDocument("File name too long")
        if entry.kind not in (FILE, LINK):
            entry = entry._replace(name=b"")
            text += len(entry.linkname) + len(entry.uname) + len(entry.gname) + sum(
                len(key) + len(value) for key, value in entry.xattrs.items())
        self._room -= _PER_ENTRY + text
        self._memory -= _SIZES.get(entry.kind, _SIZE) + text
        if self._room < 0:
            raise PolicyError("names, links and attributes of more than %d bytes in all" % MAX_KEPT)
        if self._memory < 0:
            raise PolicyError("entries that would take more than %d bytes of memory" % MAX_MEMORY)
        return entry

    def add(self, layer: int, position: int, entry: Entry) -> Optional[Place]:
        """Apply an entry; return where it is to be made, None for nowhere.  Raises InvalidDocument."""
        parts = parts_of(entry.name)
        if not parts:
            if entry.kind != DIRECTORY:
                raise InvalidDocument("it would replace the root")
            self.root.entry = self._keep(entry, b"")
            return None
        *above, name = parts
        if name.startswith(WHITEOUT) and parts != [PLNK]:
            self._white_out(layer, above, name)
            return None
        kept = self._keep(entry, name)
        way = self._parent(layer, above)
        names, present = way.folder.names, way.folder.names.get(name, (None, 0))[0]
        if present is not None and not (entry.kind == DIRECTORY and isinstance(present, Folder)):
            self._drop(way, name)
        thing: Thing = kept
        target = b""
        if entry.kind == FILE:
            thing = layer << POSITION | position
            if self._file[0] != thing:
                self._file = thing, layer
            names[name] = self._file
            return way.to(name), b""
        if entry.kind == DIRECTORY:
            thing = present if isinstance(present, Folder) else Folder()
            thing.entry = kept
        elif entry.kind == LINK:
            target, thing = self._target(entry)
        elif entry.kind == CHAR and entry.major == entry.minor == 0:
            return None
        names[name] = thing, layer
        return way.to(name), target

    def find(self, path: bytes) -> Optional[Thing]:
        """Look up a path, links followed; None if it leads to nothing.  Raises InvalidDocument."""
        return self._find(parts_of(path))[1]

    def _white_out(self, layer: int, above: List[bytes], name: bytes) -> None:
        hidden = name[len(WHITEOUT):]
        if hidden in (b"", b".", b".."):
            raise InvalidDocument("a whiteout of nothing")
        way, folder = self._find(above)
        if not isinstance(folder, Folder) or name.startswith(META) and name != OPAQUE:
            return
        pending = [way]
        if name != OPAQUE:
            thing, named_by = folder.names.get(hidden, (None, 0))
            if thing is not None and named_by < layer:
                self._drop(way, hidden)
            pending = [way.down(hidden, thing)] if isinstance(thing, Folder) and named_by == layer else []
        while pending:
            way = pending.pop()
            if id(way.folder) in self._bare:
                continue  # by an earlier whiteout of this layer: nothing of those below has come since
            self._bare.add(id(way.folder))
            for child, (thing, named_by) in list(way.folder.names.items()):
                if named_by < layer:
                    self._drop(way, child)
                elif isinstance(thing, Folder):
                    pending.append(way.down(child, thing))

    def _target(self, entry: Entry) -> Tuple[bytes, Thing]:
        """The path of a hard link's target, and what is there."""
        *above, name = parts_of(entry.linkname) or [b""]
        way, folder = self._find(above)
        thing = folder.names.get(name, (None, 0))[0] if isinstance(folder, Folder) else None
        if thing is None or isinstance(thing, Folder):
            raise InvalidDocument("a link to %s, which is %s there" % (
                ascii(entry.linkname)[1:200], "no file" if isinstance(folder, Folder) else "not"))
        return way.to(name), thing

    def _drop(self, way: _Way, name: bytes) -> None:
        del way.folder.names[name]
        self._last = -1, [], way
        self._removed(way.to(name))

    def _parent(self, layer: int, parts: List[bytes]) -> _Way:
        """The way to the parent of an entry, made as far as it is missing."""
        if self._last[:2] == (layer, parts):
            return self._last[2]
        way, _ = self._find(parts, layer)
        # A whiteout of this layer hides none of them, wherever it stands.
        step = way
        while step.parent is not None:
            step.parent.folder.names[step.trail[1]] = step.folder, layer
            step = step.parent
        self._last = layer, parts, way
        return way

    def _find(self, parts: Sequence[bytes], layer: int = -1) -> Tuple[_Way, Optional[Thing]]:
        """The way to the last directory on a path, and the thing at its end, links followed.

        For a ``layer``, directories are made where they are missing.
        """
        way, left, hops = _Way(self.root), list(reversed(parts)), 0
        while left:
            part = left.pop()
            if part in (b"", b".", b".."):
                if part == b"..":
                    way = way.parent or way
                continue
            thing = way.folder.names.get(part, (None, 0))[0]
            if isinstance(thing, Entry) and thing.kind == SYMLINK:
                hops += 1
                if hops > MAX_HOPS:
                    raise InvalidDocument("too many links on the way")
                if thing.linkname.startswith(b"/"):
                    way = _Way(self.root)
                steps = thing.linkname.split(b"/")
                self._steps -= len(steps)
                if self._steps < 0:
                    raise PolicyError("links that lead over more than %d names in all" % MAX_STEPS)
                left += reversed(steps)
                continue
            if not isinstance(thing, Folder):
                if layer < 0:
                    return way, None if left else thing
                thing = self._make_folder(way, part, layer)
            way = way.down(part, thing)
        return way, way.folder

    def _make_folder(self, way: _Way, name: bytes, layer: int) -> Folder:
        """Make a directory that is named as a parent only, in place of any other thing."""
        if name in way.folder.names:
            self._drop(way, name)
        self._room -= _PER_IMPLIED
        self._keep(Entry(b"", DIRECTORY), name)
        folder = Folder()
        way.folder.names[name] = folder, layer
        self._implied(way.to(name))
        return folder


def path_of(trail: Trail) -> bytes:
    """The path of a thing, relative to the root, whose own is empty."""
    parts = []
    while trail:
        trail, name = trail
        parts.append(name)
    return b"/".join(reversed(parts))


def parts_of(name: bytes) -> List[bytes]:
    """A name within the root, whatever it says of a way out."""
    parts: List[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts
