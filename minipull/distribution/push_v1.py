# SPDX-License-Identifier: Apache-2.0
"""Images to one endpoint, by the v1 protocol.

An image becomes a chain of v1 images, one for each layer.  The registry takes them
in order, each on a parent that it has: its JSON, its layer, its checksums.

Mirrors moby's distribution/push_v1.go and pkg/tarsum.

Where this leaves the engine:

- the v1 ids are the ChainIDs, and the ImageID on top, so that the same image is the
  same chain and a second push sends no layer;
- a layer that is stored as gzip is sent as it is; others are compressed while sent.
"""
import contextlib
import functools
import hashlib
import io
import itertools
import json
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..cancel import Cancel
from ..digest import Buffer, DiffID, Verifier, next_chain_id
from ..errors import StorageError, Unsupported, corrupt
from ..image import tar
from ..image.config import Image
from ..image.descriptor import Descriptor
from ..image.manifest import Manifest
from ..image.schema1 import EMPTY
from ..image.strictjson import parse_json
from ..progress import Meter, Output, Progress, discard
from ..reference import Reference
from ..registry.errors import Dispensable
from ..registry.request import Body, FileBody
from ..registry.v1 import Session
from ..store.compression import decompressed, gzipped
from ..store.store import ImageSource
from ..xfer.download import LayerManager
from ..xfer.transfer import Run, Transfer, TransferManager
from .pull_v1 import V1IDService

LOOK_UPS = 5  # at once


class V1Layer(NamedTuple):
    """An image of the v1 protocol: its JSON and one layer."""
    id: str
    raw: bytes
    diff_id: Optional[DiffID]  # None for an image without layers, which gets an empty one
    blob: Optional[Descriptor]
    tags: Sequence[str] = ()


class V1Pusher:
    """A push to one repository at one endpoint; of ``uploads`` only the attempts count."""

    def __init__(self, session: Session, store: ImageSource, uploads: LayerManager, output: Output,
                 cancel: Cancel) -> None:
        self._session = session
        self._store = store
        self._output = output
        self._cancel = cancel
        self._uploads = uploads
        self._transfers = TransferManager(LOOK_UPS)
        self._sums: Dict[str, str] = {}  # the checksums of the layers that were sent, by v1 id

    def push(self, images: Sequence[Tuple[Image, Reference]]) -> List[List[
            Tuple[Optional[DiffID], Descriptor, str]]]:
        """Push images; returns the layers of each with the last word of progress.  The store is locked."""
        session, cancel = self._session, self._cancel
        chains = [self._chain(image) for image, _ in images]
        layers: Dict[str, V1Layer] = {}
        for chain, (_, name) in zip(chains, images):
            for layer in chain:
                layers.setdefault(layer.id, layer)
            top = layers[chain[-1].id]
            layers[top.id] = top._replace(tags=[*top.tags, name.tag])
        session.ping(cancel)
        self._output(Progress(message="Sending image list"))
        listed = [dict({"id": layer.id}, **tag) for layer in layers.values()
                  for tag in [{"Tag": tag} for tag in layer.tags] or [{}]]
        session.start_push(listed, cancel)
        results: Dict[str, str] = {}
        for registry in session.registries:
            self._output(Progress(message="Pushing repository %s" % session.name))
            present = self._run(discard, [functools.partial(self._has, registry, v1_id) for v1_id in layers])
            for layer, exists in zip(layers.values(), present):
                results[layer.id] = "Already exists"
                if not exists:
                    send = functools.partial(self._send, registry, layer)
                    results[layer.id] = self._run(self._output, [send])[0]
                self._output(Progress(id=layer.id[:12], action=results[layer.id]))
                for tag in layer.tags:
                    url = session.put_tag(registry, tag, layer.id, cancel)
                    self._output(Progress(message="Pushing tag for rev [%s] on {%s}" % (layer.id[:12], url)))
        session.end_push([{"id": v1_id, "checksum": self._sums[v1_id]} for v1_id in self._sums], cancel)
        return [[(layer.diff_id, layer.blob, results[layer.id]) for layer in chain if layer.blob]
                for chain in chains]

    def _chain(self, image: Image) -> List[V1Layer]:
        """Return the v1 images that stand for an image, the bottom first."""
        if image.config is None:
            raise Unsupported("%s is no image of one platform, which is all that the v1 protocol knows" % (
                image.name.familiar))
        document = self._store.document(image.descriptor)
        assert isinstance(document, Manifest)
        config = parse_json(image.config.raw, "image config")
        for member in ("rootfs", "history", "parent"):
            config.pop(member, None)
        pairs = image.config.paired(document.layers)
        chain_ids = itertools.accumulate(image.config.diff_ids, next_chain_id)
        ids = [chain_id.encoded for chain_id in chain_ids][:-1] + [image.id.encoded]
        layers: List[V1Layer] = []
        contents: Iterable[Tuple[Optional[Descriptor], Optional[DiffID]]] = pairs or [(None, None)]
        for v1_id, (blob, diff_id) in zip(ids, contents):
            members = dict(config if v1_id == ids[-1] else {}, id=v1_id)
            if layers:
                members["parent"] = layers[-1].id
            raw = json.dumps(members, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
            layers.append(V1Layer(v1_id, raw, diff_id, blob))
        return layers

    def _run(self, output: Output, runs: Sequence[Run]) -> List[Any]:
        """Run transfers side by side, as far as there are slots, and return their results in order."""
        with contextlib.ExitStack() as stack:
            watchers = []
            for number, run in enumerate(runs):
                watchers.append(self._transfers.transfer(
                    "v1push:%d" % number, run, output, None, self._cancel, self._store.reading))
                stack.callback(self._transfers.release, watchers[-1])
            return self._transfers.wait(watchers, self._cancel)

    def _has(self, registry: str, v1_id: str, transfer: Transfer) -> bool:
        with Dispensable():
            self._session.image(registry, v1_id, transfer.cancel)
            return True
        return False  # so the layer is sent, and the answer tells

    def _send(self, registry: str, layer: V1Layer, transfer: Transfer) -> str:
        put = functools.partial(self._put, registry, layer)
        result: str = self._uploads.attempt(transfer, put, layer.id[:12])
        return result

    def _put(self, registry: str, layer: V1Layer, transfer: Transfer) -> str:
        session, cancel, start = self._session, transfer.cancel, layer.raw + b"\n"
        transfer.progress(Progress(id=layer.id[:12], action="Pushing"))
        if not session.put_image(registry, layer.id, layer.raw, cancel):
            return "Image already pushed, skipping"
        meter = Meter(transfer.progress, layer.id[:12], "Pushing", layer.blob.size if layer.blob else 0)
        payload, diff = Verifier(), Verifier()
        payload.update(start)
        with self._open(layer.blob) as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = functools.partial(decompressed, file, cancel, self._store.layers.zstd)
            checksum = tarsum(_hashed(stream(payload if zipped else None), diff), layer.raw)
            if layer.diff_id not in (None, diff.digest):
                raise corrupt(layer.diff_id, "layer")

            def compressed() -> Iterator[Buffer]:
                nonlocal payload
                payload = Verifier()
                payload.update(start)
                file.seek(0)
                yield from _hashed(gzipped(stream()), payload)

            body = Body(compressed, None, meter.move)
            if zipped:
                body = FileBody(file, 0, layer.blob.size, meter.move) if layer.blob else Body.of(EMPTY)
            session.put_layer(registry, layer.id, body, cancel)
        session.put_checksum(registry, layer.id, checksum, payload.digest, cancel)
        self._sums[layer.id] = checksum
        if layer.diff_id is not None:
            with contextlib.suppress(StorageError):
                V1IDService(self._store.metadata).set(layer.id, session.domain, layer.diff_id)
        return "Image successfully pushed"

    def _open(self, blob: Optional[Descriptor]) -> BinaryIO:
        if blob is None:
            return io.BytesIO(EMPTY)
        if not self._store.content.has(blob.digest, blob.size):
            raise StorageError("blob %s is not in the store, so it can't be pushed; pull its image again,"
                               " or with --foreign" % blob.digest)
        return self._store.content.open(blob.digest)


def tarsum(stream: Iterator[Buffer], raw: bytes) -> str:
    """Return the checksum, version 0, of a tar stream and the JSON of its image (moby's pkg/tarsum)."""
    sums = []
    reader = tar.Reader(stream)
    for entry in reader:
        # The name and the value of every field, with nothing in between.
        text = b"name%smode%duid%dgid%dsize%dmtime%dtypeflag%slinkname%suname%sgname%sdevmajor%ddevminor%d" % (
            entry.name, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime // 10 ** 9, entry.kind,
            entry.linkname, entry.uname, entry.gname, entry.major, entry.minor)
        checksum = hashlib.sha256(text)
        for piece in reader.data():
            checksum.update(piece)
        sums.append(checksum.hexdigest())
    reader.drain()
    return "tarsum+sha256:" + hashlib.sha256(raw + "".join(sorted(sums)).encode()).hexdigest()


def _hashed(stream: Iterable[Buffer], verifier: Verifier) -> Iterator[Buffer]:
    for piece in stream:
        verifier.update(piece)
        yield piece
