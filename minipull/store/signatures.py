# SPDX-License-Identifier: Apache-2.0
"""Signatures among the images of a store, layout or archive.

They have cosign's tag, in any repository, or refer to their image.  cosign looks at registries only.
"""
import contextlib
from typing import Dict, Iterator, List, Sequence, Set, Tuple

from ..digest import Digest
from ..errors import ContentMismatch, Error, shown, within
from ..image.descriptor import INDEX_TYPES, Descriptor
from ..image.manifest import MAX_MANIFEST, Document, Index, parse
from ..image.signature import Key, Signatures, first_good
from ..image.walk import Seen, runs, walk
from .references import named, tag_subject
from .store import ImageSource


class StoredSignatures(Signatures):
    """The signatures among the images of a source."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._subjects: Dict[Digest, str] = {}  # by manifest
        self._attached: Dict[str, List[Descriptor]] = {}  # manifests, by the digest of their image
        self._above: Dict[Digest, List[Digest]] = {}
        seen: Seen = set()
        for entry in source.references.descriptors():
            with contextlib.suppress(Error):
                item = Descriptor.from_json(entry, "index.json")
                owner = self._owner(named(entry), item)
                for below, document in walk(item, source.stored, seen=seen) if owner else ():
                    self._attached.setdefault(owner, []).extend([Descriptor(*below[:3])] if document else [])
        for owner in self._attached:
            with contextlib.suppress(Error):
                top = parse(source.content.read(Digest.parse(owner), MAX_MANIFEST))
                for child in top.manifests if isinstance(top, Index) else ():
                    self._above.setdefault(child.digest, []).append(Digest(owner))

    def _owner(self, label: str, item: Descriptor) -> str:
        """The digest of the image that an entry belongs to, by its tag or its subject, if any."""
        tagged = tag_subject(label.rpartition(":")[2])
        if tagged:
            return tagged
        if item.digest not in self._subjects:
            document = self._source.stored(item)
            self._subjects[item.digest] = document.subject.digest if document and document.subject else ""
        return self._subjects[item.digest]

    def manifests(self, digest: Digest) -> Iterator[Document]:
        yield from filter(None, map(self._source.stored, self._attached.get(digest, ())))

    def read(self, blob: Descriptor, limit: int) -> bytes:
        return self._source.content.read(blob.digest, limit)

    def above(self, digest: Digest) -> Sequence[Digest]:
        return self._above.get(digest, ())

    def require_all(self, keys: Sequence[Key]) -> Set[str]:
        """Return what is covered; raise ContentMismatch unless each image is, or belongs to one that is.

        So do signatures, attestations and SBOMs; an image to run belongs to none.
        """
        covered: Set[str] = set()
        attached: Dict[Digest, Tuple[str, str]] = {}  # label and owner
        seen: Seen = set()
        met: Seen = set()

        def require(digest: Digest, label: str) -> None:
            with within(shown(label or digest, 300), ContentMismatch):
                first_good(self.of([digest], keys), keys)

        entries = [Descriptor.from_json(entry, "index.json") for entry in self._source.references.descriptors()]
        for item in sorted(entries, key=lambda item: item.media_type not in INDEX_TYPES):  # they cover others
            label = named(item.to_json())
            owner = "" if runs(item, self._source.stored, met) else self._owner(label, item)
            if owner:
                attached.setdefault(item.digest, (label, owner))
            elif item.digest not in covered:
                require(item.digest, label)
                covered.update(child.digest for child, _ in walk(item, self._source.stored, seen=seen))
        new = set(attached)
        while new:
            new = {digest for digest in attached if attached[digest][1] in covered and digest not in covered}
            covered |= new
        for digest, (label, _) in attached.items():
            if digest not in covered:
                require(digest, label)
        return covered
