# SPDX-License-Identifier: Apache-2.0
"""The v1 session: whom it asks, what it proves itself with, and what it refuses."""
from typing import Any, Callable, Iterator, List, Mapping, Optional, Type

import pytest

from minipull.registry.auth import Credential
from minipull.registry.endpoints import Endpoint, RegistryService
from minipull.errors import Error, InvalidDocument, NetworkError, NoSupport, NotFound, PolicyError
from minipull.registry.errors import RegistryError
from minipull.reference import Reference
from minipull.registry.v1 import Session
from minipull.cancel import Cancel
from minipull.registry.transport import Transport
from tests.kit.certificates import Certificates
from tests.kit.servers import Script, ScriptedServer, redirect, reply, send
from tests.kit.v1server import V1Server

pytestmark = pytest.mark.usefixtures("no_waiting")

USER = Credential("ann", "secret")
BASIC = "Basic YW5uOnNlY3JldA=="
TOKEN = 'Token signature=ABC,repository="ns/r",access='
ID, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def cancel() -> Cancel:
    return Cancel()


@pytest.fixture
def transports() -> Iterator[List[Transport]]:
    made: List[Transport] = []
    yield made
    for transport in made:
        transport.close()


Open = Callable[..., Session]


@pytest.fixture
def session(transports: List[Transport]) -> Open:
    def opened(server: ScriptedServer, path: str = "ns/r", credential: Credential = USER, ca: str = "",
               warn: Callable[[str], None] = lambda text: None) -> Session:
        transports.append(RegistryService(ca_file=ca, timeout=5).transport())
        endpoint = Endpoint(server.url, server.host, version=1)
        return Session(endpoint, Reference(server.host, path), transports[-1], lambda: credential, warn)
    return opened


def sent(server: ScriptedServer) -> List[Optional[str]]:
    return [request.headers.get("authorization") for request in server.requests]


# -- who we are ------------------------------------------------------------------


def test_the_index_gets_the_password_and_its_registry_the_token(
        server: ScriptedServer, session: Open, cancel: Cancel) -> None:
    v1 = V1Server(server, "ann:secret")
    ids = v1.add([b"layer"], "1")
    asked = session(server)
    asked.ping(cancel)
    asked.look_up("1", cancel)
    assert asked.tag("1", cancel) == ids[0]
    assert asked.ancestry(asked.registries[0], ids[0], cancel) == ids
    assert sent(server) == [None, BASIC, TOKEN + "read", TOKEN + "read"]
    asked.start_push([], cancel)
    asked.put_tag(asked.registries[0], "2", ids[0], cancel)
    asked.end_push([], cancel)
    assert sent(server)[4:] == [BASIC, TOKEN + "write", BASIC]
    assert server.requests[-1].headers["x-docker-endpoints"] == "http://%s/v1/" % server.host


def test_an_anonymous_session_sends_only_the_token(server: ScriptedServer, session: Open, cancel: Cancel) -> None:
    V1Server(server).add([b"layer"], "1")
    asked = session(server, credential=Credential())
    asked.look_up("1", cancel)
    asked.tag("1", cancel)
    asked.end_push([], cancel)
    assert sent(server) == [None, TOKEN + "read", TOKEN + "read"]


@pytest.mark.parametrize("standalone, always", [(None, True), ("TRUE", True), ("1", True), ("false", False)])
def test_over_https_a_registry_that_is_its_own_index_always_gets_the_password(
        certificates: Certificates, session: Open, cancel: Cancel, standalone: Any, always: bool) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        V1Server(server, standalone=standalone).add([b"layer"], "1")
        asked = session(server, ca=str(certificates.ca))
        asked.ping(cancel)
        asked.look_up("1", cancel)
        asked.tag("1", cancel)
        assert sent(server) == [None, BASIC, BASIC if always else TOKEN + "read"]
        assert asked.registries == ["https://%s/v1/" % server.host]


@pytest.mark.parametrize("body, always", [
    ('{"standalone": false}', False), ('{"standalone": true}', True), ("true", True), ("", True)])
def test_the_body_of_a_ping_may_say_whether_the_registry_is_standalone(
        certificates: Certificates, session: Open, cancel: Cancel, body: str, always: bool) -> None:
    with ScriptedServer(tls=certificates.context()) as server:
        V1Server(server).add([b"layer"], "1")
        server.on("GET", "_ping", reply(200, body))
        asked = session(server, ca=str(certificates.ca))
        asked.ping(cancel)
        asked.look_up("", cancel)
        asked.tag("1", cancel)
        assert (sent(server)[-1] == BASIC) is always


def test_a_password_and_a_token_stay_with_their_host(
        server: ScriptedServer, foreign: ScriptedServer, session: Open, cancel: Cancel) -> None:
    V1Server(server, "ann:secret").add([b"layer"], "1")
    foreign.on("GET", "/blob", reply(200, b"layer"))
    server.on("GET", "/layer$", redirect(foreign.url + "/blob"))
    asked = session(server)
    asked.look_up("1", cancel)
    with asked.layer(asked.registries[0], asked.tag("1", cancel), cancel) as response:
        assert response.read(100) == b"layer"
    foreign.assert_no_credentials()


def test_a_malformed_token_is_not_sent(server: ScriptedServer, session: Open, cancel: Cancel) -> None:
    V1Server(server).add([b"layer"], "1")
    server.on("GET", "/images$", reply(200, b"[]", {"X-Docker-Token": "a b\tc"}))
    asked = session(server)
    asked.look_up("", cancel)
    asked.tag("1", cancel)
    assert sent(server)[-1] is None


# -- where the images are --------------------------------------------------------


@pytest.mark.parametrize("named, found", [
    ("HOST", ["HOST"]), ("HOST, HOST", ["HOST", "HOST"]), ("127.0.0.1:1,HOST", ["127.0.0.1:1", "HOST"]),
    (" , ", ["HOST"]), ("127.0.0.1", ["127.0.0.1"])])
def test_the_registries_are_those_that_the_index_names_on_its_own_host(
        server: ScriptedServer, session: Open, cancel: Cancel, named: str, found: List[str]) -> None:
    V1Server(server, endpoints=named.replace("HOST", server.host))
    asked = session(server)
    asked.look_up("", cancel)
    assert asked.registries == ["http://%s/v1/" % host.replace("HOST", server.host) for host in found]


@pytest.mark.parametrize("named", [
    "FOREIGN", "HOST,FOREIGN", "evil.example.com", "HOST/x", "user@HOST", "HOST\\@evil.example.com", "127.0.0.1:99999"])
def test_a_registry_elsewhere_is_refused(
        server: ScriptedServer, foreign: ScriptedServer, session: Open, cancel: Cancel, named: str) -> None:
    V1Server(server, endpoints=named.replace("HOST", server.host).replace("FOREIGN", foreign.host))
    asked = session(server)
    with pytest.raises(PolicyError) as caught:
        asked.look_up("", cancel)
    assert caught.value.exit_code == 9
    with pytest.raises(PolicyError):
        asked.start_push([], cancel)
    assert foreign.requests == []


def test_an_index_that_names_no_registry_is_the_registry_of_a_pull_but_not_of_a_push(
        server: ScriptedServer, session: Open, cancel: Cancel) -> None:
    server.on("GET|PUT", "/v1/", reply(200, b"[]"))
    asked = session(server)
    asked.look_up("", cancel)
    assert asked.registries == [server.url + "/v1/"]
    with pytest.raises(InvalidDocument, match="^Index response didn't contain any endpoints$"):
        asked.start_push([], cancel)


def test_tags_come_from_the_first_registry_that_has_an_answer(
        server: ScriptedServer, session: Open, cancel: Cancel) -> None:
    V1Server(server, endpoints="127.0.0.1:1," + server.host).add([b"layer"], "2", "1")
    asked = session(server)
    assert asked.all_tags(cancel) == ["1", "2"]
    server.on("GET", "/tags$", reply(500))
    with pytest.raises(RegistryError, match="Error: Status 500 trying to get tags"):
        asked.all_tags(cancel)


def test_a_repository_without_namespace_is_in_library_at_the_registry(
        server: ScriptedServer, session: Open, cancel: Cancel) -> None:
    server.on("GET", "/v1/repositories/r/images$", reply(200, b"[]"))
    server.on("GET", "/v1/repositories/library/r/tags/1$", reply(200, '"%s"' % ID))
    asked = session(server, "r")
    asked.look_up("1", cancel)
    assert asked.tag("1", cancel) == ID


# -- answers that won't do -------------------------------------------------------


def test_hub_is_not_pinged(transports: List[Transport], cancel: Cancel) -> None:
    transports.append(RegistryService().transport())
    endpoint = Endpoint("https://index.docker.io", "docker.io", version=1)
    Session(endpoint, Reference.parse("alpine"), transports[0], Credential).ping(cancel)


@pytest.mark.parametrize("status, kind", [(404, NoSupport), (503, NoSupport), (401, None), (200, None)])
def test_a_host_that_answers_no_ping_does_not_speak_v1(
        server: ScriptedServer, session: Open, cancel: Cancel, status: int, kind: Optional[Type[Error]]) -> None:
    server.on("GET", "_ping", reply(status))
    if kind is None:
        session(server).ping(cancel)
        return
    with pytest.raises(kind, match="does not speak the v1 protocol"):
        session(server).ping(cancel)


ANSWERS = [
    # method of the session, arguments, what of the URL, answer, error, its text
    ("look_up", ["1"], "/images$", reply(404), NotFound, "^Error: image ns/r:1 not found$"),
    ("look_up", [""], "/images$", reply(404), NotFound, "^Error: image ns/r not found$"),
    ("look_up", [""], "/images$", reply(403, "no"), RegistryError,
     r'^Error: Status 403 trying to pull repository HOST/ns/r: "no"$'),
    ("look_up", [""], "/images$", reply(401), RegistryError, "^unauthorized: authentication required; over http"),
    ("start_push", [[]], "/r/$", reply(500), RegistryError, "^Error: Status 500 trying to push repository HOST/ns/r: "),
    ("end_push", [[]], "/images$", reply(400), RegistryError, "^Error: Status 400 trying to push checksums HOST/ns/r: "),
    ("all_tags", [], "/tags$", reply(404), NotFound, "^Repository not found$"),
    ("all_tags", [], "/tags$", reply(200, b"[]"), InvalidDocument, "list of tags"),
    ("tag", ["1"], "/tags/1$", reply(404), NotFound, "^Tag 1 not found in repository HOST/ns/r$"),
    ("tag", ["1"], "/tags/1$", reply(200, '"../../etc"'), InvalidDocument, "^image ID '../../etc' is invalid$"),
    ("tag", ["1"], "/tags/1$", reply(200, "7"), InvalidDocument, "^image ID 7 is invalid$"),
    ("tag", ["1"], "/tags/1$", reply(200, "{"), InvalidDocument, "answer of HOST: invalid JSON"),
    ("ancestry", [ID], "/ancestry$", reply(404), NotFound, "Status 404 trying to fetch remote history for " + ID),
    ("ancestry", [ID], "/ancestry$", reply(200, "[]"), InvalidDocument, "^empty history for image " + ID),
    ("ancestry", [ID], "/ancestry$", reply(200, "{}"), InvalidDocument, "^empty history for image " + ID),
    ("ancestry", [ID], "/ancestry$", reply(200, '["%s", "x"]' % ID), InvalidDocument, "^image ID 'x' is invalid"),
    ("ancestry", [ID], "/ancestry$", reply(200, '["%s"]' % OTHER), InvalidDocument, "another's, or goes in circles"),
    ("ancestry", [ID], "/ancestry$", reply(200, '["%s", "%s", "%s"]' % (ID, OTHER, ID)), InvalidDocument,
     "another's, or goes in circles"),
    ("ancestry", [ID], "/ancestry$", reply(200, str([ID] + ["%064x" % n for n in range(1000)]).replace("'", '"')),
     PolicyError, "has 1001 layers, the limit is 1000"),
    ("image", [ID], "/json$", reply(400, {"error": "Image is being uploaded, retry later"}), RegistryError,
     "Status 400 trying to fetch the JSON of image .*retry later"),
    ("layer", [ID], "/layer$", reply(403), RegistryError, r"Status 403 while fetching image layer \(" + ID),
    ("put_image", [ID, b"{}"], "/json$", reply(400, "no"), RegistryError, 'Status 400 while uploading metadata: "no"'),
    ("put_tag", ["1", ID], "/tags/1$", reply(500), RegistryError, "Status 500 trying to push tag 1 on HOST/ns/r"),
    ("put_checksum", [ID, "x", "y"], "/checksum$", send(b"SSH-2.0\r\n\r\n"), NetworkError, "malformed|HOST"),
]


@pytest.mark.parametrize("method, arguments, pattern, answer, kind, text", ANSWERS)
def test_a_refusal_or_a_malformed_answer_is_an_error_that_says_so(
        server: ScriptedServer, session: Open, cancel: Cancel, method: str, arguments: List[Any], pattern: str,
        answer: Script, kind: Type[Error], text: str) -> None:
    V1Server(server)
    server.on("GET|PUT", pattern, answer)
    asked = session(server)
    if method not in ("look_up", "start_push", "all_tags"):
        asked.registries = [server.url + "/v1/"]
    if method in ("ancestry", "image", "layer", "put_image", "put_tag", "put_checksum"):
        arguments = [asked.registries[0], *arguments]
    with pytest.raises(kind, match=text.replace("HOST", server.host)):
        getattr(asked, method)(*arguments, cancel)


def test_an_invalid_tag_is_told_and_left_out(server: ScriptedServer, cancel: Cancel, session: Open) -> None:
    V1Server(server)
    server.on("GET", "/tags$", reply(200, {"b": ID, "../x": ID, "a": ID}))
    warnings: List[str] = []
    assert session(server, warn=warnings.append).all_tags(cancel) == ["a", "b"]
    assert warnings[-1] == "%s: list of tags: invalid tag '../x', left out" % server.host


def test_too_many_tags_are_refused(
        server: ScriptedServer, session: Open, cancel: Cancel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.registry.v1.MAX_TAGS", 1)
    V1Server(server).add([b"layer"], "1", "2")
    with pytest.raises(PolicyError, match="more than 1 tags"):
        session(server).all_tags(cancel)


def test_an_image_that_exists_is_no_error(server: ScriptedServer, session: Open, cancel: Cancel) -> None:
    v1 = V1Server(server)
    [v1_id] = v1.add([b"layer"])
    asked = session(server)
    assert asked.put_image(server.url + "/v1/", v1_id, v1.images[v1_id].raw, cancel) is False


@pytest.mark.parametrize("headers, found", [
    ({"X-Docker-Checksum-Payload": "sha256:" + ID}, ["sha256:" + ID]),
    ({"X-Docker-Checksum-Payload": "tarsum+sha256:%s, sha256:%s" % (ID, OTHER)}, ["sha256:" + OTHER]),
    ({"X-Docker-Checksum-Payload": "tarsum.v1+sha256:%s" % ID}, []), ({}, [])])
def test_checksums_are_those_of_the_payload(
        server: ScriptedServer, session: Open, cancel: Cancel, headers: Mapping[str, str], found: List[str]) -> None:
    server.on("GET", "/json$", reply(200, b"{}", headers))
    assert list(session(server).image(server.url + "/v1/", ID, cancel).checksums) == found
