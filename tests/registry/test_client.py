# SPDX-License-Identifier: Apache-2.0
"""The loop over endpoints: who is asked, and what the error says when nobody answers."""
import sys
import threading
from pathlib import Path
from typing import Any, List

import pytest

import minipull
from minipull.cancel import Cancel
from minipull.distribution import blobs
from minipull.errors import Error, NetworkError, NotInBuild, StorageError
from minipull.progress import discard
from minipull.reference import Reference
from minipull.registry.auth import Credential, Keyring, basic
from minipull.registry.client import Client, over_endpoints
from minipull.registry.credentials import Credentials
from minipull.registry.endpoints import Endpoint, Host, RegistryService
from minipull.registry.v2 import Received
from tests.kit import images
from tests.kit.processes import Minipull, free_port
from tests.kit.servers import ScriptedServer, challenge, close, content, error, hold, reply, reset, send


@pytest.mark.parametrize("v2_speaks", [True, False])
def test_a_build_without_v1_says_so_only_where_v1_is_needed(
        server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, v2_speaks: bool) -> None:
    monkeypatch.setitem(sys.modules, "minipull.registry.v1", None)
    server.on("GET", "^/v2/$", reply(200) if v2_speaks else error(404))
    name = Reference.parse(server.host + "/r")
    with Client(RegistryService(legacy_v1=True), Keyring()) as client:
        def work(endpoint: Endpoint) -> str:
            return endpoint.url if endpoint.version == 2 else client.session(endpoint, name).name

        if v2_speaks:
            assert over_endpoints(client, name, "pull", work, Cancel(), discard, legacy=True) == server.url
        else:
            with pytest.raises(NotInBuild) as caught:
                over_endpoints(client, name, "pull", work, Cancel(), discard, legacy=True)
            assert str(caught.value) == (
                "pull: the part legacy (v1, schema 1) is not in this build of minipull (%s/v1)" % server.host)


# -- outages ---------------------------------------------------------------------


def asked(server: ScriptedServer, cancel: Cancel, times: int = 1, **settings: Any) -> str:
    """The outcome of asking for a manifest, several ``times`` in one work, as persist() asks."""
    name = Reference.parse(server.host + "/r:1")
    with Client(RegistryService(**settings), Keyring()) as client:
        def work(endpoint: Endpoint) -> str:
            repository = client.repository(endpoint, name)
            return [blobs.persist(repository, cancel, repository.manifest, "1") for _ in range(times)][-1].raw.decode()

        try:
            return over_endpoints(client, name, "pull", work, cancel, discard)
        except Error as exc:
            return "%s: %s" % (type(exc).__name__, exc)


@pytest.mark.parametrize("failure", [close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("count, outcome", [(0, "{}"), (4, "{}"), (7, "{}"), (8, "Outage: pull: ")])
def test_an_outage_at_the_first_request_is_ridden_out(
        server: ScriptedServer, no_waiting: None, failure: Any, count: int, outcome: str) -> None:
    server.on("GET", "", *[failure] * count, content(b"{}", "a/b"))
    assert asked(server, Cancel()).startswith(outcome)
    assert len(server.requests) == min(count + 1, 8)  # two rounds of four


class Hurried(Cancel):
    """It counts the seconds that are to be waited, and waits for none."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def pause(self, seconds: float) -> None:
        self.seconds += seconds


def test_an_outage_of_three_seconds_is_ridden_out_and_not_much_more(server: ScriptedServer) -> None:
    server.on("GET", "", *[close] * 4, content(b"{}", "a/b"))
    hurried = Hurried()
    assert asked(server, hurried) == "{}"
    assert 3 < hurried.seconds < 6


def test_an_outage_is_ridden_out_once_for_many_images(server: ScriptedServer) -> None:
    server.on("GET", "", close)
    name, seconds = Reference.parse(server.host + "/r:1"), []
    with Client(RegistryService(), Keyring()) as client:
        for _ in range(3):
            hurried = Hurried()
            with pytest.raises(NetworkError):
                over_endpoints(client, name, "pull", lambda endpoint: client.repository(endpoint, name).manifest(
                    "1", hurried), hurried, discard)
            seconds.append(hurried.seconds)
    assert seconds[0] > 3 and max(seconds[1:]) < 4 and len(server.requests) == 8 + 4 + 4


@pytest.mark.parametrize("script, requests", [
    ([error(404, "NAME_UNKNOWN"), content(b"{}", "a/b")], 1),  # an answer
    ([hold(threading.Event())], 1),  # for the timeout, which is enough
    ([content(b"{}", "a/b"), close], 2 + 4)])  # an answer, and again on that connection: persist()'s
def test_an_endpoint_that_answered_or_was_silent_is_not_asked_in_another_round(
        server: ScriptedServer, no_waiting: None, monkeypatch: pytest.MonkeyPatch, script: Any, requests: int
) -> None:
    monkeypatch.setattr(blobs, "DOCUMENT_DELAYS", ())
    server.on("GET", "", *script)
    assert asked(server, Cancel(), times=2, timeout=0.2) != "{}"
    assert len(server.requests) == requests


def test_a_name_that_is_unknown_is_not_an_outage() -> None:
    hurried = Hurried()
    name = Reference.parse("registry.invalid/r:1")
    with Client(RegistryService(), Keyring()) as client:
        def work(endpoint: Endpoint) -> Received:
            return client.repository(endpoint, name).manifest("1", hurried)

        with pytest.raises(NetworkError, match="lookup registry.invalid"):
            over_endpoints(client, name, "pull", work, hurried, discard)
    assert hurried.seconds < 2


# -- mirrors that fail -------------------------------------------------------------


class Asked:
    """Pulls of a manifest through one client, and the progress that they make."""

    def __init__(self, *mirrors: str, **settings: Any) -> None:
        self.events: List[str] = []
        self._mirrors, self._settings = mirrors, settings

    def __call__(self, origin: str, times: int = 1) -> str:
        """The error with which the last of the pulls ended, or nothing."""
        name = Reference.parse(origin + "/r:1")
        service = RegistryService(hosts={origin: Host(self._mirrors, **self._settings)}, timeout=5)
        with Client(service, Keyring()) as client:
            def work(endpoint: Endpoint) -> Received:
                return client.repository(endpoint, name).manifest("1", Cancel())

            text = ""
            for _ in range(times):
                try:
                    over_endpoints(client, name, "pull", work, Cancel(), lambda event: self.events.append(str(event)))
                except Error as exc:
                    text = str(exc)
            return text


#: What a mirror does, and how that reads.
FAULTS = [
    (close, "closed the connection without an answer"),
    (error(404, "MANIFEST_UNKNOWN"), "manifest unknown: manifest_unknown"),
    (error(401, "UNAUTHORIZED"), "unauthorized"),
    (challenge('Basic realm="x"'), "no basic auth credentials; use minipull login or --creds"),
    (error(500), "received unexpected HTTP status: 500 Internal Server Error"),
    (reply(200, "{}", {"Docker-Content-Digest": "sha256:" + "0" * 64}), "manifest verification failed for digest sha256:" + "0" * 64),
    ([send(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), close], "malformed answer of HOST: ambiguous length"),
    (reply(404, "<b>\nno " + "x" * 2000, {"Content-Type": "text/html"}), "unknown: <b>; no " + "x" * 283)]


@pytest.mark.parametrize("fault, text", FAULTS, ids=[text for _, text in FAULTS])
def test_a_mirror_that_failed_is_told_in_one_line_once_another_endpoint_answers(
        server: ScriptedServer, foreign: ScriptedServer, no_waiting: None, fault: Any, text: str) -> None:
    foreign.on("GET", "", fault)
    server.on("GET", "", content(b"{}", "a/b"))
    asked = Asked(foreign.url)
    line = "mirror %s: %s" % (foreign.url, text.replace("HOST", foreign.host))
    assert asked(server.host, times=3) == ""
    assert asked.events == ["warning: %s; %s answered" % (line, server.host)]
    server.on("GET", "", error(404, "NAME_UNKNOWN"))
    assert asked(server.host) == "pull: name unknown: name_unknown (%s); %s" % (server.host, line)
    assert len(asked.events) == 1


def test_a_mirror_that_can_not_be_reached_or_speaks_no_tls_is_told(
        server: ScriptedServer, foreign: ScriptedServer, no_waiting: None) -> None:
    server.on("GET", "", content(b"{}", "a/b"))
    for mirror, text in [("http://127.0.0.1:%d" % free_port(), "connection refused"),
                         ("https://" + foreign.host, "does not speak TLS (wrong version number)")]:
        asked = Asked(mirror)
        assert asked(server.host) == ""
        assert asked.events == ["warning: mirror %s: %s; %s answered" % (mirror, text, server.host)]


def test_each_of_several_mirrors_is_told_and_the_one_that_answers_named(
        server: ScriptedServer, foreign: ScriptedServer, no_waiting: None) -> None:
    first, second = server, foreign
    dead = "127.0.0.1:%d" % free_port()
    first.on("GET", "", error(404, "NAME_UNKNOWN"))
    second.on("GET", "", content(b"{}", "a/b"))
    asked = Asked(first.url, second.url)
    assert asked(dead) == ""
    assert asked.events == ["warning: mirror %s: name unknown: name_unknown; %s answered" % (first.url, second.host)]
    second.on("GET", "", error(403, "MANIFEST_UNKNOWN"))
    both = "mirror %s: name unknown: name_unknown; mirror %s: manifest unknown: manifest_unknown" % (first.url, second.url)
    assert asked(dead, times=2) == "pull: %s; %s: connection refused" % (both, dead)
    assert Asked(first.url, second.url, fallback=False)(dead) == "pull: " + both
    assert asked.events[1:] == ["no answer from %s; trying again in 0 seconds" % dead]  # once a command


@pytest.mark.parametrize("path, api", [
    ("/artifactory/api/docker/hub/", "/artifactory/api/docker/hub/v2"), ("/v2/proxy", "/v2/proxy"), ("/hub/v2", "/hub/v2")])
def test_a_mirror_under_a_path_is_asked_there_with_the_credential_of_its_host(
        server: ScriptedServer, foreign: ScriptedServer, path: str, api: str) -> None:
    server.on("GET", "", challenge('Basic realm="x"'), content(b"{}", "a/b"))
    service = RegistryService(hosts={foreign.host: Host((server.url + path,))})
    credentials = Credentials(explicit={server.host: Credential("ann", "pw"), foreign.host: Credential("eve", "no")})
    with Client(service, credentials) as client:
        endpoint = service.pull_endpoints(Reference.parse(foreign.host + "/r"))[0]
        client.repository(endpoint, Reference.parse(foreign.host + "/r")).manifest("1", Cancel())
    assert [request.target for request in server.requests] == [api + "/r/manifests/1?ns=" + foreign.host] * 2
    assert server.requests[1].headers["authorization"] == basic(Credential("ann", "pw"))
    assert str(endpoint) == server.host and foreign.connections == 0


def test_a_mirror_is_not_blamed_for_trouble_of_our_own(
        server: ScriptedServer, foreign: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    service = RegistryService(hosts={server.host: Host((foreign.url,))})
    with pytest.raises(StorageError) as caught:
        minipull.pull(server.host + "/r", minipull.Store(str(tmp_path / "file" / "store")), service=service)
    assert str(caught.value).endswith("(%s)" % foreign.host) and "mirror http" not in str(caught.value)


def test_every_command_that_asks_mirrors_tells_of_them_once_and_quiet_ones_do_not(
        server: ScriptedServer, foreign: ScriptedServer, run_minipull: Minipull, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", "1")
    server.serve(layout.root, "r")
    foreign.on("GET|HEAD", "", error(404, "NAME_UNKNOWN"))
    settings, name = tmp_path / "settings.json", server.host + "/r:1"
    settings.write_text('{"hosts": {"%s": {"mirrors": ["%s"]}}}' % (server.host, foreign.url))
    line = "warning: mirror %s: name unknown: name_unknown; %s answered" % (foreign.url, server.host)

    def told(*args: str) -> int:
        finished = run_minipull("--config", str(settings), "--root", str(tmp_path / "root"), *args)
        assert finished.code == 0, finished
        return finished.err.split("\n").count(line)

    copied = "oci:%s" % (tmp_path / "copied")
    for command in [("pull", name), ("pull", "-a", server.host + "/r"),
                    ("pull", name, "%s/r@%s" % (server.host, image.digest)), ("copy", "docker://" + name, copied),
                    ("tags", server.host + "/r"), ("manifest", name), ("digest", name)]:
        assert told(*command) == 1, command
        assert told(*command, "--progress", "none") == 0, command
    for command in [("pull", name), ("copy", "docker://" + name, copied)]:
        assert told(*command, "-q") == 0, command
