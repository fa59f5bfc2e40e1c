# SPDX-License-Identifier: Apache-2.0
"""A tar as a read-only source of images.

- Where there is an image layout, that counts; manifest.json adds the names and
  the images that it has not.
- A layer of docker's own archives is a plain tar, so its digest is its DiffID.
- An image that comes without a manifest gets one of schema 2, always the same.
- A delta lacks blobs that its reader has, and lists them in a member of its own, DELTA:
  {"version": 1, "bases": ["week1.tar"], "blobs": {"sha256:...": 1234}}.  Manifests, indexes
  and configs are there.  It has no manifest.json, so that docker refuses it.

Spec: image-spec image-layout.md; docker's format: moby's image/tarexport.
"""
import contextlib
import io
import os
import re
import stat
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Set, Tuple, Union, cast

from ..cancel import Cancel
from ..digest import Buffer, DiffID, Digest, Verifier
from ..errors import Error, InvalidDocument, InvalidReference, PolicyError, StorageError, file_errors, shown
from ..files import write_all
from ..image import manifest
from ..image.config import ImageConfig
from ..image.descriptor import DOCKER_CONFIG, DOCKER_MANIFEST, DOCKER_TAR, Descriptor, select
from ..image.manifest import MAX_LAYERS, MAX_MANIFEST, Index, Manifest, is_runnable
from ..image.strictjson import (
    as_object, compact, digests_at, int_at, object_at, parse_json, parse_value, string_at, strings_at)
from ..image.tar import Reader
from ..image.walk import Bounds, Seen, walk
from ..parts import part, tempfile
from ..reference import Reference
from ..store.compression import decompressed, is_compressed
from ..store.layer import LayerSource
from ..store.metadata import MemoryMetadata
from ..store.references import REF_NAME, SOURCE_DIGEST, UNNAMED, Association, Names, association, check_name, named
from ..store.source import hash_file
from ..store.store import MAX_CONFIG, ImageSource, host_platform
from .members import Members, inside
from .stream import DECODERS, Pipe

DELTA = "minipull-delta.json"
MAX_DELTA = 16 << 20  # bytes of that
MAX_DOCUMENTS = 64 << 20  # bytes; of all documents of docker's own
Named = Tuple[Optional[Reference], Descriptor]  # an image and its name, if it has one


@contextlib.contextmanager
def opened(file: Union[str, BinaryIO], cancel: Cancel, zstd: Optional[str] = None,
           scratch: Optional[str] = None, warn: Callable[[str], None] = lambda text: None,
           in_place: bool = False) -> Iterator["Archive"]:
    """Open the archive at a path or in an open file; raises as load().

    An archive from a pipe or a compressed one is first copied to an unnamed file in
    the directory ``scratch``: no more of it than is a tar, up to the tar's end;
    ``in_place`` refuses them (StorageError).
    """
    path = file if isinstance(file, str) else ""
    with contextlib.ExitStack() as stack:

        def copied(data: Iterator[Buffer], fd: int) -> Iterator[Buffer]:
            for piece in data:
                write_all(fd, memoryview(piece))
                yield piece

        regular = False
        with file_errors("open %s" % path), contextlib.suppress(io.UnsupportedOperation):
            if isinstance(file, str):
                file = stack.enter_context(open(file, "rb", buffering=0))
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        assert not isinstance(file, str)
        if not regular or is_compressed(os.pread(file.fileno(), 6, 0)):
            if in_place:
                raise StorageError("%s is compressed, so it can't be read in place: decompress it first, or load"
                                   " it into a store (minipull load -i)" % path)
            warn("%s is unpacked in %s first" % (path or "the archive", scratch or tempfile.gettempdir()))
            data = decompressed(file if regular else cast(BinaryIO, Pipe(file)), cancel, zstd, source="archive",
                                others=DECODERS)
            with file_errors("write a temporary file"):
                copy = stack.enter_context(tempfile.TemporaryFile(buffering=0, dir=scratch))
                for _ in Reader(copied(data, copy.fileno())):
                    pass
                for _ in data if regular else ():  # to its checksum; a pipe may have no end
                    pass
            file = cast(BinaryIO, copy)
        yield Archive(path, file, cancel, zstd)


class Archive(ImageSource):
    """The images of a tar; see opened()."""

    def __init__(self, path: str, file: BinaryIO, cancel: Cancel, zstd: Optional[str]) -> None:
        self.root = os.path.abspath(path)
        self.content = self._members = Members(self.root, file)
        self.layers = LayerSource(self._members, zstd)
        self.metadata = MemoryMetadata()
        self.references = self._names = _Names()
        self._cancel = cancel
        self._room = MAX_DOCUMENTS
        self._by_config: Dict[Digest, Descriptor] = {}  # manifests of the layout
        self._layers: Dict[Tuple[str, Optional[DiffID]], Tuple[Descriptor, DiffID]] = {}
        self._hashed: Dict[str, Digest] = {}  # members that are layers
        self.base = ""  # of a delta: the names of its bases
        if self._members.find(DELTA):
            self._delta()
        lacking = self._layout() if self._members.find("oci-layout") else {}
        has_manifest = self._members.find("manifest.json") is not None
        if has_manifest:
            self._docker()
        elif self._members.find("repositories") and not lacking:
            self._repositories()
        for label, text in lacking.items():
            if label not in self._names.entries and (label or not has_manifest):
                raise InvalidDocument(text)
        if not self._names.entries:
            raise InvalidDocument("there is no image in it: no index.json, manifest.json or repositories")

    def _read(self, name: str, limit: int = MAX_MANIFEST) -> bytes:
        return self._counted(self._members.member(name, limit).read())

    def _make(self, data: bytes, media_type: str) -> Descriptor:
        return self._members.make(self._counted(data), media_type)

    def _counted(self, data: bytes) -> bytes:
        if len(data) > self._room:
            raise PolicyError("its documents have more than %d bytes in all" % MAX_DOCUMENTS)
        self._room -= len(data)
        return data

    def _delta(self) -> None:
        """Note the blobs that the archive leaves out; raises InvalidDocument."""
        members = parse_json(self._read(DELTA, MAX_DELTA), DELTA)
        if int_at(members, "version", DELTA) != 1:
            raise InvalidDocument("%s: version must be 1; a newer minipull may know another" % DELTA)
        sizes = object_at(members, "blobs", DELTA)
        self._members.left_out = {digest: int_at(sizes, digest, DELTA)
                                  for digest in digests_at({"blobs": list(sizes)}, "blobs", DELTA)}
        self.base = shown(" and ".join(strings_at(members, "bases", DELTA)), 300) or "its base"
        for digest in self._members.left_out:
            if self._members.size(digest) is not None:
                raise InvalidDocument("%s: %s is in the archive" % (DELTA, digest))

    def _layout(self) -> Dict[str, str]:
        """Take the images of index.json; return, by label, an error text for each that lacks a blob."""
        version = parse_json(self._read("oci-layout"), "oci-layout").get("imageLayoutVersion")
        index = manifest.parse(self._read("index.json"), "", "index.json")
        if version != "1.0.0" or not isinstance(index, Index):
            raise InvalidDocument("it is no image layout 1.0.0 with an index")
        lacking = {}
        seen: Seen = set()
        bounds = Bounds()
        lost: Dict[Digest, Optional[Digest]] = {}  # for each document the first blob that it lacks, or None
        listed: Dict[str, Set[Digest]] = {}  # for each index that images were pinned to, its manifests
        best: Dict[Digest, List[Descriptor]] = {}  # for each index what fits this host best of those below
        for entry in index.manifests:
            if not entry.is_document:
                continue
            bounds.documents = Bounds().documents  # their bytes alone are bounded in all
            for item, document in walk(entry, self.stored, seen=seen, bounds=bounds):
                if document is not None:
                    lost[item.digest] = self._lost(document, lost)
                    if isinstance(document, Index):
                        best[item.digest] = self._best(document, lost, best)
                    if isinstance(document, Manifest) and lost[item.digest] is None:
                        self._by_config[document.config.digest] = item
            label, missing = named(entry.to_json()), lost.get(entry.digest, entry.digest)
            # Docker saves of an index what it has, which may be one platform.
            images = [entry] if missing is None else best.get(entry.digest)
            if images:
                source = (entry.annotations or {}).get(SOURCE_DIGEST, "")
                if source not in listed:
                    listed[source] = self._listed(source)
                self._names.add(_name(label, images[0].digest), images[0], label,
                                source if images[0].digest in listed[source] else "")
            else:
                lacking[label] = "%s lacks %s" % (shown(label or entry.digest, 200), missing)
        return lacking

    def _best(self, index: Index, lost: Dict[Digest, Optional[Digest]],
              best: Dict[Digest, List[Descriptor]]) -> List[Descriptor]:
        """Return, of the images below an index that lack nothing, the one that fits this host best."""
        images: List[Descriptor] = []
        for child in index.manifests:
            images += [child] if lost.get(child.digest, child.digest) is None else []
            images += best.get(child.digest, [])
        images = [image for image in images if not image.platform or image.platform.os != "unknown"]
        return (select(host_platform(), images) or images)[:1]

    def _listed(self, index: str) -> Set[Digest]:
        """Return the manifests in an index that the archive has besides its images, or none."""
        with contextlib.suppress(Error):
            document = manifest.parse(self._counted(self.content.read(Digest.parse(index), MAX_MANIFEST)))
            return {child.digest for child in document.manifests} if isinstance(document, Index) else set()
        return set()

    def _lost(self, document: manifest.Document, lost: Dict[Digest, Optional[Digest]]) -> Optional[Digest]:
        """Return the digest of the first blob that a document needs and the archive lacks, or None.

        ``lost`` has the same for the documents below.  Docker 25.0.0 left the layers out of
        its manifests: such a manifest lacks itself.
        """
        needed, manifests = list(document.blobs), document.manifests if isinstance(document, Index) else ()
        config = document.config if isinstance(document, Manifest) else None
        for child in manifests:
            if not child.is_document:
                needed.append(child)
            elif lost.get(child.digest, child.digest) is not None:
                return lost.get(child.digest, child.digest)
        for item in needed:
            if self.content.size(item.digest) != item.size and not item.is_foreign and (
                    item is config or self.content.left_out.get(item.digest) != item.size):
                return item.digest
        if isinstance(document, Manifest) and not document.layers and is_runnable(document) and (
                ImageConfig.parse(self.content.read(document.config.digest, MAX_CONFIG)).diff_ids):
            return document.digest
        return None

    def _docker(self) -> None:
        """Take the images that manifest.json has besides."""
        items = parse_value(self._read("manifest.json"), "manifest.json")
        if not isinstance(items, list):
            raise InvalidDocument("invalid manifest, manifest cannot be null (but can be [])")
        for item in items:
            item = as_object(item, "image", "manifest.json")
            names = [_tagged(text) for text in strings_at(item, "RepoTags", "manifest.json")]
            new = [name for name in names if str(name) not in self._names.entries]
            if names and not new:
                continue
            member = inside(string_at(item, "Config", "manifest.json"))
            raw = self._read(member, MAX_CONFIG)
            config = Descriptor.of(raw, DOCKER_CONFIG)
            top = self._by_config.get(config.digest)
            if top is None:
                diff_ids = ImageConfig.parse(raw).diff_ids
                paths = strings_at(item, "Layers", "manifest.json")
                if len(paths) != len(diff_ids):
                    raise InvalidDocument("invalid manifest, layers length mismatch: expected %d, got %d" % (
                        len(diff_ids), len(paths)))
                self._members.named[config.digest] = member
                layers = [self._layer(inside(path), diff_id)[0] for path, diff_id in zip(paths, diff_ids)]
                top = self._make(compact({
                    "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config.to_json(),
                    "layers": [layer.to_json() for layer in layers]}), DOCKER_MANIFEST)
            elif not names:
                continue
            for name in new or (None,):
                self._names.add(name, top)

    def _repositories(self) -> None:
        """Take the images of a docker before 1.10: a directory for each layer, which names its parent."""
        schema1 = part("image.schema1")
        repositories = parse_json(self._read("repositories"), "repositories")
        for path in repositories:
            tags = object_at(repositories, path, "repositories")
            for tag in tags:
                chain: List[Any] = []
                layers: List[Tuple[Descriptor, DiffID]] = []
                parent = string_at(tags, tag, "repositories")
                while parent:
                    if not re.fullmatch("[0-9a-f]{64}", parent) or len(chain) == MAX_LAYERS:
                        raise InvalidDocument(
                            "layer %s has no valid id, or too many above it" % shown(parent, 200))
                    v1 = parse_json(self._read(parent + "/json", MAX_CONFIG), parent[:12])
                    layers.insert(0, self._layer(parent + "/layer.tar", None))
                    chain.insert(0, schema1.Entry(layers[0][0].digest, dict({"os": "linux"}, **v1)))
                    parent = string_at(v1, "parent", parent[:12])
                config, document = schema1.converted(chain, layers)
                self._make(config.raw, DOCKER_CONFIG)
                top = self._make(document.raw, DOCKER_MANIFEST)
                self._names.add(_tagged("%s:%s" % (path, tag)), top)

    def _layer(self, name: str, diff_id: Optional[DiffID]) -> Tuple[Descriptor, DiffID]:
        """Return a member as a layer; it is hashed, once, if it is compressed or comes without a DiffID."""
        if (name, diff_id) not in self._layers:
            suffix = ""
            with self._members.member(name) as file:
                magic = file.read(6)
                if is_compressed(magic):
                    suffix = ".gzip" if magic.startswith(b"\x1f\x8b") else ".zstd"
                if (suffix or diff_id is None) and name not in self._hashed:
                    verifier = Verifier()
                    file.seek(0)
                    hash_file(file, verifier, self._cancel)
                    self._hashed[name] = verifier.digest
            digest = self._hashed[name] if suffix or diff_id is None else Digest(diff_id)
            self._members.named[digest] = name
            blob = Descriptor(DOCKER_TAR + suffix, digest, self._members.size(digest) or 0)
            self._layers[name, diff_id] = blob, diff_id or (
                self.layers.diff(digest, self._cancel).diff_id if suffix else DiffID(digest))
        return self._layers[name, diff_id]


class _Names(Names):
    """The images of an archive, as the entries of an index."""

    def __init__(self) -> None:
        self.entries: Dict[str, Dict[str, Any]] = {}  # by label, or else digest

    def add(self, name: Optional[Reference], top: Descriptor, label: str = "", source: str = "") -> None:
        """Add an image by its name, or by a label that is no name; raises InvalidDocument for a second one.

        ``source`` is the index that its tag pointed to, if that is known.
        """
        label = str(name) if name else label
        notes = dict({REF_NAME: label}, **({SOURCE_DIGEST: source} if source else {}))
        entry = top._replace(annotations=notes if label else None).to_json()
        if self.entries.setdefault(label or top.digest, entry)["digest"] != top.digest:
            raise InvalidDocument("two images are called %s" % shown(label, 200))

    def descriptors(self) -> List[Dict[str, Any]]:
        return list(self.entries.values())

    def association(self, entry: Dict[str, Any]) -> Association:
        """Parse an entry; an image without a name is called ``localhost/loaded@DIGEST``."""
        top = image_of(entry)[1]
        return association(entry) or Association(UNNAMED.with_digest(top.digest), top, top.digest)


def _name(label: str, digest: Optional[Digest] = None) -> Optional[Reference]:
    """Parse a label that is the full name of an image, with a tag or with ``digest``; else None."""
    with contextlib.suppress(InvalidReference):
        name = Reference.parse(label)
        check_name(name)
        if name.digest in (None, digest):
            return name.docker_ref()
    return None


def _tagged(text: str) -> Reference:
    name = _name(text)
    if name is None:
        raise InvalidDocument("invalid tag %s" % shown(text, 200))
    return name


def image_of(entry: Dict[str, Any]) -> Named:
    """Return the name, if it is a full reference, and the descriptor of an entry."""
    ours = association(entry)
    return ours.name if ours else None, Descriptor.from_json(entry, "index.json")._replace(annotations=None)
