# SPDX-License-Identifier: Apache-2.0
"""check: is every byte of a store what its name says?

Hashes every blob, finds the DiffID of every layer again, and compares all that
is written down about them: the index, manifests and configs, layer records,
metadata.  Changes nothing.

Mirrors `git fsck` more than anything in moby.
"""
import concurrent.futures
import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from . import files, image, manifest
from .content import listing
from .descriptor import Descriptor, is_foreign, parse_json
from .digest import ChainID, Digest, DiffID, Verifier, chain_id
from .errors import Cancelled, Error, StorageError, Unsupported
from .layer import Diff, parse_layer
from .metadata import parse_metadata
from .references import IMAGE_NAME, REF_NAME, SOURCE_DIGEST, association
from .store import MAX_CONFIG, Store
from .streams import Cancel

UNVERIFIED = "unverified"  # the one kind that is no damage


class Problem(NamedTuple):
    """What is wrong with the file ``path``, relative to the root."""

    path: str
    kind: str
    detail: str


def check(
    store: Store, cancel: Optional[Cancel] = None, names: Sequence[Descriptor] = ()
) -> List[Problem]:
    """Every problem of a store, or of what ``names`` need; raises Cancelled."""
    checker = _Checker(store, cancel or Cancel())
    with store.using(cancel):
        checker.run(names)
    return sorted(checker.problems)


class _Checker:
    def __init__(self, store: Store, cancel: Cancel) -> None:
        self.problems: List[Problem] = []
        self._store = store
        self._cancel = cancel
        # What the configs say that a layer blob is, and what it turned out to be.
        self._said: Dict[Digest, Set[DiffID]] = {}
        self._found: Dict[Digest, Optional[Diff]] = {}

    def run(self, names: Sequence[Descriptor]) -> None:
        tops = list(names) or self._names()
        needed = {item.digest for top in tops for item in self._image(top)}
        records = [] if names else self._records()
        self._hash(needed if names else None)
        self._layers()
        for chain, path, layer_blobs, diff in records:
            for digest, size in layer_blobs:
                if not self._store.content.has(digest, size):
                    self._report(path, "record", "names blob %s, which is not stored" % digest)
                elif diff.verified and self._found.get(digest) not in (None, diff):
                    self._report(path, "record", "blob %s is another layer" % digest)
        if not names:
            self._metadata()

    def _report(self, path: str, kind: str, detail: object) -> None:
        relative = os.path.relpath(path, self._store.root)
        self.problems.append(Problem(relative, kind, " ".join(str(detail).split())))

    def _names(self) -> List[Descriptor]:
        references = self._store.references
        layout = os.path.join(self._store.root, "oci-layout")
        try:
            entries = references.descriptors()
            data = files.read_bytes(layout, 4096)
            if data is not None or entries:
                if parse_json(data or b"", layout) != {"imageLayoutVersion": "1.0.0"}:
                    raise StorageError("not the layout file of an image layout 1.0.0")
        except Error as exc:
            self._report(references.path if "index" in str(exc) else layout, "layout", exc)
            entries = []
        tops = []
        for entry in entries:
            try:
                top = Descriptor.from_json(entry, "entry")
                notes = top.annotations or {}
                ours = {REF_NAME, IMAGE_NAME, SOURCE_DIGEST} & set(notes)
                if ours - {REF_NAME} and (
                    len(ours) < 3 or notes[REF_NAME] != notes[IMAGE_NAME] or not association(entry)
                ):
                    raise StorageError("names of %s do not agree" % top.digest)
                if not ours:
                    raise StorageError("%s has no name" % top.digest)
                if ours - {REF_NAME} and self._store.content.size(
                    Digest.parse(notes[SOURCE_DIGEST])
                ) is None:
                    raise StorageError("source %s is not stored" % notes[SOURCE_DIGEST])
                tops.append(top)
            except Error as exc:
                self._report(references.path, "name", exc)
        return tops

    def _image(self, top: Descriptor) -> Iterator[Descriptor]:
        """What an image needs; notes what its configs say of its layers."""
        content = self._store.content
        try:
            for item, document in self._store.walk(top):
                yield item
                path = content.path(item.digest)
                if content.size(item.digest) is None:
                    if not is_foreign(item.media_type):
                        self._report(path, "missing", "needed by %s" % top.digest)
                    else:
                        self._report(path, UNVERIFIED, "foreign layer is not stored")
                elif not content.has(item.digest, item.size):
                    self._report(path, "size", "expected %d bytes" % item.size)
                if isinstance(document, manifest.Manifest):
                    self._config(document)
        except Error as exc:
            self._report(content.path(top.digest), "image", exc)

    def _config(self, document: manifest.Manifest) -> None:
        path = self._store.content.path(document.config.digest)
        if document.artifact_type or not all(
            "image" in layer.media_type for layer in document.layers + (document.config,)
        ):
            return
        try:
            config = image.parse(self._store.content.read(document.config.digest, MAX_CONFIG))
            if len(config.diff_ids) != len(document.layers):
                raise StorageError("config has %d layers, manifest %s has %d" % (
                    len(config.diff_ids), document.digest, len(document.layers)
                ))
            for layer, diff_id in zip(document.layers, config.diff_ids):
                self._said.setdefault(layer.digest, set()).add(diff_id)
        except Error as exc:
            self._report(path, "config", exc)

    def _records(self) -> List[Tuple[ChainID, str, Tuple[Tuple[Digest, int], ...], Diff]]:
        records = []
        for chain, path in listing(self._store.layers.root):
            try:
                layer = parse_layer(ChainID(chain), files.read_bytes(path, 1 << 20) or b"")
            except Error as exc:
                self._report(path, "record", exc)
                continue
            records.append((layer.chain_id, path, layer.blobs, layer.diff))
            for digest, _ in layer.blobs:
                self._said.setdefault(digest, set())
        return records

    def _hash(self, wanted: Optional[Set[Digest]]) -> None:
        blobs = os.path.join(self._store.root, "blobs")
        for folder, _, names in os.walk(blobs) if wanted is None else ():
            known = {path for _, path in listing(blobs)}
            for name in names:
                if os.path.join(folder, name) not in known:
                    self._report(os.path.join(folder, name), "stray", "no digest for a name")
        digests = [d for d in self._store.content.digests() if wanted is None or d in wanted]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for digest, diff in zip(digests, pool.map(self._one, digests)):
                self._found[digest] = diff

    def _one(self, digest: Digest) -> Optional[Diff]:
        """Hash one blob, and its tar stream if it is a layer."""
        content, raw, diff = self._store.content, Verifier(digest.algorithm), None
        path = content.path(digest)
        try:
            if digest in self._said:
                try:
                    diff = self._store.layers.diff(digest, self._cancel, raw)
                except Unsupported as exc:
                    self._report(path, UNVERIFIED, exc)
            if diff is None:
                raw = Verifier(digest.algorithm)
                content.hash(digest, raw, self._cancel)
            raw.verify(digest, raw.size, "blob")
        except Cancelled:
            raise
        except Error as exc:
            self._report(path, "blob", exc)
            return None
        return diff

    def _layers(self) -> None:
        for digest, said in self._said.items():
            found = self._found.get(digest)
            for diff_id in said:
                if found is not None and found.diff_id != diff_id:
                    self._report(
                        self._store.content.path(digest), "layer",
                        "DiffID is %s, the config says %s" % (found.diff_id, diff_id),
                    )

    def _metadata(self) -> None:
        service = self._store.metadata
        for digest, path in listing(service.store.path(service.BY_DIGEST, "")):
            found = self._found.get(digest)
            if service.get_diff_id(digest) is None or found is not None and (
                service.get_diff_id(digest) != found.diff_id
            ):
                self._report(path, "metadata", "not the DiffID of this blob")
        for diff_id, path in listing(service.store.path(service.BY_DIFF_ID, "")):
            try:
                for entry in parse_metadata(files.read_bytes(path, 1 << 20) or b""):
                    found = self._found.get(entry.digest)
                    if found is not None and found.diff_id != diff_id:
                        raise StorageError("blob %s is another layer" % entry.digest)
            except Error as exc:
                self._report(path, "metadata", exc)
