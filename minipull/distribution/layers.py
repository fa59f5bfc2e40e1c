# SPDX-License-Identifier: Apache-2.0
"""Layers from one endpoint, by the v2 protocol; foreign ones from the URLs of their manifest.

Mirrors the v2LayerDescriptor of moby's distribution/pull_v2.go.
"""
import contextlib
import functools
from typing import Callable, Optional, Tuple

from ..cancel import Cancel
from ..digest import DiffID
from ..errors import NetworkError, PolicyError, StorageError, Unsupported
from ..image.descriptor import Descriptor
from ..progress import Meter, Progress
from ..registry.errors import RegistryError
from ..registry.v2 import Repository
from ..store.layer import Diff
from ..store.metadata import V2Metadata
from ..store.store import Store
from ..xfer.download import DownloadDescriptor
from ..xfer.transfer import Transfer
from .blobs import Opener, fetch_blob


class V2LayerDescriptor(DownloadDescriptor):
    """A layer; where it can't be decompressed, ``claimed`` returns the DiffID that the config claims for it."""

    def __init__(self, repository: Repository, store: Store, blob: Descriptor, foreign: bool, deferred: bool,
                 claimed: Callable[[Cancel], DiffID]) -> None:
        self._urls = blob.urls if foreign and blob.is_foreign else ()
        self._deferred = deferred
        # Pulls with other options may come to another result, so they share no transfer.
        # Nor do registries: one that names a blob of another must not decide what becomes of that.
        self.key = "v2:%s %s %d %s %s" % (repository.endpoint.url, *blob[1:3], deferred, " ".join(self._urls))
        self.id = blob.digest.short
        self.size = blob.size
        self.blob = blob
        self._repository = repository
        self._store = store
        self._claimed = claimed

    def present(self) -> Optional[Tuple[Descriptor, Diff]]:
        diff_id = self._store.metadata.get_diff_id(self.blob.digest)
        if diff_id is None or not self._store.content.has(self.blob.digest, self.blob.size):
            return None
        return self.blob, Diff(diff_id)

    def download(self, transfer: Transfer) -> Optional[Descriptor]:
        blob = self.blob

        def fetch(source: Opener) -> Descriptor:
            fetch_blob(self._store, blob, source, transfer.cancel, "filesystem layer", transfer)
            return blob

        try:
            return fetch(functools.partial(self._repository.blob, blob.digest))
        except RegistryError as exc:
            if exc.status != 404 or not blob.is_foreign:
                raise
        for position, url in enumerate(self._urls, 1):
            try:
                return fetch(functools.partial(self._repository.foreign_blob, url))
            except (NetworkError, RegistryError, PolicyError):
                if position == len(self._urls):
                    raise
        transfer.progress(Progress(id=self.id, message="Skipped foreign layer"))
        return None

    def diff(self, transfer: Transfer, blob: Optional[Descriptor]) -> Diff:
        cached = self._store.metadata.get_diff_id(blob.digest) if blob else None
        if cached is not None:
            return Diff(cached)
        if blob is None or self._deferred:
            return Diff(self._claimed(transfer.cancel), verified=False)
        meter = Meter(transfer.progress, self.id, "Extracting", blob.size)
        try:
            return self._store.layers.diff(blob.digest, transfer.cancel, move=meter.move)
        except Unsupported as exc:
            transfer.progress(Progress(id=self.id, message="Not verified: %s" % exc))
            return Diff(self._claimed(transfer.cancel), verified=False)

    def registered(self, diff: Diff) -> None:
        if diff.verified:
            with contextlib.suppress(StorageError):  # metadata is a cache
                self._store.metadata.add(diff.diff_id, V2Metadata(self.blob.digest, self._repository.name))
