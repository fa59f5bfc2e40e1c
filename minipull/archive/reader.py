# SPDX-License-Identifier: Apache-2.0
"""A tar as a read-only source of images."""
import contextlib
import io
import os
import re
import stat
import tempfile
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Set, Tuple, Union, cast

from ..cancel import Cancel
from ..digest import Buffer, DiffID, Digest, Verifier
from ..errors import (
    ContentMismatch, InvalidDocument, InvalidReference, PolicyError, file_errors, shown, storage_errors)
from ..files import write_all
from ..image import manifest
from ..image.config import ImageConfig
from ..image.descriptor import (
    DOCKER_CONFIG, DOCKER_MANIFEST, DOCKER_TAR, INDEX_TYPES, MANIFEST_TYPES, Descriptor, select)
from ..image.manifest import MAX_LAYERS, MAX_MANIFEST, Index, Manifest, is_runnable
from ..image.strictjson import as_object, compact, object_at, parse_json, parse_value, string_at, strings_at
from ..image.tar import BLOCK, FILE, LINK, SYMLINK, Reader
from ..parts import part
from ..reference import Reference
from ..store.compression import BUFFER, decompressed, is_compressed, pieces
from ..store.content import BlobSource
from ..store.layer import LayerSource
from ..store.references import REF_NAME, Names, check_name, named
from ..store.source import MAX_CONFIG, ImageSource, host_platform

MAX_MEMBERS = 100000
MAX_HOPS = 8  # links on the way to one member
MAX_DOCUMENTS = 64 << 20  # bytes of those that docker's own archives have


@contextlib.contextmanager
def opened(file: Union[str, BinaryIO], cancel: Cancel, zstd: Optional[str] = None,
           scratch: Optional[str] = None) -> Iterator["Archive"]:
    """The archive at a path or in an open file, within the block; raises as load().

    ``scratch`` is the directory for what can't be read where it lies.
    """
    path = file if isinstance(file, str) else ""
    with contextlib.ExitStack() as stack:

        def spooled(data: Iterator[Buffer]) -> BinaryIO:
            with storage_errors("write a temporary file"):
                made = stack.enter_context(tempfile.TemporaryFile(buffering=0, dir=scratch))
                for piece in data:
                    write_all(made.fileno(), memoryview(piece))
                made.seek(0)
            return cast(BinaryIO, made)

        regular = False
        with file_errors("open %s" % path), contextlib.suppress(io.UnsupportedOperation):
            if isinstance(file, str):
                file = stack.enter_context(open(file, "rb", buffering=0))
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        assert not isinstance(file, str)
        if not regular:
            file = spooled(pieces(file, cancel))
        if is_compressed(os.pread(file.fileno(), 6, 0)):
            file = spooled(decompressed(file, cancel, zstd, what="archive"))
        yield Archive(path, file, cancel, zstd)


class Archive(ImageSource):
    """The images of a tar; see opened()."""

    def __init__(self, path: str, file: BinaryIO, cancel: Cancel, zstd: Optional[str]) -> None:
        self.root = os.path.abspath(path)
        self.content = self._members = _Members(self.root, file)
        self.layers = LayerSource(self._members, zstd)
        self.references = self._names = _Names()
        self._cancel = cancel
        self._room = MAX_DOCUMENTS
        self._by_config: Dict[Digest, Descriptor] = {}  # what the layout has
        self._known: Dict[Tuple[str, Optional[DiffID]], Tuple[Descriptor, DiffID]] = {}  # layers
        lacking = self._layout() if self._members.find("oci-layout") else {}
        docker = self._members.find("manifest.json") is not None
        if docker:
            self._docker()
        elif self._members.find("repositories") and not lacking:
            self._repositories()
        for label, text in lacking.items():
            if label not in self._names.entries and (label or not docker):
                raise InvalidDocument(text)
        if not self._names.entries:
            raise InvalidDocument("there is no image in it: no index.json, manifest.json or repositories")

    def _read(self, name: str, limit: int = MAX_MANIFEST) -> bytes:
        data = self._members.part(name, min(limit, self._room)).read()
        self._room -= len(data)
        return data

    def _layout(self) -> Dict[str, str]:
        """Take the images of index.json; says of those that are not all there what they lack."""
        version = parse_json(self._read("oci-layout"), "oci-layout").get("imageLayoutVersion")
        index = manifest.parse(self._read("index.json"), "", "index.json")
        if version != "1.0.0" or not isinstance(index, Index):
            raise InvalidDocument("it is no image layout 1.0.0 with an index")
        lacking = {}
        for entry in index.manifests:
            if entry.media_type not in MANIFEST_TYPES | INDEX_TYPES:
                continue
            sound = []
            for item, document in self.walk(entry):
                if document is not None and self._sound(item, document):
                    sound.append(item)
                    if isinstance(document, Manifest):
                        self._by_config[document.config.digest] = item
            # Docker saves what it has of an index, which may be one platform.
            images = [item for item in sound if not item.platform or item.platform.os != "unknown"]
            best = [entry] if entry in sound else select(host_platform(), images) or images
            label = named(entry.to_json())
            if best:
                self._names.add(_name(label, best[0]), best[0], label)
            else:
                lost = next(self.missing(entry), entry)
                lacking[label] = "%s lacks %s" % (shown(label or entry.digest, 200), lost.digest)
        return lacking

    def _sound(self, top: Descriptor, document: manifest.Document) -> bool:
        """Whether all of it is there; docker 25.0.0 left the layers out of its manifests."""
        if next(self.missing(top), None) is not None:
            return False
        return isinstance(document, Index) or bool(document.layers) or not is_runnable(document) or not (
            ImageConfig.parse(self.content.read(document.config.digest, MAX_CONFIG)).diff_ids)

    def _docker(self) -> None:
        """Take what manifest.json has besides."""
        items = parse_value(self._read("manifest.json"), "manifest.json")
        if not isinstance(items, list):
            raise InvalidDocument("invalid manifest, manifest cannot be null (but can be [])")
        for item in items:
            what = "manifest.json"
            item = as_object(item, "image", what)
            names = [_tagged(text) for text in strings_at(item, "RepoTags", what)]
            new = [name for name in names if str(name) not in self._names.entries]
            if names and not new:
                continue
            place = _inside(string_at(item, "Config", what))
            raw = self._read(place, MAX_CONFIG)
            config = Descriptor.of(raw, DOCKER_CONFIG)
            top = self._by_config.get(config.digest)
            if top is None:
                diff_ids, paths = ImageConfig.parse(raw).diff_ids, strings_at(item, "Layers", what)
                if len(paths) != len(diff_ids):
                    raise InvalidDocument("invalid manifest, layers length mismatch: expected %d, got %d" % (
                        len(diff_ids), len(paths)))
                self._members.called[config.digest] = place
                layers = [self._layer(_inside(path), diff_id)[0] for path, diff_id in zip(paths, diff_ids)]
                made = compact({
                    "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config.to_json(),
                    "layers": [layer.to_json() for layer in layers]})
                top = self._members.make(made, DOCKER_MANIFEST)
            elif not names:
                continue
            for name in new or (None,):
                self._names.add(name, top)

    def _repositories(self) -> None:
        """Take what docker saved before 1.10: a directory for each layer, which names its parent."""
        schema1 = part("image.schema1")
        what = "repositories"
        repositories = parse_json(self._read(what), what)
        for path in repositories:
            tags = object_at(repositories, path, what)
            for tag in tags:
                chain: List[Any] = []
                layers: List[Tuple[Descriptor, DiffID]] = []
                parent = string_at(tags, tag, what)
                while parent:
                    if not re.fullmatch("[0-9a-f]{64}", parent) or len(chain) == MAX_LAYERS:
                        raise InvalidDocument(
                            "layer %s has no valid id, or too many above it" % shown(parent, 200))
                    v1 = parse_json(self._read(parent + "/json", MAX_CONFIG), parent[:12])
                    layers.insert(0, self._layer(parent + "/layer.tar", None))
                    chain.insert(0, schema1.Entry(layers[0][0].digest, dict({"os": "linux"}, **v1)))
                    parent = string_at(v1, "parent", parent[:12])
                config, document = schema1.converted(schema1.Schema1(b"", Digest(), tuple(chain)), layers)
                self._members.make(config, DOCKER_CONFIG)
                top = self._members.make(document.raw, DOCKER_MANIFEST)
                self._names.add(_tagged("%s:%s" % (path, tag)), top)

    def _layer(self, name: str, diff_id: Optional[DiffID]) -> Tuple[Descriptor, DiffID]:
        """A member as a layer; it is read if it is compressed, or if nobody says what it is."""
        if (name, diff_id) not in self._known:
            with self._members.part(name) as file:
                magic, verifier, kind = file.read(6), Verifier(), ""
                if is_compressed(magic):
                    kind = ".gzip" if magic.startswith(b"\x1f\x8b") else ".zstd"
                if kind or not diff_id:
                    file.seek(0)
                    for _ in pieces(file, self._cancel, verifier, BUFFER):
                        pass
            digest = verifier.digest if kind or not diff_id else diff_id
            self._members.called[digest] = name
            blob = Descriptor(DOCKER_TAR + kind, digest, self._members.size(digest) or 0)
            found = diff_id or (self.layers.diff(digest, self._cancel).diff_id if kind else DiffID(digest))
            self._known[name, diff_id] = blob, found
        return self._known[name, diff_id]


class _Names(Names):
    """The images of an archive, as the entries of an index."""

    def __init__(self) -> None:
        self.entries: Dict[str, Dict[str, Any]] = {}  # by name, or else digest

    def add(self, name: Optional[Reference], top: Descriptor, label: str = "") -> None:
        """An image by its name, or by what it is called that is no such."""
        label = str(name) if name else label
        entry = top._replace(annotations={REF_NAME: label} if label else None).to_json()
        if self.entries.setdefault(label or top.digest, entry)["digest"] != top.digest:
            raise InvalidDocument("two images are called %s" % shown(label, 200))

    def descriptors(self) -> List[Dict[str, Any]]:
        return list(self.entries.values())


class _Members(BlobSource):
    """The members of a tar, and the blobs among them."""

    def __init__(self, root: str, file: BinaryIO) -> None:
        self.root = root
        self.called: Dict[Digest, str] = {}  # blobs that are not where a layout has them
        self._made: Dict[Digest, bytes] = {}  # those that are no members
        self._file = file
        self._parts: Dict[str, Tuple[int, int]] = {}
        self._links: Dict[str, str] = {}
        self._twice: Set[str] = set()
        position, size = 0, os.fstat(file.fileno()).st_size

        def blocks() -> Iterator[bytes]:
            nonlocal position
            while position < size:
                block = os.pread(file.fileno(), BLOCK, position)
                position += len(block)
                yield block

        with storage_errors("read the archive"):
            reader = Reader(blocks())
            for count, entry in enumerate(reader):
                name = _inside(entry.name.decode("utf-8", "surrogateescape"))
                if count == MAX_MEMBERS:
                    raise PolicyError("more than %d members" % MAX_MEMBERS)
                if entry.kind in (FILE, LINK, SYMLINK) and (name in self._parts or name in self._links):
                    self._twice.add(name)
                if entry.kind == FILE:
                    self._parts[name] = position, entry.size
                elif entry.kind in (LINK, SYMLINK):
                    folder = name.rpartition("/")[0] if entry.kind == SYMLINK else ""
                    self._links[name] = _inside(entry.linkname.decode("utf-8", "surrogateescape"), folder)
                position += reader.skip()
                if position > size:
                    raise InvalidDocument("tar: the stream is cut short")

    def find(self, name: str) -> Optional[Tuple[int, int]]:
        """Where the data of a member is, and its size; raises InvalidDocument if that is ambiguous."""
        for _ in range(MAX_HOPS + 1):
            if name in self._twice:
                raise InvalidDocument("%s is in it twice" % shown(name, 200))
            if name not in self._links:
                return self._parts.get(name)
            name = self._links[name]
        raise InvalidDocument("%s lies behind more than %d links" % (shown(name, 200), MAX_HOPS))

    def part(self, name: str, limit: int = 1 << 62) -> BinaryIO:
        """Open a member; raises InvalidDocument, and PolicyError past ``limit`` bytes."""
        found = self.find(name)
        if found is None:
            raise InvalidDocument("%s is missing" % shown(name, 200))
        if found[1] > limit:
            raise PolicyError("%s is larger than %d bytes" % (shown(name, 200), limit))
        return cast(BinaryIO, _Part(self._file, *found))

    def make(self, data: bytes, media_type: str) -> Descriptor:
        """A document that the archive ought to have."""
        descriptor = Descriptor.of(data, media_type)
        self._made[descriptor.digest] = data
        return descriptor

    def path(self, digest: Digest) -> str:
        return os.path.join(self.root, self._name(digest))

    def size(self, digest: Digest) -> Optional[int]:
        if digest in self._made:
            return len(self._made[digest])
        found = self.find(self._name(digest))
        return found[1] if found else None

    def open(self, digest: Digest) -> BinaryIO:
        return io.BytesIO(self._made[digest]) if digest in self._made else self.part(self._name(digest))

    def read(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified; raises InvalidDocument, ContentMismatch, PolicyError."""
        data = self._made.get(digest) or self.part(self._name(digest), limit).read()
        if Digest.of(data, digest.algorithm) != digest:
            raise ContentMismatch("blob %s is something else" % digest)
        return data

    def _name(self, digest: Digest) -> str:
        return self.called.get(digest) or "blobs/%s/%s" % (digest.algorithm, digest.encoded)


class _Part(io.RawIOBase):
    """A part of a file, as a file of its own; many may be read at once."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._fd = file.fileno()
        self._start = self._at = start
        self._end = start + size

    def readinto(self, buffer: Any) -> int:
        with storage_errors("read the archive"):
            data = os.pread(self._fd, min(len(buffer), self._end - self._at), self._at)
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._at if whence else self._start)
        return self._at - self._start


def _inside(name: str, folder: str = "") -> str:
    """What a name or the target of a link is within the archive; empty if it leads out."""
    parts = folder.split("/") if folder and not name.startswith("/") else []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _name(label: str, top: Descriptor) -> Optional[Reference]:
    """What an entry of index.json is called, if that is the whole name of an image."""
    with contextlib.suppress(InvalidReference):
        name = Reference.parse(label)
        check_name(name)
        if name.digest in (None, top.digest):
            return name.docker_ref()
    return None


def _tagged(text: str) -> Reference:
    with contextlib.suppress(InvalidReference):
        name = Reference.parse(text)
        check_name(name)
        if not name.digest:
            return name
    raise InvalidDocument("invalid tag %s" % shown(text, 200))
