# SPDX-License-Identifier: Apache-2.0
"""The root file system of an image without a directory: as one tar, or one file of it.

Layers are read twice: first their headers, to learn what is left of each when
all lie on top of each other, then the data of what is.  The rules are those of
rootfs, kept on names in memory; nothing touches the disk, so owners and
devices are the image's whoever asks.

Mirrors crane's export.  Spec: image-spec layer.md.
"""
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

from ..cancel import Cancel
from ..digest import Buffer, DiffID
from ..errors import InvalidDocument, NotFound
from ..image.descriptor import Descriptor
from ..image.tar import DIRECTORY, END, FILE, LINK, SYMLINK, Entry, header, padding
from ..progress import Output
from ..store.store import Store
from .layers import reading
from .rootfs import MAX_HOPS, META, OPAQUE, PLNK, WHITEOUT, join, parts_of

Layers = Sequence[Tuple[Descriptor, DiffID]]


class _Folder:
    """A directory: what is in it, and which layer said so last."""
    __slots__ = ("entry", "names")

    def __init__(self, entry: Optional[Entry] = None) -> None:
        self.entry = entry
        self.names: Dict[bytes, Tuple[_Thing, int]] = {}


#: A directory, a file by layer and place in it, or what has no data.
_Thing = Union[_Folder, int, Entry]
_PLACE = 32  # bits of a file's number that tell its place


class Flattened:
    """What a stored image's layers, bottom first, come to.  Raises as unpack()."""

    def __init__(self, store: Store, layers: Layers, output: Output, cancel: Cancel) -> None:
        self._store = store
        self._layers = layers
        self._output = output
        self._cancel = cancel
        self._root = _Folder()
        for number, (blob, diff_id) in enumerate(layers):
            with reading(store, blob, diff_id, output, cancel) as reader:
                for place, entry in enumerate(reader):
                    try:
                        self._add(number, place, entry)
                    except InvalidDocument as exc:
                        raise exc.within("layer %s: entry %s" % (blob.digest.short, entry)) from exc
            self._root.names.pop(PLNK, None)

    def tar(self) -> Iterator[Buffer]:
        """The tar, in pieces: files, links, and then directories, which get their times last."""
        files: Dict[int, List[bytes]] = {}
        folders: List[Entry] = []
        for path, thing in self._walk():
            if isinstance(thing, int):
                files.setdefault(thing, []).append(path)
            elif isinstance(thing, Entry):
                yield header(thing._replace(name=path))
            elif path or thing.entry:
                entry = thing.entry or Entry(path, DIRECTORY, mode=0o755)
                folders.append(entry._replace(name=(path or b".") + b"/"))
        for number, (blob, diff_id) in enumerate(self._layers):
            with reading(self._store, blob, diff_id, self._output, self._cancel) as reader:
                for place, entry in enumerate(reader):
                    names = files.get(number << _PLACE | place)
                    if names:
                        yield header(entry._replace(name=names[0]))
                        yield from reader.data()
                        yield padding(entry.size)
        for names in files.values():
            for name in names[1:]:
                yield header(Entry(name, LINK, linkname=names[0]))
        yield from map(header, folders)
        yield END

    def file(self, path: str) -> Iterator[Buffer]:
        """The data of one file; raises NotFound."""
        thing = self._find(parts_of(path.encode("utf-8", "surrogateescape")))
        if not isinstance(thing, int):
            raise NotFound("%s: no such file in the image" % path if thing is None else
                           "%s is no file in the image" % path)
        blob, diff_id = self._layers[thing >> _PLACE]
        with reading(self._store, blob, diff_id, self._output, self._cancel) as reader:
            for place, _ in enumerate(reader):
                if place == thing & (1 << _PLACE) - 1:
                    yield from reader.data()

    def _walk(self) -> Iterator[Tuple[bytes, _Thing]]:
        pending: List[Tuple[bytes, _Thing]] = [(b"", self._root)]
        while pending:
            path, thing = pending.pop()
            yield path, thing
            if isinstance(thing, _Folder):
                pending += [(join(path, name), thing.names[name][0])
                            for name in sorted(thing.names, reverse=True)]

    def _add(self, layer: int, place: int, entry: Entry) -> None:
        parts = parts_of(entry.name)
        if not parts:
            if entry.kind != DIRECTORY:
                raise InvalidDocument("it would replace the root")
            self._root.entry = entry
            return
        *above, name = parts
        if name.startswith(WHITEOUT) and parts != [PLNK]:
            hidden = name[len(WHITEOUT):]
            if hidden in (b"", b".", b".."):
                raise InvalidDocument("a whiteout of nothing")
            parent = self._find(above)
            if isinstance(parent, _Folder) and name == OPAQUE:
                _hide(parent, list(parent.names), layer)
            elif isinstance(parent, _Folder) and not name.startswith(META):
                _hide(parent, [hidden], layer)
            return
        folder = self._find(above, layer)
        if not isinstance(folder, _Folder):
            raise InvalidDocument("what it lies in is no directory")
        known = folder.names.get(name, (None, 0))[0]
        thing: Optional[_Thing] = entry
        if entry.kind == DIRECTORY:
            thing = known if isinstance(known, _Folder) else _Folder()
            thing.entry = entry
        elif entry.kind == FILE:
            thing = layer << _PLACE | place
        elif entry.kind == LINK:
            if isinstance(known, _Folder):
                del folder.names[name]  # what is linked may have been in it
            *source, last = parts_of(entry.linkname) or [b""]
            there = self._find(source)
            thing = there.names.get(last, (None, 0))[0] if isinstance(there, _Folder) else None
            if thing is None or isinstance(thing, _Folder) or (there, last) == (folder, name):
                raise InvalidDocument("a link to %s, which is no file there" % ascii(entry.linkname)[1:])
        assert thing is not None
        folder.names[name] = thing, layer

    def _find(self, parts: Sequence[bytes], layer: int = -1) -> Optional[_Thing]:
        """What is there, links followed within the root; made, up to it, for a ``layer``."""
        way: List[_Folder] = [self._root]
        left, hops = list(reversed(parts)), 0
        thing: _Thing = self._root
        while left:
            part = left.pop()
            if part == b"..":
                way = way[:-1] or way
                thing = way[-1]
                continue
            if part in (b"", b"."):
                continue
            folder = way[-1]
            found = folder.names.get(part, (None, 0))[0]
            if found is None:
                if layer < 0:
                    return None
                found = _Folder()
            if isinstance(found, Entry) and found.kind == SYMLINK:
                hops += 1
                if hops > MAX_HOPS:
                    raise InvalidDocument("too many links on the way")
                way = way[:1] if found.linkname.startswith(b"/") else way
                thing = way[-1]
                left += found.linkname.split(b"/")[::-1]
                continue
            if layer >= 0:
                folder.names[part] = found, layer
            thing = found
            if isinstance(found, _Folder):
                way.append(found)
            elif left:
                return None
        return thing


def _hide(folder: _Folder, names: Sequence[bytes], layer: int) -> None:
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
            elif isinstance(thing, _Folder):
                pending.append((thing, list(thing.names)))
