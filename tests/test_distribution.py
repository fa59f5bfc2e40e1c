# SPDX-License-Identifier: Apache-2.0
"""Which endpoint is asked, what is made of their answers, and the text of the error."""
import os
from pathlib import Path
from typing import Any, List

import pytest

import images
import minipull
from conftest import free_port
from minipull.auth import Credential
from minipull.distribution import host_platform, options
from minipull.endpoints import Host
from minipull.errors import (
    InvalidReference, NetworkError, NotFound, RegistryError, StorageError)
from servers import Certificates, ScriptedServer, close, content, error, reply


@pytest.fixture
def store(tmp_path: Path) -> minipull.Store:
    return minipull.Store(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.transport.RETRY_DELAYS", (0.001,))
    monkeypatch.setattr("minipull.pull_v2.DOCUMENT_DELAYS", (0.001,))


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
def test_whatever_a_mirror_says_the_registry_is_asked(
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


def test_what_the_registry_says_is_final(server: ScriptedServer, store: minipull.Store) -> None:
    server.on("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(RegistryError) as caught:
        minipull.pull(server.host + "/r:nope", store)
    assert caught.value.exit_code == 3
    assert str(caught.value) == "pull %s/r:nope: manifest unknown: manifest_unknown (%s)" % (
        server.host, server.host)


def test_an_answer_says_more_than_silence(foreign: ScriptedServer, store: minipull.Store) -> None:
    dead = "127.0.0.1:%d" % free_port()
    foreign.on("GET", "/manifests/", error(404, "NAME_UNKNOWN"))
    with pytest.raises(RegistryError) as caught:
        minipull.pull(foreign.host + "/r", store,
                      service=mirrored("http://" + dead, domain=foreign.host))
    assert dead not in str(caught.value)
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
    assert options() == options(None)
    assert (options().platform, options().exact) == (host_platform(), False)
    wanted = options("arm64")
    assert (str(wanted.platform), wanted.exact) == ("linux/arm64", True)
    assert options(minipull.Platform("linux", "s390x")).platform.architecture == "s390x"
    with pytest.raises(InvalidReference):
        options("linux/amd64", all_platforms=True)
    with pytest.raises(InvalidReference):
        options("linux/amd64/v2/x")


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
