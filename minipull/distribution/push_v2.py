# SPDX-License-Identifier: Apache-2.0
"""An image to one repository, by the v2 protocol.

Manifest, config and layers are sent as they are stored, byte for byte, so that a
pulled image keeps its digest.  A layer is looked for in the repository first, then
mounted from another repository that has it, and sent if neither helps.  Children
come before their index, the tag comes last.

Mirrors moby's distribution/push_v2.go.

Where this leaves the engine:

- manifests are not rebuilt; only a layer that is stored uncompressed, and that no
  registry is known to have so, is compressed while it is sent and named anew;
- budgets count the stored size, since the uncompressed one is not known;
- a layer of up to 100 KiB that has not been seen in the target is sent rather than
  looked for, which saves a third of the requests of 80 tiny layers;
- a larger layer or a config is looked for without any association too;
- only associations with the very blob count, unless the layer may be compressed;
- a manifest that is refused because of missing blobs is followed by all of them,
  once, without trust in what the registry said before;
- a manifest that is refused because its tag can't be changed is done if the tag has it;
- a check or a mount that fails in any way costs a request, not the push, and is not
  repeated;
- foreign layers are sent with ``foreign``, as far as they are stored;
- entries of an unknown kind are pushed too, as manifests if the registry takes them
  as such, else as blobs;
- schema 1 is pushed only with ``legacy``.
"""
import contextlib
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from ..cancel import Cancel
from ..digest import Buffer, DiffID, Digest, Verifier
from ..errors import Cancelled, Error, NotFound, PolicyError, StorageError, Unauthorized, corrupt
from ..image import manifest
from ..image.config import Image, ImageConfig
from ..image.descriptor import DOCKER_LAYER, DOCKER_TAR, OCI_LAYER, Descriptor
from ..image.manifest import MAX_MANIFEST, Document, Index, Manifest, is_runnable
from ..image.strictjson import compact, parse_json
from ..image.walk import walk
from ..parts import part
from ..progress import Meter, Output, Progress, discard
from ..reference import Reference
from ..registry.errors import Dispensable, RegistryError
from ..registry.request import FileBody
from ..registry.upload import Upload
from ..registry.v2 import Repository
from ..store.metadata import V2Metadata, check_hmac, hmac_key
from ..store.source import BUFFER, pieces
from ..store.store import MAX_CONFIG, ImageSource
from ..xfer.transfer import Transfer
from ..xfer.upload import LayerUploadManager, UploadDescriptor
from .blobs import LACKS_BLOB, existing, moved_as_manifest, put_document, send_stream
from .documents import Held, put_below
from .mounts import budget, by_likeness, mount_candidates
from .sessions import upload_blob

#: The media type of an uncompressed layer, and its type when it has been compressed.
_COMPRESSED = {DOCKER_TAR: DOCKER_LAYER, OCI_LAYER: OCI_LAYER + "+gzip"}
#: Error codes of registries that don't know the format of a manifest.
_TOO_NEW = frozenset(("MANIFEST_INVALID", "UNSUPPORTED", "UNKNOWN"))


class PushedLayer(NamedTuple):
    """A layer at the registry; ``result`` is the last word of its progress."""
    diff_id: Optional[DiffID]
    blob: Descriptor
    result: str


class Pushed(NamedTuple):
    """A name at the registry, and the manifest that it has now."""
    name: Reference
    descriptor: Descriptor
    layers: List[PushedLayer]
    by_v1: bool = False  # a protocol in which a registry has no manifests


class V2Pusher:
    """A push of one or more images to one repository at one endpoint."""

    def __init__(self, repository: Repository, store: ImageSource, uploads: LayerUploadManager,
                 target: Reference, output: Output, cancel: Cancel, chunk_size: int = 0,
                 legacy: bool = False, foreign: bool = False) -> None:
        self.repository = repository
        self.store = store
        self.target = target
        self.chunk_size = chunk_size
        self.foreign = foreign  # send foreign layers as well, as far as they are stored
        credential = repository.credential()
        self.has_auth_info = bool(credential.registry_token or credential.username and credential.password)
        members = dict(zip(("username", "password", "identitytoken", "registrytoken"), credential))
        self.key = hmac_key(None if credential.anonymous else members)
        #: Blobs that the repository has, by the digest in the store; never asked for again.
        self.present: Dict[Digest, Descriptor] = {}
        self.checked: Set[Digest] = set()  # configs looked for before anything was sent
        self.trusting = True  # False once the registry lacked a blob that it said it had
        self._uploads = uploads
        self.output = output
        self.cancel = cancel
        self._schema1 = part("distribution.schema1") if legacy else None

    def push(self, image: Image, tag: str) -> Pushed:
        """Push an image as ``tag``; the caller holds the store's shared lock."""
        documents = self._documents(image)
        config = next((document.config for document in documents if isinstance(document, Manifest)), None)
        if config is not None:
            # One request alone first, so that the uploads find the connection and a token.
            self.checked.add(config.digest)
            if existing(self.repository, config.digest, self.cancel) is not None:
                self.present[config.digest] = config
        for last in (False, True):
            layers = self._blobs(documents)
            top = self._rebuilt(documents.top, layers)
            try:
                put_below(documents.below(),
                          lambda child, cancel: put_document(self.repository, child.digest, child, cancel),
                          self.target.name, self._uploads.transfers, self.cancel)
                put_document(self.repository, tag, top, self.cancel)
                break
            except RegistryError as exc:
                if exc.status in (400, 404, 405, 415) and exc.code in _TOO_NEW:
                    if isinstance(top, Index) or not is_runnable(top):
                        raise
                    if self._schema1 is None:
                        raise exc.reworded("%s; an old registry may take it with --legacy-schema1" % exc)
                    return Pushed(self.target.with_tag(tag), self._schema1.push(self, tag, top, exc), layers)
                if last or exc.code not in LACKS_BLOB:
                    raise
            self.present.clear()
            self.trusting = False
        return Pushed(self.target.with_tag(tag), top.descriptor, layers)

    def _documents(self, image: Image) -> Held:
        """The manifests of an image, children first; raises NotFound for one that is not stored."""
        documents = Held()
        for item, document in walk(image.descriptor, self.store.stored):
            if document is not None:
                documents.append(document)
            elif item.is_document or not self.store.content.has(item.digest, item.size):
                raise NotFound("%s lacks %s of its index; pull it with --all-platforms" % (
                    image.name.familiar, item.platform or item.digest))
        return documents

    def _blobs(self, documents: Held) -> List[PushedLayer]:
        """Bring the blobs of manifests to the registry, and return the layers, bottom first."""
        jobs: List[V2PushDescriptor] = []
        for document in documents:
            if isinstance(document, Manifest):
                diff_ids: List[Optional[DiffID]] = []
                if is_runnable(document):
                    raw = self.store.content.read(document.config.digest, MAX_CONFIG)
                    diff_ids += ImageConfig.parse(raw).diff_ids
                diff_ids += [None] * len(document.layers)
                # An index names its manifests by digest, so they can't be written anew.
                layers = [V2PushDescriptor(self, blob, diff_id, may_compress=len(documents) == 1)
                          for blob, diff_id in zip(document.layers, diff_ids)]
                jobs += layers[::-1] + [V2PushDescriptor(self, document.config, show=False)]
            else:
                jobs += [V2PushDescriptor(self, entry, show=False) for entry in document.unknown
                         if not self._moved_as_manifest(entry)]
        results: List[PushedLayer] = self._uploads.upload(
            jobs, self.output, self.cancel, self.store.reading)
        return [result for job, result in zip(jobs, results) if job.id][::-1]

    def _moved_as_manifest(self, entry: Descriptor) -> bool:
        return moved_as_manifest(
            entry, lambda digest: self.store.content.read(digest, MAX_MANIFEST),
            lambda raw: self.repository.put_manifest(entry.digest, raw, entry.media_type, self.cancel),
            from_registry=False)

    def _rebuilt(self, top: Document, layers: Sequence[PushedLayer]) -> Document:
        """Return the manifest, written anew if layers were compressed while they were sent."""
        blobs = [layer.blob for layer in layers]
        if isinstance(top, Index) or blobs == list(top.layers):
            return top
        obj = dict(parse_json(top.raw, "manifest"), layers=[blob.to_json() for blob in blobs])
        return manifest.parse(compact(obj), top.media_type)


class V2PushDescriptor(UploadDescriptor):
    """A blob of an image to be pushed; the DiffID of a layer is the key of its associations.

    ``may_compress``: an uncompressed layer is gzipped while it is sent and gets a new
    digest.  ``show=False`` emits no progress (configs).
    """

    def __init__(self, pusher: V2Pusher, blob: Descriptor, diff_id: Optional[DiffID] = None,
                 may_compress: bool = False, show: bool = True) -> None:
        self.blob = blob if may_compress else blob.bare
        self.diff_id = diff_id
        self._pusher = pusher
        content: Digest = diff_id or blob.digest
        self._skipped = blob.is_foreign and not (
            pusher.foreign and pusher.store.content.has(blob.digest, blob.size))
        self.key = "v2push:%s %s %s %s" % (pusher.target.name, content, blob.digest, self._skipped)
        self.id = content.short if show else ""
        self.size = blob.size
        entries = pusher.store.metadata.get_metadata(diff_id) if diff_id else []
        same_blob = [entry for entry in entries if entry.digest == blob.digest]
        plain = diff_id is not None and not blob.is_foreign and blob.media_type in _COMPRESSED
        self._compress = may_compress and plain and not same_blob
        self._budget = budget(blob.size)
        self._large = self._budget.mounts > 1  # so looking for the blob is cheaper than sending it
        # The repository may have the blob from somebody else.
        unseen = [V2Metadata(blob.digest, "")] if self._large or diff_id is None else []
        self.entries = entries if self._compress else same_blob or unseen
        self._checked = {blob.digest} & pusher.checked  # the check of a config spends nothing of a layer

    def upload(self, transfer: Transfer) -> PushedLayer:
        pusher = self._pusher
        if self._skipped:
            return self._done(transfer, "Skipped foreign layer", self.blob)
        if self.blob.digest in pusher.present:
            return self._done(transfer, "Layer already exists", pusher.present[self.blob.digest])
        upload: Optional[Upload] = None
        if pusher.trusting:
            mounts, checks, elsewhere = self._budget
            remote = self.already_exists(self._large, 1, transfer.cancel)
            if remote is None:
                candidates = mount_candidates(pusher.target, pusher.key, mounts, self.entries)
                source, upload = self.mount(candidates, transfer.cancel)
                if source is not None:
                    with Dispensable():
                        same = source.digest == self.blob.digest
                        remote = self.blob if same else self._stat(source.digest, transfer.cancel)
                    if remote is not None:
                        self._remember(source.digest)
                        path = source.source_repository.partition("/")[2]
                        return self._done(transfer, "Mounted from %s" % path, remote)
                remote = self.already_exists(elsewhere, checks - len(self._checked), transfer.cancel)
            if remote is not None:
                return self._done(transfer, "Layer already exists", remote)
        blob = self._send(transfer, upload)
        self._remember(blob.digest)
        return self._done(transfer, "Pushed", blob)

    def _done(self, transfer: Transfer, action: str, blob: Descriptor) -> PushedLayer:
        if self.id:
            transfer.progress(Progress(id=self.id, action=action))
        self._pusher.present[self.blob.digest] = blob
        return PushedLayer(self.diff_id, blob, action)

    def already_exists(self, elsewhere: bool, most: int, cancel: Cancel) -> Optional[Descriptor]:
        """Look for the blob here by ``most`` digests, if ``elsewhere`` by those seen elsewhere too."""
        pusher = self._pusher
        for entry in by_likeness(pusher.target.name, pusher.key, self.entries):
            source = entry.source_repository
            ours = source == pusher.target.name
            if entry.digest in self._checked or most <= 0 or not (elsewhere or ours or not source):
                continue
            most -= 1
            self._checked.add(entry.digest)
            with Dispensable():  # the blob is sent then; a lost connection forgets no association
                remote = self._stat(entry.digest, cancel)
                if remote is None and ours:
                    self._forget(entry)
                if remote is not None:
                    if not ours or not check_hmac(pusher.key, entry):
                        self._remember(entry.digest)
                    return remote
        return None

    def mount(self, candidates: Sequence[V2Metadata],
              cancel: Cancel) -> Tuple[Optional[V2Metadata], Optional[Upload]]:
        """Return the candidate that the blob was mounted from, or else the upload that was opened instead."""
        pusher = self._pusher
        upload: Optional[Upload] = None
        for entry in candidates:
            path = entry.source_repository.partition("/")[2]
            refused = False
            try:
                former, upload = upload, pusher.repository.start_upload(cancel, entry.digest, path)
                if former is not None:
                    former.abandon(cancel)
                if upload is None:
                    return entry, None
            except (Cancelled, StorageError):
                raise
            except Error as exc:
                refused = exc.code == "UNAUTHORIZED" if isinstance(exc, RegistryError) else (
                    isinstance(exc, (PolicyError, Unauthorized)))
            # Without credentials, "not found" can't be told from "not allowed".
            blind = refused and not pusher.has_auth_info
            if not blind and (not entry.hmac or check_hmac(pusher.key, entry)):
                self._forget(entry)
        return None, upload

    def _stat(self, digest: Digest, cancel: Cancel) -> Optional[Descriptor]:
        """Return the layer under ``digest`` if the repository has it: our blob, or one compressed from it."""
        size = self._pusher.repository.stat(digest, cancel, once=True)
        if size is None:
            return None
        return self.blob if digest == self.blob.digest else self._compressed(digest, size)

    def _compressed(self, digest: Digest, size: int) -> Descriptor:
        return self.blob._replace(media_type=_COMPRESSED[self.blob.media_type], digest=digest, size=size)

    def _send(self, transfer: Transfer, upload: Optional[Upload]) -> Descriptor:
        pusher, cancel, blob = self._pusher, transfer.cancel, self.blob
        if not pusher.store.content.has(blob.digest, blob.size):
            raise corrupt(blob.digest)
        output = transfer.progress if self.id else discard
        with pusher.store.content.open(blob.digest) as file:
            if self._compress:
                meter = Meter(output, self.id, "Pushing", blob.size)
                return self._send_compressed(file, meter, cancel, upload)
            try:
                upload_blob(
                    pusher.repository, blob, lambda offset, size: FileBody(file, offset, size), output, self.id,
                    cancel, upload, pusher.chunk_size, pusher.store)
            except RegistryError as exc:
                if exc.code != "DIGEST_INVALID":
                    raise
                raise corrupt(blob.digest) from exc
        return blob

    def _send_compressed(self, file: BinaryIO, meter: Meter, cancel: Cancel,
                         upload: Optional[Upload]) -> Descriptor:
        """Send the layer gzipped, with the same bytes each time; its digest is known at the end."""

        def layer() -> Iterator[Buffer]:
            raw = Verifier()
            file.seek(0)
            for piece in pieces(file, cancel, raw, BUFFER):
                meter.move(raw.size)
                yield piece
            if raw.digest != self.blob.digest:
                raise corrupt(self.blob.digest)

        gzipped = part("store.compression").gzipped
        sent = send_stream(
            self._pusher.repository, lambda: gzipped(layer()), cancel, upload, self._pusher.chunk_size)
        return self._compressed(sent.digest, sent.size)

    # Associations are a cache: a push works from a store that can't be written to.

    def _remember(self, digest: Digest) -> None:
        entry = V2Metadata(digest, self._pusher.target.name)
        with contextlib.suppress(StorageError):
            if self.diff_id is not None:
                self._pusher.store.metadata.tag_and_add(self.diff_id, self._pusher.key, entry)

    def _forget(self, entry: V2Metadata) -> None:
        with contextlib.suppress(StorageError):
            self._pusher.store.metadata.remove(entry)
