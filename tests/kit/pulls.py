# SPDX-License-Identifier: Apache-2.0
"""Pulls in tests: one image from a scripted registry, what was asked for, what is stored."""
import json
from typing import Any, Dict, List, Type

import pytest

from tests.kit import images
import minipull
from tests.kit.images import Layout
from minipull.xfer.download import LayerDownloadManager
from minipull.errors import Error
from tests.kit.servers import ScriptedServer


def pull(server: ScriptedServer, store: minipull.Store, name: str = "r", attempts: int = 5,
         **options: Any) -> minipull.Image:
    options.setdefault("downloads", LayerDownloadManager(attempts=attempts, tick=0.0001))
    return minipull.pull("%s/%s" % (server.host, name), store, **options)


def refused(kind: Type[Error], server: ScriptedServer, store: minipull.Store, name: str = "r",
            **options: Any) -> str:
    """The text of the error; the name must not have appeared."""
    with pytest.raises(kind) as caught:
        pull(server, store, name, **options)
    assert store.images() == []
    return str(caught.value)


def asked(server: ScriptedServer) -> List[str]:
    """What was requested since the last call, without the repository."""
    with server.lock:
        found = ["%s %s" % (r.method, r.path.replace("/v2/r/", "")) for r in server.requests]
        server.requests.clear()
    return found


def blobs(store: minipull.Store) -> List[str]:
    return [str(digest) for digest in store.content.digests()]


def serve(server: ScriptedServer, layout: Layout) -> None:
    server.serve(layout.root, "r")
    asked(server)


def on_blob(server: ScriptedServer, digest: str, *scripts: Any) -> None:
    server.on("GET", "/blobs/%s$" % digest, *scripts)


def stored_layers(image: images.Image) -> List[str]:
    return [layer.descriptor["digest"] for layer in image.layers]


def manifest_of(layout: Layout, name: str = "latest") -> Dict[str, Any]:
    return dict(json.loads(layout.read(layout.resolve(name)["digest"])))


def rewrite(layout: Layout, **members: Any) -> None:
    """Let "latest" be a manifest with other members."""
    manifest = {**manifest_of(layout), **members}
    layout.name(layout.blob(images.to_json(manifest), manifest["mediaType"]), "latest")
