# SPDX-License-Identifier: Apache-2.0
"""One image to one repository: sent byte for byte, children first, the tag last."""
import functools
import gzip
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, Tuple

import pytest

from tests.kit import ROOT
from tests.kit import images
import minipull
from tests.kit.processes import DockerRegistry, run, short_folder, wait_until
from tests.kit.images import Layout, Spec
from minipull.image.descriptor import Descriptor
from minipull.digest import Digest
from minipull.errors import NotFound, StorageError
from minipull.registry.errors import RegistryError
from minipull.store.metadata import V2Metadata
from minipull.progress import Progress
from minipull.cancel import Cancel
from minipull.xfer.upload import LayerUploadManager
from tests.kit.proxies import FaultProxy
from tests.kit.servers import Connection, ScriptedServer, Uploads, content, error, hold, reply, reset
from tests.kit.work import Log, background
from tests.kit.stores import keep
from tests.kit.pushes import asked, entries, kept, loaded, push, results

pytestmark = pytest.mark.usefixtures("no_waiting")


SIZE = 200000  # stored: large enough to be looked for
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@pytest.fixture
def target(server: ScriptedServer) -> Uploads:
    return Uploads(server)


# -- images as they are ------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "schema2"])
def test_an_image_is_sent_byte_for_byte(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path, docker: bool) -> None:
    layout = Layout(tmp_path / "layout", docker)
    made = kept(server, store, layout, [*images.specs(2, 40000), Spec(3000000, text=0)])
    log = Log()
    [pushed] = push(server, store, progress=log)
    assert target.manifests["latest"] == made.raw
    assert target.blobs == {blob["digest"]: layout.read(blob["digest"])
                            for blob in [made.config, *(x.descriptor for x in made.layers)]}
    assert (str(pushed.name), pushed.descriptor.digest) == (server.host + "/r:latest", made.digest)
    assert [(x.diff_id, x.blob.digest, x.result) for x in pushed.layers] == [
        (x.diff_id, x.descriptor["digest"], "Pushed") for x in made.layers]
    assert log.events[0] == Progress(message="The push refers to repository [%s/r]" % server.host)
    for x in made.layers:
        short = x.diff_id[7:19]
        assert [log.actions(short)[n] for n in (0, -1)] == ["Preparing", "Pushed"]
    assert {event.id for event in log.events[1:]} == {x.diff_id[7:19] for x in made.layers}
    assert server.seen("PUT", "manifests")[0].headers["content-type"] == made.descriptor["mediaType"]
    assert asked(server)[-1] == "PUT manifests/latest"


def test_a_second_push_sends_no_blob(
        registry: DockerRegistry, store: minipull.Store, layout: Layout) -> None:
    with FaultProxy(registry.host) as proxy:
        made = layout.image([*images.specs(3, 4000), Spec(3000000, text=0)])
        keep(store, layout, made, proxy.host + "/pushed/twice:1")
        minipull.push(proxy.host + "/pushed/twice:1", store)
        for x in made.layers:
            assert entries(store, x.diff_id)[-1] == V2Metadata(
                Digest(x.descriptor["digest"]), proxy.host + "/pushed/twice")
        up = dict(proxy.up)
        [pushed] = minipull.push(proxy.host + "/pushed/twice:1", store)
        assert results([pushed]) == ["Layer already exists"] * 4
        more = {key: size - up.get(key, 0) for key, size in proxy.up.items() if size != up.get(key)}
        assert [(key[0], size) for key, size in more.items()] == [("PUT", len(made.raw))]
        assert len(proxy.seen("POST")) == 5


def test_a_second_push_of_an_index_sends_no_blob(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout")
    loaded(server, store, layout, index)
    push(server, store)
    blobs = {"sha256:" + path.name for path in (layout.root / "blobs" / "sha256").iterdir()}
    assert set(target.blobs) | set(target.manifests) == blobs | {"latest"}
    target.blobs["sha256:" + "0" * 64] = b""
    asked(server)
    assert set(results(push(server, store))) == {"Layer already exists"}
    assert asked(server, "POST|PATCH") == []


def test_an_image_may_have_no_layers_and_the_same_one_twice(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    kept(server, store, layout, [], "r:none")
    assert results(push(server, store, "r:none")) == []
    asked(server)
    kept(server, store, layout, [Spec(100, seed=1), Spec(100, seed=2), Spec(100, seed=1)], "r:twice")
    assert results(push(server, store, "r:twice")) == ["Pushed"] * 3
    assert len(asked(server, "POST")) == 3


# -- indexes -----------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_children_come_before_their_index_and_the_tag_last(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path, nested: bool) -> None:
    layout, index, children = images.multi_platform(tmp_path / "layout", nested=nested)
    loaded(server, store, layout, index)
    [pushed] = push(server, store)
    assert pushed.descriptor.digest == index.digest and target.manifests["latest"] == index.raw
    order = asked(server)
    assert order[-1] == "PUT manifests/latest"
    puts = [line.partition("manifests/")[2] for line in order if line.startswith("PUT manifests/")]
    assert {image.digest for image in children.values()} < set(puts) and index.digest not in puts
    assert len(puts) == 5 + nested + 1
    first = order.index("PUT manifests/" + puts[0])
    assert not [line for line in order[first:] if "blobs" in line]


def test_an_index_may_be_empty(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    index = layout.index([])
    loaded(server, store, layout, index)
    assert results(push(server, store)) == [] and target.manifests["latest"] == index.raw


def test_an_index_that_is_named_twice_still_comes_first(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    inner = layout.index([layout.image(images.specs(1)).descriptor])
    outer = layout.index([inner.descriptor])
    top = layout.index([inner.descriptor, outer.descriptor])
    loaded(server, store, layout, top)
    push(server, store)
    assert target.manifests["latest"] == top.raw


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "schema2"])
def test_a_child_of_an_index_is_never_rewritten(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path, docker: bool) -> None:
    layout = Layout(tmp_path / "layout", docker)
    index = layout.index([layout.image([Spec(1000, compression="")]).descriptor])
    loaded(server, store, layout, index)
    push(server, store)
    assert target.manifests["latest"] == index.raw


def test_a_child_that_is_not_here_is_named_before_anything_is_sent(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, index, children = images.multi_platform(tmp_path / "layout")
    layout.path(children["linux/arm64/v8"].digest).unlink()
    loaded(server, store, layout, index)
    with pytest.raises(NotFound) as caught:
        push(server, store)
    assert str(caught.value) == (
        "push %s/r: %s/r:latest lacks linux/arm64/v8 of its index; pull it with --all-platforms" % (
            (server.host,) * 2))
    assert caught.value.exit_code == 3 and server.requests == []


def test_an_index_that_is_lost_itself_is_named_too(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout")
    loaded(server, store, layout, index)
    os.unlink(store.content.path(Digest(index.digest)))
    with pytest.raises(NotFound, match="lacks %s of its index" % index.digest):
        push(server, store)


# -- what the store has lost -------------------------------------------------------


def large(layout: Layout) -> images.Image:
    return layout.image([Spec(3000000, text=0), Spec(1000, seed=1)])


@pytest.mark.parametrize("which", [0, 1], ids=["large", "small"])
@pytest.mark.parametrize("damage", ["flipped", "short", "long", "gone"])
def test_a_damaged_layer_is_reported_as_such(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout, which: int,
        damage: str) -> None:
    made = large(layout)
    keep(store, layout, made, server.host + "/r:latest")
    path = Path(store.content.path(Digest(made.layers[which].descriptor["digest"])))
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[100] ^= 1
    path.write_bytes({"short": data[:-1], "long": data + b"x"}.get(damage, data))
    if damage == "gone":
        path.unlink()
    with pytest.raises(StorageError, match="blob %s in the store is corrupt; run minipull check"
                       % made.layers[which].descriptor["digest"]) as caught:
        push(server, store)
    assert caught.value.exit_code == 7 and not caught.value.retry
    assert target.manifests == {} and len(asked(server, "PUT", "uploads")) <= 3


def test_a_file_that_becomes_shorter_meanwhile_is_no_lasting_body(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = kept(server, store, layout, [Spec(3000000, text=0)])
    path = store.content.path(Digest(made.layers[0].descriptor["digest"]))

    def shorten(connection: Connection) -> None:
        os.truncate(path, 1000)
        target.start(connection)

    server.on("POST", "", shorten)
    with pytest.raises(StorageError, match="ends at byte 1000 of"):
        push(server, store, uploads=LayerUploadManager(1))


def test_a_config_that_is_damaged_stops_it_all(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = kept(server, store, layout, images.specs(1))
    Path(store.content.path(Digest(made.config["digest"]))).write_bytes(b"{}")
    with pytest.raises(StorageError, match="corrupt"):
        push(server, store)
    assert target.blobs == {}


PUSH = """
import os, sys
import minipull, minipull.distribution.push_v2, minipull.distribution.push, encodings.idna, zlib
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
for _ in range(2):
    [pushed] = minipull.push(sys.argv[2], minipull.Store(sys.argv[1]))
    print(pushed.descriptor.digest, *[layer.result for layer in pushed.layers])
"""


def test_a_push_works_from_a_read_only_store(
        server: ScriptedServer, target: Uploads, layout: Layout) -> None:
    folder = short_folder()  # pytest's are closed to other users
    try:
        folder.chmod(0o755)
        store = minipull.Store(str(folder / "root"))
        made = kept(server, store, layout, [Spec(200000, text=0)])
        for where, _, names in os.walk(store.root):
            for name in names:
                os.chmod(os.path.join(where, name), 0o444)
            os.chmod(where, 0o555)
        out = run([sys.executable, "-c", PUSH, store.root, server.host + "/r"],
                  {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}).out
        assert out == "%s Pushed\n%s Layer already exists\n" % (made.digest, made.digest)
    finally:
        for where, _, _ in os.walk(store.root):
            os.chmod(where, 0o755)
        shutil.rmtree(str(folder))


# -- names and tags ----------------------------------------------------------------


def test_all_tags_are_pushed_and_nothing_is_asked_twice(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    base = images.specs(2, SIZE, text=0)
    made = {tag: kept(server, store, layout, base + images.specs(1, seed=n), "r:" + tag)
            for n, tag in ((5, "b"), (6, "a"))}
    kept(server, store, layout, base, "other:c")
    pushed = push(server, store, all_tags=True)
    assert [each.name.tag for each in pushed] == ["a", "b"]
    assert {tag: target.manifests[tag] for tag in "ab"} == {tag: image.raw for tag, image in made.items()}
    assert results(pushed[1:]) == ["Layer already exists"] * 2 + ["Pushed"]
    for x in made["a"].layers[:2]:
        assert len([request for request in server.seen("HEAD|POST|PUT") if x.descriptor["digest"] in request.target]) <= 2
    heads = asked(server, "HEAD")
    assert len(heads) == len(set(heads))


@pytest.mark.parametrize("name, dest, tag", [
    ("r", "r/x", "latest"), ("r:1", "r/x", "1"), ("r:1", "r/x:2", "2"), ("r", "r/x:2", "2")])
def test_another_name_has_the_tag_of_the_image_unless_it_has_its_own(
        server: ScriptedServer, store: minipull.Store, layout: Layout, name: str, dest: str, tag: str) -> None:
    target = Uploads(server, "r/x")
    for n, mine in enumerate(("latest", "1")):
        kept(server, store, layout, images.specs(1, seed=n), "r:" + mine)
    [pushed] = push(server, store, name, dest)
    assert str(pushed.name) == "%s/r/x:%s" % (server.host, tag) and tag in target.manifests
    assert asked(server, "", "^/v2/r/(?!x)") == []


def test_two_pushes_that_share_a_manager_send_each_blob_once(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    for n in range(2):
        kept(server, store, layout, [Spec(SIZE, text=0), Spec(1000, seed=n + 1)], "r:%d" % n)
    go, uploads = threading.Event(), LayerUploadManager()
    server.on("PUT", "uploads/", [hold(go), target.commit])
    pushes = [background(functools.partial(push, server, store, "r:%d" % n, uploads=uploads)) for n in range(2)]
    wait_until(lambda: len(server.seen("PUT", "uploads/")) == 5, "all blobs")
    go.set()
    for thread, done in pushes:
        thread.join(10)
        assert results(done[0]) == ["Pushed", "Pushed"]
    assert len(server.seen("POST")) == 5


def test_a_push_is_cancelled_where_it_is(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    kept(server, store, layout, [Spec(SIZE, text=0)])
    cancel = Cancel()
    server.on("PUT", "uploads/", hold(threading.Event()))
    thread, done = background(lambda: push(server, store, cancel=cancel))
    wait_until(lambda: bool(server.seen("PUT", "uploads/")), "the upload")
    cancel.cancel()
    thread.join(5)
    assert isinstance(done[0], minipull.Cancelled)


# -- tags that can't be changed ----------------------------------------------------


@pytest.mark.parametrize("refusal", [
    error(400, "TAG_INVALID"), error(403, "DENIED"), error(409, "CONFLICT"), error(412, "PRECONDITION"),
    error(405, "UNSUPPORTED"), reply(400, "immutable"), reply(409)])
def test_a_tag_that_has_the_very_manifest_is_pushed(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout, refusal: Any) -> None:
    made = kept(server, store, layout, images.specs(1))
    other = kept(server, store, layout, images.specs(2), "r:other")
    push(server, store)
    assert asked(server, "GET|HEAD", "/manifests/") == []  # nothing is asked as long as all is well
    server.on("GET", "/manifests/", content(made.raw, made.descriptor["mediaType"]))
    server.on("PUT", "/manifests/(latest|other)$", refusal)
    [pushed] = push(server, store)
    assert pushed.descriptor.digest == made.digest and results([pushed]) == ["Layer already exists"]
    assert asked(server, "", "/manifests/") == ["PUT manifests/latest", "HEAD manifests/latest"]
    server.on("HEAD", "/manifests/", reply(200))  # without a digest
    assert len(push(server, store)) == 1
    assert asked(server, "", "/manifests/")[1:] == ["HEAD manifests/latest", "GET manifests/latest"]
    for answer in (content(made.raw), error(404, "MANIFEST_UNKNOWN"), error(500), reset, reply(200)):
        server.on("GET", "/manifests/", answer)
        with pytest.raises(RegistryError) as caught:  # what the registry said of the PUT
            push(server, store, "r:other")
        assert 400 <= caught.value.status < 500 and other.digest not in str(caught.value)
    server.on("GET", "/manifests/", content(made.raw))
    server.on("GET", "/manifests/other$", content(other.raw))
    assert len(push(server, store, all_tags=True)) == 2


@pytest.mark.parametrize("refusal", [error(404, "NAME_UNKNOWN"), error(401, "UNAUTHORIZED"), error(500),
                                     error(400, "MANIFEST_BLOB_UNKNOWN")])
def test_other_refusals_of_a_manifest_are_failures(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout, refusal: Any) -> None:
    made = kept(server, store, layout, images.specs(1))
    server.on("GET", "/manifests/", content(made.raw))
    server.on("PUT", "/manifests/", refusal)
    with pytest.raises(RegistryError):
        push(server, store)
    assert server.seen("HEAD", "/manifests/") == []


# -- foreign layers ----------------------------------------------------------------


@pytest.mark.parametrize("media_type", [FOREIGN, images.DOCKER_LAYER, images.DOCKER_LAYER + ".gzip"])
@pytest.mark.parametrize("urls, foreign, stored, result", [
    (1, False, False, "Skipped foreign layer"), (1, False, True, "Skipped foreign layer"),
    (1, True, False, "Skipped foreign layer"), (1, True, True, "Pushed"), (0, False, True, "Pushed")])
def test_a_foreign_layer_stays_where_it_is_unless_it_is_asked_for(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path, media_type: str,
        urls: int, foreign: bool, stored: bool, result: str) -> None:
    layout = Layout(tmp_path / "layout", docker=True)
    made = layout.image([Spec(3000, compression="" if media_type == images.DOCKER_LAYER else "gzip"), Spec(99)])
    manifest = json.loads(made.raw)
    manifest["layers"][0].update(mediaType=media_type, urls=["https://example.com/layer"] * urls)
    raw = images.to_json(manifest)
    made = made._replace(descriptor=layout.blob(raw, images.DOCKER_MANIFEST), raw=raw)
    if not stored:
        layout.path(made.layers[0].descriptor["digest"]).unlink()
    loaded(server, store, layout, made)
    log = Log()
    assert results(push(server, store, progress=log, foreign=foreign)) == [result, "Pushed"]
    assert [log.actions(made.layers[0].diff_id[7:19])[n] for n in (0, -1)] == ["Preparing", result]
    if urls:  # another is compressed on its way
        assert target.manifests["latest"] == raw
        assert (made.layers[0].descriptor["digest"] in target.blobs) is (result == "Pushed")


# -- layers that lie here uncompressed -----------------------------------------------


def plain(tmp_path: Path, docker: bool = False) -> Tuple[Layout, images.Image]:
    layout = Layout(tmp_path / ("docker" if docker else "oci"), docker)
    return layout, layout.image([Spec(5000000, text=1, compression=""), Spec(3000, seed=1, compression="")])


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "schema2"])
def test_an_uncompressed_layer_that_no_registry_has_is_compressed(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path, docker: bool) -> None:
    layout, made = plain(tmp_path, docker)
    loaded(server, store, layout, made)
    [pushed] = push(server, store)
    sent = json.loads(target.manifests["latest"])
    assert sent == {**json.loads(made.raw), "layers": sent["layers"]}
    assert pushed.descriptor.digest == images.digest_of(target.manifests["latest"]) != made.digest
    kind = images.DOCKER_LAYER + ".gzip" if docker else images.OCI_LAYER + "+gzip"
    for given, x, told in zip(sent["layers"], made.layers, pushed.layers):
        data = target.blobs[given["digest"]]
        assert (given["mediaType"], given["size"]) == (kind, len(data))
        assert images.digest_of(gzip.decompress(data)) == x.diff_id
        assert data[3:8] == bytes(5)  # neither name nor time
        assert told == (x.diff_id, Descriptor.from_json(given, ""), "Pushed")
    assert server.seen("PATCH")[0].headers["transfer-encoding"] == "chunked"
    again = dict(target.blobs)
    asked(server)
    assert results(push(server, store)) == ["Layer already exists"] * 2
    assert json.loads(target.manifests["latest"]) == sent
    assert asked(server, "POST|PATCH") == []
    target.blobs.clear()
    push(server, store)
    assert target.blobs == again


def test_a_compressed_layer_is_found_and_mounted_like_any_other(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, made = plain(tmp_path)
    loaded(server, store, layout, made)
    push(server, store)
    other = Uploads(server, "s")
    other.elsewhere["r"] = target.blobs
    assert results(push(server, store, dest="s")) == ["Mounted from r"] * 2
    assert other.manifests["latest"] == target.manifests["latest"]


def test_a_plain_layer_that_was_pulled_is_sent_as_it_is(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, made = plain(tmp_path)
    keep(store, layout, made, server.host + "/r:latest")
    assert results(push(server, store)) == ["Pushed"] * 2
    assert target.manifests["latest"] == made.raw


def test_an_artifact_is_not_rewritten(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = layout.image([Spec(1000, compression="")], artifactType="application/vnd.example")
    loaded(server, store, layout, made)
    push(server, store)
    assert target.manifests["latest"] == made.raw


def test_a_config_that_does_not_know_all_layers_takes_none_away(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = layout.image(images.specs(2), config={"rootfs": {"type": "layers", "diff_ids": []}, "history": []})
    loaded(server, store, layout, made)
    assert results(push(server, store)) == ["Pushed"] * 2
    assert target.manifests["latest"] == made.raw


@pytest.mark.parametrize("fault", [reset, error(503), error(404, "BLOB_UPLOAD_UNKNOWN")],
                         ids=["reset", "503", "gone"])
def test_a_compressed_upload_that_broke_off_begins_anew(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path, fault: Any) -> None:
    layout, made = plain(tmp_path)
    loaded(server, store, layout, made)
    server.on("PATCH", "", fault, target.append)
    push(server, store, attempts=1)
    assert len(target.manifests) == 2 and len(server.seen("PATCH")) == 3
    del target.blobs[json.loads(target.manifests["latest"])["layers"][0]["digest"]]
    server.on("PATCH", "", fault)
    with pytest.raises(minipull.Error):
        push(server, store, attempts=1, uploads=LayerUploadManager(1, 1))
    assert len(asked(server, "PATCH")) == 3 + 4


def test_a_compressed_upload_goes_in_chunks(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, made = plain(tmp_path)
    loaded(server, store, layout, made)
    push(server, store)
    expected = dict(target.blobs)
    target.blobs.clear()
    asked(server)
    push(server, store, chunk_size=100000)
    assert target.blobs == expected
    patches = server.seen("PATCH")
    assert max(int(request.headers["content-length"]) for request in patches) == 100000
    assert [request.headers["content-range"][:9] for request in patches].count("100000-19") == 1
    server.on("PATCH", "", error(413))
    target.blobs.clear()
    asked(server)
    with pytest.raises(RegistryError, match="try --chunk-size"):
        push(server, store, uploads=LayerUploadManager(1))
    assert 1 <= len(asked(server, "PATCH")) <= len(made.layers)  # none is tried again


def test_a_damaged_layer_is_not_compressed(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, made = plain(tmp_path)
    loaded(server, store, layout, made)
    path = Path(store.content.path(Digest(made.layers[0].diff_id)))
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(StorageError, match="blob %s in the store is corrupt" % made.layers[0].diff_id):
        push(server, store)
    assert target.manifests == {}
