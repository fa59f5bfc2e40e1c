# SPDX-License-Identifier: Apache-2.0
"""A registry's challenge is answered once, by who it is for; nobody else learns anything."""
import base64
import json
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional
from urllib.parse import parse_qs

import pytest

from tests.kit import DATA
from minipull.registry.auth import Authorizer, parse_challenges
from minipull.registry.url import Origin
from minipull.registry.auth import Credential
from minipull.registry.endpoints import RegistryService
from minipull.errors import Cancelled, Error, InvalidReference, NetworkError, PolicyError, Unauthorized
from minipull.registry.errors import RegistryError
from minipull.cancel import Cancel
from minipull.registry.request import Body, Request
from minipull.registry.transport import Transport
from tests.kit.certificates import Certificates
from tests.kit.tokens import TokenAuth
from tests.kit.servers import Action, Connection, ScriptedServer, challenge, error, redirect, reply, sleep

pytestmark = pytest.mark.usefixtures("no_repeats")

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
USER = Credential("user", "pass")
USER_BASIC = "Basic " + base64.b64encode(b"user:pass").decode()
SCOPE = "repository:some/registry:pull"


Made = Callable[..., Authorizer]


@pytest.fixture
def make() -> Iterator[Made]:
    """Authorizers whose connections end with the test; ``ca`` empty trusts everybody."""
    transports: List[Transport] = []

    def call(server: ScriptedServer, credential: Credential = Credential(), ca: Optional[Path] = None,
             scope: str = SCOPE, distrusted: str = "") -> Authorizer:
        def context(origin: Origin) -> ssl.SSLContext:
            context = RegistryService(ca_file=str(ca or "")).tls_context(Origin.of("https://r.com"))
            if ca is None or str(origin) == distrusted:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            return context
        transports.append(Transport(context, 5))
        return Authorizer(transports[-1], Origin.of(server.url), lambda: credential, scope)
    yield call
    for transport in transports:
        transport.close()


def get(authorizer: Authorizer, url: str, cancel: Optional[Cancel] = None, scope: str = "") -> int:
    with authorizer.send(Request("GET", url, cancel or Cancel(), scope=scope)) as response:
        response.read(1 << 20)
        return response.status


def guard(server: ScriptedServer, value: str, realm: str = "", extra: str = "") -> None:
    """/v2/ asks for a token of ``realm`` and takes only ``Authorization: value``."""
    asked = challenge('Bearer realm="%s",service="localhost.localdomain"%s' % (realm or server.url + "/token", extra))

    def act(connection: Connection) -> None:
        given = connection.request.headers.get("authorization", "")
        (reply(200, "ok") if given == value else asked)(connection)
    server.on("GET|HEAD", "/v2/", act)


def token(answer: object = None) -> Action:
    return reply(200, json.dumps(answer or {"token": "t1"}))


# -- challenges ----------------------------------------------------------------


@pytest.mark.parametrize("case", TABLES["auth_challenge"], ids=lambda case: ascii(case["headers"]))
def test_challenges_are_found_in_their_headers(case: Dict[str, Any]) -> None:
    assert [[*found] for found in parse_challenges(case["headers"])] == case["expected"]


@pytest.mark.parametrize("header", [
    'Bearer realm="' + "\\" * (1 << 20), "Bearer " + "a=b," * (1 << 18), "a " * (1 << 19), "," * (1 << 20),
    "Bearer a=" + '"' * (1 << 20), " " * (1 << 20), "Bearer " + "a" * (1 << 20), 'a="' * (1 << 18),
    "Bearer a" + " " * (1 << 20) + "b", 'Bearer a="' + '\\"' * (1 << 19),
], ids=lambda header: ascii(header[:12]))
def test_a_megabyte_of_challenge_takes_no_time(header: str) -> None:
    start = time.monotonic()
    parse_challenges([header])
    assert time.monotonic() - start < 0.5


# -- tokens --------------------------------------------------------------------


@pytest.mark.parametrize("case", TABLES["token_requests"], ids=lambda case: str(case["method"]))
def test_a_token_is_asked_for_as_the_engine_does(server: ScriptedServer, make: Made, case: Dict[str, Any]) -> None:
    bodies: List[bytes] = []

    def act(connection: Connection) -> None:
        bodies.append(connection.body())
        reply(200, json.dumps(case["response"]))(connection)
    guard(server, case["authorization"])
    server.on("GET|POST", "/token", act)
    scope = "repository:%s:%s" % (case["repository"], ",".join(case["actions"]))
    credential = Credential(identity_token=case.get("refresh_token", ""))
    assert get(make(server, credential, scope=scope), server.url + "/v2/x") == 200
    request = server.seen(pattern="/token")[0]
    assert request.method == case["method"]
    if case["method"] == "GET":
        assert request.target == "/token?" + case["query"]
    else:
        assert bodies == [case["body"].replace("registry-client", "minipull").encode()]
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers


def test_nothing_is_sent_before_it_is_asked_for(server: ScriptedServer, make: Made) -> None:
    server.on("GET", "/v2/", reply(200))
    assert get(make(server, USER), server.url + "/v2/x") == 200
    assert "authorization" not in server.requests[0].headers


def test_a_password_goes_to_the_token_server_and_never_to_the_registry(
    server: ScriptedServer, make: Made
) -> None:
    guard(server, "Bearer t1", server.url + "/token?a=b")
    server.on("GET", "/token", token())
    assert get(make(server, USER), server.url + "/v2/x") == 200
    asked = server.seen(pattern="/token")[0]
    assert asked.headers["authorization"] == USER_BASIC
    assert asked.query == {"a": "b", "account": "user", "scope": SCOPE, "service": "localhost.localdomain"}
    assert [request.headers.get("authorization") for request in server.seen(pattern="/v2/")] == [None, "Bearer t1"]


def test_a_user_without_password_asks_anonymously(server: ScriptedServer, make: Made) -> None:
    guard(server, "Bearer t1")
    server.on("GET", "/token", token())
    assert get(make(server, Credential("user")), server.url + "/v2/x") == 200
    assert "authorization" not in server.seen(pattern="/token")[0].headers


def test_a_token_serves_until_it_is_refused(server: ScriptedServer, make: Made) -> None:
    guard(server, "Bearer t1")
    server.on("GET", "/token", token(), token({"access_token": "t2"}))
    authorizer = make(server)
    for _ in range(3):
        assert get(authorizer, server.url + "/v2/x") == 200
    assert len(server.seen(pattern="/token")) == 1
    assert len(server.seen(pattern="/v2/")) == 4
    guard(server, "Bearer t2")  # from now on
    for _ in range(2):
        assert get(authorizer, server.url + "/v2/x") == 200
    assert len(server.seen(pattern="/token")) == 2


def test_a_request_that_needs_more_has_a_token_of_its_own(server: ScriptedServer, make: Made) -> None:
    other = "repository:other:pull"
    server.on("GET", "/v2/", challenge('Bearer realm="%s/token"' % server.url), reply(200))
    server.on("GET", "/token", token({"token": "narrow"}), token({"token": "wide"}), token({"token": "again"}))
    authorizer = make(server)
    for scope in ("", other, other, ""):
        assert get(authorizer, server.url + "/v2/x", scope=scope) == 200
    scopes = [parse_qs(request.target.partition("?")[2])["scope"] for request in server.seen(pattern="/token")]
    assert scopes == [[SCOPE], [SCOPE, other]]
    used = [request.headers.get("authorization") for request in server.seen(pattern="/v2/")]
    assert used == [None, *("Bearer " + name for name in ("narrow", "wide", "wide", "narrow"))]
    server.on("GET", "/v2/", challenge('Bearer realm="%s/token"' % server.url), reply(200))
    assert get(authorizer, server.url + "/v2/x", scope=other) == 200
    assert get(authorizer, server.url + "/v2/x") == 200
    used = [request.headers.get("authorization") for request in server.seen(pattern="/v2/")]
    assert used[-3:] == ["Bearer wide", "Bearer again", "Bearer narrow"]


def test_a_refused_wider_scope_leaves_the_token_of_the_narrower_one(server: ScriptedServer, make: Made) -> None:
    server.on("GET", "/v2/", challenge('Bearer realm="%s/token"' % server.url), reply(200))
    server.on("GET", "/token", token({"token": "narrow"}), error(403, "DENIED"))
    authorizer = make(server)
    assert get(authorizer, server.url + "/v2/x") == 200
    with pytest.raises(Unauthorized, match="token server .*denied"):
        get(authorizer, server.url + "/v2/x", scope="repository:secret:pull")
    assert get(authorizer, server.url + "/v2/x") == 200
    assert server.requests[-1].headers["authorization"] == "Bearer narrow"


def test_a_refresh_token_may_ask_for_several_scopes(server: ScriptedServer, make: Made) -> None:
    bodies: List[bytes] = []
    server.on("GET", "/v2/", challenge('Bearer realm="%s/token"' % server.url), reply(200))
    server.on("POST", "/token", [lambda connection: bodies.append(connection.body()), token()])
    authorizer = make(server, Credential(identity_token="r0"))
    assert get(authorizer, server.url + "/v2/x", scope="repository:other:pull") == 200
    assert parse_qs(bodies[0].decode())["scope"] == [SCOPE + " repository:other:pull"]


def test_a_body_is_sent_again_with_the_token(server: ScriptedServer, make: Made) -> None:
    bodies: List[bytes] = []
    keep: Action = lambda connection: bodies.append(connection.body())  # noqa: E731
    server.on("PATCH", "", [keep, challenge('Bearer realm="%s/token"' % server.url)], [keep, reply(202)])
    server.on("GET", "/token", token())
    response = make(server).send(
        Request("PATCH", server.url + "/v2/x", Cancel(), body=Body.of(b"blob"), repeat=False))
    response.discard()
    assert response.status == 202 and bodies == [b"blob", b"blob"]


def test_threads_that_need_a_token_fetch_one(server: ScriptedServer, make: Made) -> None:
    auth = TokenAuth()
    server.on("GET", "/token", [sleep(0.05), auth.token])

    def blob(connection: Connection) -> None:
        if auth.admits(connection, server.url + "/token"):
            reply(200)(connection)
    server.on("GET", "/v2/", blob)
    authorizer = make(server)
    path = "/v2/some/registry/blobs/x"

    def all_at_once() -> None:
        results: List[int] = []
        threads = [threading.Thread(target=lambda: results.append(get(authorizer, server.url + path)))
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [200] * 8

    all_at_once()
    assert auth.issued == 1
    auth.revoke()  # what one thread has renewed already, no other renews
    all_at_once()
    assert auth.issued == 2


def test_a_request_is_renewed_once(server: ScriptedServer, make: Made) -> None:
    guard(server, "never")
    server.on("GET", "/token", *[token({"token": "t%d" % number}) for number in range(9)])
    authorizer = make(server)
    assert get(authorizer, server.url + "/v2/x") == 401
    assert len(server.seen(pattern="/v2/")) == 2
    assert get(authorizer, server.url + "/v2/x") == 401
    assert len(server.seen(pattern="/v2/")) == 4
    assert len(server.seen(pattern="/token")) == 2


@pytest.mark.parametrize("refusals, reason, status, sent", [
    (1, "invalid_token", 200, 3), (2, "", 401, 3), (1, "insufficient_scope", 401, 2)])
def test_a_new_token_may_be_refused_once_since_clocks_differ(
        server: ScriptedServer, make: Made, monkeypatch: pytest.MonkeyPatch, refusals: int, reason: str, status: int,
        sent: int) -> None:
    monkeypatch.setattr("minipull.registry.auth.FRESH_DELAYS", (0.0,))
    asked = challenge('Bearer realm="%s/token",error="%s"' % (server.url, reason))
    server.on("GET", "/v2/", *[asked] * (1 + refusals), reply(200))
    server.on("GET", "/token", token())
    assert get(make(server), server.url + "/v2/x") == status
    assert [request.headers.get("authorization") for request in server.seen(pattern="/v2/")] == [
        None, "Bearer t1", "Bearer t1"][:sent]
    assert len(server.seen(pattern="/token")) == 1


def test_the_delay_before_a_new_token_is_sent_again_ends_when_cancelled(
        server: ScriptedServer, make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.registry.auth.FRESH_DELAYS", (60.0,))
    cancel = Cancel()
    asked = challenge('Bearer realm="%s/token"' % server.url)
    server.on("GET", "/v2/", asked, [asked, lambda connection: cancel.cancel()])
    server.on("GET", "/token", token())
    with pytest.raises(Cancelled):
        get(make(server), server.url + "/v2/x", cancel)


def refused(server: ScriptedServer, scope: str, status: int = 401, error_: str = "insufficient_scope") -> Action:
    value = 'Bearer realm="%s/token",scope="%s",error="%s"' % (server.url, scope, error_)
    return error(status, "DENIED", {"WWW-Authenticate": value})


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("ours, theirs", [
    (SCOPE, "repository:proxy/some/registry:pull"), ("repository:a:pull,push", "repository:b:push,pull"),
    ("repository:a:pull,push", "repository:b:pull")])
def test_a_scope_of_another_name_is_asked_for_once_ours_was_refused(
        server: ScriptedServer, make: Made, ours: str, theirs: str, status: int) -> None:
    no = refused(server, theirs, status)
    server.on("GET", "/v2/", refused(server, theirs), no, reply(200), reply(200), no, no, no)
    server.on("GET", "/token", token({"token": "own"}), token({"token": "theirs"}), token({"token": "new"}))
    authorizer = make(server, scope=ours)
    assert [get(authorizer, server.url + "/v2/x") for _ in range(2)] == [200, 200]
    used = [request.headers.get("authorization") for request in server.seen(pattern="/v2/")]
    assert used == [None, "Bearer own", "Bearer theirs", "Bearer theirs"]
    assert [request.query["scope"] for request in server.seen(pattern="/token")] == [ours, theirs]
    assert get(authorizer, server.url + "/v2/x") == status  # which ends, whatever is refused
    assert len(server.seen(pattern="/v2/")) <= 6


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("theirs", [
    "repository:b:pull,push", "repository:b:*", "repository:b:delete", "repository:*:pull", "registry:catalog:*",
    "repository(plugin):b:pull", "repository:b:pull repository:c:pull", "repository:%s:pull" % ("b" * 300), "", "x",
    "repository:b:", "repository:../b:pull", "repository:b&scope=c:pull", SCOPE, "repository:b:pull,pull,pull,pull,pull"])
def test_a_scope_that_asks_for_more_than_ours_is_not(
        server: ScriptedServer, make: Made, theirs: str, status: int) -> None:
    server.on("GET", "/v2/", refused(server, theirs), refused(server, theirs, status))
    server.on("GET", "/token", token())
    assert get(make(server), server.url + "/v2/x") == status
    assert [request.query["scope"] for request in server.seen(pattern="/token")] == [SCOPE]
    assert len(server.requests) == 3


def test_a_scope_that_changes_with_each_answer_does_not_loop(server: ScriptedServer, make: Made) -> None:
    server.on("GET", "/v2/", *[refused(server, "repository:r%d:pull" % number) for number in range(20)])
    server.on("GET", "/token", token())
    assert get(make(server), server.url + "/v2/x") == 401
    assert len(server.seen(pattern="/v2/")) == 3 and len(server.seen(pattern="/token")) == 2


@pytest.mark.parametrize("status, value", [(403, 'Basic realm="x"'), (403, 'Bearer realm="URL/token",error="x"'), (404, "")])
def test_another_refusal_is_an_answer(server: ScriptedServer, make: Made, status: int, value: str) -> None:
    server.on("GET", "/v2/", error(status, "DENIED", {"WWW-Authenticate": value.replace("URL", server.url)}))
    assert get(make(server, USER), server.url + "/v2/x") == status
    assert len(server.requests) == 1


@pytest.mark.parametrize("credential, asked", [
    (Credential(registry_token="r1"), 'Bearer realm="https://elsewhere/"'), (USER, 'Basic realm="x"'),
    (Credential(registry_token="r1"), 'Bearer realm="https://elsewhere/",scope="repository:b:pull"'),
], ids=["registry token", "basic", "scope"])
def test_a_refused_authorization_is_not_sent_again(
        server: ScriptedServer, make: Made, monkeypatch: pytest.MonkeyPatch, credential: Credential, asked: str) -> None:
    monkeypatch.setattr("minipull.registry.auth.FRESH_DELAYS", (0.0,))
    server.on("GET", "/v2/", challenge(asked))
    authorizer = make(server, credential)
    assert get(authorizer, server.url + "/v2/x") == 401
    with pytest.raises(RegistryError, match="unauthorized"):
        get(authorizer, server.url + "/v2/x")
    assert len(server.requests) == 3


@pytest.mark.parametrize("lifetime", [None, 0, -1, 59, "300", True, [], 1e-9, "NaN", "-Infinity"])
def test_a_token_lives_a_minute_at_least(
    server: ScriptedServer, make: Made, lifetime: object
) -> None:
    text = '{"token": "t1", "expires_in": %s}' % (
        lifetime if lifetime in ("NaN", "-Infinity") else json.dumps(lifetime))
    assert _lifetime(server, make, text) == pytest.approx(60, abs=5)


@pytest.mark.parametrize("text, seconds", [
    ("300", 300), ("300.5", 300.5), ("1e99", 86400), ("1" + "0" * 400, 86400), ("Infinity", 86400),
])
def test_a_token_lives_a_day_at_most(server: ScriptedServer, make: Made, text: str, seconds: float) -> None:
    answer = '{"token": "t1", "expires_in": %s, "issued_at": "1999-01-01T00:00:00Z"}' % text
    assert _lifetime(server, make, answer) == pytest.approx(seconds, abs=5)


def _lifetime(server: ScriptedServer, make: Made, answer: str) -> float:
    guard(server, "Bearer t1")
    server.on("GET", "/token", reply(200, answer))
    authorizer = make(server)
    assert get(authorizer, server.url + "/v2/x") == 200
    return authorizer._tokens[(SCOPE,)][1] - time.monotonic()


def test_a_token_that_has_expired_is_renewed_unasked(
    server: ScriptedServer, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minipull.registry.auth.MIN_LIFETIME", 0.0)
    guard(server, "Bearer t1")
    server.on("GET", "/token", token({"token": "t1", "expires_in": 0}))
    authorizer = make(server)
    for _ in range(2):
        assert get(authorizer, server.url + "/v2/x") == 200
    assert len(server.seen(pattern="/token")) == 2
    assert len(server.seen(pattern="/v2/")) == 3


def test_a_refresh_token_is_replaced_by_the_one_that_comes_with_a_token(
    server: ScriptedServer, make: Made
) -> None:
    bodies: List[bytes] = []

    def act(connection: Connection) -> None:
        bodies.append(connection.body())
        number = len(bodies)
        reply(200, {"access_token": "t%d" % number, "refresh_token": "r%d" % number if number < 2 else ""})(connection)
    server.on("POST", "/token", act)
    authorizer = make(server, Credential(identity_token="r0"))
    for number in (1, 2, 3):
        guard(server, "Bearer t%d" % number)
        assert get(authorizer, server.url + "/v2/x") == 200
    assert [parse_qs(body.decode())["refresh_token"] for body in bodies] == [["r0"], ["r1"], ["r1"]]


@pytest.mark.parametrize("answer, kind, text", [
    (reply(200, "{}"), Unauthorized, "did not include a token"),
    (reply(200, '{"token": ""}'), Unauthorized, "did not include a token"),
    (reply(200, ""), NetworkError, "unable to decode token response"),
    (reply(200, "<html>"), NetworkError, "unable to decode token response"),
    (reply(200, b"\xff\xfe"), NetworkError, "unable to decode token response"),
    (reply(200, "[]"), NetworkError, "unable to decode token response"),
    (reply(200, '{"token": "t", "x": [%s{}]}' % ("{}," * 300000)), NetworkError, "unable to decode token response"),
    (reply(200, "[" * 100000), NetworkError, "unable to decode token response"),
    (reply(200, '{"token": 1}'), NetworkError, "malformed token"),
    (reply(200, '{"token": {"a": 1}}'), NetworkError, "malformed token"),
    (reply(200, '{"token": "a b"}'), NetworkError, "malformed token"),
    (reply(200, '{"token": "a\\r\\nX-Evil: 1"}'), NetworkError, "malformed token"),
    (reply(200, '{"token": "\\u00e9"}'), NetworkError, "malformed token"),
    (reply(200, '{"token": "a", "refresh_token": "b\\n"}'), NetworkError, "malformed token"),
    (reply(200, '{"token": "a", "refresh_token": 1}'), NetworkError, "malformed token"),
    (reply(200, b"x" * (2 << 20)), PolicyError, "larger than"),
    (reply(200, b"x", length=100), NetworkError, "timed out|stalled|early"),
    (error(401, "UNAUTHORIZED"), Unauthorized, "token server .*unauthorized"),
    (error(400, "UNKNOWN"), Unauthorized, "token server"),
    (error(403, "DENIED"), Unauthorized, "denied"),
    (error(404, "UNKNOWN"), RegistryError, "unknown"),
    (error(429, "TOOMANYREQUESTS"), RegistryError, "toomanyrequests"),
    (error(500), RegistryError, "500"),
    (redirect("/elsewhere"), PolicyError, "redirects a GET request"),
])
def test_a_token_server_that_fails_says_so(
    server: ScriptedServer, make: Made, answer: Action, kind: type, text: str
) -> None:
    guard(server, "Bearer t1")

    def ended(connection: Connection) -> None:
        connection.request = connection.request._replace(headers=dict(connection.request.headers, connection="close"))
    server.on("GET", "/token", [answer, ended])
    with pytest.raises(kind, match=text) as caught:
        get(make(server, USER), server.url + "/v2/x")
    assert "pass" not in str(caught.value)
    assert len(server.seen(pattern="/v2/")) == 1


# -- realms --------------------------------------------------------------------


@pytest.mark.parametrize("realm", [
    "", "token", "ftp://HOST/", "http://HOST/a\\r\\nX: y", "http://HOST/\t", "http://u:p@HOST/", "file:///etc/passwd",
    "http://good\\\\@HOST/", "http://[::1", "javascript:x", "//HOST/token", "http://",
])
def test_a_realm_that_is_no_web_address_is_refused(server: ScriptedServer, make: Made, realm: str) -> None:
    server.on("GET", "/v2/", challenge('Bearer realm="%s"' % realm.replace("HOST", server.host)))
    with pytest.raises(Error):
        get(make(server, USER), server.url + "/v2/x")
    assert len(server.requests) == 1


@pytest.mark.parametrize("credential", [
    USER, Credential(identity_token="r0"), Credential("user"),
])
def test_a_realm_on_another_host_gets_no_credentials_without_tls(
    server: ScriptedServer, foreign: ScriptedServer, make: Made, credential: Credential
) -> None:
    guard(server, "Bearer t1", foreign.url + "/token")
    with pytest.raises(PolicyError, match="gets no credentials without verified TLS"):
        get(make(server, credential), server.url + "/v2/x")
    assert foreign.connections == 0


def test_a_realm_on_another_host_is_asked_anonymously(
    server: ScriptedServer, foreign: ScriptedServer, make: Made
) -> None:
    guard(server, "Bearer t1", foreign.url + "/token")
    foreign.on("GET", "/token", token())
    assert get(make(server), server.url + "/v2/x") == 200


@pytest.mark.parametrize("host, distrust, fine", [
    ("127.0.0.1", "", True), ("127.0.0.2", "", True),
    ("127.0.0.2", "registry", False), ("127.0.0.2", "realm", False), ("127.0.0.1", "registry", True),
])
def test_credentials_go_to_another_host_only_if_both_ends_are_verified(
    make: Made, certificates: Certificates, host: str, distrust: str, fine: bool
) -> None:
    with ScriptedServer(tls=certificates.context()) as server, \
            ScriptedServer(host, certificates.context()) as realm:
        guard(server, "Bearer t1", realm.url + "/token")
        realm.on("GET", "/token", token())
        distrusted = {"registry": server.host, "realm": realm.host, "": ""}[distrust]
        authorizer = make(server, USER, certificates.ca, distrusted=distrusted)
        if fine:
            assert get(authorizer, server.url + "/v2/x") == 200
            assert realm.requests[0].headers["authorization"] == USER_BASIC
        else:
            with pytest.raises(PolicyError, match="gets no credentials without verified TLS"):
                get(authorizer, server.url + "/v2/x")
            assert realm.connections == 0


def test_a_registry_with_tls_names_no_token_server_without(
    make: Made, certificates: Certificates, server: ScriptedServer
) -> None:
    with ScriptedServer(tls=certificates.context()) as registry:
        guard(registry, "Bearer t1", server.url + "/token")
        with pytest.raises(PolicyError, match="token server without TLS"):
            get(make(registry, ca=certificates.ca), registry.url + "/v2/x")
    assert server.connections == 0


def test_the_target_of_a_redirect_is_not_answered(
    server: ScriptedServer, foreign: ScriptedServer, make: Made
) -> None:
    server.on("GET", "/v2/", redirect(foreign.url + "/blob"))
    foreign.on("GET", "/blob", challenge('Basic realm="x"'))
    assert get(make(server, USER), server.url + "/v2/x") == 401
    assert len(foreign.requests) == 1


def test_another_scope_in_the_challenge_is_not_asked_for(server: ScriptedServer, make: Made) -> None:
    guard(server, "Bearer t1", extra=',scope="repository:*:*"')
    server.on("GET", "/token", token())
    assert get(make(server), server.url + "/v2/x") == 200
    assert server.seen(pattern="/token")[0].query["scope"] == SCOPE


def test_a_service_can_not_add_to_the_request(server: ScriptedServer, make: Made) -> None:
    service = "s&scope=evil HTTP/1.1\\r\\n\u00e9"
    server.on("GET", "/v2/", challenge('Bearer realm="%s/token",service="%s"' % (server.url, service)), reply(200))
    server.on("GET", "/token", token())
    assert get(make(server), server.url + "/v2/x") == 200
    assert server.seen(pattern="/token")[0].query == {
        "scope": SCOPE, "service": "s&scope=evil HTTP/1.1rn\u00e9"}


# -- Basic, registry tokens ----------------------------------------------------


@pytest.mark.parametrize("value", [
    'Basic realm="x"', 'Bearer, Basic realm="x"', 'Bearer service="s", Basic realm="x"', 'Bearer realm="",Basic'])
def test_basic_is_used_where_it_is_asked_for(server: ScriptedServer, make: Made, value: str) -> None:
    server.on("GET", "/v2/", challenge(value), reply(200))
    authorizer = make(server, USER)
    for _ in range(2):
        assert get(authorizer, server.url + "/v2/x") == 200
    assert [request.headers.get("authorization") for request in server.requests] == [None, USER_BASIC, USER_BASIC]


def test_basic_without_credentials_says_what_to_do(server: ScriptedServer, make: Made) -> None:
    server.on("GET", "/v2/", challenge('Basic realm="x"'))
    with pytest.raises(Unauthorized, match="no basic auth credentials; use minipull login or --creds"):
        get(make(server), server.url + "/v2/x")
    assert len(server.requests) == 1


def test_a_password_is_sent_byte_for_byte(server: ScriptedServer, make: Made) -> None:
    server.on("GET", "/v2/", challenge('Basic realm="x"'), reply(200))
    assert get(make(server, Credential("\u00fc:", "\udcff\r\n")), server.url + "/v2/x") == 200
    sent = server.requests[1].headers["authorization"].partition(" ")[2]
    assert base64.b64decode(sent) == "\u00fc::".encode() + b"\xff\r\n"


@pytest.mark.parametrize("value", ['Basic realm="x", Bearer realm="REALM"', 'Bearer realm="REALM", Basic realm="x"'])
def test_a_token_is_better_than_a_password(server: ScriptedServer, make: Made, value: str) -> None:
    value = value.replace("REALM", server.url + "/token")
    server.on("GET", "/v2/", challenge(value), reply(200))
    server.on("GET", "/token", token())
    assert get(make(server, USER), server.url + "/v2/x") == 200
    assert server.requests[-1].headers["authorization"] == "Bearer t1"


def test_two_challenges_in_two_headers_are_both_seen(server: ScriptedServer, make: Made) -> None:
    both = b'WWW-Authenticate: Basic realm="x"\r\nwww-authenticate: Bearer realm="%s/token"\r\n' % server.url.encode()
    server.on("GET", "/v2/", lambda connection: connection.send(
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n" + both + b"\r\n"), reply(200))
    server.on("GET", "/token", token())
    assert get(make(server), server.url + "/v2/x") == 200


@pytest.mark.parametrize("value", ['Negotiate', 'Digest realm="x"', "", "=", 'Bearer-ish realm="x"'])
def test_a_challenge_that_we_can_not_answer_is_an_answer(server: ScriptedServer, make: Made, value: str) -> None:
    server.on("GET", "/v2/", challenge(value))
    assert get(make(server, USER), server.url + "/v2/x") == 401
    assert len(server.requests) == 1


def test_a_registry_token_is_sent_as_it_is(server: ScriptedServer, make: Made) -> None:
    guard(server, "Bearer r1", "https://nobody.invalid/token")
    assert get(make(server, Credential(registry_token="r1")), server.url + "/v2/x") == 200


@pytest.mark.parametrize("text", ["a\r\nX-Evil: 1", "a b", "a\n", "a\r\n b", "\u00e9", "\u20ac", "\0", "\udcff"], ids=ascii)
def test_a_registry_token_can_not_add_a_header(server: ScriptedServer, make: Made, text: str) -> None:
    guard(server, "Bearer r1")
    with pytest.raises(InvalidReference, match="registry token") as caught:
        get(make(server, Credential(registry_token=text)), server.url + "/v2/x")
    assert text not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [
    reply(401, b"x" * (2 << 20), {"WWW-Authenticate": 'Basic realm="x"'}),
    [reply(401, b"x", {"WWW-Authenticate": 'Basic realm="x"', "Connection": "close"}, length=9),
     lambda connection: connection.reset()],
], ids=["endless", "short"])
def test_the_body_of_a_challenge_does_not_matter(server: ScriptedServer, make: Made, body: Any) -> None:
    server.on("GET", "/v2/", body, reply(200))
    assert get(make(server, USER), server.url + "/v2/x") == 200
