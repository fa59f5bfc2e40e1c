# SPDX-License-Identifier: Apache-2.0
"""check: is every byte of a store what its name says?

Hashes every blob, finds the DiffID of every layer again, and compares both with
the index, manifests, configs, layer records and metadata.  Changes nothing.

Every file is blamed for its own claims: a claim of one file about another is
noted first, and compared when the bytes have been hashed, in one pass.

Mirrors `git fsck` more than anything in moby.
"""
import collections
import concurrent.futures
import contextlib
import json
import os
from typing import DefaultDict, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from .. import files
from ..cancel import Cancel
from ..digest import ChainID, DiffID, Digest, Verifier
from ..errors import Cancelled, Error, StorageError, Unsupported
from ..image.config import ImageConfig
from ..image.descriptor import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, Descriptor, is_foreign
from ..image.manifest import Manifest, is_runnable
from ..image.strictjson import parse_json
from ..image.walk import Seen
from .content import listing
from .layer import parse_layer
from .metadata import parse_metadata
from .references import IMAGE_NAME, LAYOUT, REF_NAME, SOURCE_DIGEST, association, parse_index
from .store import MAX_CONFIG, ImageSource, Store

UNVERIFIED = "unverified"  # the one kind that is no damage
_MAX_FILE = 64 << 20  # bytes; of a file that is no blob
_INDEX_MEMBERS = {
    "schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations"}


class Problem(NamedTuple):
    """A problem of one file; ``path`` is relative to the root."""
    path: str
    kind: str
    detail: str


def check(store: Store, cancel: Optional[Cancel] = None,
          names: Sequence[Descriptor] = ()) -> List[Problem]:
    """Return every problem of a store, or of what ``names`` need; raises Cancelled."""
    if names:
        return check_images(store, names, cancel or Cancel())
    with store.reading(cancel):
        return _StoreChecker(store, cancel or Cancel()).run()


def check_images(source: ImageSource, tops: Sequence[Descriptor], cancel: Cancel) -> List[Problem]:
    """Return every problem of some images of a store or an archive; raises Cancelled."""
    with source.reading(cancel):
        checker = _Checker(source, cancel)
        return checker.compared(sorted(
            digest for digest in checker.needed(tops) if source.content.size(digest) is not None))


class _Checker:
    """Checks images: their documents, and that each layer is what its config says."""

    def __init__(self, source: ImageSource, cancel: Cancel) -> None:
        self.problems: List[Problem] = []
        self._source = source
        self._content = source.content
        self._cancel = cancel
        # For a blob: its DiffID, by which kind of file, and that file's path.
        self._claims: DefaultDict[Digest, List[Tuple[DiffID, str, str]]] = collections.defaultdict(list)

    def needed(self, tops: Sequence[Descriptor]) -> Set[Digest]:
        """Check the documents of some images; return the digest of every blob that they need."""
        seen: Seen = set()  # so that a document of many images is read once
        return {digest for top in tops for digest in self._image(top, seen)}

    def compared(self, digests: Sequence[Digest]) -> List[Problem]:
        """Hash these blobs, compare them with all claims, and return every problem."""
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            diff_ids = dict(zip(digests, pool.map(self._blob, digests)))
        for digest, claims in self._claims.items():
            diff_id = diff_ids.get(digest)
            for claim, kind, path in claims:
                if diff_id is not None and claim != diff_id:
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
            if isinstance(exc.__cause__, PermissionError):  # that tells nothing about the file
                raise
            self._report(path, kind, exc)

    def _image(self, top: Descriptor, seen: Seen) -> Iterator[Digest]:
        """Yield the digests of all that an image needs; notes the claims of its configs."""
        with self._blaming(self._content.path(top.digest), "image"):
            for item, document in self._source.walk(top, seen=seen):
                yield item.digest
                path, size = self._content.path(item.digest), self._content.size(item.digest)
                if size is None and is_foreign(item.media_type):
                    self._report(path, UNVERIFIED, "foreign layer is not stored")
                elif size is None:
                    self._report(path, "missing", "needed by %s" % top.digest)
                elif size != item.size:
                    self._report(path, "size", "expected %d bytes" % item.size)
                if isinstance(document, Manifest) and is_runnable(document):
                    self._config(document)

    def _config(self, document: Manifest) -> None:
        path = self._content.path(document.config.digest)
        with self._blaming(path, "config"):
            config = ImageConfig.parse(self._content.read(document.config.digest, MAX_CONFIG))
            if len(config.diff_ids) != len(document.layers):
                raise StorageError("config has %d layers, manifest %s has %d" % (
                    len(config.diff_ids), document.digest, len(document.layers)))
            for layer, diff_id in zip(document.layers, config.diff_ids):
                self._claims[layer.digest].append((diff_id, "config", path))

    def _blob(self, digest: Digest) -> Optional[DiffID]:
        """Hash one blob; return its DiffID if it is sound and some file claims that it is a layer."""
        path, sound = self._content.path(digest), None
        with self._blaming(path, "blob"):
            raw, diff_id = Verifier(digest.algorithm), None
            if digest in self._claims:
                try:
                    diff_id = self._source.layers.diff(digest, self._cancel, raw).diff_id
                except Unsupported as exc:
                    self._report(path, UNVERIFIED, exc)
            if diff_id is None:
                raw = Verifier(digest.algorithm)
                self._content.hash(digest, raw, self._cancel)
            raw.verify(digest, raw.size, "blob")
            sound = diff_id
        return sound


class _StoreChecker(_Checker):
    """Checks all of a store: its index, its records and every blob besides."""
    _source: Store

    def run(self) -> List[Problem]:
        self.needed(self._index())
        self._layout()
        self._records()
        self._metadata()
        self._strays()
        return self.compared(self._source.content.digests())

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
                return []
            for entry in parse_index(data, "index.json"):
                with self._blaming(path, "name"):
                    tops.append(self._entry(entry))
            index = parse_json(data, "index.json")
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
                raise StorageError("source %s is not stored" % ours.source)
        if top.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            raise StorageError("%s has an unknown mediaType" % top.digest)
        return top

    def _records(self) -> None:
        for chain_id, path in listing(self._source.layers.root):
            with self._blaming(path, "record"):
                layer = parse_layer(ChainID(chain_id), files.read_bytes(path, _MAX_FILE) or b"")
                for digest, size in layer.blobs:
                    if not self._content.has(digest, size):
                        raise StorageError("blob %s of %d bytes is not stored" % (digest, size))
                    self._claims[digest].append((layer.diff.diff_id, "record", path))

    def _metadata(self) -> None:
        service = self._source.metadata
        for blob, path in listing(service.path(service.BY_DIGEST, "")):
            claim = service.get_diff_id(blob)
            if claim is None:
                self._report(path, "metadata", "not a digest")
            else:
                self._claims[blob].append((claim, "metadata", path))
        for diff_id, path in listing(service.path(service.BY_DIFF_ID, "")):
            with self._blaming(path, "metadata"):
                for entry in parse_metadata(files.read_bytes(path, _MAX_FILE) or b""):
                    self._claims[entry.digest].append((DiffID(diff_id), "metadata", path))

    def _strays(self) -> None:
        blobs = os.path.join(self._source.root, "blobs")
        paths = {os.path.join(folder, name) for folder, _, names in os.walk(blobs) for name in names}
        for path in paths.difference(path for _, path in listing(blobs)):
            self._report(path, "stray", "no digest for a name")
