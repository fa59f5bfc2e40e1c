# SPDX-License-Identifier: Apache-2.0
"""check: is every byte of a store what its name says?

Hashes every blob, finds the DiffID of every layer again, and compares both with
the index, manifests, configs, layer records and metadata.  No blob and no name is
changed, but a cache that is torn or wrong is no damage: it is made anew.

Every file is blamed for its own claims: a claim of one file about another is
noted first, and compared when the bytes have been hashed, in one pass.

Mirrors `git fsck` more than anything in moby.
"""
import collections
import contextlib
import json
import os
from typing import DefaultDict, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from .. import files
from ..cancel import Cancel
from ..digest import Buffer, ChainID, DiffID, Digest, Verifier, next_chain_id
from ..errors import Cancelled, Error, InvalidDocument, StorageError, Unsupported, storage_errors
from ..image.config import ImageConfig
from ..image.descriptor import OCI_INDEX, Descriptor
from ..image.manifest import Document, Manifest, is_runnable
from ..image.strictjson import parse_json
from ..image.walk import Seen, walk
from ..parts import futures
from ..progress import Meter, Output, discard
from ..reference import Reference
from .content import listing
from .layer import Diff, parse_layer
from .metadata import V1_IDS, parse_metadata
from .references import IMAGE_NAME, LAYOUT, REF_NAME, SOURCE_DIGEST, association, parse_index
from .store import MAX_CONFIG, ImageSource, Store

UNVERIFIED = "unverified"  # of a layer that is not stored or can't be decompressed
REBUILT = "rebuilt"  # of a cache that was torn or wrong
CACHE = "cache"  # of one that stays so, in a store that can't be written to
HARMLESS = {UNVERIFIED, REBUILT, CACHE}  # the kinds that are no damage
ROTTEN = "blob"  # of bytes that are not what their name says
REPAIRED = "repaired"  # of such a blob that was moved away
DENIED = "permission"  # of a file that this user may not read
_MAX_FILE = 16 << 20  # bytes of index.json
_MAX_CACHE = 1 << 20  # bytes
_INDEX_MEMBERS = {
    "schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations"}


class Problem(NamedTuple):
    """A problem of one file; ``path`` is relative to the root."""
    path: str
    kind: str
    detail: str

    @property
    def harmless(self) -> bool:
        return self.kind in HARMLESS


def check(store: Store, names: Sequence[Union[str, Reference, Descriptor]] = (), *,
          progress: Output = discard, cancel: Optional[Cancel] = None) -> List[Problem]:
    """Return every problem of a store, or of the images ``names``, sorted; those ``harmless`` are no damage.

    Each blob is read and hashed, each layer inflated.  A torn cache is made anew.  Raises
    NotFound for a name, Cancelled.

    Example::

        broken = [problem for problem in minipull.check(store) if not problem.harmless]
    """
    if names:
        tops = [name if isinstance(name, Descriptor) else store.top(name) for name in names]
        return check_images(store, tops, cancel or Cancel(), progress)
    with store.reading(cancel):
        return _StoreChecker(store, cancel or Cancel(), progress).run()


def check_images(source: ImageSource, tops: Sequence[Descriptor], cancel: Cancel,
                 output: Output = discard) -> List[Problem]:
    """Return every problem of some images of a store or an archive; raises Cancelled."""
    with source.reading(cancel):
        checker = _Checker(source, cancel, output)
        needed = {digest for digest, _ in checker.needed(tops)}
        return checker.compared(sorted(digest for digest in needed if source.content.size(digest) is not None))


class _Metered(Verifier):
    """A hash whose bytes move a meter."""

    def __init__(self, algorithm: str, meter: Meter) -> None:
        super().__init__(algorithm)
        self._meter = meter

    def update(self, data: Buffer) -> None:
        super().update(data)
        self._meter.advance(len(data))


class _Checker:
    """Checks images: their documents, and that each layer is what its config says."""

    def __init__(self, source: ImageSource, cancel: Cancel, output: Output) -> None:
        self.problems: List[Problem] = []
        self._source = source
        self._content = source.content
        self._cancel = cancel
        self._output = output
        # For a blob and the DiffID that it is said to have: the kinds and paths of the files that say so.
        self._claims: DefaultDict[Digest, DefaultDict[DiffID, List[Tuple[str, str]]]] = (
            collections.defaultdict(lambda: collections.defaultdict(list)))
        self._configs: Dict[Digest, Tuple[DiffID, ...]] = {}  # so that one of many manifests is parsed once
        self._shared: Dict[DiffID, DiffID] = {}  # so that the DiffIDs of many configs take their room once
        self._diff_ids: Dict[Digest, Optional[DiffID]] = {}  # of the blobs that are hashed so far
        # The ChainIDs of records to be rebuilt, and the parent, DiffID and blob of those that images need.
        self._torn: Set[Digest] = set()
        self._lost: Dict[ChainID, Tuple[Optional[ChainID], DiffID, Descriptor]] = {}

    def needed(self, tops: Sequence[Descriptor]) -> Set[Tuple[Digest, int]]:
        """Check the documents of some images; return the digest and size of every blob that they need."""
        seen: Seen = set()  # so that a document of many images is read once
        return {blob[1:3] for top in tops for blob in self._image(top, seen)}

    def compared(self, digests: Sequence[Digest]) -> List[Problem]:
        """Hash these blobs, compare them with all claims, and return every problem."""
        self._meter = Meter(self._output, "", "Checking", sum(map(self._size, digests)))
        with futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for start in range(0, len(digests), 1000):  # a future takes more memory than a digest
                batch = digests[start:start + 1000]
                self._diff_ids.update(zip(batch, pool.map(self._blob, batch)))
        self._meter.finish()
        for digest, claims in self._claims.items():
            diff_id = self._diff_ids.get(digest)
            for claim in claims:
                for kind, path in claims[claim] if diff_id not in (None, claim) else ():
                    self._report(path, kind, "blob %s is layer %s, not %s" % (digest, diff_id, claim))
        return sorted(set(self.problems))

    def _report(self, path: str, kind: str, detail: object) -> None:
        relative = os.path.relpath(path, self._source.root)
        self.problems.append(Problem(relative, kind, " ".join(str(detail).split())))

    @contextlib.contextmanager
    def _blaming(self, path: str, kind: str) -> Iterator[None]:
        """Report an error within the block as a problem of the file ``path``."""
        try:
            yield
        except Cancelled:
            raise
        except Error as exc:
            denied = isinstance(exc.__cause__, PermissionError) and kind != REBUILT
            self._report(path, DENIED if denied else kind, exc)

    def _image(self, top: Descriptor, seen: Seen) -> Iterator[Descriptor]:
        """Yield all that an image needs; notes the claims of its configs."""
        with self._blaming(self._content.path(top.digest), "image"):
            for item, document in walk(top, self._stored, seen=seen):
                for blob in (*(document.blobs if document else ()), item):
                    yield blob
                    path, size = self._content.path(blob.digest), self._content.size(blob.digest)
                    if size is None and blob.is_foreign:
                        self._report(path, UNVERIFIED, "foreign layer is not stored")
                    elif size is None and self._content.left_out.get(blob.digest) == blob.size:
                        pass  # by a delta
                    elif size is None:
                        self._report(path, "missing", "needed by %s" % top.digest)
                    elif size != blob.size:
                        self._report(path, "size", "expected %d bytes" % blob.size)
                if isinstance(document, Manifest) and is_runnable(document):
                    self._config(document)

    def _size(self, digest: Digest) -> int:
        with contextlib.suppress(StorageError):  # which its hash tells
            return self._content.size(digest) or 0
        return 0

    def _stored(self, item: Descriptor) -> Optional[Document]:
        """Return a document, or None for one that is missing, rotten or of another kind."""
        document = None
        with self._blaming(self._content.path(item.digest), "image"):
            document = self._source.stored(item)
        return document

    def _config(self, document: Manifest) -> None:
        digest, path = document.config.digest, self._content.path(document.config.digest)
        with self._blaming(path, "config"):
            if self._content.size(digest) is None:
                return  # which is told already
            if digest not in self._configs:
                config = ImageConfig.parse(self._content.read(digest, MAX_CONFIG))
                self._configs[digest] = tuple(self._shared.setdefault(name, name) for name in config.diff_ids)
            diff_ids, file = self._configs[digest], ("config", path)
            if len(diff_ids) != len(document.layers):
                raise StorageError("config has %d layers, manifest %s has %d" % (
                    len(diff_ids), document.digest, len(document.layers)))
            parent: Optional[ChainID] = None
            for layer, diff_id in zip(document.layers, diff_ids):
                self._claims[layer.digest][diff_id].append(file)
                chain_id = next_chain_id(parent, diff_id)
                if chain_id in self._torn:
                    self._lost[chain_id] = parent, diff_id, layer
                parent = chain_id

    def _blob(self, digest: Digest) -> Optional[DiffID]:
        """Hash one blob; return its DiffID if it is sound and some file claims that it is a layer."""
        path, sound = self._content.path(digest), None
        with self._blaming(path, ROTTEN):
            raw: Verifier = _Metered(digest.algorithm, self._meter)
            diff_id, broken = None, None
            if digest in self._claims:
                try:
                    diff_id = self._source.layers.diff(digest, self._cancel, raw).diff_id
                except Unsupported as exc:
                    self._report(path, UNVERIFIED, exc)
                except InvalidDocument as exc:
                    broken = exc
            if diff_id is None:
                raw = Verifier(digest.algorithm) if raw.size else raw  # bytes count once
                self._content.hash(digest, raw, self._cancel)
            raw.verify(digest, raw.size, "blob")
            if broken is not None:  # as it came
                self._report(path, "layer", broken)
            sound = diff_id
        return sound


class _StoreChecker(_Checker):
    """Checks all of a store: its index, its records and every blob besides."""
    _source: Store

    def run(self) -> List[Problem]:
        """Return every problem of the store; the caches among them are rebuilt, if it can be written to."""
        tops = self._index()
        self._records(self.needed(tops))
        self._layout()
        self._metadata()
        blobs = os.path.join(self._source.root, "blobs")
        paths = {os.path.join(folder, name) for folder, _, names in os.walk(blobs) for name in names}
        for path in paths.difference(path for _, path in listing(blobs)):
            self._report(path, "stray", "no digest for a name")
        problems = self.compared(self._source.content.digests())
        try:
            self._rebuild([problem.path for problem in problems if problem.kind == REBUILT], tops)
        except StorageError as exc:
            problems = [problem if problem.kind != REBUILT else Problem(
                problem.path, CACHE, "%s; not rebuilt: %s" % (problem.detail, exc)) for problem in problems]
        return problems

    def _rebuild(self, torn: Sequence[str], tops: Sequence[Descriptor]) -> None:
        """Make caches anew of what was hashed; what that can't tell is only removed.  Raises StorageError."""
        service = self._source.metadata
        for path in torn:
            with storage_errors("delete %s" % path), contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._source.root, path))
            *folder, algorithm, encoded = path.split(os.sep)
            digest = Digest("%s:%s" % (algorithm, encoded))
            diff_id = self._diff_ids.get(digest)
            if folder == ["layers"]:
                self._torn.add(digest)
            elif folder[-1] == service.BY_DIGEST and diff_id is not None:
                service.set(service.BY_DIGEST, "%s/%s" % (algorithm, encoded), diff_id.encode())
        self.needed(tops if self._torn else ())  # for what the records should hold
        for parent, diff_id, blob in self._lost.values():
            if self._content.has(blob.digest, blob.size) and self._diff_ids.get(blob.digest) == diff_id:
                self._source.layers.register(parent, Diff(diff_id), blob)

    def _layout(self) -> None:
        path = os.path.join(self._source.root, "oci-layout")
        with self._blaming(path, "layout"):
            data = files.read_bytes(path, _MAX_FILE)
            if data is None and not os.path.lexists(self._source.references.path):
                return
            if parse_json(data or b"", "oci-layout") != parse_json(LAYOUT, ""):
                raise StorageError("not the layout file of an image layout 1.0.0")

    def _index(self) -> List[Descriptor]:
        """List the images of index.json, read anew."""
        path, tops = self._source.references.path, []
        with self._blaming(path, "index"):
            data = files.read_bytes(path, _MAX_FILE)
            if data is None:
                self._source.references.descriptors()  # raises where it was lost
                return []
            index = parse_index(data, "index.json")
            for entry in index["manifests"]:
                with self._blaming(path, "name"):
                    tops.append(self._entry(entry))
            # Other tools may omit mediaType or add members; a flipped byte in its key does both at once.
            unclear = "mediaType" in index or not set(index) <= _INDEX_MEMBERS
            if unclear and index.get("mediaType") != OCI_INDEX:
                raise StorageError("index.json: not an image index by its mediaType")
        return tops

    def _entry(self, entry: Dict[str, object]) -> Descriptor:
        top = Descriptor.from_json(entry, "entry")
        notes = top.annotations or {}
        # An entry is ours if it has our annotation anywhere, or both names; a flipped
        # byte spoils only one of these.
        if SOURCE_DIGEST in json.dumps(entry) or notes.get(REF_NAME, "") == notes.get(IMAGE_NAME):
            ours = association(entry)
            if ours is None or ours.to_json() != entry:
                raise StorageError("the names of %s do not agree" % top.digest)
            if self._content.size(ours.source) is None:
                self._report(self._content.path(ours.source), "missing", "the source of %s" % (ours.name,))
        if not top.is_document:
            raise StorageError("%s has an unknown mediaType" % top.digest)
        return top

    def _records(self, needed: Set[Tuple[Digest, int]]) -> None:
        for chain_id, path in listing(self._source.layers.root):
            with self._blaming(path, REBUILT):
                layer = parse_layer(ChainID(chain_id), files.read_bytes(path, _MAX_CACHE) or b"")
                for blob in layer.blobs:
                    if blob not in needed and not self._content.has(*blob):
                        raise StorageError("blob %s of %d bytes is not stored" % blob)
                    self._claims[blob[0]][layer.diff.diff_id].append((REBUILT, path))

    def _metadata(self) -> None:
        service = self._source.metadata
        for blob, path in listing(service.path(service.BY_DIGEST, "")):
            claim = service.get_diff_id(blob)
            if claim is None:
                self._report(path, REBUILT, "not a digest")
            else:
                self._claims[blob][claim].append((REBUILT, path))
        for diff_id, path in listing(service.path(service.BY_DIFF_ID, "")):
            with self._blaming(path, REBUILT):
                for entry in parse_metadata(files.read_bytes(path, _MAX_CACHE) or b""):
                    self._claims[entry.digest][DiffID(diff_id)].append((REBUILT, path))
        known = {diff_id for claims in self._claims.values() for diff_id in claims}
        for folder, _, keys in os.walk(service.path(V1_IDS, "")):
            for key in keys:
                if service.diff_id(V1_IDS, key) not in known:
                    self._report(os.path.join(folder, key), REBUILT, "not the DiffID of a known layer")
