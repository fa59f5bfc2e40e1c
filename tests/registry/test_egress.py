# SPDX-License-Identifier: Apache-2.0
"""No host is looked up or asked that the user has not allowed, whoever names it."""
import socket
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Set

import pytest

import minipull
from minipull.cancel import Cancel
from minipull.errors import Error, PolicyError
from minipull.reference import Reference
from minipull.registry.auth import Credential, Keyring
from minipull.registry.client import Client
from minipull.registry.endpoints import Endpoint, Host, RegistryService
from minipull.registry.login import login_with
from minipull.registry.network import Network
from minipull.registry.proxy import Proxies
from minipull.registry.request import Body
from minipull.registry.url import Origin
from tests.kit import images
from tests.kit.images import Layout
from tests.kit.proxies import Proxy
from tests.kit.pulls import manifest_of, rewrite
from tests.kit.servers import ScriptedServer, Uploads, challenge, error, redirect, reply

pytestmark = pytest.mark.usefixtures("no_waiting", "no_repeats")


# -- hosts -----------------------------------------------------------------------


@pytest.mark.parametrize("only, url, allowed", [
    ("r.lan", "https://r.lan", True), ("r.lan", "http://r.lan:5000", True), ("R.LAN", "https://r.lan/x", True),
    ("r.lan:5000", "https://r.lan:5000", True), ("r.lan:5000", "https://r.lan", False),
    ("r.lan:443", "https://R.lan", True), ("r.lan:443", "http://r.lan", False),
    ("r.lan", "https://a.r.lan", False), ("a.r.lan", "https://r.lan", False),
    ("r.lan", "https://r.lan.", False),
    ("r.lan", "https://r.lan.evil", False), ("[::1]", "http://[::1]:5000", True),
    ("[::1]:5000", "http://[::1]", False), ("127.0.0.1", "http://localhost", False),
    ("localhost", "http://127.0.0.1", False), ("docker.io", "https://registry-1.docker.io", True),
    ("docker.io:443", "https://registry-1.docker.io", True), ("docker.io", "https://auth.docker.io", False),
    ("registry-1.docker.io", "https://registry-1.docker.io", True), ("docker.io", "https://docker.io", True),
    ("registry-1.docker.io", "https://docker.io", False)])
def test_a_host_is_allowed_by_the_name_that_stands_in_its_url(only: str, url: str, allowed: bool) -> None:
    origin = Origin.of(url)
    assert Network(only=["x.lan", only]).allows(origin) is allowed
    assert Network().allows(origin)
    assert not Network(only=[]).allows(origin) and not Network(only=[only], offline=True).allows(origin)


# -- whoever names it --------------------------------------------------------------


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Set[str]:
    """The names that were looked up; names in .lan are 127.0.0.2, where the forbidden server is."""
    names: Set[str] = set()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, port: Any, *args: Any) -> Any:
        names.add(host)
        return resolve("127.0.0.2" if host.endswith(".lan") else host, port, *args)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


@pytest.fixture
def forbidden(foreign: ScriptedServer, looked_up: Set[str]) -> Iterator[ScriptedServer]:
    """A server that would answer, at other.lan; in the end it was not asked, nor its name."""
    foreign.on("GET|POST|PUT|PATCH", "", reply(200, {"token": "t"}))
    foreign.host = foreign.host.replace("127.0.0.2", "other.lan")
    foreign.url = "http://" + foreign.host
    yield foreign
    assert (foreign.connections, "other.lan" in looked_up) == (0, False)


@pytest.fixture
def pull(server: ScriptedServer, layout: Layout, store: minipull.Store) -> Callable[..., str]:
    """The outcome of a pull of ``r`` with the server alone allowed."""
    layout.image(images.specs(2, 900), "latest")
    server.serve(layout.root, "r")

    def call(only: Optional[Sequence[str]] = None, **options: Any) -> str:
        settings = options.pop("settings", {})
        service = RegistryService(network=Network(only=only or [server.host]), timeout=5, **settings)
        try:
            minipull.pull(server.host + "/r", store, service=service, **options)
            return "ok"
        except Error as exc:
            assert store.images() == []
            return "%d %s" % (exc.exit_code, exc)
    return call


def refusal(host: str, role: str) -> str:
    return "%s%s is not among --only (allowed-hosts)" % (host, role and ", %s," % role)


def test_what_is_allowed_works_as_ever(pull: Callable[..., str], forbidden: ScriptedServer) -> None:
    assert pull() == "ok"


def test_the_registry_itself_must_be_allowed(
        pull: Callable[..., str], server: ScriptedServer, forbidden: ScriptedServer) -> None:
    outcome = pull(only=["127.0.0.1:1", "localhost"])
    assert outcome == "9 pull %s/r:latest: %s" % (server.host, refusal(server.host, ""))
    assert server.connections == 0


def test_a_token_server_must_be_allowed(
        pull: Callable[..., str], server: ScriptedServer, forbidden: ScriptedServer) -> None:
    server.on("GET", "/v2/r/", challenge('Bearer realm="%s/token",service="s"' % forbidden.url))
    assert refusal(forbidden.host, "the token server of " + server.host) in pull()


@pytest.mark.parametrize("pattern", ["/manifests/", "/blobs/"])
def test_the_target_of_a_redirect_must_be_allowed(
        pull: Callable[..., str], server: ScriptedServer, forbidden: ScriptedServer, pattern: str) -> None:
    server.on("GET", pattern, redirect(forbidden.url + "/x?signature=secret"))
    outcome = pull()
    assert outcome.startswith("9 ") and "secret" not in outcome
    assert refusal(forbidden.host, "to which %s redirects" % server.host) in outcome


def test_a_redirect_from_an_allowed_host_to_an_allowed_host_is_followed(
        pull: Callable[..., str], server: ScriptedServer, foreign: ScriptedServer, layout: Layout) -> None:
    foreign.serve(layout.root, "r")
    server.on("GET", "/blobs/", lambda conn: redirect(foreign.url + conn.request.target)(conn))
    assert pull(only=[server.host, foreign.host]) == "ok" and foreign.connections


def test_a_foreign_layer_comes_from_an_allowed_host_alone(
        pull: Callable[..., str], server: ScriptedServer, layout: Layout, forbidden: ScriptedServer) -> None:
    manifest = manifest_of(layout)
    layer = dict(manifest["layers"][0], mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                 urls=["https://%s/layer" % forbidden.host])
    rewrite(layout, layers=[layer, *manifest["layers"][1:]])
    server.serve(layout.root, "r")
    server.on("GET", "/blobs/" + layer["digest"], error(404))
    outcome = pull(foreign=True)
    assert outcome.startswith("9 ")
    assert refusal(forbidden.host, "the source of a layer of %s/r" % server.host) in outcome


@pytest.mark.parametrize("fallback", [True, False])
def test_a_mirror_that_is_not_allowed_is_told_and_passed_over(
        pull: Callable[..., str], server: ScriptedServer, forbidden: ScriptedServer, fallback: bool) -> None:
    lines: List[str] = []
    host = Host((forbidden.url,), fallback)
    outcome = pull(settings={"hosts": {server.host: host}}, progress=lambda event: lines.append(event.message))
    problem = "mirror %s: is not among --only (allowed-hosts)" % forbidden.url
    assert outcome == ("ok" if fallback else "9 pull %s/r:latest: %s" % (server.host, problem))
    assert ("warning: %s; %s answered" % (problem, server.host) in lines) is fallback


def test_the_token_server_of_a_mirror_must_be_allowed(
        pull: Callable[..., str], server: ScriptedServer, forbidden: ScriptedServer) -> None:
    lines: List[str] = []
    with ScriptedServer() as mirror:
        mirror.on("GET", "", challenge('Bearer realm="%s/token"' % forbidden.url))
        host = Host((mirror.url,), fallback=True)
        assert pull([server.host, mirror.host], settings={"hosts": {server.host: host}},
                    progress=lambda event: lines.append(event.message)) == "ok"
    told = refusal(forbidden.host, "the token server of " + mirror.host)
    assert [told in line for line in lines if line.startswith("warning: ")] == [True]


def test_a_name_is_looked_up_for_insecure_networks_only_if_it_is_allowed(
        forbidden: ScriptedServer, looked_up: Set[str]) -> None:
    for domain, only, secure in ((forbidden.host, ["r.lan"], True), ("r.lan:5000", ["r.lan:5000"], False)):
        service = RegistryService(insecure=["127.0.0.0/8"], network=Network(only=only))
        assert service.is_secure(domain) is secure
    assert looked_up == {"r.lan"}


# -- other requests ----------------------------------------------------------------


def outcome_of(server: ScriptedServer, work: Callable[[Client, Reference], Any], **settings: Any) -> str:
    settings.setdefault("network", Network(only=[server.host]))
    with Client(RegistryService(timeout=5, **settings), Keyring()) as client:
        try:
            return str(work(client, Reference.parse(server.host + "/r")))
        except PolicyError as exc:
            return str(exc)


@pytest.mark.parametrize("location", ["POST", "Location"])
def test_an_upload_goes_to_an_allowed_host_alone(
        server: ScriptedServer, forbidden: ScriptedServer, location: str) -> None:
    def work(client: Client, name: Reference) -> None:
        upload = client.repository(Endpoint(server.url, server.host), name, push=True).start_upload(Cancel())
        assert upload is not None
        upload.append(Body.of(b"x"), Cancel())

    Uploads(server, base=forbidden.url + "/uploads/")
    if location == "POST":
        server.on("POST", "", redirect(forbidden.url + "/uploads/"))
    role = "to which %s %s" % (server.host, "redirects" if location == "POST" else "sends uploads")
    assert outcome_of(server, work) == refusal(forbidden.host, role)
    assert [request.method for request in server.requests] == ["POST"]


def test_a_login_asks_an_allowed_token_server_alone(server: ScriptedServer) -> None:
    with ScriptedServer() as tokens:
        server.on("GET", "", challenge('Bearer realm="%s/token"' % tokens.url))
        outcome = outcome_of(server, lambda client, name: login_with(client, name, Credential("a", "b"), Cancel()))
        assert refusal(tokens.host, "the token server of " + server.host) in outcome
        assert tokens.connections == 0


def test_a_registry_that_a_v1_index_names_must_be_allowed(server: ScriptedServer) -> None:
    with ScriptedServer() as registry:
        server.on("GET", "/images$", reply(200, b"[]", {"X-Docker-Endpoints": registry.host}))

        def work(client: Client, name: Reference) -> str:
            session = client.session(Endpoint(server.url, server.host, version=1), name)
            session.look_up("latest", Cancel())
            return session.tag("latest", Cancel())

        role = "named by " + server.host
        assert outcome_of(server, work) == refusal(registry.host, role)
        assert registry.connections == 0


def test_a_proxy_needs_no_entry_and_is_told_no_name_that_is_not_allowed(
        server: ScriptedServer, looked_up: Set[str]) -> None:
    server.on("GET", "", reply(200, "x"))
    with Proxy({"r.lan:80": server.host, "r.lan": server.host}) as proxy:
        for name, outcome in (("r.lan", "v2"), ("other.lan", refusal("other.lan", ""))):
            def work(client: Client, _: Reference) -> str:
                client.repository(Endpoint("http://" + name, name), Reference(name, "r")).ping(Cancel())
                return "v2"

            assert outcome_of(server, work, network=Network(only=["r.lan"]),
                              proxies=Proxies(http=proxy.host)) == outcome
        assert [request.target for request in proxy.requests] == ["http://r.lan/v2/"]
    assert looked_up == {proxy.host.partition(":")[0]}


# -- offline -----------------------------------------------------------------------


def test_offline_asks_nobody_and_says_so(server: ScriptedServer, store: minipull.Store) -> None:
    service = RegistryService(network=Network(offline=True, only=[server.host]))
    with pytest.raises(PolicyError, match="pull .*: %s is not asked with --offline$" % server.host):
        minipull.pull(server.host + "/r", store, service=service)
    assert server.connections == 0


def test_a_pull_of_what_is_stored_needs_no_network(
        pull: Callable[..., str], server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "multi")
    server.serve(layout.root, "r")
    assert pull(platform="linux/arm64") == "ok"
    server.stop()
    service = RegistryService(network=Network(offline=True))
    for name in (server.host + "/r", "%s/r@%s" % (server.host, index.digest)):
        image = minipull.pull(name, store, service=service, platform="linux/arm64")
        assert image.source == index.digest
    with pytest.raises(PolicyError, match="is not asked with --offline"):
        minipull.pull(server.host + "/r", store, service=service, platform="linux/amd64")
