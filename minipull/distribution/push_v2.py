# SPDX-License-Identifier: Apache-2.0
"""One image to one repository, by the v2 protocol.

What is stored is what is sent: manifest, config and layers byte for byte, so
that the digest is the one that was pulled.  A layer is sent only if it is not
there: it is looked for first, then mounted from where we have seen it, the
likeliest place first.  Children come before their index, the tag comes last.

A layer that lies here uncompressed and that no registry is known to have so is
compressed while it is sent, and the manifest says so.  With ``legacy`` a registry
that refuses the manifest is given schema 1, signed with a key that nobody keeps.

Mirrors moby's distribution/push_v2.go.
"""
import contextlib
import zlib
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from ..cancel import Cancel
from ..digest import Buffer, DiffID, Digest, Verifier
from ..errors import NetworkError, NotFound, PolicyError, StorageError, Unauthorized, corrupt
from ..image import manifest
from ..image.config import Image, ImageConfig
from ..image.descriptor import DOCKER_LAYER, DOCKER_TAR, OCI_LAYER, Descriptor, is_foreign
from ..image.manifest import Document, Index, Manifest, is_runnable
from ..image.strictjson import compact, parse_json
from ..parts import part
from ..progress import Meter, Output, Progress, discard
from ..reference import Reference
from ..registry.errors import RegistryError
from ..registry.request import Body, FileBody
from ..registry.v2 import Repository, Upload
from ..store.compression import BUFFER, pieces
from ..store.metadata import V2Metadata, check_hmac, hmac_key
from ..store.store import MAX_CONFIG, Store
from ..xfer.transfer import Transfer
from ..xfer.upload import LayerUploadManager, UploadDescriptor
from .blobs import send_blob, send_stream
from .mounts import budget, by_likeness, mount_candidates

#: What an uncompressed layer is called, and what it is when it has been compressed.
_COMPRESSED = {DOCKER_TAR: DOCKER_LAYER, OCI_LAYER: OCI_LAYER + "+gzip"}
#: How a registry says that it knows no such manifest.
_TOO_NEW = frozenset(("MANIFEST_INVALID", "UNSUPPORTED", "UNKNOWN"))


class PushedLayer(NamedTuple):
    """What became of one layer; ``result`` is what its progress said."""
    diff_id: Optional[DiffID]
    blob: Descriptor
    result: str


class Pushed(NamedTuple):
    """What a name at the registry is now."""
    name: Reference
    descriptor: Descriptor
    layers: List[PushedLayer]


class V2Pusher:
    """Pushes to one repository at one endpoint from one store."""

    def __init__(self, repository: Repository, store: Store, uploads: LayerUploadManager,
                 target: Reference, output: Output, cancel: Cancel, chunk_size: int = 0,
                 legacy: bool = False) -> None:
        self.repository = repository
        self.store = store
        self.target = target
        self.chunk_size = chunk_size
        credential = repository.credential()
        self.has_auth_info = bool(credential.registry_token or credential.username and credential.password)
        self.key = hmac_key(None if credential.anonymous else {
            "username": credential.username, "password": credential.password,
            "identitytoken": credential.identity_token, "registrytoken": credential.registry_token})
        #: What is known to be there, by digest; never asked for again.
        self.known: Dict[Digest, Descriptor] = {}
        self.checked: Set[Digest] = set()  # what was asked for before anything was sent
        self.trusting = True  # may we believe the registry when it says that it has a blob?
        self._uploads = uploads
        self.output = output
        self.cancel = cancel
        self._legacy = legacy

    def push(self, what: Image, tag: str) -> Pushed:
        """Push an image as ``tag``; the caller holds the store's shared lock."""
        documents = self._documents(what)
        for document in documents:
            if isinstance(document, Manifest):
                # One question alone first: is anybody there, and who do we have to be?
                config = document.config
                self.checked.add(config.digest)
                with contextlib.suppress(RegistryError):
                    if self.repository.stat(config.digest, self.cancel) is not None:
                        self.known[config.digest] = config
                break
        for last in (False, True):
            layers = self._blobs(documents)
            sent = self._rebuilt(documents[-1], layers)
            try:
                for child in documents[:-1]:
                    self._put(str(child.digest), child)
                self._put(tag, sent)
                break
            except RegistryError as exc:
                if exc.status in (400, 404, 405, 415) and exc.code in _TOO_NEW:
                    return Pushed(self.target.with_tag(tag), self._put_schema1(tag, sent, exc), layers)
                if last or exc.code not in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"):
                    raise
            self.known.clear()
            self.trusting = False  # it has not what it said that it had
        return Pushed(self.target.with_tag(tag), sent.descriptor, layers)

    def _documents(self, what: Image) -> List[Document]:
        """Children first, the top last; raises NotFound for what is not stored."""
        found = {item.digest: document._replace(digest=item.digest)
                 for item, document in self.store.walk(what.descriptor) if document is not None}
        ordered: Dict[Digest, Document] = {}

        def visit(item: Descriptor) -> None:
            if item.digest not in found:
                raise NotFound("%s lacks %s of its index; pull it with --all-platforms" % (
                    what.name.familiar, item.platform or item.digest))
            if item.digest not in ordered:
                document = found[item.digest]
                for child in document.manifests if isinstance(document, Index) else ():
                    visit(child)
                ordered[item.digest] = document

        visit(what.descriptor)
        return list(ordered.values())

    def _blobs(self, documents: Sequence[Document]) -> List[PushedLayer]:
        """Have all blobs of some manifests at the registry; what became of the layers."""
        jobs: List[V2PushDescriptor] = []
        for document in documents:
            if isinstance(document, Manifest):
                diff_ids: List[Optional[DiffID]] = []
                if is_runnable(document):
                    raw = self.store.content.read(document.config.digest, MAX_CONFIG)
                    diff_ids += ImageConfig.parse(raw).diff_ids
                diff_ids += [None] * len(document.layers)
                free = len(documents) == 1  # what an index names it names by digest
                layers = [V2PushDescriptor(self, blob, diff_id, free)
                          for blob, diff_id in zip(document.layers, diff_ids)]
                jobs += layers[::-1] + [V2PushDescriptor(self, document.config, shown=False)]
        results: List[PushedLayer] = self._uploads.upload(
            self.store, jobs, self.output, self.cancel)
        return [result for job, result in zip(jobs, results) if job.id][::-1]

    def _rebuilt(self, top: Document, layers: Sequence[PushedLayer]) -> Document:
        """The manifest as it is, or with the layers that were compressed on their way."""
        blobs = [layer.blob for layer in layers]
        if isinstance(top, Index) or blobs == list(top.layers):
            return top
        obj = dict(parse_json(top.raw, "manifest"), layers=[blob.to_json() for blob in blobs])
        return manifest.parse(compact(obj), top.media_type)

    def _put_schema1(self, tag: str, document: Document, exc: RegistryError) -> Descriptor:
        """Have the image as schema 1 where its manifest was refused, if that is wanted and can be."""
        if isinstance(document, Index) or not is_runnable(document):
            raise exc
        if not self._legacy:
            exc.args = ("%s; an old registry may take it with --legacy-schema1" % exc,)
            raise exc
        pushed: Descriptor = part("distribution.schema1").push(self, tag, document, exc)
        return pushed

    def _put(self, reference: str, document: Document) -> None:
        self.repository.put_manifest(reference, document.raw, document.media_type, self.cancel)


class V2PushDescriptor(UploadDescriptor):
    """A blob of an image to be pushed; a layer has a DiffID, by which we remember where it is.

    ``free`` says that the layer may also go by another digest, compressed;
    of what is not ``shown`` there is no progress.
    """

    def __init__(self, pusher: V2Pusher, blob: Descriptor, diff_id: Optional[DiffID] = None,
                 free: bool = False, shown: bool = True) -> None:
        self.blob = blob
        self.diff_id = diff_id
        self._pusher = pusher
        self._what: Digest = diff_id or blob.digest
        self.key = "v2push:%s %s %s" % (pusher.target.name, self._what, blob.digest)
        self.id = self._what.short if shown else ""
        entries = pusher.store.metadata.get_metadata(diff_id) if diff_id else []
        as_it_is = [entry for entry in entries if entry.digest == blob.digest]
        self._free = free and diff_id is not None and not as_it_is and blob.media_type in _COMPRESSED
        self._budget = budget(blob.size)
        #: Is looking for it anywhere cheaper than sending it?
        self._large = self._budget.mounts > 1
        # Without a word of ours, somebody else may have put there what we have;
        # and of what is no layer we remember nothing.
        unseen = [V2Metadata(blob.digest, "")] if self._large or diff_id is None else []
        self.entries = entries if self._free else as_it_is or unseen
        self._checked = set(pusher.checked)

    def upload(self, transfer: Transfer) -> PushedLayer:
        pusher = self._pusher
        known = pusher.known.get(self.blob.digest)
        if is_foreign(self.blob.media_type):
            return self._done(transfer, "Skipped foreign layer", self.blob)
        if known is not None:
            return self._done(transfer, "Layer already exists", known)
        upload: Optional[Upload] = None
        if pusher.trusting:
            mounts, checks, elsewhere = self._budget
            there = self.already_exists(self._large, 1, transfer.cancel)
            if there is None:
                candidates = mount_candidates(pusher.target, pusher.key, mounts, self.entries)
                source, upload = self.mount(candidates, transfer.cancel)
                if source is not None:
                    same = source.digest == self.blob.digest
                    there = self.blob if same else self._here(source.digest, transfer.cancel)
                if source is not None and there is not None:
                    self._remember(source.digest)
                    path = source.source_repository.partition("/")[2]
                    return self._done(transfer, "Mounted from %s" % path, there)
                there = self.already_exists(elsewhere, checks - len(self._checked), transfer.cancel)
            if there is not None:
                return self._done(transfer, "Layer already exists", there)
        blob = self._send(transfer, upload)
        self._remember(blob.digest)
        return self._done(transfer, "Pushed", blob)

    def _done(self, transfer: Transfer, action: str, blob: Descriptor) -> PushedLayer:
        if self.id:
            transfer.progress(Progress(id=self.id, action=action))
        self._pusher.known[self.blob.digest] = blob
        return PushedLayer(self.diff_id, blob, action)

    def already_exists(self, elsewhere: bool, most: int, cancel: Cancel) -> Optional[Descriptor]:
        """Look for the blob, by ``most`` of the digests that it may have (layerAlreadyExists)."""
        pusher = self._pusher
        for entry in by_likeness(pusher.target.name, pusher.key, self.entries):
            source = entry.source_repository
            ours = source == pusher.target.name
            if entry.digest in self._checked or most <= 0 or not (elsewhere or ours or not source):
                continue
            most -= 1
            self._checked.add(entry.digest)
            try:
                there = self._here(entry.digest, cancel)
            except (NetworkError, RegistryError):
                continue  # no answer to this is a reason to fail
            if there is not None:
                if not ours or not check_hmac(pusher.key, entry):
                    self._remember(entry.digest)
                return there
            if ours:
                self._forget(entry)
        return None

    def mount(self, candidates: Sequence[V2Metadata],
              cancel: Cancel) -> Tuple[Optional[V2Metadata], Optional[Upload]]:
        """Who gave the blob; or else the upload that a registry opened instead, if one did."""
        pusher, upload = self._pusher, None
        for entry in candidates:
            path = entry.source_repository.partition("/")[2]
            code, opened = "", None
            try:
                opened = pusher.repository.start_upload(cancel, entry.digest, path)
                if opened is None:
                    if upload is not None:
                        upload.abandon(cancel)
                    return entry, None
            except (RegistryError, Unauthorized, PolicyError) as exc:
                code = exc.code if isinstance(exc, RegistryError) else "UNAUTHORIZED"
            # Who came without credentials can't tell "not there" from "not for you".
            blind = code == "UNAUTHORIZED" and not pusher.has_auth_info
            if not blind and (not entry.hmac or check_hmac(pusher.key, entry)):
                self._forget(entry)
            if opened is not None:
                if upload is not None:
                    upload.abandon(cancel)
                upload = opened
        return None, upload

    def _here(self, digest: Digest, cancel: Cancel) -> Optional[Descriptor]:
        """The blob of this digest, if the repository has it."""
        size = self._pusher.repository.stat(digest, cancel)
        if size is None or digest == self.blob.digest:
            return None if size is None else self.blob
        return self._compressed(digest, size)

    def _compressed(self, digest: Digest, size: int) -> Descriptor:
        return self.blob._replace(
            media_type=_COMPRESSED[self.blob.media_type], digest=digest, size=size)

    def _send(self, transfer: Transfer, upload: Optional[Upload]) -> Descriptor:
        pusher, cancel, blob = self._pusher, transfer.cancel, self.blob
        if not pusher.store.content.has(blob.digest, blob.size):
            raise corrupt(blob.digest)
        meter = Meter(transfer.progress if self.id else discard, self.id, "Pushing", blob.size)
        with pusher.store.content.open(blob.digest) as file:
            if self._free:
                return self._send_compressed(file, meter, cancel, upload)

            def source(offset: int, size: int) -> Body:
                return FileBody(file, offset, size, lambda sent: meter.move(offset + sent))

            try:
                send_blob(pusher.repository, blob, source, cancel, upload, pusher.chunk_size)
            except RegistryError as exc:
                if exc.code != "DIGEST_INVALID":
                    raise
                raise corrupt(blob.digest) from exc
        return blob

    def _send_compressed(self, file: BinaryIO, meter: Meter, cancel: Cancel,
                         upload: Optional[Upload]) -> Descriptor:
        """Compress while sending, the same way each time; the digest is known at the end."""

        def compressed() -> Iterator[Buffer]:
            raw = Verifier()
            file.seek(0)
            compressor = zlib.compressobj(wbits=31)  # a header without name and time
            for piece in pieces(file.fileno(), cancel, raw, BUFFER):
                meter.move(raw.size)
                yield compressor.compress(piece)
            if raw.digest != self.blob.digest:
                raise corrupt(self.blob.digest)
            yield compressor.flush()

        sent = send_stream(
            self._pusher.repository, compressed, cancel, upload, self._pusher.chunk_size)
        return self._compressed(sent.digest, sent.size)

    # What we remember is a cache: a store that can't be written to can be pushed from.

    def _remember(self, digest: Digest) -> None:
        entry = V2Metadata(digest, self._pusher.target.name)
        with contextlib.suppress(StorageError):
            if self.diff_id is not None:
                self._pusher.store.metadata.tag_and_add(self.diff_id, self._pusher.key, entry)

    def _forget(self, entry: V2Metadata) -> None:
        with contextlib.suppress(StorageError):
            self._pusher.store.metadata.remove(entry)
