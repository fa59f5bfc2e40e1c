# SPDX-License-Identifier: Apache-2.0
"""Pushes in tests: images in a store, what was asked for, what became of the layers."""
from typing import Any, List, Optional, Sequence


from tests.kit import images
import minipull
from tests.kit.images import Layout, Spec
from minipull.digest import DiffID, Digest
from minipull.store.metadata import V2Metadata
from minipull.distribution.push_v2 import Pushed
from minipull.xfer.upload import LayerUploadManager
from tests.kit.servers import ScriptedServer
from tests.kit.stores import keep, keep_index


def push(server: ScriptedServer, store: minipull.Store, name: str = "r", dest: Optional[str] = None,
         attempts: int = 5, **options: Any) -> List[Pushed]:
    options.setdefault("uploads", LayerUploadManager(attempts=attempts, tick=0.0001))
    return minipull.push("%s/%s" % (server.host, name), store,
                         dest=dest and "%s/%s" % (server.host, dest), **options)


def asked(server: ScriptedServer, method: str = "", pattern: str = "") -> List[str]:
    """What was requested since the last call, without the repository and the upload's number."""
    found = ["%s %s" % (r.method, r.path.replace("/v2/r/", "").rstrip("0123456789") if "/uploads/" in r.path
                        else r.path.replace("/v2/r/", "")) for r in server.seen(method, pattern)]
    with server.lock:
        server.requests.clear()
    return found


def results(pushed: List[Pushed]) -> List[str]:
    return [layer.result for layer in pushed[0].layers]


def kept(server: ScriptedServer, store: minipull.Store, layout: Layout, specs: Sequence[Spec],
         name: str = "r:latest", **fields: Any) -> images.Image:
    """An image in the store, as if pulled from Docker Hub."""
    made = layout.image(specs, **fields)
    keep(store, layout, made, "%s/%s" % (server.host, name))
    return made


def loaded(server: ScriptedServer, store: minipull.Store, layout: Layout, made: images.Image,
           name: str = "r:latest") -> None:
    """The same of an image or index that no registry is known to have."""
    keep_index(store, layout, made, "%s/%s" % (server.host, name))


def entries(store: minipull.Store, diff_id: str) -> List[V2Metadata]:
    return store.metadata.get_metadata(DiffID(Digest(diff_id)))
