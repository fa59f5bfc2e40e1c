# SPDX-License-Identifier: Apache-2.0
"""repair: room for the next pull where a blob is rotten, and the cure of what check() has found."""
import contextlib
import errno
import os
from typing import List, Optional, Sequence

from .. import files
from ..cancel import Cancel
from ..digest import Digest, Verifier
from ..errors import StorageError, storage_errors
from .check import DENIED, HARMLESS, REPAIRED, ROTTEN, Problem
from .store import Store


def repair(store: Store, problems: Sequence[Problem], cancel: Optional[Cancel] = None) -> List[Problem]:
    """Move the rotten blobs among ``problems`` to ``ingest/``, where gc removes them; return the moves.

    Names keep their entries, so that the next pull fetches what was moved.  Each blob is hashed
    again under the exclusive lock: it may be another by now.  Raises StorageError, Cancelled.
    """
    moves = []
    for path in [problem.path for problem in problems if problem.kind == ROTTEN]:
        digest = Digest(":".join(path.split(os.sep)[-2:]))
        target = os.path.join("ingest", "rotten-" + digest.replace(":", "-"))
        with store.alone(cancel):
            raw = Verifier(digest.algorithm)
            try:
                store.content.hash(digest, raw, cancel or Cancel())
            except StorageError as exc:
                # A link, no file, or a bad sector; any other error says nothing of the bytes.
                if getattr(exc.__cause__, "errno", None) not in (None, errno.ELOOP, errno.EIO):
                    continue
            if raw.digest != digest:
                files.make_directory(store.content.scratch)
                with storage_errors("move %s" % path):
                    place = os.path.join(store.root, target)
                    with contextlib.suppress(FileNotFoundError):
                        files.remove(place)  # of an earlier repair
                    os.replace(store.content.path(digest), place)
                moves.append(Problem(path, REPAIRED, "moved to %s" % target))
    return moves


def remedy(problems: Sequence[Problem], moves: Sequence[Problem] = ()) -> str:
    """The state of a store with these problems, and its cure; ``moves`` are the result of repair()."""
    kinds = {problem.kind for problem in problems} - HARMLESS
    if "index" in kinds:
        return "damaged; its index comes first"
    if kinds == {DENIED}:
        return "not all of it can be read; run as its owner"
    if moves or kinds == {"missing"}:
        return "incomplete; pull the images again"
    if ROTTEN in kinds:
        return "damaged; run minipull check --repair, then pull the images again"
    return "damaged; rm the images, gc --keep 0, and pull them again" if kinds else "ok"
