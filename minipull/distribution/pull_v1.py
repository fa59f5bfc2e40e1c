# SPDX-License-Identifier: Apache-2.0
"""A tag from one endpoint, by the v1 protocol.

Mirrors moby's distribution/pull_v1.go.

Where this leaves the engine:

- a v1 id is no digest, so a layer is hashed while it arrives and stored as it is
  under that digest; only the metadata knows the id;
- the image gets a config and a manifest, the same each time it is pulled, which
  are stored and sent from then on;
- the JSON of an image must have the id and the parent that the ancestry says;
- a layer is continued only where the registry has said ``Accept-Ranges``;
- cookies and the mirrors of an index are left out.
"""
import contextlib
import uuid
from typing import List, Optional, Tuple

from ..cancel import Cancel
from ..digest import DiffID, Digest, Verifier
from ..errors import ContentMismatch, Error, InvalidDocument, NetworkError, NoSupport, StorageError
from ..image.config import Image
from ..image.descriptor import DOCKER_LAYER, DOCKER_TAR, Descriptor
from ..image.schema1 import Entry, converted
from ..image.strictjson import parse_json, string_at
from ..progress import Meter, Output, Progress
from ..reference import Reference
from ..registry.errors import continue_on_error
from ..registry.response import Response
from ..registry.v1 import Session, V1Image, check_v1_id
from ..store.ingest import Ingest
from ..store.layer import Diff
from ..store.metadata import V1_IDS, MetadataStore, V2Metadata
from ..store.references import Association
from ..store.store import Store
from ..xfer.download import DownloadDescriptor, LayerDownloadManager
from ..xfer.transfer import Transfer
from .blobs import RemoteBlob, persist
from .naming import name_pulled

MAX_FAILURES = 5  # of one layer whose body breaks off
RESUME_DELAYS = (0.5, 1.0, 1.5, 2.0)  # seconds, before a body is opened again that broke off at its first byte


class V1Puller:
    """A pull from one repository at one endpoint into one store."""

    def __init__(self, session: Session, store: Store, downloads: LayerDownloadManager, output: Output,
                 cancel: Cancel, keep_name: bool = False) -> None:
        self._keep_name = keep_name
        self._session = session
        self._store = store
        self._downloads = downloads
        self._output = output
        self._cancel = cancel

    def pull(self, reference: Reference) -> Tuple[Image, bool]:
        """Pull a tag; False beside the image if nothing changed.  The caller holds the store's shared lock."""
        session, cancel = self._session, self._cancel
        if reference.digest is not None:
            raise NoSupport("Cannot pull by digest with v1 registry")
        session.ping(cancel)
        self._output(Progress(message="Pulling repository %s" % session.name))
        session.look_up(reference.tag, cancel)
        v1_id = session.tag(reference.tag, cancel)
        subject = "image (%s) from %s" % (reference.tag, session.name)
        for registry in session.registries:
            self._output(Progress(id=v1_id[:12], message="Pulling %s, endpoint: %s" % (subject, registry)))
            try:
                association, updated = self._image(registry, v1_id, reference)
                break
            except Error as exc:
                if registry == session.registries[-1] or not continue_on_error(exc, True):
                    raise exc.within("Error pulling " + subject) from exc
                self._output(Progress(id=v1_id[:12], message="Error pulling %s, endpoint: %s, %s" % (
                    subject, registry, exc)))
        self._output(Progress(message=(
            "%s: this image was pulled from a legacy registry.  Important: This registry version will not be"
            " supported in future versions of docker." % reference.familiar)))
        return self._store.load(association), updated

    def _image(self, registry: str, v1_id: str, reference: Reference) -> Tuple[Association, bool]:
        store = self._store
        self._output(Progress(id=v1_id[:12], message="Pulling dependent layers"))
        entries: List[Entry] = []
        layers: List[V1LayerDescriptor] = []
        ids = self._session.ancestry(registry, v1_id, self._cancel)[::-1]
        for image_id, parent in zip(ids, ["", *ids]):
            self._output(Progress(id=image_id[:12], message="Pulling metadata"))
            image = persist(None, self._cancel, self._session.image, registry, image_id)
            v1 = parse_json(image.raw, "image JSON")
            if (string_at(v1, "id", "image JSON"), string_at(v1, "parent", "image JSON")) != (image_id, parent):
                raise InvalidDocument("image JSON of %s is another's, or has another parent" % image_id)
            v1.pop("throwaway", None)  # in this protocol every image has a layer
            entries.append(Entry(Digest.of(image.raw), v1))
            layers.append(V1LayerDescriptor(self._session, store, registry, image_id, image))
        missing = any(layer.present() is None for layer in layers)
        nothing = ("v1:nothing", lambda transfer: None)
        self._downloads.download(store, layers, self._output, self._cancel, nothing)
        config, document = converted(entries, [layer.stored() for layer in layers])
        former = store.references.get(reference)
        association = Association(reference, document.descriptor, document.digest)
        store.content.put(document.config.digest, config.raw)
        store.content.put(document.digest, document.raw)
        name_pulled(store, association, self._keep_name, self._output, self._cancel)
        return association, missing or former != association


class V1LayerDescriptor(DownloadDescriptor):
    """The layer of an image, which a registry knows by a v1 id."""

    def __init__(self, session: Session, store: Store, registry: str, v1_id: str, image: V1Image) -> None:
        self.key = "v1:%s %s" % (registry, v1_id)
        self.id = v1_id[:12]
        self._session = session
        self._store = store
        self._registry = registry
        self._v1_id = v1_id
        self._image = image
        self._ids = V1IDService(store.metadata)
        self._arrived: Optional[Digest] = None

    def present(self) -> Optional[Tuple[Descriptor, Diff]]:
        metadata = self._store.metadata
        diff_id = self._ids.get(self._v1_id, self._session.domain)
        entries = metadata.get_metadata(diff_id) if diff_id else []
        # Blobs pulled by v1 come first, so that the same image gets the same manifest.
        for entry in sorted(entries, key=lambda entry: entry.source_repository != ""):
            size = self._store.content.size(entry.digest)
            if diff_id and size is not None and metadata.get_diff_id(entry.digest) == diff_id:
                return self._described(entry.digest, size), Diff(diff_id)
        return None

    def stored(self) -> Tuple[Descriptor, DiffID]:
        """Return the stored layer and its DiffID; raises StorageError."""
        present = self.present()
        if present is None:
            raise StorageError("what is known of layer %s could not be stored" % self.id)
        return present[0], present[1].diff_id

    def download(self, transfer: Transfer) -> Descriptor:
        present = self.present()
        if present is not None:
            return present[0]
        payload, total = Verifier(), 0
        payload.update(self._image.raw + b"\n")

        def opened(offset: int, cancel: Cancel) -> Response:
            nonlocal total
            if offset and not total:
                raise NetworkError("%s gives a layer in one piece only" % self._registry)
            response = self._session.layer(self._registry, self._v1_id, cancel, offset, total)
            if not offset and "bytes" in response.header("Accept-Ranges"):
                total = response.remaining or 0
            return response

        partial = "arrival-%s" % uuid.uuid4()
        with Ingest(self._store.content, transfer.cancel, name=partial) as arrival, contextlib.ExitStack() as stack:
            stack.callback(arrival.discard)  # its digest is not known, so nobody could continue it
            remote = RemoteBlob(self._v1_id, None, opened, transfer.cancel, MAX_FAILURES, RESUME_DELAYS)
            meter: Optional[Meter] = None
            with contextlib.closing(remote):
                for piece in remote.pieces(0):
                    meter = meter or Meter(transfer.progress, self.id, "Downloading", total)
                    arrival.write(piece)
                    payload.update(piece)
                    meter.advance(len(piece))
            if self._image.checksums and payload.digest not in self._image.checksums:
                raise ContentMismatch(
                    "filesystem layer verification failed for image %s" % self._v1_id, retry=remote.broke_off)
            transfer.progress(Progress(id=self.id, action="Download complete"))
            transfer.inactive()
            self._arrived = arrival.commit(settle=False)
            return self._described(self._arrived, arrival.offset)

    def _described(self, digest: Digest, size: int) -> Descriptor:
        with self._store.content.open(digest) as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return Descriptor(DOCKER_LAYER if zipped else DOCKER_TAR, digest, size)

    def diff(self, transfer: Transfer, blob: Optional[Descriptor]) -> Diff:
        assert blob is not None
        cached = self._store.metadata.get_diff_id(blob.digest)
        meter = Meter(transfer.progress, self.id, "Extracting", blob.size)
        return Diff(cached) if cached else self._store.layers.diff(
            blob.digest, transfer.cancel, move=meter.move)

    def registered(self, diff: Diff) -> None:
        if self._arrived is not None:
            self._store.metadata.add(diff.diff_id, V2Metadata(self._arrived, ""))
            self._ids.set(self._v1_id, self._session.domain, diff.diff_id)


class V1IDService:
    """The DiffIDs of layers by v1 id and the registry's domain (moby: metadata/v1_id_service.go)."""
    def __init__(self, store: MetadataStore) -> None:
        self.store = store

    def get(self, v1_id: str, registry: str) -> Optional[DiffID]:
        """Return the DiffID of a layer pulled from, or pushed to, that registry under this id, or None."""
        return self.store.diff_id(V1_IDS, _v1_key(v1_id, registry))

    def set(self, v1_id: str, registry: str, diff_id: DiffID) -> None:
        """Record the DiffID of a layer; raises StorageError, and InvalidDocument for an invalid id."""
        self.store.set(V1_IDS, _v1_key(v1_id, registry), diff_id.encode())


def _v1_key(v1_id: str, registry: str) -> str:
    return "%s,%s" % (registry, check_v1_id(v1_id))
