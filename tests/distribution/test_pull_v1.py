# SPDX-License-Identifier: Apache-2.0
"""Pulls by the v1 protocol: what is made of what comes, and what is refused."""
import gzip
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Type

import pytest

import minipull
from tests.kit.images import digest_of, to_json
from minipull.registry.auth import Credential
from minipull.xfer.download import LayerDownloadManager
from minipull.errors import (
    ContentMismatch, Error, InvalidDocument, NetworkError, NotFound, PolicyError, StorageError)
from minipull.registry.errors import RegistryError
from minipull.distribution.pull_v1 import V1IDService
from minipull.progress import Progress
from tests.kit.servers import Action, Connection, ScriptedServer, content, head, reply, reset
from tests.kit.v1server import Stored, V1Server, blobs, payload

pytestmark = pytest.mark.usefixtures("no_waiting")

CONFIG: Dict[str, Any] = {
    "architecture": "amd64", "os": "linux", "docker_version": "1.9.1", "Size": 5,
    "config": {"Cmd": ["/bin/sh"], "Env": ["A=1"], "WorkingDir": "/srv"}}


def pull(server: ScriptedServer, store: minipull.Store, name: str = "ns/r:1", **more: Any) -> minipull.Image:
    return minipull.pull(
        server.host + "/" + name, store, service=minipull.RegistryService(legacy_v1=True, timeout=5),
        downloads=LayerDownloadManager(tick=0.001), **more)


def tar_of(layer: bytes) -> bytes:
    return gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer


def test_an_image_gets_a_config_and_a_manifest_of_what_came(server: ScriptedServer, store: minipull.Store) -> None:
    v1, layers = V1Server(server), blobs(3)
    v1.add(layers, "1", **CONFIG)
    image = pull(server, store)
    assert image.config is not None
    config = json.loads(image.config.raw)
    assert config == {
        **{key: CONFIG[key] for key in ("architecture", "os", "docker_version", "config")},
        "created": "2014-01-02T03:04:05Z", "container_config": {"Cmd": ["step", "2"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar_of(layer)) for layer in layers]},
        "history": [{"created": "2014-01-02T03:04:05Z", "created_by": "step %d" % n} for n in range(3)]}
    document = json.loads(store.content.read(image.descriptor.digest, 1 << 20))
    kind = "application/vnd.docker.image.rootfs.diff.tar"
    assert document["layers"] == [
        {"mediaType": kind + ".gzip" * (n % 2), "digest": digest_of(layer), "size": len(layer)}
        for n, layer in enumerate(layers)]
    assert document["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert image.source == image.descriptor.digest and not any(store.missing(image.descriptor))


def test_nothing_is_stored_under_an_id_which_is_only_remembered(
        server: ScriptedServer, store: minipull.Store) -> None:
    v1, layers = V1Server(server), blobs(2)
    ids = v1.add(layers, "1")
    pull(server, store)
    assert not {digest.encoded for digest in store.content.digests()} & set(ids)
    known = V1IDService(store.metadata)
    assert [known.get(each, server.host) for each in reversed(ids)] == [digest_of(tar_of(each)) for each in layers]
    assert known.get(ids[0], "other.example.com") is None
    assert list(Path(store.root, "ingest").iterdir()) == []


def test_layers_that_are_stored_are_not_asked_for_again(server: ScriptedServer, store: minipull.Store) -> None:
    v1 = V1Server(server)
    ids = v1.add(blobs(3), "1", "2", **CONFIG)
    first = pull(server, store)
    count = len(server.seen("GET", "/layer$"))
    actions: List[Progress] = []
    second = pull(server, store, progress=actions.append)
    other = pull(server, store, "ns/r:2")
    assert len(server.seen("GET", "/layer$")) == count == 3
    assert first.descriptor == second.descriptor == other.descriptor
    assert [each.id for each in actions if each.action == "Already exists"] == [v1_id[:12] for v1_id in ids[::-1]]
    Path(store.content.path(minipull.Digest(digest_of(blobs(1)[0])))).unlink()
    assert pull(server, store).descriptor == first.descriptor
    assert len(server.seen("GET", "/layer$")) == count + 1


def test_the_same_image_gets_the_same_manifest_anywhere(
        server: ScriptedServer, tmp_path: Path) -> None:
    V1Server(server).add(blobs(2), "1", **CONFIG)
    found = {pull(server, minipull.Store(str(tmp_path / name))).descriptor for name in "ab"}
    assert len(found) == 1


def test_progress_is_told_in_the_engines_words(server: ScriptedServer, store: minipull.Store) -> None:
    ids = V1Server(server).add(blobs(1), "1")
    told: List[Progress] = []
    pull(server, store, progress=told.append)
    events = [str(progress).partition(" 2")[0] for progress in told]
    assert not any(progress.kept for progress in told), "no other process goes on with a layer"
    short, name = ids[0][:12], server.host + "/ns/r"
    wanted = [
        "Pulling repository " + name, "%s: Pulling image (1) from %s, endpoint: %s/v1/" % (short, name, server.url),
        short + ": Pulling dependent layers", short + ": Pulling metadata", short + ": Pulling fs layer",
        short + ": Download complete", short + ": Pull complete",
        name + ":1: this image was pulled from a legacy registry.  Important: This registry version will not be"
        " supported in future versions of docker."]
    assert [event for event in events if event in wanted] == wanted


def test_tokens_and_endpoints_work_together(server: ScriptedServer, store: minipull.Store) -> None:
    v1 = V1Server(server, "ann:secret", endpoints="127.0.0.1:1," + server.host)
    v1.add(blobs(2), "1")
    credentials = minipull.Credentials(explicit={server.host: Credential("ann", "secret")})
    with pytest.raises(RegistryError, match="unauthorized") as caught:
        pull(server, store)
    assert caught.value.exit_code == 4
    messages: List[str] = []
    pull(server, store, credentials=credentials, progress=lambda progress: messages.append(progress.message))
    assert [text for text in messages if text.startswith("Error pulling image (1) from %s/ns/r, endpoint: "
                                                         "http://127.0.0.1:1/v1/, " % server.host)]


def test_a_foreign_endpoint_is_refused(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store) -> None:
    V1Server(server, endpoints=foreign.host).add(blobs(1), "1")
    with pytest.raises(PolicyError, match="names a registry on another host, %s, refused" % foreign.host) as caught:
        pull(server, store)
    assert caught.value.exit_code == 9 and foreign.requests == []


# -- chains that are none --------------------------------------------------------


def changed(v1: V1Server, v1_id: str, **members: Any) -> None:
    raw = to_json({**json.loads(v1.images[v1_id].raw), **members})
    layer = v1.images[v1_id].layer or b""
    v1.images[v1_id] = Stored(raw, layer, payload(raw, layer))


@pytest.mark.parametrize("which, members", [
    (0, {"id": "f" * 64}), (0, {"parent": "f" * 64}), (1, {"parent": ""}), (2, {"parent": "f" * 64}),
    (0, {"parent": 7}), (0, {"id": None}), (1, {"container_config": []})])
def test_a_json_that_is_of_another_chain_is_refused_before_any_layer_counts(
        server: ScriptedServer, store: minipull.Store, which: int, members: Dict[str, Any]) -> None:
    v1 = V1Server(server)
    ids = v1.add(blobs(3), "1")
    server.on("GET", "/ancestry$", reply(200, json.dumps(ids)))
    changed(v1, ids[which], **members)
    with pytest.raises(InvalidDocument, match="^pull .*: Error pulling image") as caught:
        pull(server, store)
    assert caught.value.exit_code == 6 and store.references.all() == []


def test_a_chain_in_a_circle_is_refused(server: ScriptedServer, store: minipull.Store) -> None:
    ids = V1Server(server).add(blobs(2), "1")
    server.on("GET", "/ancestry$", reply(200, json.dumps(ids + ids[:1])))
    with pytest.raises(InvalidDocument, match="goes in circles"):
        pull(server, store)
    assert server.seen("GET", "/json$") == []


def test_an_entry_that_says_that_it_is_thrown_away_has_a_layer_all_the_same(
        server: ScriptedServer, store: minipull.Store) -> None:
    V1Server(server).add(blobs(2), "1", throwaway=True)
    config = pull(server, store).config
    assert config is not None and [entry.empty_layer for entry in config.history] == [False, False]


# -- layers ----------------------------------------------------------------------


def test_a_layer_that_is_not_what_its_checksum_says_is_refused(
        server: ScriptedServer, store: minipull.Store) -> None:
    v1 = V1Server(server)
    ids = v1.add(blobs(1), "1")
    v1.images[ids[0]] = v1.images[ids[0]]._replace(layer=blobs(3)[2])
    with pytest.raises(ContentMismatch, match="filesystem layer verification failed for image " + ids[0]):
        pull(server, store)
    assert len(server.seen("GET", ids[0] + "/layer$")) == 1
    assert list(Path(store.root, "ingest").iterdir()) == []
    v1.payload_checksums = False  # then nobody can know
    pull(server, store)


def without_ranges(data: bytes, stop: int) -> Action:
    def act(connection: Connection) -> None:
        connection.send(head(200, {"Content-Length": str(len(data))}) + data[:stop])
        connection.reset()
    return act


def partial(start: int, data: bytes, said: str) -> Action:
    return reply(206, data[start:], {"Content-Range": said})


GOOD = {"Accept-Ranges": "bytes"}


@pytest.mark.parametrize("scripts, ranges", [
    # what the server does each time; the ranges that it is asked for
    (lambda data: [content(data, stop=5000, headers=GOOD), content(data)], ["", "bytes=5000-%d"]),
    (lambda data: [content(data, stop=5000, headers=GOOD), partial(5000, data, "5000-%d/%d" % (len(data), len(data)))],
     ["", "bytes=5000-%d"]),
    (lambda data: [without_ranges(data, 5000), content(data)], ["", ""]),
    # The rest is no rest: all of it then.
    (lambda data: [content(data, stop=5000, headers=GOOD), content(data, shift=9), content(data)],
     ["", "bytes=5000-%d", ""]),
    (lambda data: [content(data, stop=5000, headers=GOOD), content(data, ranges=False), content(data)],
     ["", "bytes=5000-%d", ""]),
    (lambda data: [content(data, stop=5000, headers=GOOD), partial(5000, data, ""), content(data)],
     ["", "bytes=5000-%d", ""]),
])
def test_a_layer_that_breaks_off_is_continued_where_that_can_be(
        server: ScriptedServer, store: minipull.Store, scripts: Callable[[bytes], List[Action]],
        ranges: List[str]) -> None:
    v1, layers = V1Server(server), blobs(1)
    [v1_id] = v1.add(layers, "1")
    server.on("GET", v1_id + "/layer$", *scripts(layers[0]))
    pull(server, store)
    asked = [request.headers.get("range", "") for request in server.seen("GET", "/layer$")]
    assert asked == [text % (len(layers[0]) - 1) if text else "" for text in ranges]


def test_a_layer_that_always_breaks_off_ends_the_pull(
        server: ScriptedServer, store: minipull.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.distribution.pull_v1.MAX_FAILURES", 2)
    v1, layers = V1Server(server), blobs(1)
    [v1_id] = v1.add(layers, "1")
    server.on("GET", v1_id + "/layer$", [content(layers[0], stop=10, headers=GOOD)])
    with pytest.raises(NetworkError):
        minipull.pull(server.host + "/ns/r:1", store, service=minipull.RegistryService(legacy_v1=True),
                      downloads=LayerDownloadManager(attempts=2, tick=0.001))
    assert len(server.seen("GET", "/layer$")) == 4
    assert list(Path(store.root, "ingest").iterdir()) == []


@pytest.mark.parametrize("layer, kind", [
    (blobs(2)[1][:-20], InvalidDocument), (b"\xfd7zXZ\0" + bytes(100), InvalidDocument)])
def test_a_layer_that_can_not_be_read_is_none(
        server: ScriptedServer, store: minipull.Store, layer: bytes, kind: Type[Error]) -> None:
    V1Server(server).add([layer], "1")
    with pytest.raises(kind):
        pull(server, store)
    assert store.references.all() == []


def test_a_json_is_asked_for_several_times_but_not_against_a_no(
        server: ScriptedServer, store: minipull.Store) -> None:
    v1 = V1Server(server)
    [v1_id] = v1.add(blobs(1), "1")
    server.on("GET", "/json$", reply(500), reply(500), v1.registry(v1.get_json))
    pull(server, store)
    server.on("GET", "/json$", reply(403))
    count = len(server.seen("GET", "/json$"))
    with pytest.raises(RegistryError):
        pull(server, store, "ns/r:1")
    assert len(server.seen("GET", "/json$")) == count + 1
    server.on("GET", "/json$", reset)
    with pytest.raises(NetworkError):
        pull(server, store, "ns/r:1")


def test_a_tag_that_is_not_there_is_not_found(server: ScriptedServer, store: minipull.Store) -> None:
    V1Server(server).add(blobs(1), "1")
    with pytest.raises(NotFound) as caught:
        pull(server, store, "ns/r:2")
    assert caught.value.exit_code == 3
    assert str(caught.value) == "pull %s/ns/r:2: Tag 2 not found in repository %s/ns/r (%s/v1)" % (
        server.host, server.host, server.host)


def test_a_layer_without_a_stored_id_can_not_be_pulled(
        server: ScriptedServer, store: minipull.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    V1Server(server).add(blobs(1), "1")
    monkeypatch.setattr(store.metadata, "set", lambda *arguments: None)
    with pytest.raises(StorageError, match="what is known of layer"):
        pull(server, store)


def test_a_cancelled_pull_asks_nobody_else(server: ScriptedServer, store: minipull.Store) -> None:
    V1Server(server, endpoints="%s,%s" % (server.host, server.host)).add(blobs(1), "1")
    cancel = minipull.Cancel()

    def stop(connection: Connection) -> None:
        cancel.cancel()
        connection.wait(5)

    server.on("GET", "/layer$", stop)
    with pytest.raises(minipull.Cancelled):
        pull(server, store, cancel=cancel)
    assert len(server.seen("GET", "/layer$")) == 1
