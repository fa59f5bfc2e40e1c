# SPDX-License-Identifier: Apache-2.0
"""Layers that a registry may lack, and layers that this Python may not be able to read."""
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.kit import images
import minipull
from tests.kit.processes import peer
from tests.kit.images import Layout, Spec
from minipull.store.check import UNVERIFIED, check
from minipull.digest import Digest
from minipull.errors import ContentMismatch, PolicyError
from minipull.registry.errors import RegistryError
from tests.kit.certificates import Certificates
from tests.kit.servers import ScriptedServer, content, error
from tests.kit.pulls import asked, manifest_of, on_blob, pull, refused, rewrite, serve, stored_layers
from tests.kit.work import Log


FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


# -- foreign layers --------------------------------------------------------------


def foreign_image(tmp_path: Path, urls: List[str], media_type: str = FOREIGN) -> Layout:
    layout = Layout(tmp_path / "layout", docker=True)
    made = layout.image(images.specs(2, 5000), "latest")
    layers: List[Dict[str, Any]] = [dict(layer.descriptor) for layer in made.layers]
    layers[0].update(mediaType=media_type, **({"urls": urls} if urls else {}))
    rewrite(layout, layers=layers)
    return layout


def test_a_foreign_layer_that_the_registry_has_is_a_layer(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    serve(server, foreign_image(tmp_path, ["https://127.0.0.1:1/x"]))
    pull(server, store)
    assert check(store) == []


@pytest.mark.parametrize("media_type", [FOREIGN, images.DOCKER_LAYER + ".gzip"])
def test_a_foreign_layer_that_the_registry_lacks_is_skipped_and_reported(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, media_type: str) -> None:
    layout = foreign_image(tmp_path, ["https://127.0.0.1:1/x"], media_type)
    serve(server, layout)
    on_blob(server, manifest_of(layout)["layers"][0]["digest"], error(404, "BLOB_UNKNOWN"))
    log = Log()
    image = pull(server, store, progress=log)
    assert image.config is not None and len(image.config.diff_ids) == 2
    assert log.tells("Skipped foreign layer")
    assert {problem.kind for problem in check(store)} == {UNVERIFIED}
    asked(server)
    pull(server, store)
    assert asked(server) == ["HEAD manifests/latest"]


def test_a_layer_of_a_foreign_type_without_urls_is_needed(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = foreign_image(tmp_path, [])
    serve(server, layout)
    on_blob(server, manifest_of(layout)["layers"][0]["digest"], error(404, "BLOB_UNKNOWN"))
    assert "blob unknown" in refused(RegistryError, server, store, foreign=True)


@pytest.mark.parametrize("status", [400, 403, 410])
def test_a_foreign_layer_that_the_registry_refuses_is_not_skipped(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, status: int) -> None:
    layout = foreign_image(tmp_path, ["https://127.0.0.1:1/x"])
    serve(server, layout)
    on_blob(server, manifest_of(layout)["layers"][0]["digest"], error(status, "NO"))
    assert "no" in refused(minipull.Error, server, store, attempts=1)


def test_a_foreign_layer_is_fetched_over_https_without_credentials(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, certificates: Certificates) -> None:
    service = minipull.RegistryService(ca_file=str(certificates.ca))
    with ScriptedServer("127.0.0.2", certificates.context()) as elsewhere:
        layout = foreign_image(
            tmp_path, [server.url + "/plain", elsewhere.url + "/absent", elsewhere.url + "/layer"])
        serve(server, layout)
        foreign = manifest_of(layout)["layers"][0]["digest"]
        on_blob(server, foreign, error(404, "BLOB_UNKNOWN"))
        pull(server, store)  # once without it
        elsewhere.on("GET", "/layer", content(layout.read(foreign)))
        pull(server, store, foreign=True, service=service)
        assert [request.path for request in elsewhere.requests] == ["/absent", "/layer"]
        elsewhere.assert_no_credentials()
        assert server.seen("GET", "/plain") == []
        assert check(store) == []
        elsewhere.on("GET", "/layer", error(404))
        fresh = minipull.Store(str(tmp_path / "fresh"))
        refused(RegistryError, server, fresh, foreign=True, service=service)


def test_a_foreign_layer_by_http_is_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = foreign_image(tmp_path, [server.url + "/plain"])
    serve(server, layout)
    server.on("GET", "/blobs/", error(404, "BLOB_UNKNOWN"))
    manifest = manifest_of(layout)
    for blob in [manifest["config"], manifest["layers"][1]]:
        on_blob(server, blob["digest"], content(layout.read(blob["digest"])))
    assert "without https, refused" in refused(PolicyError, server, store, foreign=True)


# -- zstd ------------------------------------------------------------------------


@pytest.fixture
def zstd(server: ScriptedServer, tmp_path: Path) -> images.Image:
    peer("zstd")
    layout = Layout(tmp_path / "layout")
    made = layout.image([Spec(5000, compression="zstd"), Spec(5000, seed=1)], "latest")
    serve(server, layout)
    return made


def test_a_zstd_layer_is_verified_where_there_is_a_decoder(
        server: ScriptedServer, tmp_path: Path, zstd: images.Image) -> None:
    store = minipull.Store(str(tmp_path / "store"), zstd=peer("zstd"))
    pull(server, store)
    assert store.metadata.get_diff_id(Digest(stored_layers(zstd)[0])) == zstd.layers[0].diff_id
    assert check(store) == []


def test_without_a_decoder_a_zstd_layer_has_the_diff_id_of_the_config(
        server: ScriptedServer, store: minipull.Store, zstd: images.Image,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "compression.zstd", None)
    log = Log()
    pull(server, store, progress=log)
    assert log.tells("Not verified: layer is compressed with zstd")
    assert store.metadata.get_diff_id(Digest(stored_layers(zstd)[0])) is None
    assert [problem.kind for problem in check(store)] == [UNVERIFIED]


def test_a_config_with_too_few_diff_ids_is_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = foreign_image(tmp_path, ["https://127.0.0.1:1/x"])
    layers = manifest_of(layout)["layers"]
    rewrite(layout, layers=layers + layers[1:])
    serve(server, layout)
    on_blob(server, layers[0]["digest"], error(404, "BLOB_UNKNOWN"))
    assert "don't match image configuration" in refused(ContentMismatch, server, store)
