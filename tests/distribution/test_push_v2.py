# SPDX-License-Identifier: Apache-2.0
"""One image to one repository: what is there is found, what is elsewhere is mounted, the rest is sent as it is."""
import functools
import gzip
import hashlib
import hmac
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest

from tests.kit import DATA, ROOT
from tests.kit import images
import minipull
from tests.kit.processes import DockerRegistry, free_port, run, short_folder, wait_until
from tests.kit.images import Layout, Spec
from minipull.registry.auth import Credential
from minipull.image.descriptor import Descriptor
from minipull.digest import DiffID, Digest
from minipull.registry.endpoints import Endpoint
from minipull.errors import NetworkError, NotFound, StorageError
from minipull.registry.errors import RegistryError
from minipull.store.metadata import V2Metadata
from minipull.progress import Progress, discard
from minipull.distribution.mounts import budget, by_likeness, mount_candidates
from minipull.distribution.push_v2 import Pushed, V2PushDescriptor, V2Pusher
from minipull.reference import Reference
from minipull.registry.client import Client
from minipull.cancel import Cancel
from minipull.xfer.upload import LayerUploadManager
from tests.kit.servers import (
    Connection, FaultProxy, ScriptedServer, TokenAuth, Uploads, close, error, hold, redirect, reply, reset)
from tests.xfer.test_download import Log, background
from tests.kit.stores import keep, keep_index

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
DIFF_ID = DiffID(Digest.of(b"layer"))
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.registry.transport.RETRY_DELAYS", (0.001,))
    monkeypatch.setattr("minipull.registry.transport.RATE_LIMIT_DELAYS", (0.001,))
    monkeypatch.setattr("minipull.distribution.blobs.SEND_DELAYS", (0.001, 0.001, 0.001))


@pytest.fixture
def store(tmp_path: Path) -> minipull.Store:
    return minipull.Store(str(tmp_path / "store"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def target(server: ScriptedServer) -> Uploads:
    return Uploads(server)


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


# -- the engine's tables -----------------------------------------------------------


def association(row: Sequence[str]) -> V2Metadata:
    """A digest is of a word; the mark is of these credentials, if of any."""
    word, source, key = row
    digest = Digest.of(word.encode())
    mark = hmac.new(key.encode(), (digest + source).encode(), hashlib.sha256).hexdigest() if key else ""
    return V2Metadata(digest, source, mark)


@pytest.mark.parametrize("case", TABLES["mount_candidates"], ids=lambda case: case["name"])
def test_mount_candidates_are_the_engines(case: Dict[str, Any]) -> None:
    found = mount_candidates(Reference.parse(case["target"]), case["key"].encode(), case["most"],
                             [association(row) for row in case["entries"]])
    assert [entry.digest for entry in found] == [Digest.of(word.encode()) for word in case["expected"]]


@pytest.mark.parametrize("size, mounts, checks, elsewhere", TABLES["push_budgets"])
def test_budgets_are_the_engines(size: int, mounts: int, checks: int, elsewhere: bool) -> None:
    assert budget(size) == (mounts, checks, elsewhere)


@pytest.fixture
def pusher(server: ScriptedServer, store: minipull.Store) -> Iterator[Any]:
    """``pusher("busybox", "key")``: a pusher to the scripted server, whatever the domain."""
    clients: List[Client] = []

    def make(target: str, key: str = "", **credential: str) -> V2Pusher:
        reference = Reference.parse(target)
        known = Credential(**credential)
        explicit = {} if known.anonymous else {reference.domain: known}
        clients.append(Client(minipull.RegistryService(), minipull.Credentials(explicit=explicit)))
        repository = clients[-1].repository(Endpoint(server.url, reference.domain), reference, push=True)
        made = V2Pusher(repository, store, LayerUploadManager(tick=0.0001), reference, discard, Cancel())
        if key or known.anonymous:
            made.key = key.encode()
        return made

    yield make
    for client in clients:
        client.__exit__()


def layer(pusher: V2Pusher, rows: Sequence[Sequence[str]]) -> V2PushDescriptor:
    """A layer of which this is known; free, so that any of these blobs would do."""
    for row in rows:
        pusher.store.metadata.add(DIFF_ID, association(row))
    data = bytes(1 << 20)
    pusher.store.content.put(Digest.of(data), data)
    blob = Descriptor(images.DOCKER_LAYER, Digest.of(data), len(data))
    return V2PushDescriptor(pusher, blob, DIFF_ID, free=True)


@pytest.mark.parametrize("case", TABLES["layer_already_exists"], ids=lambda case: case["name"])
def test_existence_checks_are_the_engines(server: ScriptedServer, pusher: Any, case: Dict[str, Any]) -> None:
    for word, status in case["errors"].items():
        server.on("HEAD", Digest.of(word.encode()), error(status))
    for word in case["remote"]:
        server.on("HEAD", Digest.of(word.encode()), reply(200, word, {"Content-Type": "custom/type"}))
    made = pusher(case["target"], case["key"])
    found = layer(made, case["entries"]).already_exists(case["elsewhere"], case["most"], Cancel())
    word = case["exists"]
    assert found == (word and Descriptor(images.DOCKER_LAYER + ".gzip", Digest.of(word.encode()), len(word)))
    path = "/v2/%s/blobs/" % Reference.parse(case["target"]).path
    assert [request.path for request in server.requests] == [
        path + Digest.of(word.encode()) for word in case["requests"]]
    removed, added = [[association(row) for row in case[what]] for what in ("removed", "added")]
    before = [association(row) for row in case["entries"]]
    assert made.store.metadata.get_metadata(DIFF_ID) == [
        entry for entry in before if entry not in removed + added] + added


@pytest.mark.parametrize("case", TABLES["auth_info"])
def test_who_comes_with_credentials_is_told_from_who_does_not(pusher: Any, case: Dict[str, Any]) -> None:
    expected = case.pop("expected")
    assert pusher("r.com/r", **case).has_auth_info is expected


def test_an_identity_token_alone_is_no_credential_for_this(pusher: Any) -> None:
    made = pusher("r.com/r", identity_token="token")
    assert not made.has_auth_info and made.key.startswith(b"sha256:")
    assert pusher("r.com/r").key == b""


@pytest.mark.parametrize("case", TABLES["push_registry_auth_empty"])
def test_a_refusal_of_nobody_in_particular_forgets_nothing(
        server: ScriptedServer, pusher: Any, case: Dict[str, Any]) -> None:
    server.on(".*", "", error(401, case["mount_error_codes"][0]))
    rows = TABLES["mount_candidates"][-1]["entries"]
    made = pusher("user/app", "abcd")
    with pytest.raises(RegistryError, match="unauthorized"):
        made._uploads.upload(None, [layer(made, rows)], discard, Cancel())
    assert len(server.seen("POST", "uploads")) == 4  # three mounts, one upload
    left = made.store.metadata.get_metadata(DIFF_ID)
    assert (left != [association(row) for row in rows]) is case["removed"]


def test_likeness_ends_at_the_first_difference() -> None:
    rows = [["1", "r.com/a/x/c", ""], ["2", "r.com/a", ""], ["3", "s.com/a/b/c", ""]]
    found = by_likeness("r.com/a/b/c", b"", [association(row) for row in rows])
    assert [entry.source_repository for entry in found] == ["r.com/a", "r.com/a/x/c", "s.com/a/b/c"]


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


def test_what_was_pushed_is_remembered_and_not_sent_again(
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


def test_an_index_is_not_sent_again_either(
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
def test_what_an_index_names_is_never_rewritten(
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


def test_a_store_that_can_not_be_written_to_can_be_pushed_from(
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


# -- mounting ----------------------------------------------------------------------


SIZE = 200000  # stored: large enough to be looked for


def seen_in(store: minipull.Store, made: images.Image, repository: str, hmac: str = "") -> None:
    """Remember that another repository has the layers, and nothing else."""
    for x in made.layers:
        diff_id = DiffID(Digest(x.diff_id))
        for entry in store.metadata.get_metadata(diff_id):
            store.metadata.remove(entry)
        store.metadata.add(diff_id, V2Metadata(Digest(x.descriptor["digest"]), repository, hmac))


def test_a_sibling_repository_gives_every_layer(
        registry: DockerRegistry, store: minipull.Store, layout: Layout) -> None:
    with FaultProxy(registry.host) as proxy:
        made = layout.image([Spec(SIZE, seed=1, text=0), Spec(1000, seed=2)])
        keep(store, layout, made, proxy.host + "/pushed/one:1")
        minipull.push(proxy.host + "/pushed/one:1", store)
        before, log = dict(proxy.up), Log()
        [pushed] = minipull.push(
            proxy.host + "/pushed/one:1", store, dest=proxy.host + "/pushed/two", progress=log)
        assert results([pushed]) == ["Mounted from pushed/one"] * 2
        assert str(pushed.name) == proxy.host + "/pushed/two:1"
        sent = {key: size for key, size in proxy.up.items() if before.get(key) != size}
        assert sum(sent.values()) == made.config["size"] + len(made.raw)
        assert log.actions(made.layers[0].diff_id[7:19])[-1] == "Mounted from pushed/one"
        assert entries(store, made.layers[0].diff_id)[-1].source_repository == proxy.host + "/pushed/two"


def test_a_mount_is_asked_for_in_the_order_of_the_specification(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = kept(server, store, layout, [Spec(SIZE, text=0)])
    digest = made.layers[0].descriptor["digest"]
    seen_in(store, made, server.host + "/some/base")
    target.elsewhere["some/base"] = {digest: layout.read(digest)}
    assert results(push(server, store)) == ["Mounted from some/base"]
    assert "/v2/r/blobs/uploads/?from=some%2Fbase&mount=" + digest.replace(":", "%3A") in [
        request.target for request in server.seen("POST")]


def test_the_upload_that_a_registry_opens_instead_is_used(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = kept(server, store, layout, [Spec(SIZE, text=0)])
    seen_in(store, made, server.host + "/base")
    assert results(push(server, store)) == ["Pushed"]
    assert sorted(bool(request.query) for request in server.seen("POST")) == [False, True]  # for the config, too
    assert target.sessions == {} and server.seen("DELETE") == []
    assert [entry.source_repository for entry in entries(store, made.layers[0].diff_id)] == [server.host + "/r"]


def test_of_several_opened_uploads_the_last_is_used_and_the_others_ended(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = kept(server, store, layout, [Spec(SIZE, text=0)])
    digest = Digest(made.layers[0].descriptor["digest"])
    seen_in(store, made, server.host + "/a")
    for name in ("b", "c"):
        store.metadata.add(DiffID(Digest(made.layers[0].diff_id)), V2Metadata(digest, server.host + "/" + name))
    push(server, store)
    assert [request.query["from"] for request in server.seen("POST") if request.query] == ["c", "b", "a"]
    assert len(server.seen("DELETE")) == 2 and target.sessions == {}
    target.blobs.clear()
    target.elsewhere["b"] = {digest: layout.read(digest)}
    for name in ("b", "c"):
        store.metadata.add(DiffID(Digest(made.layers[0].diff_id)), V2Metadata(digest, server.host + "/" + name))
    server.on("DELETE", "", close)  # which nobody needs
    assert results(push(server, store)) == ["Mounted from b"]


@pytest.mark.parametrize("answer, hmac, creds, remembered", [
    (error(404, "BLOB_UNKNOWN"), "", "", False), (error(404, "BLOB_UNKNOWN"), "0" * 64, "", True),
    (error(404, "BLOB_UNKNOWN"), "", "u:p", False), (error(404, "BLOB_UNKNOWN"), "ours", "u:p", False),
    (error(404, "BLOB_UNKNOWN"), "0" * 64, "u:p", True), (error(403, "DENIED"), "", "", False),
    (error(401, "UNAUTHORIZED"), "", "", True), (error(401, "UNAUTHORIZED"), "", "u:p", False),
    (error(500), "", "", False), (redirect("/elsewhere", 302), "", "u:p", False),
])
def test_a_refused_mount_is_forgotten_by_the_engines_rules(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout, answer: Any,
        hmac: str, creds: str, remembered: bool) -> None:
    made = kept(server, store, layout, [Spec(SIZE, text=0)])
    explicit = {server.host: Credential(*creds.split(":"))} if creds else {}
    credentials = minipull.Credentials(explicit=explicit)
    digest, source = Digest(made.layers[0].descriptor["digest"]), server.host + "/base"
    if hmac == "ours":
        key = b"sha256:" + hashlib.sha256(b'{"username":"u","password":"p"}').hexdigest().encode()
        hmac = globals()["hmac"].new(key, (digest + source).encode(), hashlib.sha256).hexdigest()
    seen_in(store, made, source, hmac)
    server.on("POST", r"mount=", answer)
    assert results(push(server, store, credentials=credentials)) == ["Pushed"]
    assert (V2Metadata(digest, source, hmac) in entries(store, made.layers[0].diff_id)) is remembered


def test_a_blob_that_is_said_to_be_mounted_and_is_not_there_is_sent(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    server.on("POST", "mount=", reply(201))
    for n, compression in enumerate(("gzip", "")):
        layout = Layout(tmp_path / ("layout-%d" % n))
        made = layout.image([Spec(SIZE, seed=n, text=0, compression=compression)])
        loaded(server, store, layout, made)
        gone = [Digest(made.layers[0].descriptor["digest"]), Digest.of(b"compressed")][n]
        store.metadata.add(DiffID(Digest(made.layers[0].diff_id)), V2Metadata(gone, server.host + "/base"))
        assert results(push(server, store)) == ["Pushed"]
        assert set(json.loads(target.manifests["latest"])) == set(json.loads(made.raw))


def test_a_source_that_the_token_server_refuses_costs_the_mount_alone(
        registry: DockerRegistry, store: minipull.Store, layout: Layout) -> None:
    class Strict(TokenAuth):
        def token(self, connection: Connection) -> None:
            if "secret" in connection.request.target:
                return error(403, "DENIED")(connection)
            super().token(connection)

    made = layout.image([Spec(SIZE, text=0)])
    auth = Strict({"u": "p"})
    with FaultProxy(registry.host, auth=auth) as proxy:
        name = proxy.host + "/pushed/strict:1"
        keep(store, layout, made, name)
        seen_in(store, made, proxy.host + "/secret/base")
        [pushed] = minipull.push(name, store, credentials=minipull.Credentials(
            explicit={proxy.host: Credential("u", "p")}))
        assert results([pushed]) == ["Pushed"]
        scopes = [request.target.partition("?")[2] for request in proxy.seen("GET", "^/token$")]
        assert ["secret" in scope for scope in scopes] == [False, True]


# -- existence ---------------------------------------------------------------------


@pytest.mark.parametrize("answer", [error(403, "DENIED"), error(500), reset, reply(200, headers={
    "Transfer-Encoding": "chunked", "Content-Length": ""})], ids=["denied", "broken", "reset", "no length"])
def test_no_answer_to_an_existence_check_fails_a_push(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout, answer: Any) -> None:
    made = kept(server, store, layout, [Spec(SIZE, text=0)])
    config = layout.read(made.config["digest"])
    server.on("HEAD", "", answer)
    server.on("HEAD", made.config["digest"], reply(200, config))
    target.blobs[made.config["digest"]] = config
    assert results(push(server, store)) == ["Pushed"]


def test_a_head_without_a_length_is_no_answer(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    kept(server, store, layout, [Spec(SIZE, text=0)])
    server.on("HEAD", "", lambda connection: connection.send(b"HTTP/1.1 200 OK\r\n\r\n"))
    assert results(push(server, store)) == ["Pushed"]


def test_who_can_not_be_reached_is_asked_once(store: minipull.Store, layout: Layout) -> None:
    name = "127.0.0.1:%d/r:latest" % free_port()
    keep(store, layout, layout.image([Spec(SIZE, text=0)]), name)
    with pytest.raises(NetworkError, match="refused"):
        minipull.push(name, store)


def test_a_large_layer_is_looked_for_though_nothing_is_known_of_it(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = layout.image([Spec(SIZE, text=0), Spec(100, seed=1)])
    for x in made.layers:
        target.blobs[x.descriptor["digest"]] = layout.read(x.descriptor["digest"])
    loaded(server, store, layout, made)
    assert results(push(server, store)) == ["Layer already exists", "Pushed"]


def test_what_is_gone_from_where_it_was_is_sent_again(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    made = kept(server, store, layout, [Spec(SIZE, text=0)])
    push(server, store)
    target.blobs.clear()
    assert results(push(server, store)) == ["Pushed"]
    assert len(entries(store, made.layers[0].diff_id)) == 2


def test_a_manifest_whose_blobs_are_unknown_is_followed_by_everything_once_more(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout")
    loaded(server, store, layout, index)
    server.on("HEAD", "/blobs/", reply(200, "x"))  # a cache that lies
    assert set(results(push(server, store))) == {"Pushed"}
    assert target.manifests["latest"] == index.raw
    server.on("PUT", "/manifests/", error(404, "BLOB_UNKNOWN"))
    asked(server)
    with pytest.raises(RegistryError, match="blob unknown"):
        push(server, store)
    assert len(asked(server, "PUT", "/manifests/")) == 2


def test_a_manifest_that_is_refused_is_not_sent_again(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    kept(server, store, layout, images.specs(1))
    server.on("PUT", "/manifests/", error(400, "MANIFEST_INVALID"))
    with pytest.raises(RegistryError, match="push %s/r: manifest invalid" % server.host):
        push(server, store)
    assert len(asked(server, "PUT", "/manifests/")) == 1


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


# -- foreign layers ----------------------------------------------------------------


def test_a_foreign_layer_stays_where_it_is(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout", docker=True)
    made = layout.image(images.specs(2))
    manifest = json.loads(made.raw)
    manifest["layers"][0].update(mediaType=FOREIGN, urls=["https://example.com/layer"])
    raw = images.to_json(manifest)
    made = made._replace(descriptor=layout.blob(raw, images.DOCKER_MANIFEST), raw=raw)
    layout.path(made.layers[0].descriptor["digest"]).unlink()
    loaded(server, store, layout, made)
    log = Log()
    assert results(push(server, store, progress=log)) == ["Skipped foreign layer", "Pushed"]
    assert log.actions(made.layers[0].diff_id[7:19]) == ["Preparing", "Skipped foreign layer"]
    assert target.manifests["latest"] == raw


# -- layers that lie here uncompressed -----------------------------------------------


def plain(tmp_path: Path, docker: bool = False) -> Tuple[Layout, images.Image]:
    layout = Layout(tmp_path / ("docker" if docker else "oci"), docker)
    return layout, layout.image([Spec(5000000, text=1, compression=""), Spec(3000, seed=1, compression="")])


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "schema2"])
def test_what_no_registry_has_so_is_compressed_on_its_way(
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
def test_what_broke_off_while_it_was_compressed_is_begun_anew(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path, fault: Any) -> None:
    layout, made = plain(tmp_path)
    loaded(server, store, layout, made)
    server.on("PATCH", "", fault, target.append)
    push(server, store, attempts=1)
    assert len(target.manifests) == 2 and len(server.seen("PATCH")) == 3
    target.blobs.clear()
    server.on("PATCH", "", fault)
    with pytest.raises(minipull.Error):
        push(server, store, attempts=1, uploads=LayerUploadManager(1, 1))
    assert len(asked(server, "PATCH")) == 3 + 4


def test_what_is_compressed_goes_in_chunks_if_that_is_wanted(
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
    assert len(asked(server, "PATCH")) == 1


def test_a_damaged_layer_is_not_compressed(
        server: ScriptedServer, store: minipull.Store, target: Uploads, tmp_path: Path) -> None:
    layout, made = plain(tmp_path)
    loaded(server, store, layout, made)
    path = Path(store.content.path(Digest(made.layers[0].diff_id)))
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(StorageError, match="blob %s in the store is corrupt" % made.layers[0].diff_id):
        push(server, store)
    assert target.manifests == {}
