# SPDX-License-Identifier: Apache-2.0
"""Uploads: blobs side by side, each continued from where the registry has it.

Each blob is a transfer, so pushes of two tags of one repository share it.  It
holds its slot until its end; its result is made from the registry's answer.

Mirrors moby's distribution/xfer/upload.go.

Where this leaves the engine: configs are uploaded here too, not only layers, and
an error ends the upload as soon as it occurs, not in the order of the layers.
"""
import abc
import contextlib
import functools
from typing import Any, Dict, List, Sequence

from ..cancel import Cancel
from ..progress import Output, Progress
from .download import LayerManager
from .transfer import Holding, Transfer, Watcher, nothing

CONCURRENT_UPLOADS = 5


class UploadDescriptor(abc.ABC):
    """A blob to upload, and how its protocol does it."""
    key: str  # equal for the same blob and target
    id: str  # of its progress; "" for none
    size = 0  # bytes, if known

    @abc.abstractmethod
    def upload(self, transfer: Transfer) -> Any:
        """Bring the blob to its target; the result is given to every user."""


class LayerUploadManager(LayerManager):
    """Uploads of layers and other blobs."""
    default_concurrency = CONCURRENT_UPLOADS

    def upload(self, blobs: Sequence[UploadDescriptor], output: Output, cancel: Cancel,
               holding: Holding = nothing) -> List[Any]:
        """Upload ``blobs``, each within ``holding``; returns their results in order, raises the first error."""
        with contextlib.ExitStack() as stack:
            watchers: Dict[str, Watcher] = {}
            for blob in blobs:
                if blob.id:
                    output(Progress(id=blob.id, action="Preparing", expected=blob.size))
                if blob.key not in watchers:
                    waiting = Progress(id=blob.id, action="Waiting") if blob.id else None
                    run = functools.partial(self.attempt, work=blob.upload, id=blob.id)
                    watchers[blob.key] = self.transfers.transfer(
                        blob.key, run, output, waiting, cancel, holding)
                    stack.callback(self.transfers.release, watchers[blob.key])
            self.transfers.wait(list(watchers.values()), cancel)
            return [watchers[blob.key].transfer.result for blob in blobs]
