# SPDX-License-Identifier: Apache-2.0
"""References: ``index.json``, which maps names to manifests.

Each name has one descriptor, annotated with the full normalised reference (one
annotation for skopeo and podman, another for containerd) and with the digest that
the name resolved to at the registry.  Every change is made under one lock, and
the entries of other tools are kept.  ``index.json.bak`` is the index before the
last change.

Mirrors moby's reference/store.go.  Format: image-spec image-layout.md.
"""
import abc
import contextlib
import os
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .. import files
from ..digest import ALGORITHMS, Digest
from ..errors import Error, InvalidDocument, InvalidReference, PolicyError, StorageError, storage_errors
from ..image.descriptor import OCI_INDEX, Descriptor
from ..image.strictjson import check_memory, compact, objects_at, parse_json
from ..reference import Reference
from .content import ContentStore

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
SOURCE_DIGEST = "io.minipull.source.digest"
UNNAMED = Reference("localhost", "loaded")  # with its digest, the name of an image that has none
COSIGN = (".sig", ".att", ".sbom")  # ends of cosign's tags: sha256-HEX.sig is the signature of sha256:HEX
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_EMPTY = b'{"schemaVersion":2,"mediaType":"%s","manifests":[]}' % OCI_INDEX.encode()
_PARSING = threading.Lock()  # one of many threads parses a changed index
_MAX_INDEX = 16 << 20  # bytes; strictjson.MAX_MEMORY is reached before, by 8,000 names


class Association(NamedTuple):
    """A name, its manifest or index, and the digest that its tag resolved to."""
    name: Reference
    descriptor: Descriptor
    source: Digest

    def to_json(self) -> Dict[str, Any]:
        """Return the entry of index.json."""
        notes = {REF_NAME: str(self.name), IMAGE_NAME: str(self.name), SOURCE_DIGEST: self.source}
        return self.descriptor._replace(platform=None, annotations=notes).to_json()


class Names(abc.ABC):
    """The names of some images, to be read."""
    # The entries as last listed (held, so that no id means another), their associations by id, and these sorted.
    _listed: Tuple[List[Dict[str, Any]], Dict[int, Optional[Association]], List[Association]] = ([], {}, [])

    @abc.abstractmethod
    def descriptors(self) -> List[Dict[str, Any]]:
        """Return every entry of the index as it stands, not to be changed; raises StorageError."""

    def association(self, entry: Dict[str, Any]) -> Optional[Association]:
        """Parse an entry, or return None for one without a full reference."""
        return association(entry)

    def all(self) -> List[Association]:
        """List every name, sorted; the entry of a name is parsed once, as long as it stays."""
        entries = self.descriptors()
        before, known, names = self._listed
        if before != entries:
            items = {id(entry): known.get(id(entry)) or self.association(entry) for entry in entries}
            names = sorted(filter(None, items.values()), key=lambda item: str(item.name))
            self._listed = entries, items, names
        return names

    def get(self, name: Reference) -> Optional[Association]:
        return next((item for item in self.all() if item.name == name), None)

    def find(self, name: Reference) -> Optional[Association]:
        """Find a name, or the image of a digest in its repository: best by the same tag, or without one."""
        if name.digest is None:
            return self.get(name)
        items = [item for item in self.all()
                 if name.digest in (item.name.digest, item.source, item.descriptor.digest)
                 and item.name.name == name.name]
        return min(items, key=lambda item: item.name.tag != name.tag, default=None)


class ReferenceStore(Names):
    """The names of one root; ``timeout`` (seconds) is for the lock."""

    def __init__(self, root: str, scratch: str, timeout: float = 60.0) -> None:
        self.path = os.path.join(root, "index.json")
        self._lock = os.path.join(root, "index.lock")
        self._layout = os.path.join(root, "oci-layout")
        self._scratch = scratch
        self._timeout = timeout
        self._parsed: Tuple[str, Dict[str, Any]] = ("", {})  # the digest of its text, and what that says
        self._read: Tuple[Any, List[Dict[str, Any]]] = (None, [])  # its inode, size and mtime, and its entries

    def descriptors(self) -> List[Dict[str, Any]]:
        with storage_errors("read %s" % self.path):
            try:
                status = os.stat(self.path)
            except FileNotFoundError:
                self._bytes()  # raises where it was lost
                return []
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            with _PARSING:
                if self._read[0] != identity:
                    self._read = (identity, self._index(self._bytes())["manifests"])
                return self._read[1]

    def _index(self, data: bytes) -> Dict[str, Any]:
        """Parse the text of the index, unless it is the one that was last parsed or written."""
        digest = Digest.of(data)
        if self._parsed[0] != digest:
            self._parsed = digest, parse_index(data, self.path)
        return self._parsed[1]

    def set(self, name: Reference, descriptor: Descriptor, source: Digest,
            pause: Callable[[float], object] = time.sleep) -> None:
        """Point ``name`` to ``descriptor``, durably; ``pause`` waits for the lock.  Raises StorageError."""
        check_name(name)
        self.put([Association(name, descriptor, source).to_json()], pause)

    def put(self, added: Sequence[Dict[str, Any]], pause: Callable[[float], object] = time.sleep) -> None:
        """List entries, from now on not to be changed, each in place of all others of its name, in one step."""
        labels = set(map(named, added)) - {""}
        with self._changing(pause) as entries:
            kept = [old for old in entries if named(old) not in labels]
            new = [entry for entry in added if entry not in kept]
            if len(kept) + len(new) != len(entries) or any(entry not in entries for entry in new):
                entries[:] = kept + new

    def delete(self, *names: Reference, pause: Callable[[float], object] = time.sleep) -> bool:
        """Remove names in one step; False if none is listed."""
        labels = set(map(str, names))
        with self._changing(pause) as entries:
            before = len(entries)
            entries[:] = [old for old in entries if named(old) not in labels]
            return len(entries) < before

    @contextlib.contextmanager
    def _changing(self, pause: Callable[[float], object]) -> Iterator[List[Dict[str, Any]]]:
        """Hold the lock; the block may change the entries in place, and is followed by a durable write."""
        for directory in (os.path.dirname(self.path), self._scratch):
            files.make_directory(directory)
        with files.locked(self._lock, True, pause, self._timeout):
            former = self._bytes()
            with _PARSING:
                index = dict(self._index(former))
            before = index.pop("manifests")
            entries = list(before)
            yield entries
            # The index may name no blob that a power cut can take, not even one of a run that was killed.
            ContentStore(os.path.dirname(self.path)).make_durable()
            if entries != before:
                if not os.path.exists(self._layout):
                    files.write_atomic(self._layout, LAYOUT, self._scratch)
                index["mediaType"] = OCI_INDEX
                # Entry by entry, since the encoder takes several times the memory of its text.
                data = b'%s,"manifests":[%s]}' % (compact(index)[:-1], b",".join(map(compact, entries)))
                check_memory(data, "%s with %d entries" % (self.path, len(entries)))
                if before:
                    with contextlib.suppress(StorageError):  # it is worth no failure
                        files.write_atomic(self.path + ".bak", former, self._scratch)
                files.write_atomic(self.path, data, self._scratch)
                self._parsed = Digest.of(data), dict(index, manifests=entries)

    def _bytes(self) -> bytes:
        try:
            data = files.read_bytes(self.path, _MAX_INDEX)
        except InvalidDocument as exc:
            raise StorageError(str(exc)) from exc
        if data is None and os.path.lexists(self.path + ".bak"):
            raise StorageError("%s is missing; put index.json.bak, the one before its last change,"
                               " in its place, or delete that too to begin anew" % self.path)
        return _EMPTY if data is None else data


def check_name(name: Reference) -> None:
    """Raise InvalidReference for a name that no image may have."""
    if name.tag == "" and name.digest is None:
        raise InvalidReference("%s has neither tag nor digest" % (name,))
    if name.familiar_name in ALGORITHMS:
        raise InvalidReference("refusing to create an ambiguous tag using digest algorithm as name")


def parse_index(data: bytes, source: str) -> Dict[str, Any]:
    """Parse our own index.json, whose ``manifests`` are objects; raises StorageError."""
    try:
        index = parse_json(data, source)
        if index.get("schemaVersion") != 2 or "manifests" not in index:
            raise InvalidDocument("%s: not an image index" % source)
        return dict(index, manifests=list(objects_at(index, "manifests", source)))
    except (InvalidDocument, PolicyError) as exc:
        raise StorageError(
            "%s; move it away and put index.json.bak, the one before its last change, in its place, or move both"
            " away and pull or load the images again" % exc) from exc


def tag_subject(tag: str) -> Optional[Digest]:
    """Return the digest in a tag of cosign's or a fallback tag of the distribution-spec, or None."""
    stem, dot, suffix = tag.partition(".")
    if not dot or dot + suffix in COSIGN:
        with contextlib.suppress(InvalidDocument):
            return Digest.parse(stem.replace("-", ":", 1))
    return None


def association(entry: Dict[str, Any]) -> Optional[Association]:
    """Parse an entry that has a full reference as its name, or return None."""
    with contextlib.suppress(Error):
        descriptor = Descriptor.from_json(entry, "index.json")
        notes = descriptor.annotations or {}
        name = Reference.parse(named(entry))
        if str(name) == named(entry) and (name.tag or name.digest):
            source = Digest.parse(notes.get(SOURCE_DIGEST, descriptor.digest))
            return Association(name, descriptor._replace(annotations=None), source)
    return None


def named(entry: Dict[str, Any]) -> str:
    """Return the name of an entry, whichever tool wrote it; empty if it has none."""
    notes = entry.get("annotations")
    name = (notes.get(IMAGE_NAME) or notes.get(REF_NAME)) if isinstance(notes, dict) else ""
    return name if isinstance(name, str) else ""
