# SPDX-License-Identifier: Apache-2.0
"""Which endpoint is asked, what is made of their answers, and the text of the error."""
import os
from pathlib import Path
from typing import Any, List

import pytest

from tests.kit import images
import minipull
from tests.kit.processes import free_port
from minipull.registry.auth import Credential
from minipull.distribution.pull import pull_options
from minipull.distribution.push import pushed_images
from minipull.store.store import host_platform
from minipull.registry.endpoints import Host
from minipull.errors import InvalidReference, NetworkError, NoSupport, NotFound, StorageError
from minipull.registry.errors import RegistryError
from tests.kit.certificates import Certificates
from tests.kit.servers import ScriptedServer, Uploads, close, content, error, reply
from tests.kit.stores import keep
from tests.kit.v1server import V1Server, blobs

pytestmark = pytest.mark.usefixtures("no_waiting")


def mirrored(*mirrors: str, fallback: bool = True, domain: str = "docker.io") -> minipull.RegistryService:
    return minipull.RegistryService(hosts={domain: Host(mirrors, fallback)})


# -- endpoints -------------------------------------------------------------------


def test_a_mirror_is_asked_first_for_whom_it_mirrors(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    server.on("GET", "/v2/library/r/manifests/latest", content(made.raw, images.OCI_MANIFEST))
    for blob in [made.config, *(layer.descriptor for layer in made.layers)]:
        server.on("GET", "/v2/library/r/blobs/" + blob["digest"], content(layout.read(blob["digest"])))
    credentials = minipull.Credentials(explicit={
        "docker.io": Credential("user", "password")})
    image = minipull.pull("r", store, service=mirrored(server.url), credentials=credentials)
    assert str(image) == "docker.io/library/r@" + made.digest
    assert {request.query.get("ns") for request in server.requests} == {"docker.io"}
    server.assert_no_credentials()


@pytest.mark.parametrize("answer", [error(404, "MANIFEST_UNKNOWN"), error(500), error(401, "UNAUTHORIZED"),
                                    reply(200, "<html>", {"Content-Type": "text/html"})])
def test_after_any_error_of_a_mirror_the_registry_is_asked(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store, tmp_path: Path,
        answer: Any) -> None:
    layout, made = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")
    foreign.on("GET", "/manifests/", answer)
    image = minipull.pull(server.host + "/r", store, service=mirrored(foreign.url, domain=server.host))
    assert image.source == made.digest
    assert foreign.seen("GET", "/manifests/")


def test_without_fallback_the_registry_is_not_asked(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store) -> None:
    foreign.on("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"))
    service = mirrored(foreign.url, fallback=False, domain=server.host)
    with pytest.raises(RegistryError, match=foreign.host):
        minipull.pull(server.host + "/r", store, service=service)
    assert server.connections == 0


def test_an_error_of_the_registry_itself_is_final(server: ScriptedServer, store: minipull.Store) -> None:
    server.on("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(RegistryError) as caught:
        minipull.pull(server.host + "/r:nope", store)
    assert isinstance(caught.value, minipull.NotFound) and caught.value.exit_code == 3
    assert str(caught.value) == "pull %s/r:nope: manifest unknown: manifest_unknown (%s)" % (
        server.host, server.host)


def test_an_answer_decides_and_a_silent_mirror_is_named_after_it(foreign: ScriptedServer, store: minipull.Store) -> None:
    dead = "127.0.0.1:%d" % free_port()
    foreign.on("GET", "/manifests/", error(404, "NAME_UNKNOWN"))
    with pytest.raises(RegistryError) as caught:
        minipull.pull(foreign.host + "/r", store,
                      service=mirrored("http://" + dead, domain=foreign.host))
    assert caught.value.exit_code == 3
    assert str(caught.value) == "pull %s/r:latest: name unknown: name_unknown (%s); mirror http://%s: connection refused" % (
        foreign.host, foreign.host, dead)
    with pytest.raises(NetworkError) as silent:
        minipull.pull(dead + "/r", store, service=mirrored(foreign.url, domain=dead))
    assert foreign.host in str(silent.value) and str(silent.value).count(dead + ":") == 1
    assert silent.value.exit_code == 5


def test_plain_http_is_over_for_a_host_that_spoke_tls(
        certificates: Certificates, store: minipull.Store) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "/manifests/", [reply(200, b"", length=5), close])
        with pytest.raises(NetworkError):
            minipull.pull(server.host + "/r", store)
        assert server.tls_errors == []


def test_a_service_without_endpoints_is_an_error(store: minipull.Store) -> None:
    class Nowhere(minipull.RegistryService):
        def pull_endpoints(self, reference: minipull.Reference) -> List[Any]:
            return []

    with pytest.raises(NotFound, match="no endpoints found for localhost/r:latest"):
        minipull.pull("localhost/r", store, service=Nowhere())


def test_trouble_of_our_own_is_no_reason_to_ask_another(
        server: ScriptedServer, foreign: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        minipull.pull(server.host + "/r", minipull.Store(str(tmp_path / "file" / "s")),
                      service=mirrored(foreign.url, domain=server.host))
    assert server.connections == 0


def test_a_set_cancel_asks_nobody(server: ScriptedServer, store: minipull.Store) -> None:
    cancel = minipull.Cancel()
    cancel.cancel()
    with pytest.raises(minipull.Cancelled):
        minipull.pull(server.host + "/r", store, cancel=cancel)
    assert server.requests == []


# -- what is asked for -----------------------------------------------------------


@pytest.mark.parametrize("name", ["scratch", "docker.io/library/scratch:x"])
def test_scratch_is_reserved(store: minipull.Store, name: str) -> None:
    with pytest.raises(InvalidReference, match="'scratch' is a reserved name"):
        minipull.pull(name, store)


def test_scratch_elsewhere_is_a_name(server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, _ = images.single(tmp_path / "layout")
    server.serve(layout.root, "scratch")
    minipull.pull(server.host + "/scratch", store)


def test_the_platform_is_the_hosts_unless_asked_for() -> None:
    assert pull_options() == pull_options(None)
    assert (pull_options().platform, pull_options().exact) == (host_platform(), False)
    wanted = pull_options("arm64")
    assert (str(wanted.platform), wanted.exact) == ("linux/arm64", True)
    assert pull_options(minipull.Platform("linux", "s390x")).platform.architecture == "s390x"
    with pytest.raises(InvalidReference):
        pull_options("linux/amd64", all_platforms=True)
    with pytest.raises(InvalidReference):
        pull_options("linux/amd64/v2/x")


@pytest.mark.parametrize("machine, platform", [
    ("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7"),
    ("armv6l", "linux/arm/v6"), ("i686", "linux/386"), ("ppc64le", "linux/ppc64le"),
    ("loongarch64", "linux/loong64")])
def test_machines_are_platforms(monkeypatch: pytest.MonkeyPatch, machine: str, platform: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "", "", machine)))
    found = host_platform().normalized()
    assert found == minipull.Platform.parse(platform).normalized()


def test_windows_runs_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    assert str(host_platform()) == "windows/amd64"


# -- what is pushed --------------------------------------------------------------


@pytest.fixture
def pushed(store: minipull.Store, tmp_path: Path) -> images.Image:
    """``localhost/r`` as 1 and 2, and by digest alone ``localhost/s``."""
    layout, made = images.single(tmp_path / "layout")
    for name in ("localhost/r:1", "localhost/r:2"):
        keep(store, layout, made, name)
    keep(store, layout, made, "localhost/s@" + made.digest)
    return made


@pytest.mark.parametrize("name, dest, found", [
    ("localhost/r:1", None, "localhost/r:1"), ("localhost/r:2", "localhost/x", "localhost/x:2"),
    ("localhost/r:2", "r.com/x/y:3", "r.com/x/y:3"), ("ID", "localhost/x:3", "localhost/x:3"),
    ("localhost/s@DIGEST", "localhost/x", "localhost/x:latest"),
    ("localhost/s@DIGEST", "localhost/x:3", "localhost/x:3"),
])
def test_an_image_is_pushed_under_its_own_name_or_another(
        store: minipull.Store, pushed: images.Image, name: str, dest: Any, found: str) -> None:
    name = name.replace("DIGEST", pushed.digest).replace("ID", pushed.config["digest"][7:19])
    [(image, target)] = pushed_images(name, store, dest)
    assert (str(target), image.source) == (found, pushed.digest)
    if "@" not in name and dest is None:
        assert pushed_images(minipull.Reference.parse(name), store) == [(image, target)]


def test_all_tags_are_those_of_the_name_in_their_order(store: minipull.Store, pushed: images.Image) -> None:
    names = [str(name) for _, name in pushed_images("localhost/r", store, all_tags=True)]
    assert names == ["localhost/r:1", "localhost/r:2"]
    other = minipull.Reference.parse("r.com/x")
    assert [str(name) for _, name in pushed_images("localhost/r", store, other, True)] == ["r.com/x:1", "r.com/x:2"]


@pytest.mark.parametrize("name, dest, all_tags, kind, text", [
    ("busybox", None, False, NotFound, "An image does not exist locally with the tag: busybox"),
    ("busybox", None, True, NotFound, "An image does not exist locally with the tag: busybox"),
    ("localhost/s", "localhost/x", True, NotFound, "An image does not exist locally with the tag: localhost/s"),
    ("localhost/r:3", None, False, NotFound, "tag does not exist: localhost/r:3"),
    ("localhost/r", None, False, NotFound, "tag does not exist: localhost/r:latest"),
    ("localhost/r", "localhost/x", False, NotFound, "No such image: localhost/r:latest"),
    ("localhost/r@DIGEST", None, False, InvalidReference, "cannot push a digest reference"),
    ("localhost/r:1", "localhost/x@DIGEST", False, InvalidReference, "cannot push a digest reference"),
    ("localhost/r:1", None, True, InvalidReference, "tag can't be used with --all-tags/-a"),
    ("localhost/r", "localhost/x:1", True, InvalidReference, "tag can't be used with --all-tags/-a"),
    ("localhost/r@DIGEST", "localhost/x", True, InvalidReference, "tag can't be used with --all-tags/-a"),
])
def test_a_push_that_is_impossible_fails_in_the_engines_words(
        store: minipull.Store, pushed: images.Image, name: str, dest: Any, all_tags: bool, kind: type,
        text: str) -> None:
    name, dest = name.replace("DIGEST", pushed.digest), dest and dest.replace("DIGEST", pushed.digest)
    with pytest.raises(kind) as caught:
        pushed_images(name, store, dest, all_tags)
    assert str(caught.value) == text


def test_a_mirror_is_never_pushed_to(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    keep(store, layout, made, server.host + "/r:1")
    uploads = Uploads(server)
    minipull.push(server.host + "/r:1", store, service=mirrored(foreign.url, domain=server.host))
    assert uploads.manifests["1"] == made.raw and foreign.requests == []


def test_the_error_of_a_push_says_what_failed_on_whom(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    keep(store, layout, made, server.host + "/r:1")
    server.on("POST", "", error(403, "DENIED"))
    with pytest.raises(RegistryError) as caught:
        minipull.push(server.host + "/r:1", store)
    assert str(caught.value) == "push %s/r: denied (%s)" % (server.host, server.host)
    assert caught.value.exit_code == 4 and len(server.seen("POST")) <= 4
    dead = "127.0.0.1:%d" % free_port()
    with pytest.raises(NetworkError, match="push %s/x: .*refused" % dead) as silent:
        minipull.push(server.host + "/r:1", store, dest=dead + "/x")
    assert silent.value.exit_code == 5


def test_of_several_tags_the_first_that_fails_is_the_last(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    for tag in "123":
        keep(store, layout, made, "%s/r:%s" % (server.host, tag))
    uploads = Uploads(server)
    server.on("PUT", "/manifests/2", error(403, "DENIED"))
    with pytest.raises(RegistryError):
        minipull.push(server.host + "/r", store, all_tags=True)
    assert set(uploads.manifests) == {"1", made.digest}


# -- the v1 side of a registry ---------------------------------------------------

V2 = {"Docker-Distribution-API-Version": "registry/2.0"}
SILENT = [close]
#: What answers: GET /v2/, anything else of v2, and of v1 a tag; who is asked by v1, the exit code, the text.
#: {v2} and {v1} stand for the places.  One row for each rule of the engine.
FALLBACK = [
    # all v2 endpoints, then v1
    ("v1 has what v2 has not", error(404), None, True, 0, ""),
    ("nothing that speaks v2", reply(404, "<html>"), None, True, 0, ""),
    ("v2 that says nothing of itself", reply(200), error(404, "MANIFEST_UNKNOWN"), True, 0, ""),
    ("v2 that says nothing of itself, no name", reply(200), error(404, "NAME_UNKNOWN"), True, 0, ""),
    ("v2 that says nothing of itself, no access", reply(401), error(401, "UNAUTHORIZED"), True, 0, ""),
    ("a portal", reply(200, "<html>"), reply(200, "<html>", {"Content-Type": "text/html"}), True, 0, ""),
    ("a server that fails", error(503), error(503), True, 0, ""),
    ("silence", SILENT, SILENT, True, 0, ""),
    # what v2 says is final
    ("no permission", reply(200), error(403, "DENIED"), False, 4, "denied ({v2})"),
    ("a limit", reply(200), error(429, "TOOMANYREQUESTS"), False, 8, "toomanyrequests ({v2})"),
    # a confirmed v2 never falls to v1
    ("confirmed by its ping", reply(200, "", V2), error(404, "MANIFEST_UNKNOWN"), False, 3, "manifest unknown"),
    ("confirmed, and then silent", reply(200, "", V2), SILENT, False, 5, "{v2}"),
    ("confirmed by a 401", reply(401, "", V2), error(404, "NAME_UNKNOWN"), False, 3, "name unknown"),
    ("confirmed by one of several", reply(200, "", {"Docker-Distribution-API-Version": "a/1 registry/2.0"}),
     error(404, "NAME_UNKNOWN"), False, 3, "name unknown"),
]


@pytest.fixture
def old() -> minipull.RegistryService:
    return minipull.RegistryService(legacy_v1=True, timeout=5)


@pytest.mark.parametrize("ping, rest, falls, code, text", [row[1:] for row in FALLBACK],
                         ids=[row[0] for row in FALLBACK])
def test_the_next_endpoint_is_asked_by_the_engines_rules(
        server: ScriptedServer, store: minipull.Store, old: minipull.RegistryService, ping: Any, rest: Any,
        falls: bool, code: int, text: str) -> None:
    V1Server(server).add(blobs(1), "1")
    server.on("GET", "^/v2/.", rest or error(404))
    server.on("GET", "^/v2/$", ping)
    try:
        minipull.pull(server.host + "/ns/r:1", store, service=old)
        found, said = 0, ""
    except minipull.Error as exc:
        found, said = exc.exit_code, str(exc)
    assert (found, bool(server.seen("GET", "^/v1/"))) == (code, falls)
    assert text.format(v2=server.host) in said


def test_a_manifest_proves_that_v2_is_spoken(
        server: ScriptedServer, store: minipull.Store, old: minipull.RegistryService, tmp_path: Path) -> None:
    layout, made = images.single(tmp_path / "layout")
    V1Server(server).add(blobs(1), "latest")
    server.serve(layout.root, "ns/r")
    server.on("GET", "^/v2/$", reply(200))
    server.on("GET", "/blobs/", error(404, "BLOB_UNKNOWN"))
    with pytest.raises(RegistryError):
        minipull.pull(server.host + "/ns/r", store, service=old)
    assert server.seen("GET", "^/v1/") == []


def test_mirrors_come_first_then_v2_then_v1(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store) -> None:
    V1Server(server).add(blobs(1), "1")
    service = minipull.RegistryService(hosts={server.host: Host((foreign.url,))}, legacy=[server.host])
    minipull.pull(server.host + "/ns/r:1", store, service=service)
    assert foreign.seen("GET", "^/v1/") == [] and foreign.seen("GET", "^/v2/$")
    paths = [request.path for request in server.requests]
    assert paths[0] == "/v2/" and paths[1] == "/v1/_ping" and not [path for path in paths[1:] if "/v2/" in path]


def test_a_mirror_that_proves_to_speak_v2_leaves_no_way_to_v1(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store) -> None:
    V1Server(server).add(blobs(1), "1")
    foreign.on("GET", "^/v2/$", reply(200, "", V2))
    service = minipull.RegistryService(hosts={server.host: Host((foreign.url,))}, legacy=[server.host])
    with pytest.raises(RegistryError, match="mirror %s: not found: not_found" % foreign.url):
        minipull.pull(server.host + "/ns/r:1", store, service=service)
    assert server.seen("GET", "^/v1/") == []


@pytest.mark.parametrize("digest", [True, False])
def test_unsupported_by_v1_is_hidden_behind_real_errors(
        server: ScriptedServer, store: minipull.Store, old: minipull.RegistryService, digest: bool) -> None:
    V1Server(server)
    name = server.host + "/ns/r" + ("@sha256:" + "0" * 64 if digest else ":2")
    if digest:
        with pytest.raises(NoSupport, match="Cannot pull by digest with v1 registry") as alone:
            minipull.pull(name, store, service=old)
        assert alone.value.exit_code == 1
        server.on("GET", "^/v2/", error(404, "NAME_UNKNOWN"))
        server.on("GET", "^/v2/$", reply(200))
        with pytest.raises(RegistryError) as hidden:
            minipull.pull(name, store, service=old)
        assert "Cannot pull by digest" not in str(hidden.value) and hidden.value.exit_code == 3
    else:
        with pytest.raises(NotFound) as real:
            minipull.pull(name, store, service=old)
        assert "does not speak" not in str(real.value)


def test_errors_of_v2_and_v1_stand_on_one_line(
        server: ScriptedServer, store: minipull.Store, old: minipull.RegistryService) -> None:
    V1Server(server)
    server.on("GET", "^/v2/", error(401, "UNAUTHORIZED"))
    server.on("GET", "^/v2/$", reply(200))
    with pytest.raises(NotFound) as caught:
        minipull.pull(server.host + "/ns/r:1", store, service=old)
    host = server.host
    assert str(caught.value) == "pull %s/ns/r:1: unauthorized (%s); Tag 1 not found in repository %s/ns/r (%s/v1)" % (
        host, host, host, host)
    assert caught.value.exit_code == 3


def test_an_unreachable_v1_endpoint_hides_no_error_of_v2(
        server: ScriptedServer, store: minipull.Store, old: minipull.RegistryService) -> None:
    server.on("GET", "^/v2/", error(404, "NAME_UNKNOWN"))
    server.on("GET", "^/v2/$", reply(200))
    server.on("GET", "^/v1/", close)
    with pytest.raises(RegistryError, match="name unknown") as caught:
        minipull.pull(server.host + "/ns/r:1", store, service=old)
    assert caught.value.exit_code == 3 and "/v1" not in str(caught.value)


def test_a_host_that_spoke_tls_is_not_asked_over_http_by_v1_either(
        certificates: Certificates, store: minipull.Store, old: minipull.RegistryService) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "/", error(404))
        with pytest.raises(NoSupport, match="does not speak the v"):
            minipull.pull(server.host + "/ns/r:1", store, service=old)
        assert server.tls_errors == [] and len(server.seen("GET", "_ping")) == 1


def test_a_cancelled_pull_never_falls_through(
        server: ScriptedServer, store: minipull.Store, old: minipull.RegistryService) -> None:
    V1Server(server).add(blobs(1), "1")
    cancel = minipull.Cancel()
    server.on("GET", "^/v2/", lambda connection: cancel.cancel())
    with pytest.raises(minipull.Cancelled):
        minipull.pull(server.host + "/ns/r:1", store, service=old, cancel=cancel)
    assert server.seen("GET", "^/v1/") == []


@pytest.mark.parametrize("service", [minipull.RegistryService(), minipull.RegistryService(legacy=["r.com"])])
def test_without_permission_v1_is_not_spoken_and_v2_not_pinged(
        server: ScriptedServer, store: minipull.Store, service: minipull.RegistryService) -> None:
    V1Server(server).add(blobs(1), "1")
    with pytest.raises(RegistryError):
        minipull.pull(server.host + "/ns/r:1", store, service=service)
    assert server.seen("GET", "^/v1/|^/v2/$") == []


def test_v1_comes_with_a_warning(server: ScriptedServer, store: minipull.Store) -> None:
    V1Server(server).add(blobs(1), "1")
    said: List[str] = []
    service = minipull.RegistryService(legacy=[server.host], warn=said.append)
    minipull.pull(server.host + "/ns/r:1", store, service=service)
    minipull.pull(server.host + "/ns/r:1", store, service=service)
    assert said == ["%s speaks the v1 protocol, in which nothing is verified" % server.host]


def test_hubs_v1_side_is_its_index() -> None:
    service = minipull.RegistryService(legacy_v1=True)
    [endpoint] = service.v1_endpoints(minipull.Reference.parse("alpine"))
    assert (endpoint.url, endpoint.host, endpoint.version) == ("https://index.docker.io", "docker.io", 1)
