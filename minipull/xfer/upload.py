# SPDX-License-Identifier: Apache-2.0
"""Uploads: blobs side by side, each continued from where the registry has it.

Every blob is a transfer, so two tags of one repository share it.  It holds its
slot until its end; what the registry answers is the transfer's result.

Mirrors moby's distribution/xfer/upload.go.
"""
import abc
import contextlib
import functools
from typing import Any, Dict, List, Optional, Sequence

from ..cancel import Cancel
from ..progress import Output, Progress
from ..store.store import Store
from .download import MAX_ATTEMPTS
from .transfer import Transfer, TransferManager, Watcher

CONCURRENT_UPLOADS = 5


class UploadDescriptor(abc.ABC):
    """A blob to be sent, and the protocol's way to send it."""
    key: str  # what goes where, for sharing
    id: str  # for the reader

    @abc.abstractmethod
    def upload(self, transfer: Transfer) -> Any:
        """Have the blob at its target; what this returns is given to every user."""


class LayerUploadManager:
    """Shared by the pushes that are to share transfers and slots.

    ``attempts`` counts all tries of one blob, ``tick`` is the second of the
    countdown between them.
    """

    def __init__(self, concurrency: int = CONCURRENT_UPLOADS, attempts: int = MAX_ATTEMPTS,
                 tick: float = 1.0) -> None:
        self.transfers = TransferManager(concurrency)
        self.attempts = attempts
        self.tick = tick

    def upload(self, store: Optional[Store], blobs: Sequence[UploadDescriptor], output: Output,
               cancel: Cancel) -> List[Any]:
        """Send all ``blobs``, of ``store`` if of any; the results in their order.

        The first error ends it all; transfers that others need go on.
        """
        with contextlib.ExitStack() as stack:
            watchers: Dict[str, Watcher] = {}
            for blob in blobs:
                if blob.id:
                    output(Progress(id=blob.id, action="Preparing"))
                if blob.key not in watchers:
                    waiting = Progress(id=blob.id, action="Waiting") if blob.id else None
                    watchers[blob.key] = self.transfers.transfer(
                        blob.key, functools.partial(self._work, store, blob), output, waiting, cancel)
                    stack.callback(self.transfers.release, watchers[blob.key])
            self.transfers.wait(list(watchers.values()), cancel)
            return [watchers[blob.key].transfer.result for blob in blobs]

    def _work(self, store: Optional[Store], blob: UploadDescriptor, transfer: Transfer) -> Any:
        with contextlib.ExitStack() as stack:
            if store is not None:  # this may outlive the push that it works for
                stack.enter_context(store.reading(transfer.cancel))
            return transfer.attempt(
                lambda: blob.upload(transfer), blob.id, self.attempts, self.tick)
