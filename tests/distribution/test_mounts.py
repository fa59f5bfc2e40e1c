# SPDX-License-Identifier: Apache-2.0
"""A layer that the repository has is found, and one that a neighbour has is mounted, by the engine's rules."""
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import pytest

from tests.kit import DATA
from tests.kit import images
import minipull
from tests.kit.processes import DockerRegistry, free_port
from tests.kit.images import Layout, Spec
from minipull.registry.auth import Credential
from minipull.image.descriptor import Descriptor
from minipull.digest import DiffID, Digest
from minipull.registry.endpoints import Endpoint
from minipull.errors import NetworkError
from minipull.registry.errors import RegistryError
from minipull.store.metadata import V2Metadata
from minipull.progress import discard
from minipull.distribution.mounts import budget, by_likeness, mount_candidates
from minipull.distribution.push_v2 import V2PushDescriptor, V2Pusher
from minipull.reference import Reference
from minipull.registry.client import Client
from minipull.cancel import Cancel
from minipull.xfer.upload import LayerUploadManager
from tests.kit.proxies import FaultProxy
from tests.kit.tokens import TokenAuth
from tests.kit.servers import Connection, ScriptedServer, Uploads, close, error, redirect, reply, reset, send
from tests.kit.work import Log
from tests.kit.stores import keep
from tests.kit.pushes import asked, entries, kept, loaded, push, results

pytestmark = pytest.mark.usefixtures("no_waiting")


TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
DIFF_ID = DiffID(Digest.of(b"layer"))


@pytest.fixture
def target(server: ScriptedServer) -> Uploads:
    return Uploads(server)


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


def layer(pusher: V2Pusher, rows: Sequence[Sequence[str]], size: int = 1 << 20) -> V2PushDescriptor:
    """A layer of which this is known; free, so that any of these blobs would do."""
    for row in rows:
        pusher.store.metadata.add(DIFF_ID, association(row))
    data = bytes(size)
    pusher.store.writable.content.put(Digest.of(data), data)
    blob = Descriptor(images.DOCKER_LAYER, Digest.of(data), len(data))
    return V2PushDescriptor(pusher, blob, DIFF_ID, may_compress=True)


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


@pytest.mark.parametrize("size, checks", [(11 << 20, 3), (200 << 10, 1), (100 << 10, 1)])
def test_the_check_of_a_config_is_not_spent_on_a_layer(
        server: ScriptedServer, pusher: Any, size: int, checks: int) -> None:
    made = pusher("r.com/r")
    Uploads(server)
    made.checked.add(Digest.of(b"config"))
    rows = [["seen %d" % n, "r.com/r", ""] for n in range(5)]
    made._uploads.upload([layer(made, rows, size)], discard, Cancel())
    assert len(server.seen("HEAD")) == checks
    assert made.checked == {Digest.of(b"config")}


@pytest.mark.parametrize("case", TABLES["auth_info"])
def test_auth_info_is_a_token_or_a_user_with_password(pusher: Any, case: Dict[str, Any]) -> None:
    expected = case.pop("expected")
    assert pusher("r.com/r", **case).has_auth_info is expected


def test_an_identity_token_alone_is_no_credential_for_this(pusher: Any) -> None:
    made = pusher("r.com/r", identity_token="token")
    assert not made.has_auth_info and made.key.startswith(b"sha256:")
    assert pusher("r.com/r").key == b""


@pytest.mark.parametrize("case", TABLES["push_registry_auth_empty"])
def test_an_anonymous_401_forgets_no_association(
        server: ScriptedServer, pusher: Any, case: Dict[str, Any]) -> None:
    server.on(".*", "", error(401, case["mount_error_codes"][0]))
    rows = TABLES["mount_candidates"][-1]["entries"]
    made = pusher("user/app", "abcd")
    with pytest.raises(RegistryError, match="unauthorized"):
        made._uploads.upload([layer(made, rows)], discard, Cancel())
    assert len(server.seen("POST", "uploads")) == 4  # three mounts, one upload
    left = made.store.metadata.get_metadata(DIFF_ID)
    assert (left != [association(row) for row in rows]) is case["removed"]


def test_likeness_ends_at_the_first_difference() -> None:
    rows = [["1", "r.com/a/x/c", ""], ["2", "r.com/a", ""], ["3", "s.com/a/b/c", ""]]
    found = by_likeness("r.com/a/b/c", b"", [association(row) for row in rows])
    assert [entry.source_repository for entry in found] == ["r.com/a", "r.com/a/x/c", "s.com/a/b/c"]


def large(layout: Layout) -> images.Image:
    return layout.image([Spec(3000000, text=0), Spec(1000, seed=1)])


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
    (reset, "", "", False), (close, "u:p", "0" * 64, True), (error(503), "", "", False),
    (error(429, "TOOMANYREQUESTS"), "", "", False), (reply(200, "<html>"), "", "", False),
    (error(429, "TOOMANYREQUESTS", {"Retry-After": "3600"}), "", "", False),
    ([send(b"HTTP/1.1 418\r\n\r\n"), close], "", "", False), ([send(b"\0\r\n" * 9), close], "", "", False),
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
    assert results(push(server, store, attempts=1, credentials=credentials)) == ["Pushed"]
    # Once, or on another connection again where an old one may have ended before.
    assert len([request for request in server.seen("POST") if request.query]) == 1 or answer in (reset, close)
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


@pytest.mark.parametrize("every", [False, True], ids=["layer", "config too"])
@pytest.mark.parametrize("answer", [
    error(403, "DENIED"), error(500), reset, error(429, "TOOMANYREQUESTS"), redirect("https://127.0.0.1:1/"),
    redirect("ftp://x/"), send(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
    reply(200, headers={"Transfer-Encoding": "chunked", "Content-Length": ""})], ids=[
    "denied", "broken", "reset", "limited", "elsewhere", "refused", "malformed", "no length"])
def test_no_answer_to_an_existence_check_fails_a_push(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout, answer: Any,
        every: bool) -> None:
    made = kept(server, store, layout, [Spec(SIZE, text=0)])
    config = layout.read(made.config["digest"])
    server.on("HEAD", "", answer)
    if not every:
        server.on("HEAD", made.config["digest"], reply(200, config))
        target.blobs[made.config["digest"]] = config
    assert results(push(server, store, attempts=1)) == ["Pushed"]
    checks = asked(server, "HEAD", "/blobs/")
    assert len(set(checks)) == 2 and len(checks) <= 3  # once more at most, on a new connection


@pytest.mark.parametrize("fault, status", [(error(429, "", {"Retry-After": "3600"}), 8), (reset, 5)])
def test_a_registry_that_takes_nothing_is_asked_for_no_more(
        server: ScriptedServer, store: minipull.Store, layout: Layout, fault: Any, status: int) -> None:
    kept(server, store, layout, [Spec(SIZE, text=0), Spec(SIZE, seed=1, text=0)])
    server.on(".*", "", fault)
    with pytest.raises(minipull.Error) as caught:
        push(server, store)
    assert caught.value.exit_code == status and {request.method for request in server.requests} == {"HEAD", "GET"}


def test_a_head_without_a_length_is_no_answer(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    kept(server, store, layout, [Spec(SIZE, text=0)])
    server.on("HEAD", "", lambda connection: connection.send(b"HTTP/1.1 200 OK\r\n\r\n"))
    assert results(push(server, store)) == ["Pushed"]


def test_a_registry_that_can_not_be_reached_is_asked_once(store: minipull.Store, layout: Layout) -> None:
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


def test_a_blob_that_is_gone_from_the_target_is_sent_again(
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
    puts = asked(server, "PUT", "/manifests/")  # of children, which go side by side
    assert puts.count(puts[0]) == 2 and not any(put.endswith(index.digest) or "latest" in put for put in puts)


def test_a_manifest_that_is_refused_is_not_sent_again(
        server: ScriptedServer, store: minipull.Store, target: Uploads, layout: Layout) -> None:
    kept(server, store, layout, images.specs(1))
    server.on("PUT", "/manifests/", error(400, "MANIFEST_INVALID"))
    with pytest.raises(RegistryError, match="push %s/r: manifest invalid" % server.host):
        push(server, store)
    assert len(asked(server, "PUT", "/manifests/")) == 1
