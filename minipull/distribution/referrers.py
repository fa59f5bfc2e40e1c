# SPDX-License-Identifier: Apache-2.0
"""Referrers: signatures, attestations and SBOMs follow their image from end to end.

Spec: distribution-spec "Listing Referrers" and its fallback tags; cosign's tags.
"""
from typing import Callable, Dict, Iterable, Optional, Sequence

from ..cancel import Cancel
from ..digest import Digest
from ..errors import PolicyError
from ..image import manifest
from ..image.descriptor import OCI_INDEX, Descriptor
from ..image.manifest import Document, Index
from ..image.strictjson import compact
from ..image.walk import runs
from ..reference import Reference
from ..registry.errors import IfThere
from ..registry.v2 import MAX_REFERRERS, Repository
from ..store.references import COSIGN
from ..store.store import Store
from .ends import End, LayoutEnd, RegistryEnd
from .places import Place


class Referrers:
    """The referrers of one image; ``send_below`` copies every blob and manifest that a manifest needs.

    With ``strict``, an image to run is none: no signature of another covers it.
    """

    def __init__(self, source: End, target: End, send_below: Callable[[Document], None],
                 cancel: Cancel, strict: bool) -> None:
        self._strict = strict
        self._source = source
        self._target = target
        self._send_below = send_below
        self._cancel = cancel

    def copy(self, digests: Sequence[Digest]) -> None:
        """Copy the referrers of manifests, and theirs, and signatures under cosign's tags."""
        pending, seen, asked = list(digests), set(digests), 0
        while pending:
            subject = pending.pop()
            for suffix in COSIGN:
                tag = subject.replace(":", "-") + suffix
                document = self._found(tag)
                if document is not None and not self._runs(document):
                    self._send_below(document)
                    self._target.tag(tag, document, self._cancel)
            unlisted: Dict[Digest, bytes] = {}
            for entry in self._listed(subject):
                asked += 1
                if asked > MAX_REFERRERS:
                    raise PolicyError("more than %d referrers" % MAX_REFERRERS)
                document = self._found(entry.digest)
                if document is None or document.subject is None or document.subject.digest != subject:
                    continue  # a registry may list manifests that don't refer to the subject
                if self._runs(document):
                    continue
                self._send_below(document)
                if not self._target.put(document, self._cancel):
                    unlisted[entry.digest] = compact(entry._replace(
                        media_type=document.media_type, size=len(document.raw)).to_json())
                if entry.digest not in seen:
                    seen.add(entry.digest)
                    pending.append(entry.digest)
            self._list(subject, unlisted)

    def _runs(self, top: Document) -> bool:
        return self._strict and runs(top, lambda item: self._found(item.digest) if item.is_document else None)

    def _found(self, reference: str, end: Optional[End] = None) -> Optional[Document]:
        with IfThere():
            return (end or self._source).get(reference, self._cancel).document()
        return None

    def _listed(self, subject: Digest) -> Iterable[Descriptor]:
        """List the referrers of a manifest at the source, from the fallback tag if it has no API for them."""
        listed = self._source.referrers(subject, self._cancel)
        if listed is None:
            index = self._found(subject.replace(":", "-"))
            return index.manifests if isinstance(index, Index) else ()
        return listed

    def _list(self, subject: Digest, entries: Dict[Digest, bytes]) -> None:
        """Add referrers, their descriptors in JSON, to the fallback tag of a target that does not list them."""
        tag = subject.replace(":", "-")
        index = self._found(tag, self._target) if entries else None
        present = index.manifests if isinstance(index, Index) else ()
        known = {item.digest for item in present}
        added = [entry for digest, entry in entries.items() if digest not in known]
        if added:
            start = compact({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})[:-2]
            raw = b"%s%s]}" % (start, b",".join([*(compact(item.to_json()) for item in present), *added]))
            self._target.tag(tag, manifest.parse(raw, OCI_INDEX), self._cancel)


def into_store(repository: Repository, store: Store, name: Reference, send_below: Callable[[Document], None],
               cancel: Cancel, strict: bool) -> Referrers:
    """Referrers on their way from a repository into the store, as those of the image ``name``."""
    target = LayoutEnd(Place("store", name=name._replace(tag="", digest=None)), store)
    return Referrers(RegistryEnd(repository), target, send_below, cancel, strict)
