# SPDX-License-Identifier: Apache-2.0
"""What an index lists goes along, whatever it is, and what came along is not asked for."""
import base64
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

import minipull
from minipull.digest import Digest
from minipull.errors import ContentMismatch, InvalidDocument, NotFound, Unsupported
from minipull.registry.errors import RegistryError
from minipull.store.check import check
from minipull.store.store import Store
from tests.kit import images
from tests.kit.copies import Target, artifact, copied
from tests.kit.images import Descriptor, Layout
from tests.kit.processes import Minipull
from tests.kit.pulls import asked, blobs, pull, rewrite, serve
from tests.kit.pushes import push
from tests.kit.servers import ScriptedServer, content, error

pytestmark = pytest.mark.usefixtures("no_repeats")

THING = "application/vnd.example.thing.v1+json"
CASES = [(b'{"schemaVersion":2,"things":[]}', THING), (b"strange", "application/x-strange")]


def unknown(server: ScriptedServer, tmp_path: Path, data: bytes, media_type: str, kind: str) -> Descriptor:
    """Serve an index of an image and an entry of an unknown kind, which the registry has only as a ``kind``."""
    layout, image = images.single(tmp_path / "layout", "child")
    entry = {**layout.blob(data, media_type), "platform": {"os": "linux", "architecture": "s390x"}}
    layout.index([image.descriptor, entry], "latest")
    serve(server, layout)
    other = {"manifests": "blobs", "blobs": "manifests"}[kind]
    server.on("GET", "/%s/%s" % (other, entry["digest"]), error(404))
    return entry


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
@pytest.mark.parametrize("data, media_type", CASES)
def test_an_entry_of_an_unknown_kind_goes_along_as_what_it_is(
        server: ScriptedServer, target: Target, tmp_path: Path, data: bytes, media_type: str, kind: str) -> None:
    entry = unknown(server, tmp_path, data, media_type, kind)
    digest = Digest(entry["digest"])
    copied("docker://%s/r" % server.host, target)
    assert [digest in place for place in (target.manifests, target.blobs)] == [kind == "manifests", kind == "blobs"]
    assert target.put()[-1] == "1"
    if kind == "manifests":
        assert [r.headers["content-type"] for r in target.seen("PUT", "/manifests/" + digest)] == [media_type]
    copied("docker://%s/r" % server.host, "oci:%s:1" % (tmp_path / "copy"))
    assert (tmp_path / "copy" / "blobs" / "sha256" / digest.encoded).read_bytes() == data
    store = Store(str(tmp_path / "store"))
    pull(server, store, all_platforms=True)
    assert store.content.read(digest, 100) == data and check(store) == []
    asked(server)
    pull(server, store, all_platforms=True)
    assert asked(server) == ["HEAD manifests/latest"]
    minipull.save(["%s/r" % server.host], store, str(tmp_path / "archive"))
    other = Store(str(tmp_path / "other"))
    minipull.load(str(tmp_path / "archive"), other)
    assert blobs(other) == blobs(store) and check(other) == []


@pytest.mark.parametrize("refusal, kind", [
    (None, "manifests"), (error(400, "MANIFEST_INVALID"), "blobs"), (error(415), "blobs")])
@pytest.mark.parametrize("source", ["store", "layout"])
def test_what_a_store_has_is_a_manifest_where_the_registry_takes_it(
        server: ScriptedServer, target: Target, tmp_path: Path, refusal: Any, kind: str, source: str) -> None:
    entry = unknown(server, tmp_path, *CASES[0], "manifests")
    if refusal:
        target.on("PUT", "/manifests/" + entry["digest"], refusal)
    if source == "layout":
        copied("oci:%s:latest" % (tmp_path / "layout"), target)
    else:
        store = Store(str(tmp_path / "store"))
        pull(server, store, all_platforms=True)
        store.tag("%s/r:1" % target.host, store.image("%s/r" % server.host))
        push(target, store, "r:1")
    assert entry["digest"] in {"manifests": target.manifests, "blobs": target.blobs}[kind]
    assert target.put()[-1] == "1"


def test_an_entry_of_an_unknown_kind_is_not_taken_for_a_blob_for_any_other_reason(
        server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    entry = unknown(server, tmp_path, *CASES[0], "blobs")
    for answer, kind in ((error(403, "DENIED"), RegistryError), (content(b"{}", THING, ranges=False), ContentMismatch)):
        server.on("GET", "/manifests/" + entry["digest"], answer)
        with pytest.raises(kind):
            copied("docker://%s/r" % server.host, target)
        with pytest.raises(kind):
            pull(server, Store(str(tmp_path / "store")), all_platforms=True)
    assert target.put() == [] or "1" not in target.put()


@pytest.mark.parametrize("change, kind", [({"size": 9}, InvalidDocument), ({"digest": "sha256:" + "0" * 64}, NotFound)])
def test_an_entry_of_an_unknown_kind_is_verified(
        target: Target, tmp_path: Path, change: Dict[str, Any], kind: Any) -> None:
    layout = Layout(tmp_path / "layout")
    layout.index([{**layout.blob(*CASES[0]), **change}], "latest")
    with pytest.raises((kind, minipull.StorageError)):
        copied("oci:%s:latest" % layout.root, target)
    assert target.put() == []


def test_a_media_type_that_is_none_is_never_a_header(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    entry = unknown(server, tmp_path, b"{}", "x/y\r\nX-Evil: 1", "blobs")
    server.on("GET", "/manifests/" + entry["digest"], content(b"{}", THING, ranges=False))
    copied("docker://%s/r" % server.host, target)
    assert entry["digest"] in target.blobs
    assert not any("x-evil" in request.headers for request in target.requests + server.requests)


def test_no_entry_of_an_unknown_kind_is_chosen_for_a_platform(
        server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    unknown(server, tmp_path, *CASES[0], "manifests")
    with pytest.raises(NotFound, match="no linux/s390x in the index"):
        copied("docker://%s/r" % server.host, target, platforms=["linux/s390x"])


def in_two_sizes(layout: Layout, where: str, wrong: List[int]) -> None:
    """Let one blob have a size and a ``wrong`` one, in this order, in "latest"."""
    image = layout.image(images.specs(1))
    made = json.loads(image.raw)
    layer = made["layers"][0]
    sizes = [{**layer, "size": layer["size"] + more} for more in wrong]
    if where == "two manifests":
        layout.index([artifact(layout, layers=[blob]) for blob in sizes], "latest")
    elif where == "an artifact":
        layout.index([image.descriptor, artifact(layout, layers=sizes)], "latest")
    elif where == "a config":
        layout.index([artifact(layout, config=blob) for blob in sizes], "latest")
    else:
        config = json.loads(layout.read(made["config"]["digest"]))
        config["rootfs"]["diff_ids"] *= 2
        config["history"] *= 2
        made.update(config=layout.blob(images.to_json(config), images.OCI_CONFIG), layers=sizes)
        layout.index([layout.blob(images.to_json(made), images.OCI_MANIFEST)], "latest")


@pytest.mark.parametrize("how", ["pull", "copy to a store", "copy to a layout", "copy to a registry"])
@pytest.mark.parametrize("where", ["an artifact", "an image", "two manifests", "a config"])
@pytest.mark.parametrize("wrong", [[0, 1], [1, 0]], ids=["last", "first"])
def test_a_blob_has_the_size_that_every_descriptor_says(
        server: ScriptedServer, target: Target, store: Store, tmp_path: Path, how: str, where: str,
        wrong: List[int]) -> None:
    layout = Layout(tmp_path / "layout")
    in_two_sizes(layout, where, wrong)
    serve(server, layout)
    source, place = "docker://%s/r" % server.host, tmp_path / "copy"
    with pytest.raises(ContentMismatch):
        if how == "pull":
            pull(server, store, all_platforms=True)
        else:
            copied(source, {"store": "store:app:1", "layout": "oci:%s:1" % place, "registry": target.place}[
                how.rpartition(" ")[2]], store=store)
    assert store.references.all() == [] and target.put() == [] and not (place / "index.json").exists()


@pytest.mark.parametrize("where", ["an artifact", "an image", "two manifests", "a config"])
@pytest.mark.parametrize("wrong", [[0, 1], [1, 0]], ids=["last", "first"])
def test_check_at_a_registry_tells_a_size_that_one_descriptor_has_wrong(
        server: ScriptedServer, tmp_path: Path, run_minipull: Minipull, where: str, wrong: List[int]) -> None:
    layout = Layout(tmp_path / "layout")
    in_two_sizes(layout, where, wrong)
    serve(server, layout)
    done = run_minipull("check", "docker://%s/r" % server.host)
    assert done.code != 0 and " bytes, not " in done.out + done.err


# -- inline content ----------------------------------------------------------------


def inlined(layout: Layout, change: Dict[str, Any]) -> Tuple[Descriptor, List[str]]:
    """Let the config and a layer of "latest" come along inline; return the manifest and what is not to be asked for."""
    made = json.loads(layout.read(layout.resolve("latest")["digest"]))
    for blob in (made["config"], made["layers"][0]):
        blob.update({"data": base64.b64encode(layout.read(blob["digest"])).decode(), **change})
    rewrite(layout, **made)
    return layout.resolve("latest"), [made["config"]["digest"], made["layers"][0]["digest"]]


@pytest.mark.parametrize("how", ["pull", "to a registry", "to a layout"])
@pytest.mark.parametrize("change", [{}, {"data": "e30="}, {"data": "?"}], ids=["whole", "other", "no base64"])
def test_inline_content_is_not_asked_for(
        server: ScriptedServer, target: Target, tmp_path: Path, how: str, change: Dict[str, Any]) -> None:
    layout, _ = images.single(tmp_path / "layout")
    top, inline = inlined(layout, change)
    serve(server, layout)
    for digest in inline if not change else []:
        server.on("GET", "/blobs/" + digest, error(404))
    if how == "pull":
        store = Store(str(tmp_path / "store"))
        assert pull(server, store).source == top["digest"]
        assert check(store) == [] and set(inline) < set(blobs(store))
    else:
        copied("docker://%s/r" % server.host, target if how == "to a registry" else "oci:%s:1" % (tmp_path / "copy"))
        sent = target.blobs if how == "to a registry" else {
            "sha256:" + path.name: path.read_bytes() for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
        assert all(sent[digest] == layout.read(digest) for digest in inline)
    gets = [request.path.rpartition("/")[2] for request in server.seen("GET", "/blobs/")]
    assert [digest in gets for digest in inline] == [bool(change)] * 2


def test_a_manifest_that_its_index_has_inline_is_not_asked_for(
        server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", "child")
    platform = {"os": "linux", "architecture": "amd64"}
    layout.index([{**image.descriptor, "platform": platform, "data": base64.b64encode(image.raw).decode()}], "latest")
    serve(server, layout)
    server.on("GET", "/manifests/" + image.digest, error(404))
    pull(server, Store(str(tmp_path / "one")), platform="linux/amd64")
    pull(server, Store(str(tmp_path / "all")), all_platforms=True)
    copied("docker://%s/r" % server.host, target)
    assert target.manifests[image.digest] == image.raw


# -- once ------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [images.OCI_MANIFEST, "application/octet-stream"])
def test_a_manifest_and_its_config_are_parsed_once_by_a_pull(
        server: ScriptedServer, tmp_path: Path, texts: List[str], content_type: str) -> None:
    layout, image = images.single(tmp_path / "layout")
    serve(server, layout)
    server.on("GET", "/manifests/", content(image.raw, content_type, ranges=False))
    pull(server, Store(str(tmp_path / "store")), "r@" + image.digest)
    assert texts.count(layout.read(image.config["digest"]).decode()) == 1
    assert texts.count(image.raw.decode()) == 1


def unreadable(*args: object, **options: object) -> None:
    raise Unsupported("no decoder")


def test_a_config_is_parsed_once_for_all_layers_that_can_not_be_read(
        server: ScriptedServer, tmp_path: Path, texts: List[str], monkeypatch: pytest.MonkeyPatch) -> None:
    layout, image = images.single(tmp_path / "layout", layers=5)
    serve(server, layout)
    monkeypatch.setattr("minipull.store.layer.LayerStore.diff", unreadable)
    pull(server, Store(str(tmp_path / "store")))
    assert texts.count(layout.read(image.config["digest"]).decode()) == 1
