# SPDX-License-Identifier: Apache-2.0
"""doctor REF: what to do where a token server or the target of a redirect is the trouble."""
import re
from pathlib import Path
from typing import Callable, Union

import pytest

from tests.cli.test_diagnosis import Report, World, name_of, names, world  # the last two are fixtures
from tests.kit.servers import ScriptedServer, challenge, error, redirect

__all__ = ["names", "world"]
pytestmark = pytest.mark.usefixtures("no_repeats", "names")


def blob_host(world: World, url: str, *args: Union[str, Path], **env: str) -> Report:
    server = world.serve()
    server.on("GET", "/blobs/", redirect(url + "/b?signature=s3cret"))
    return world.doctor(server.host + "/r", *args, env=env)


def token_server_of_unknown_ca(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/v2/r/", challenge('Bearer realm="https://%s/token"' % name_of(world.serve("valid"))))
    return world.doctor(server.host + "/r")


def expired(world: World) -> Report:
    return blob_host(world, "https://" + name_of(world.serve("expired")), "--ca-file", world.certificates.ca)


def client_certificate(world: World) -> Report:
    with ScriptedServer(tls=world.certificates.context("valid", mutual=True)) as server:
        return blob_host(world, "https://" + name_of(server), "--ca-file", world.certificates.ca)


def behind_a_proxy(world: World) -> Report:
    proxy = world.proxy(world.serve("valid"), "ann:s3cret")
    return blob_host(world, "https://registry.test", HTTPS_PROXY="http://ann:wr0ng@" + proxy.host)


def unreachable(world: World) -> Report:
    return blob_host(world, "https://registry.invalid")


def denies(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/b", error(403, "DENIED"))
    return blob_host(world, server.url)


def has_none(world: World) -> Report:
    return blob_host(world, world.serve().url)


@pytest.mark.parametrize("build, step, code, remedy", [
    (token_server_of_unknown_ca, "token", 9, "certs.d/registry.test:[0-9]+/ca.crt"),
    (expired, "blob", 9, "have the certificate renewed"),
    (client_certificate, "blob", 5, "put NAME.cert and NAME.key into .*/certs.d/registry.test:"),
    (behind_a_proxy, "blob", 4, "USER:PASSWORD@ in front of the proxy's host in HTTPS_PROXY"),
    (unreachable, "blob", 5, "make registry.invalid reachable as well: firewall, HTTPS_PROXY"),
    (denies, "blob", 4, "ask whoever runs 127.0.0.1:"),
    (has_none, "blob", 3, "ask whoever runs 127.0.0.1:")])
def test_the_remedy_is_for_the_host_that_is_the_trouble(
        world: World, build: Callable[[World], Report], step: str, code: int, remedy: str) -> None:
    report = build(world)
    assert (report.last["step"], report.code) == (step, code), report
    assert re.search(remedy, report.last["try"]), report.last
