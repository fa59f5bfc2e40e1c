# SPDX-License-Identifier: Apache-2.0
"""The name of a pulled image, which may have been another image's."""
import contextlib
from typing import Optional

from ..cancel import Cancel
from ..errors import Error
from ..image.descriptor import INDEX_TYPES
from ..progress import Output, Progress
from ..store.references import Association
from ..store.store import Store


def name_pulled(store: Store, pulled: Association, keep: bool, output: Output, cancel: Cancel) -> None:
    """Point a name to its image, durably, unless it has one to ``keep``."""
    former = store.references.get(pulled.name)
    if former is not None and keep:
        return
    store.references.set(*pulled, pause=cancel.pause)
    tell_of_move(store, former, pulled, output)


def tell_of_move(store: Store, former: Optional[Association], pulled: Association, output: Output) -> None:
    """Tell if a name was an index and is one platform of it now, or was for another platform."""
    if former is None or former.descriptor.digest == pulled.descriptor.digest:
        return
    before, now = _platform(store, former), _platform(store, pulled)
    if former.descriptor.media_type in INDEX_TYPES and pulled.source != pulled.descriptor.digest:
        output(Progress(message="warning: %s now has one platform of its index, and a push would move its tag"
                        " to that; keep all with --all-platforms" % pulled.name.familiar))
    elif before and now and before != now:
        output(Progress(message="%s was for %s, and is now for %s" % (pulled.name.familiar, before, now)))


def _platform(store: Store, association: Association) -> Optional[str]:
    with contextlib.suppress(Error):  # the former image may be damaged
        config = store.load(association).config
        return str(config.platform.normalized()) if config else None
    return None
