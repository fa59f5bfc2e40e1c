# SPDX-License-Identifier: Apache-2.0
"""Plans: the blobs that a pull or push would move, by its own rules; nothing is written or sent.

A pull is planned from its manifests.  A push runs as ever, to a repository that
answers questions and takes nothing; whether the registry really mounts a blob that
the source repository has can't be known before.
"""
import contextlib
import copy
import os
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

from ..cancel import Cancel
from ..digest import Digest
from ..errors import Unsupported
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.manifest import Document, Index, is_schema1
from ..image.walk import walk
from ..progress import Output, discard
from ..reference import Reference
from ..registry.client import Client, over_endpoints
from ..registry.endpoints import Endpoint
from ..registry.request import Body
from ..registry.upload import Upload
from ..registry.v2 import Repository
from ..store.metadata import MemoryMetadata, V2MetadataService
from ..store.store import ImageSource, Store
from ..xfer.download import LayerDownloadManager
from ..xfer.upload import LayerUploadManager
from .blobs import moved_as_manifest
from .pull_v2 import PullOptions, V2Puller
from .push_v2 import V2Pusher

Sizes = Dict[Digest, int]  # of blobs, in bytes


class Plan(NamedTuple):
    """The blobs of one image; of a blob that was begun, ``moved`` has the rest."""
    name: Reference
    digest: Digest
    moved: Sizes
    there: Sizes
    mounted: Sizes


def plan_pull(client: Client, name: Reference, store: Store, options: PullOptions, planned: Set[Digest],
              output: Output, cancel: Cancel) -> Plan:
    """Plan the pull of an image; ``planned`` has the blobs of those before it, and gets its own."""
    reference = name.docker_ref()

    def from_endpoint(endpoint: Endpoint) -> Plan:
        with store.reading(cancel):
            repository = client.repository(endpoint, reference)
            planner = _Planner(repository, store, LayerDownloadManager(), options, output, cancel)
            return planner.plan(reference, planned)._replace(name=name.with_default_tag())

    plan = over_endpoints(client, reference, "pull %s" % (reference,), from_endpoint, cancel, output)
    planned.update(plan.moved)
    return plan


class _Planner(V2Puller):

    def plan(self, reference: Reference, planned: Set[Digest]) -> Plan:
        received = self._resolve(reference, self.store.references.get(reference))
        if is_schema1(received.raw, received.content_type):
            raise Unsupported("it has the old schema 1 format, which tells no sizes")
        top = received.document()
        plan = Plan(reference, top.digest, {}, {}, {})
        documents: Iterable[Tuple[Descriptor, Optional[Document]]]
        chosen = [top] if self.options.all_platforms and isinstance(top, Index) else self.chosen(top)
        self._verify([document.digest for document in chosen])
        if isinstance(chosen[0], Index):
            documents = walk(top, lambda item: self._child(item) if item.is_document else None)
        else:
            documents = [(top.descriptor, chosen[0])]
        for item, document in documents:
            blobs = document.blobs if document else () if moved_as_manifest(
                item, lambda digest: self._received(digest).raw, len) else [item]
            for blob in blobs:
                if blob.data or blob.digest in planned or self.store.content.has(blob.digest, blob.size):
                    plan.there[blob.digest] = blob.size
                elif self.options.foreign or not blob.is_foreign or (
                        self.repository.stat(blob.digest, self.cancel) is not None):
                    plan.moved[blob.digest] = blob.size - self._held(blob)
        return plan

    def _held(self, blob: Descriptor) -> int:
        """The bytes of a blob that an earlier pull has left; after a reboot some may not be used."""
        with contextlib.suppress(OSError):
            size = os.lstat(os.path.join(self.store.content.scratch, blob.digest.replace(":", "-"))).st_size
            return size if size <= blob.size else 0
        return 0


def plan_push(client: Client, groups: Iterable[Sequence[Tuple[Image, Reference]]], store: ImageSource,
              uploads: LayerUploadManager, output: Output, cancel: Cancel, chunk_size: int = 0,
              foreign: bool = False) -> List[Plan]:
    """Plan the push of images, each group to one repository, as push_with() would do it."""
    unchanged = copy.copy(store)
    unchanged.metadata, unchanged.lasting = _Unwritten(store.metadata), False
    planned: Dict[Tuple[str, Digest], int] = {}  # the blobs that a repository would have by then
    plans: List[Plan] = []

    def to_endpoint(endpoint: Endpoint) -> List[Plan]:
        with store.reading(cancel):
            repository = _DryRepository(client, endpoint, target, planned)
            pusher = V2Pusher(repository, unchanged, uploads, target, discard, cancel, chunk_size,
                              foreign=foreign)
            return [repository.plan(pusher, image, name) for image, name in images]

    for images in groups:
        target = images[0][1]._replace(tag="")
        plans += over_endpoints(client, target, "push %s" % target.name, to_endpoint, cancel, output, push=True)
    return plans


class _DryRepository(Repository):
    """A repository that takes nothing, and notes what it would have got."""

    def __init__(self, client: Client, endpoint: Endpoint, target: Reference,
                 planned: Dict[Tuple[str, Digest], int]) -> None:
        vars(self).update(vars(client.repository(endpoint, target, push=True)))
        self.sent: Sizes = {}
        self.mounted: Sizes = {}
        self._client = client
        self._target = target
        self._planned = planned

    def plan(self, pusher: V2Pusher, image: Image, name: Reference) -> Plan:
        self.sent, self.mounted = {}, {}
        pushed = pusher.push(image, name.tag)
        skipped = {layer.blob.digest for layer in pushed.layers if layer.result == "Skipped foreign layer"}
        there = {}
        for item, _ in pusher.store.walk(image.descriptor):
            blob = pusher.present.get(item.digest)
            if blob and blob.digest not in skipped | set(self.sent) | set(self.mounted):
                there[blob.digest] = blob.size
        self._planned.update({(self.name, digest): size for digest, size in self.sent.items()})
        return Plan(name, pushed.descriptor.digest, self.sent, there, self.mounted)

    def stat(self, digest: Digest, cancel: Cancel, once: bool = False) -> Optional[int]:
        return self.mounted[digest] if digest in self.mounted else super().stat(digest, cancel, once)

    def start_upload(self, cancel: Cancel, mount: str = "", source: str = "") -> Optional[Upload]:
        if mount:
            digest, other = Digest(mount), self._target._replace(path=source)
            size = self._planned.get((other.name, digest))
            if size is None:
                size = self._client.repository(self.endpoint, other).stat(digest, cancel, once=True)
            if size is not None:
                self.mounted[digest] = size
                return None
        return _DryUpload(self)

    def put_manifest(self, reference: str, raw: bytes, media_type: str, cancel: Cancel) -> bool:
        return False


class _DryUpload(Upload):
    """An upload that counts its bytes."""

    def __init__(self, repository: _DryRepository) -> None:
        super().__init__(repository.send, repository.endpoint)
        self._sent = repository.sent

    def append(self, body: Body, cancel: Cancel, chunk: bool = False) -> None:
        self.offset += sum(map(len, body.pieces())) if body.size is None else body.size

    def commit(self, digest: Digest, cancel: Cancel, body: Optional[Body] = None) -> None:
        if body is not None:
            self.append(body, cancel)
        self._sent[digest] = self.offset

    def abandon(self, cancel: Cancel) -> None:
        pass


class _Unwritten(MemoryMetadata):
    """Associations whose changes stay in memory."""

    def __init__(self, stored: V2MetadataService) -> None:
        super().__init__()
        self._stored = stored

    def get(self, namespace: str, key: str) -> Optional[bytes]:
        value = super().get(namespace, key)
        return self._stored.get(namespace, key) if value is None else value

    def delete(self, namespace: str, key: str) -> None:
        self.set(namespace, key, b"")  # the stored one stays
