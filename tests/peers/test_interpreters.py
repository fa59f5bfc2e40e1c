# SPDX-License-Identifier: Apache-2.0
"""Every interpreter from 3.6 up that the machine has does the same things."""
import json
from pathlib import Path
from typing import List, Tuple

import pytest

from tests.kit import images
from minipull.digest import Digest
from tests.kit.commands import is_sound
from tests.kit.processes import DockerRegistry, Minipull, interpreters, minipull_env, run
from tests.kit.certificates import Certificates
from tests.kit.proxies import FaultProxy
from tests.kit.tokens import TokenAuth
from tests.kit.servers import ScriptedServer, close, send


Pushed = Tuple[str, images.Image]


@pytest.fixture(scope="module")
def pushed(registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    """The path of an index in the registry, and the index."""
    layout, index, _ = images.multi_platform(tmp_path_factory.mktemp("interpreters"))
    images.push_layout_http(layout, "latest", registry.host + "/interpreters/it:1")
    return "/interpreters/it", index


INTERPRETERS = interpreters()
everywhere = pytest.mark.parametrize(
    "python", [python for _, python in INTERPRETERS], ids=[version for version, _ in INTERPRETERS])


@everywhere
def test_pulls_checks_and_lists(
        python: str, registry: DockerRegistry, certificates: Certificates, pushed: Pushed,
        tmp_path: Path, run_minipull: Minipull) -> None:
    path, index = pushed
    root, auth = tmp_path / "root", TokenAuth({"ann": "secret"}, anonymous=())
    with FaultProxy(registry.host, tls=certificates.context(), auth=auth) as proxy:
        name = proxy.host + path + ":1"
        remote = ["--creds", "ann:secret", "--ca-file", str(certificates.ca)]

        def call(*args: str) -> str:
            done = run_minipull("--root", root, *args, python=python)
            assert (done.code, "Warning" in done.err) == (0, False), done
            return done.out

        assert call("pull", *remote, "--all-platforms", name).splitlines()[-1] == name
        assert "Digest: " + index.digest in call("pull", *remote, "--platform", "linux/arm/v7", name)
        assert call("tags", *remote, proxy.host + path).split() == ["1"]
        [row] = json.loads(call("images", "--format", "json"))
        assert (row["name"], row["digest"], row["platform"]) == (name, index.digest, "linux/arm/v7")
        assert json.loads(call("inspect", name))["source"] == index.digest
        assert json.loads(call("check", "--format", "json"))["problems"] == []
        copy = "%s/interpreters/%s" % (proxy.host, Digest.of(python.encode()).short)
        child = json.loads(index.raw)["manifests"][images.PLATFORMS.index("linux/arm/v7")]["digest"]
        assert "1: digest: " + child in call("push", *remote, name, copy)
        archive = str(tmp_path / "archive.tar")
        call("save", "-o", archive, name)
        assert is_sound(call("check", archive), archive)
        call("rm", name)
        call("gc", "--keep", "0")
        assert list((root / "blobs" / "sha256").iterdir()) == []
        assert call("load", "-i", archive) == "Loaded image: %s\n" % name


@everywhere
@pytest.mark.parametrize("head", ["Content-Length: 9\r\n", "Transfer-Encoding: chunked\r\n", ""],
                         ids=["length", "chunked", "until the end"])
def test_a_body_over_tls_that_ends_without_a_goodbye_is_short(
        python: str, head: str, certificates: Certificates, tmp_path: Path, run_minipull: Minipull) -> None:
    body = "2\r\n{}\r\n" if "chunked" in head else "{}"
    with ScriptedServer(tls=certificates.context()) as server:
        server.on("GET", "/v2/r/manifests/1", [send(("HTTP/1.1 200 OK\r\n%s\r\n%s" % (head, body)).encode()), close])
        done = run_minipull("manifest", "--ca-file", str(certificates.ca), "--timeout", "20",
                            server.host + "/r:1", python=python)
    assert (done.code, done.out) == (5, ""), done
    assert server.host in done.err and done.err.count("\n") == 1


@everywhere
@pytest.mark.parametrize("insecure", [[], ["r.com"]], ids=["verified", "insecure"])
def test_a_context_has_the_same_rules(python: str, insecure: List[str], tmp_path: Path) -> None:
    code = """
import ssl, sys
from minipull import RegistryService
from minipull.registry.url import Origin
context = RegistryService(insecure=sys.argv[1:]).tls_context(Origin.of("https://r.com"))
old = ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
assert getattr(context, "minimum_version", 0) == 0x303 or context.options & old == old, "old TLS"
assert not context.options & 1 << 7, "SSL_OP_IGNORE_UNEXPECTED_EOF"
"""
    run([python, "-W", "ignore", "-c", code, *insecure], minipull_env(tmp_path, python=python))
