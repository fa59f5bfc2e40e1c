# SPDX-License-Identifier: Apache-2.0
"""One reference from one registry: every manifest and blob that a registry may answer, good and bad."""
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.kit import images
import minipull
from tests.kit.images import Layout, Spec
from minipull.image import walk
from minipull.registry.auth import Credential
from minipull.store.check import check
from minipull.digest import Digest
from minipull.errors import (
    ContentMismatch, InvalidDocument, NetworkError, NotFound, PolicyError, StorageError, Unauthorized,
    Unsupported)
from minipull.registry.errors import RegistryError
from minipull.progress import Progress
from minipull.reference import Reference
from tests.kit.servers import Connection, ScriptedServer, content, error, reply
from tests.kit.pulls import asked, blobs, on_blob, pull, refused, rewrite, serve, stored_layers
from tests.kit.work import Log



# -- images as they should be ----------------------------------------------------


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "schema2"])
def test_an_image_is_stored_as_it_came(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, docker: bool) -> None:
    layout, made = images.single(tmp_path / "layout", docker=docker)
    serve(server, layout)
    log = Log()
    image = pull(server, store, progress=log)
    assert (image.source, str(image.id)) == (made.digest, made.config["digest"])
    assert (image.os, image.architecture) == ("linux", "amd64")
    for digest in blobs(store):
        assert Path(store.content.path(Digest(digest))).read_bytes() == layout.read(digest)
    assert sorted(asked(server)) == sorted(["GET manifests/latest"] + [
        "GET blobs/" + digest for digest in [made.config["digest"], *stored_layers(made)]])
    assert log.events[0] == Progress(id="latest", message="Pulling from r")
    assert check(store) == []


def test_a_name_is_durable_when_a_pull_says_that_it_is_up_to_date(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pull that stored it may have been killed before it synced the directories."""
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    synced, fsync = set(), os.fsync

    def record(fd: int) -> None:
        synced.add(os.readlink("/proc/self/fd/%d" % fd))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    assert pull(server, store).source == made.digest
    assert synced >= {store.root, os.path.dirname(store.root), store.root + "/blobs", store.root + "/blobs/sha256"}


def test_an_image_that_is_up_to_date_costs_one_request(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    for name, first, second in (
            ("r", 5, ["HEAD manifests/latest"]), ("r@" + made.digest, 1, [])):
        pull(server, store, name)
        assert len(asked(server)) == first
        assert pull(server, store, name).source == made.digest
        assert asked(server) == second


def test_a_digest_is_asked_for_even_if_its_content_is_stored(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    server.on("GET", "/v2/other/manifests/", error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(RegistryError):
        pull(server, store, "other@" + made.digest)


def test_a_digest_beside_a_tag_decides(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    image = pull(server, store, "r:absent@" + made.digest)
    assert asked(server)[0] == "GET manifests/" + made.digest
    assert [str(each.name) for each in store.images()] == [
        "%s/r@%s" % (server.host, made.digest)] == [str(image.name)]


def test_a_digest_of_another_algorithm_is_kept(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    digest = "sha512:" + hashlib.sha512(made.raw).hexdigest()
    server.on("GET", "/manifests/sha512:", reply(200, made.raw, {"Content-Type": images.OCI_MANIFEST}))
    image = pull(server, store, "r@" + digest)
    assert image.source == digest
    asked(server)
    pull(server, store, "r@" + digest)
    assert asked(server) == []


def test_a_tag_that_moved_is_followed(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, old = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    new = layout.image([*images.specs(3, 40000), Spec(1000, seed=77)], "latest")
    serve(server, layout)
    assert pull(server, store).source == new.digest
    assert asked(server)[:2] == ["HEAD manifests/latest", "GET manifests/" + new.digest]
    assert len(asked(server)) == 0
    assert [image.source for image in store.images()] == [new.digest]
    pull(server, store, "r@" + old.digest)
    assert asked(server) == ["GET manifests/" + old.digest]


def test_a_registry_that_gives_nothing_by_digest_is_asked_by_tag(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, _ = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    new = layout.image(images.specs(1, 1000, seed=50), "latest")
    serve(server, layout)
    server.on("GET", "/manifests/sha256:", error(404, "MANIFEST_UNKNOWN"))
    assert pull(server, store).source == new.digest
    server.on("GET", "/manifests/sha256:", error(400))
    layout.image(images.specs(1, 1000, seed=51), "latest")
    server.on("GET", "/manifests/latest", content(layout.read(layout.resolve("latest")["digest"])))
    with pytest.raises(RegistryError):
        pull(server, store)


def test_a_registry_that_gives_no_digest_by_head_is_asked_by_get(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    asked(server)
    server.on("HEAD", "/manifests/", error(405))
    assert pull(server, store).source == made.digest
    assert asked(server) == ["HEAD manifests/latest", "GET manifests/latest"]


def test_layers_are_shared_by_blob(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(2, 9000), "one")
    two = layout.image(images.specs(3, 9000), "two")
    serve(server, layout)
    pull(server, store, "r:one")
    asked(server)
    log = Log()
    pull(server, store, "r:two", progress=log)
    assert sorted(asked(server)) == sorted(["GET manifests/two", "GET blobs/" + two.config["digest"],
                                            "GET blobs/" + stored_layers(two)[2]])
    assert [event.id for event in log.events if event.action == "Already exists"] == [
        digest[7:19] for digest in stored_layers(two)[:2]]


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "schema2"])
def test_a_layer_that_comes_twice_is_fetched_once(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, docker: bool) -> None:
    layout, made = images.awkward(tmp_path / "layout", docker=docker)
    serve(server, layout)
    image = pull(server, store, "r:awkward")
    assert image.config is not None and list(image.config.diff_ids) == made.diff_ids
    requests = asked(server)
    assert len(requests) == len(set(requests)) == 5
    assert check(store) == []


def test_a_layer_of_no_bytes_is_not_asked_for(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    made = layout.image([Spec(raw=b"", compression=""), Spec(1000)], "latest")
    serve(server, layout)
    pull(server, store)
    assert "GET blobs/" + stored_layers(made)[0] not in asked(server)
    assert check(store) == []


def test_an_image_of_no_layers_is_an_image(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image([], "latest")
    serve(server, layout)
    pull(server, store)
    assert check(store) == []


def test_more_layers_than_docker_loads_are_warned_of(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image([Spec(raw=images.EMPTY_LAYER)] * 126, "latest")
    serve(server, layout)
    log = Log()
    pull(server, store, progress=log)
    assert log.tells("image has 126 layers, docker will not load more than 125")


def test_a_manifest_that_went_bad_in_the_store_is_replaced(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    Path(store.content.path(Digest(made.digest))).write_bytes(made.raw.replace(b"2", b"3"))
    pull(server, store)
    assert check(store) == []


@pytest.mark.parametrize("damage", ["layer", "config", "manifest"])
def test_blobs_that_are_gone_from_the_store_are_fetched_again(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, damage: str) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    asked(server)
    gone = {"layer": stored_layers(made)[1], "config": made.config["digest"], "manifest": made.digest}
    os.unlink(store.content.path(Digest(gone[damage])))
    pull(server, store)
    what = "manifests/" if damage == "manifest" else "blobs/"
    assert asked(server) == ["HEAD manifests/latest", "GET " + what + gone[damage]]
    assert check(store) == []


def test_a_wrong_diff_id_in_the_cache_heals_itself(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    pull(server, store)
    store.remove(Reference.parse(server.host + "/r:latest"))
    wrong = stored_layers(made)[1]
    Path(store.metadata.path("diffid-by-digest", wrong.replace(":", "/"))).write_text(
        made.layers[0].diff_id)
    asked(server)
    pull(server, store)
    assert asked(server) == ["GET manifests/latest"]
    assert store.metadata.get_diff_id(Digest(wrong)) == made.layers[1].diff_id
    assert check(store) == []


def test_a_cache_that_cannot_be_written_fails_no_pull(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, _ = images.awkward(tmp_path / "layout")
    serve(server, layout)
    os.makedirs(store.root)
    Path(store.root, "metadata").write_text("in the way")
    pull(server, store, "r:awkward")
    pull(server, store, "r:awkward")


# -- platforms -------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("wanted, found", [
    ("linux/amd64", "linux/amd64"), ("linux/arm64", "linux/arm64/v8"), ("linux/arm/v8", "linux/arm/v7"),
    ("linux/arm/v7", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6"), ("linux/arm", "linux/arm/v7")])
def test_the_wanted_platform_is_found(server: ScriptedServer, store: minipull.Store, tmp_path: Path,
                                      wanted: str, found: str, nested: bool) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout", nested=nested)
    serve(server, layout)
    image = pull(server, store, platform=wanted)
    assert image.descriptor.digest == made[found].digest
    assert image.source == index.digest
    assert store.content.has(Digest(index.digest), len(index.raw))
    assert check(store) == []
    asked(server)
    pull(server, store, platform=wanted)
    nested_only = asked(server)[1:]
    assert all(nested and request.startswith("GET manifests/") for request in nested_only)


def test_a_platform_that_is_not_there_is_not_found(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, _, _ = images.multi_platform(tmp_path / "layout", docker=True)
    serve(server, layout)
    text = refused(NotFound, server, store, platform="linux/s390x")
    assert "no matching manifest for linux/s390x in the manifest list entries; there is" in text
    assert "unknown" not in text


def test_an_attestation_matches_nobody(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.index([images.attestation(layout, "sha256:" + "0" * 64)], "latest")
    serve(server, layout)
    text = refused(NotFound, server, store, platform="linux/amd64")
    assert text.split(" (")[0].endswith("in the manifest list entries")


def test_another_platform_replaces_the_name(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    serve(server, layout)
    for platform in ("linux/amd64", "linux/arm64/v8"):
        pull(server, store, platform=platform)
        assert [(image.descriptor.digest, image.source) for image in store.images()] == [
            (made[platform].digest, index.digest)]


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_all_platforms_are_all_that_is_in_the_index(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, nested: bool) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout", nested=nested)
    serve(server, layout)
    image = pull(server, store, all_platforms=True)
    assert (image.descriptor.digest, image.config) == (index.digest, None)
    assert blobs(store) == sorted("sha256:" + path.name
                                  for path in (layout.root / "blobs" / "sha256").iterdir())
    asked(server)
    assert pull(server, store, all_platforms=True).source == index.digest
    assert asked(server) == ["HEAD manifests/latest"]
    assert check(store) == []


def test_a_tree_over_the_bound_gets_no_name(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, *_ = images.multi_platform(tmp_path / "layout")
    serve(server, layout)
    monkeypatch.setattr(walk, "MAX_DOCUMENTS", 5)
    text = refused(PolicyError, server, store, all_platforms=True)
    assert "more than 5 manifests in all" in text and "\n" not in text
    monkeypatch.setattr(walk, "MAX_DOCUMENTS", 6)
    pull(server, store, all_platforms=True)


def test_a_name_of_all_platforms_that_gets_one_is_told(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, _, made = images.multi_platform(tmp_path / "layout")
    serve(server, layout)
    text = "warning: %s/r:latest now has one platform of its index, and a push would move its tag to that" % server.host
    for options, told in (({}, False), ({"all_platforms": True}, False), ({"all_platforms": True}, False),
                          ({"platform": "linux/amd64"}, True), ({"platform": "linux/amd64"}, False)):
        log = Log()
        pull(server, store, progress=log, **options)
        assert any(event.message.startswith(text) for event in log.events) is told
    pull(server, store, all_platforms=True)
    server.on("GET", "/manifests/latest", content(
        made["linux/amd64"].raw, images.OCI_MANIFEST))  # the tag itself has one now
    log = Log()
    pull(server, store, progress=log)
    assert not log.tells("one platform of its index")


def test_an_entry_of_an_unknown_kind_is_kept_with_all_platforms(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", "child")
    strange = layout.blob(b"strange", "application/x-strange")
    same = dict(image.descriptor)
    layout.index([image.descriptor, strange, same], "latest")
    serve(server, layout)
    pull(server, store, all_platforms=True)
    assert store.content.has(Digest(strange["digest"]), 7)
    layout.index([{**layout.blob(b"stranger", "application/x-strange"), "size": 9}], "bad")
    serve(server, layout)
    with pytest.raises(InvalidDocument, match="not as its index says"):
        pull(server, store, "r:bad", all_platforms=True)


def test_a_config_of_another_platform_is_told(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(1), "latest", platform="linux/s390x")
    serve(server, layout)
    assert "image is for linux/s390x, not for linux/amd64" in refused(
        NotFound, server, store, platform="linux/amd64")
    for _ in range(2):  # up to date, the second time
        log = Log()
        pull(server, store, progress=log)
        assert log.tells("WARNING: image is for linux/s390x, not for ")
        with pytest.raises(NotFound, match="image is for linux/s390x, not for linux/arm64"):
            pull(server, store, platform="linux/arm64")
    assert pull(server, store, platform="linux/s390x").architecture == "s390x"


def test_a_config_that_says_no_platform_fits_all(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(1), "latest", config={"os": "", "architecture": ""})
    serve(server, layout)
    pull(server, store, platform="linux/arm64")


# -- what is no image to run -----------------------------------------------------


@pytest.mark.parametrize("kind", ["artifact", "chart", "attestation"])
def test_an_artifact_points_to_copy(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, kind: str) -> None:
    layout = Layout(tmp_path / "layout")
    if kind == "artifact":
        layout.image(images.specs(1), "latest", artifactType="application/x-thing")
    elif kind == "chart":
        layout.image(images.specs(1), "latest")
        rewrite(layout, config=layout.blob(b"{}", "application/vnd.cncf.helm.config.v1+json"))
    else:
        layout.name(images.attestation(layout, "sha256:" + "0" * 64), "latest")
    serve(server, layout)
    text = refused(Unsupported, server, store)
    assert "minipull copy" in text and "\n" not in text
    assert asked(server) == ["GET manifests/latest"]


# -- documents that lie ----------------------------------------------------------


def document(server: ScriptedServer, raw: bytes, kind: str = images.OCI_MANIFEST, **headers: str) -> None:
    server.on("GET", "/manifests/", reply(200, raw, {
        "Content-Type": kind, "Docker-Content-Digest": images.digest_of(raw), **headers}))


@pytest.mark.parametrize("raw, kind", [
    (b'{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}', images.OCI_INDEX),
    (b'{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}', "application/json"),
    (b'{"schemaVersion":2,"schemaVersion":2,"manifests":[]}', images.OCI_INDEX),
    (b"<html>Please log in</html>", "text/html"),
    (b"", images.OCI_MANIFEST),
])
def test_an_ambiguous_or_malformed_document_is_refused(
        server: ScriptedServer, store: minipull.Store, raw: bytes, kind: str) -> None:
    document(server, raw, kind)
    refused(InvalidDocument, server, store)
    assert blobs(store) == []


def test_a_manifest_that_is_not_its_digest_is_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    serve(server, layout)
    server.on("GET", "/manifests/", content(made.raw.replace(b'"schemaVersion":2', b'"schemaVersion": 2'),
                                            images.OCI_MANIFEST, headers={"Docker-Content-Digest": made.digest}))
    for name in ("r", "r@" + made.digest):
        assert "manifest verification failed for digest " + made.digest in refused(
            ContentMismatch, server, store, name)
    assert blobs(store) == []


def test_a_child_that_is_not_as_its_index_says_is_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    layout.index([{**made.descriptor, "size": len(made.raw) + 1}], "latest")
    serve(server, layout)
    assert "is not as its index says" in refused(InvalidDocument, server, store)


@pytest.mark.parametrize("everything", [False, True])
def test_indexes_that_go_on_and_on_are_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, everything: bool) -> None:
    layout = Layout(tmp_path / "layout")
    child = layout.image(images.specs(1)).descriptor
    for depth in range(9):
        child = layout.index([child], "depth%d" % depth).descriptor
    serve(server, layout)
    options: Dict[str, Any] = {"all_platforms": True} if everything else {}
    assert "nested deeper than 8" in refused(PolicyError, server, store, "r:depth8", **options)
    pull(server, store, "r:depth7", **options)
    asked(server)
    pull(server, store, "r:depth7", **options)
    assert check(store) == []


def test_an_index_is_visited_once_however_often_it_is_named(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    made = layout.image(images.specs(1), platform="linux/s390x")
    child = {**made.descriptor, "platform": {"os": "linux", "architecture": "s390x"}}
    for depth in range(7):
        child = layout.index([child] * 50, "latest").descriptor
    serve(server, layout)
    refused(NotFound, server, store, platform="linux/amd64")
    assert len(asked(server)) == 7


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"rootfs":{"type":"layers","diff_ids":["x"]}}'])
def test_a_malformed_config_is_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, raw: bytes) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(2), "latest")
    rewrite(layout, config=layout.blob(raw, images.OCI_CONFIG))
    serve(server, layout)
    assert "error pulling image configuration: " in refused(InvalidDocument, server, store)


def test_a_config_that_is_too_large_is_not_asked_for(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    manifest = json.loads(made.raw)
    manifest["config"]["size"] = 1 << 30
    document(server, images.to_json(manifest))
    assert "config is larger than" in refused(PolicyError, server, store)
    assert "GET blobs/" + made.config["digest"] not in asked(server)


@pytest.mark.parametrize("diff_ids", [["sha256:" + "0" * 64], []], ids=["other", "fewer"])
def test_layers_that_are_not_what_the_config_says_are_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, diff_ids: List[str]) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(1), "latest", config={
        "history": [], "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    serve(server, layout)
    assert "layers from manifest don't match image configuration" in refused(ContentMismatch, server, store)


# -- blobs that lie --------------------------------------------------------------


@pytest.mark.parametrize("which", ["layer", "config"])
@pytest.mark.parametrize("how", ["other", "short", "long", "chunked long"])
def test_a_blob_that_is_not_its_descriptor_gets_no_name(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, which: str, how: str) -> None:
    layout, made = images.single(tmp_path / "layout", layers=1)
    serve(server, layout)
    digest = made.config["digest"] if which == "config" else stored_layers(made)[0]
    data = layout.read(digest)
    wrong = {"other": data[:-1] + b"?", "short": data[:-1]}.get(how, data + b"?")
    on_blob(server, digest, reply(200, wrong, chunked=how == "chunked long"))
    text = refused(ContentMismatch, server, store)
    assert digest in text and "\n" not in text
    assert digest not in blobs(store) and not os.path.exists(store.content.path(Digest(digest)))
    assert asked(server).count("GET blobs/" + digest) == 1
    serve(server, layout)
    pull(server, store)  # nothing of it was kept
    assert check(store) == []


def test_a_blob_that_stays_too_short_is_given_up(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout", layers=1)
    serve(server, layout)
    digest = stored_layers(made)[0]
    short = reply(200, layout.read(digest)[:-1], chunked=True)

    def answer(connection: Connection) -> None:
        (error(416) if "range" in connection.request.headers else short)(connection)

    on_blob(server, digest, answer)
    with pytest.raises((RegistryError, NetworkError)) as caught:
        pull(server, store, attempts=1)
    assert caught.value.exit_code == 5
    assert asked(server).count("GET blobs/" + digest) <= 5


def test_a_digest_with_another_size_is_refused(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout", layers=1)
    manifest = json.loads(made.raw)
    manifest["layers"][0]["size"] = 0
    serve(server, layout)
    document(server, images.to_json(manifest))
    assert "filesystem layer verification failed for digest" in refused(ContentMismatch, server, store)


# -- the store's own troubles ----------------------------------------------------


def test_a_store_that_cannot_be_written_ends_with_a_storage_error(
        server: ScriptedServer, tmp_path: Path) -> None:
    layout, _ = images.single(tmp_path / "layout")
    serve(server, layout)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        pull(server, minipull.Store(str(tmp_path / "file" / "store")))


def test_a_refused_login_is_final(server: ScriptedServer, store: minipull.Store) -> None:
    server.on("GET", "/v2/", error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="r"'}))
    refused(Unauthorized, server, store)
    credentials = minipull.Credentials(explicit={server.host: Credential("u", "wrong")})
    text = refused(RegistryError, server, store, credentials=credentials)
    assert "wrong" not in text
    assert [request.headers.get("authorization") for request in server.requests] == [None, None, "Basic dTp3cm9uZw=="]
