# SPDX-License-Identifier: Apache-2.0
"""doctor REF: the step at which a pull ends, its exit code, and what to do about it."""
import base64
import contextlib
import json
import re
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Union

import pytest

from minipull.image import schema1
from minipull.registry import client
from tests.kit import images
from tests.kit.certificates import Certificates
from tests.kit.commands import Call, auth, basic
from tests.kit.images import Layout
from tests.kit.processes import DockerRegistry, free_port
from tests.kit.proxies import FaultProxy, Proxy
from tests.kit.servers import Action, BaseServer, ScriptedServer, challenge, close, content, error, redirect, reply
from tests.kit.site import Site
from tests.kit.tokens import TokenAuth

pytestmark = pytest.mark.usefixtures("no_repeats", "names")
SECRETS = ("s3cret", "wr0ng", "signature=", "token-1", base64.b64encode(b"ann:s3cret").decode())
DAY = 86400
Step = Dict[str, str]


class Report(NamedTuple):
    """What doctor says of a name: ``last`` is the step at which the way ends, before quota and clock."""
    code: int
    steps: List[Step]
    err: str

    @property
    def last(self) -> Step:
        return [step for step in self.steps if step["step"] not in ("quota", "clock")][-1]

    def text(self, step: str) -> str:
        return "\n".join(line["text"] for line in self.steps if line["step"] == step)


class World:
    """A host with settings of its own, and servers that end with the test."""

    def __init__(self, call: Call, home: Path, layout: Layout, certificates: Certificates,
                 stack: contextlib.ExitStack) -> None:
        self.call, self.home, self.layout, self.certificates = call, home, layout, certificates
        self._stack, self.as_text = stack, True

    def settings(self, **members: Any) -> None:
        path = self.home / ".config" / "minipull" / "config.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({name.replace("_", "-"): value for name, value in members.items()}))

    def docker(self, **members: Any) -> Path:
        path = self.home / ".docker" / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(members))
        path.chmod(0o600)
        return path

    def serve(self, kind: str = "") -> ScriptedServer:
        """A registry with ``r``, by plain http or with a certificate."""
        tls = self.certificates.context(kind) if kind else None
        server = self._stack.enter_context(ScriptedServer(tls=tls))
        server.serve(self.layout.root, "r")
        return server

    def tokens(self, realm: str = "", **options: Any) -> FaultProxy:
        """A registry with ``r`` that wants a token."""
        return self._stack.enter_context(FaultProxy(
            self.serve().host, auth=TokenAuth({"ann": "s3cret"}, **options), realm=realm or None))

    def proxy(self, server: BaseServer, login: str = "") -> Proxy:
        """A proxy to registry.test, which is a server."""
        names = ("registry.test", "registry.test:443", name_of(server))
        return self._stack.enter_context(Proxy(dict.fromkeys(names, server.host), login))

    def doctor(self, *args: Union[str, Path], env: Mapping[str, str] = {}) -> Report:
        """Run doctor as JSON and, unless told otherwise, as text, which tell the same and no secret."""
        shown = self.call("doctor", *args, "--format", "json", env=dict(env))
        told = shown.json
        if not self.as_text:
            return Report(shown.code, told["steps"], shown.err)
        text = self.call("-v", "doctor", *args, env=dict(env))
        assert (text.code, told["code"], told["ok"]) == (shown.code, shown.code, not shown.code)
        lines = text.out.splitlines()
        assert [line.split(None, 1)[0] for line in lines] == [step["step"] for step in told["steps"]], text.out
        for line, step in zip(lines, told["steps"]):
            assert ("FAILED: " in line, "; try: " in line) == (step["status"] == "fail", bool(step["try"]))
        assert not [secret for secret in SECRETS if secret in shown.out + shown.err + text.out + text.err]
        return Report(shown.code, told["steps"], shown.err)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """registry.test is this host, and no other name is known."""
    real = socket.getaddrinfo

    def look_up(host: str, *rest: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host.replace("registry.test", "127.0.0.1"), *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture
def world(call: Call, home: Path, tmp_path: Path, certificates: Certificates) -> Any:
    layout = Layout(tmp_path / "layout")
    layout.image(images.specs(2, 9000), "latest")
    with contextlib.ExitStack() as stack:
        yield World(call, home, layout, certificates, stack)


def name_of(server: BaseServer) -> str:
    """The server by a name that is secure."""
    return server.host.replace("127.0.0.1", "registry.test")


def dated(seconds: float) -> Action:
    """An answer to /v2/ from another time."""
    return reply(200, {}, {"Date": formatdate(time.time() + seconds, usegmt=True)})


# -- ten broken set-ups --------------------------------------------------------


def unknown_ca(world: World) -> Report:
    return world.doctor(name_of(world.serve("valid")) + "/r")


def expired(world: World) -> Report:
    return world.doctor(name_of(world.serve("expired")) + "/r", "--ca-file", world.certificates.ca)


def wrong_name(world: World) -> Report:
    return world.doctor(name_of(world.serve("wrong-host")) + "/r", "--ca-file", world.certificates.ca)


def proxy_login(world: World) -> Report:
    proxy = world.proxy(world.serve("valid"), "ann:s3cret")
    return world.doctor("registry.test/r", env={"HTTPS_PROXY": "http://ann:wr0ng@%s" % proxy.host})


def closed_port(world: World) -> Report:
    return world.doctor("registry.test:%d/r" % free_port())


def no_such_host(world: World) -> Report:
    return world.doctor("registry.invalid/r")


def wrong_password(world: World) -> Report:
    return world.doctor(world.tokens(anonymous=()).host + "/r", "--creds", "ann:wr0ng")


def token_server_down(world: World) -> Report:
    return world.doctor(world.tokens("http://127.0.0.1:%d/token" % free_port()).host + "/r")


def blob_host_unreachable(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/blobs/", redirect("http://127.0.0.1:%d/b?signature=s3cret" % free_port()))
    return world.doctor(server.host + "/r")


def clock_off(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/v2/$", dated(DAY))
    server.on("GET", "/blobs/", content(b"x", headers={"Date": formatdate(usegmt=True)}))
    report = world.doctor(server.host + "/r")
    assert report.steps[-1]["step"] == "clock" and report.steps[-1]["status"] == "note"
    assert re.match("(23:59:5[0-9]|1 day, 0:00:00) behind 127.0.0.1:", report.steps[-1]["text"])
    return report


# -- and their siblings --------------------------------------------------------


def unknown_ca_with_a_folder(world: World) -> Report:
    folder = world.certificates.folder(world.home / "certificates", ca=False)
    return world.doctor(name_of(world.serve("valid")) + "/r", "--cert-dir", folder)


def early(world: World) -> Report:
    """The certificate has expired by the clock of this host, but not by the registry's."""
    world.certificates.dated("past", time.time() - 3 * DAY, time.time() - DAY)
    server = world.serve("past")
    server.on("GET", "^/$", dated(-2 * DAY))
    return world.doctor(name_of(server) + "/r", "--ca-file", world.certificates.ca)


def wrong_basic(world: World) -> Report:
    server = world.serve()
    server.on("GET", "", basic("ann", "s3cret"))
    return world.doctor(server.host + "/r", "--creds", "ann:wr0ng")


def no_basic(world: World) -> Report:
    server = world.serve()
    server.on("GET", "", basic("ann", "s3cret"))
    return world.doctor(server.host + "/r")


def anonymous(world: World) -> Report:
    report = world.doctor(world.tokens(anonymous=()).host + "/r")
    assert [step["step"] for step in report.steps].count("challenge") == 1
    return report


def registry_token(world: World) -> Report:
    report = world.doctor(world.tokens().host + "/r", "--registry-token", "token-17")
    assert (report.text("credentials").partition("\n")[0], report.text("token")) == ("a token, from --registry-token", "")
    return report


def http_asked_by_https(world: World) -> Report:
    return world.doctor(name_of(world.serve()) + "/r")


def https_asked_by_http(world: World) -> Report:
    return world.doctor(name_of(world.serve("valid")) + "/r", "--plain-http")


def proxy_down(world: World) -> Report:
    return world.doctor("registry.test/r", env={"https_proxy": "http://127.0.0.1:%d" % free_port()})


def proxy_refuses(world: World) -> Report:
    proxy = world.proxy(world.serve("valid"))
    return world.doctor("elsewhere.test/r", env={"HTTPS_PROXY": "http://" + proxy.host})


def relay_login(world: World) -> Report:
    proxy = world.proxy(world.serve(), "ann:s3cret")
    return world.doctor("registry.test/r", "--plain-http", env={"http_proxy": "http://" + proxy.host})


def proxy_host_unknown(world: World) -> Report:
    return world.doctor("registry.test/r", env={"HTTPS_PROXY": "http://proxy.invalid:3128"})


def redirected_down(world: World) -> Report:
    server = world.serve("valid")
    server.on("GET", "/manifests/", redirect("http://registry.test/m"))
    return world.doctor(name_of(server) + "/r", "--ca-file", world.certificates.ca)


def absent(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"))
    return world.doctor(server.host + "/r")


def no_platform(world: World) -> Report:
    images.multi_platform(world.layout.root, "many")
    return world.doctor(world.serve().host + "/r:many", "--platform", "linux/riscv64")


def limited(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/manifests/", error(429, "TOOMANYREQUESTS", {"RateLimit-Remaining": "0;w=21600"}))
    return world.doctor(server.host + "/r")


def failing(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/manifests/", error(500, "UNKNOWN"))
    return world.doctor(server.host + "/r")


def client_certificate(world: World) -> Report:
    tls = world.certificates.context("valid", mutual=True)
    with ScriptedServer(tls=tls) as server:
        return world.doctor(name_of(server) + "/r", "--ca-file", world.certificates.ca)


def failing_behind_tls(world: World) -> Report:
    """Which is not asked by plain http then, though it is insecure."""
    server = world.serve("valid")
    server.on("GET", "/manifests/", error(500, "UNKNOWN"))
    return world.doctor(server.host + "/r")


def silent(world: World) -> Report:
    server = world.serve()
    server.on("GET", "", lambda connection: connection.wait(5))
    return world.doctor(server.host + "/r", "--timeout", "1", "--plain-http")


def portal(world: World) -> Report:
    """Where each question is answered by a page."""
    server = world.serve()
    server.on("GET", "", reply(200, "<html>", {"Content-Type": "text/html"}))
    return world.doctor(server.host + "/r")


def empty_blob(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/blobs/", reply(200))
    return world.doctor(server.host + "/r")


def token_without_tls(world: World) -> Report:
    server = world.serve("valid")
    server.on("GET", "", challenge('Bearer realm="http://registry.test/token"'))
    return world.doctor(name_of(server) + "/r", "--ca-file", world.certificates.ca)


def no_token(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/v2/r/", challenge('Bearer realm="%s/token"' % server.url))
    server.on("GET", "/token", reply(200, {}))
    return world.doctor(server.host + "/r")


def malformed(world: World) -> Report:
    return world.doctor("docker://UPPER/case\x1b[31m:x")


def empty(world: World) -> Report:
    return world.doctor("")


def manifest_elsewhere(world: World) -> Report:
    server = world.serve()
    server.on("GET", "/manifests/", redirect("http://127.0.0.1:%d/m" % free_port()))
    return world.doctor(server.host + "/r")


def garbage_ca(world: World) -> Report:
    (world.home / "ca.pem").write_text("no certificate")
    return world.doctor("registry.test/r", "--ca-file", world.home / "ca.pem")


def mirror_malformed(world: World) -> Report:
    world.settings(registry_mirrors=["https://ann:s3cret@mirror.test"])
    return world.doctor("alpine")


def authfile_broken(world: World) -> Report:
    (world.home / "auth.json").write_text("s3cret")
    return world.doctor("registry.test/r", "--authfile", world.home / "auth.json")


def not_allowed(world: World) -> Report:
    server = world.serve("valid")
    report = world.doctor(name_of(server) + "/r", "--only", "other.test")
    assert server.connections == 0
    return report


BROKEN = [
    (unknown_ca, "tls", 9, "certs.d/registry.test:[0-9]+/ca.crt"),
    (expired, "tls", 9, "have the certificate renewed"),
    (wrong_name, "tls", 9, r"use a name of the certificate \(registry.invalid\)"),
    (proxy_login, "proxy", 4, "USER:PASSWORD@ in front of the proxy's host in HTTPS_PROXY"),
    (closed_port, "connect", 5, "check host, port and firewall"),
    (no_such_host, "addresses", 5, "check the name, this host's DNS"),
    (wrong_password, "token", 4, "minipull login 127.0.0.1:"),
    (token_server_down, "token", 5, "make 127.0.0.1:[0-9]+ reachable"),
    (blob_host_unreachable, "blob", 5, "make 127.0.0.1:[0-9]+ reachable"),
    (clock_off, "blob", 0, ""),
    (early, "tls", 9, "set this host's clock"),
    (wrong_basic, "credentials", 4, "minipull login"),
    (no_basic, "credentials", 4, "minipull login"),
    (anonymous, "manifest", 4, "minipull login"),
    (registry_token, "manifest", 4, "minipull login"),
    (unknown_ca_with_a_folder, "tls", 9, "into .*/home/certificates/ca.crt"),
    (http_asked_by_https, "tls", 5, "put registry.test:[0-9]+ in insecure-registries"),
    (https_asked_by_http, "/v2/", 5, "leave out --plain-http"),
    (proxy_down, "connect", 5, "check host, port and firewall, and https_proxy"),
    (proxy_refuses, "proxy", 5, "have the proxy let elsewhere.test through"),
    (relay_login, "proxy", 4, "USER:PASSWORD@ in front of the proxy's host in http_proxy"),
    (proxy_host_unknown, "addresses", 5, "and HTTPS_PROXY"),
    (redirected_down, "manifest", 9, "ask whoever runs"),
    (absent, "manifest", 3, "minipull tags 127.0.0.1:"),
    (no_platform, "platform", 3, "--platform"),
    (limited, "manifest", 8, "wait, or minipull login"),
    (failing, "manifest", 5, "ask whoever runs"),
    (failing_behind_tls, "manifest", 5, "ask whoever runs"),
    (client_certificate, "/v2/", 5, "put NAME.cert and NAME.key into .*/certs.d/registry.test:"),
    (silent, "/v2/", 5, "--timeout"),
    (portal, "manifest", 6, "ask whoever runs"),
    (empty_blob, "blob", 5, "ask whoever runs 127.0.0.1:"),
    (token_without_tls, "token", 9, "ask whoever runs"),
    (no_token, "token", 4, "minipull login"),
    (malformed, "name", 2, "write "),
    (empty, "name", 2, "write "),
    (manifest_elsewhere, "manifest", 5, "make 127.0.0.1:[0-9]+ reachable"),
    (garbage_ca, "certificates", 7, "correct or remove that file"),
    (mirror_malformed, "mirrors", 2, "--config names another settings file"),
    (authfile_broken, "credentials", 6, "correct --creds or the file"),
    (not_allowed, "addresses", 9, "allow that host")]


TEN = [row[0].__name__ for row in BROKEN[:10]]


@pytest.mark.parametrize("build, step, code, remedy", BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_doctor_ends_at_the_step_that_fails_with_its_code_and_a_remedy(
    world: World, build: Callable[[World], Report], step: str, code: int, remedy: str
) -> None:
    world.as_text = build.__name__ in TEN
    report = build(world)
    assert (report.last["step"], report.code) == (step, code), report
    assert report.last["status"] == ("fail" if code else "ok")
    assert re.search(remedy, report.last["try"]), report.last
    assert not re.search("; (put|use) ", report.last["text"])


def test_the_first_challenges_of_an_answer_are_told(world: World) -> None:
    server = world.serve()
    server.on("GET", "/v2/r/", challenge(", ".join('s%d realm="x"' % number for number in range(900))))
    report = world.doctor(server.host + "/r", "--plain-http")
    assert [step["text"] for step in report.steps if step["step"] == "challenge"] == ["s%d" % n for n in range(8)]


def test_an_outage_is_told_once_and_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "OUTAGE_DELAYS", (0.0,))
    server = world.serve()
    server.on("GET", "", close)
    assert world.doctor(server.host + "/r", "--plain-http").code == 5
    assert len(server.requests) == 2  # one for each format


def test_the_certificate_of_an_insecure_registry_is_not_vouched_for(world: World) -> None:
    assert ", not verified, for registry.invalid" in world.doctor(world.serve("wrong-host").host + "/r").text("tls")


def test_a_layer_that_is_elsewhere_is_not_asked_for(world: World) -> None:
    manifest = json.loads(world.layout.read(world.layout.resolve("latest")["digest"]))
    manifest["layers"] = [{
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "size": 2,
        "digest": images.digest_of(b"hi"), "urls": ["https://elsewhere.invalid/"]}]
    server = world.serve()
    server.on("GET", "/manifests/", reply(200, manifest, {"Content-Type": images.OCI_MANIFEST}))
    report = world.doctor(server.host + "/r")
    assert (report.code, report.last["step"]) == (0, "blob")
    assert report.text("blob").startswith("first byte of " + manifest["config"]["digest"])


def test_the_v1_protocol_is_not_looked_into(world: World) -> None:
    report = world.doctor(world.serve().host + "/r", "--legacy-v1")
    assert (report.code, "v1 protocol" in report.text("mirrors")) == (0, True)


# -- ways that lead to the end -------------------------------------------------


def test_each_step_of_a_good_way_names_what_decided_it(world: World) -> None:
    tls = world.certificates.context("valid")
    behind = world.serve()
    behind.on("GET", "/manifests/latest$", content(
        world.layout.read(world.layout.resolve("latest")["digest"]), images.OCI_MANIFEST, ranges=False,
        headers={"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "76;w=21600",
                 "Date": formatdate(usegmt=True)}))
    with ScriptedServer(tls=tls) as blobs, FaultProxy(
            behind.host, tls=tls, auth=TokenAuth({"ann": "s3cret"}, anonymous=())) as registry:
        behind.on("GET", "/blobs/", redirect(blobs.url + "/b?signature=s3cret"))
        blobs.on("GET", "/b", content(bytes(9000)))
        host = name_of(registry)
        registry.realm = "https://%s/token" % host
        proxy = world.proxy(registry, "ann:s3cret")
        world.settings(insecure_registries=["10.0.0.0/8"])
        docker = world.docker(auths={host: auth("ann", "s3cret")})
        folder = world.certificates.folder(world.home / ".config" / "containers" / "certs.d" / host)
        report = world.doctor("docker://%s/r" % host, env={"HTTPS_PROXY": "http://ann:s3cret@" + proxy.host})
    texts = {step["step"]: step["text"] for step in report.steps}
    assert (report.code, {step["status"] for step in report.steps}) == (0, {"ok"})
    assert list(texts) == [
        "name", "settings", "mirrors", "endpoint", "insecure", "proxy", "credentials", "certificates", "addresses",
        "connect", "tls", "/v2/", "challenge", "token", "manifest", "platform", "blob", "quota", "clock"]
    assert texts["name"] == "%s/r:latest (typed docker://%s/r)" % (host, host)
    assert texts["settings"] == str(world.home / ".config" / "minipull" / "config.json")
    assert (texts["mirrors"], texts["insecure"]) == ("none", "no")
    assert texts["proxy"] == "http://%s, from HTTPS_PROXY" % proxy.host
    assert texts["credentials"] == "user ann, from %s" % docker
    assert texts["certificates"].endswith(", %s" % folder)
    assert (texts["addresses"], texts["connect"]) == ("127.0.0.1", "127.0.0.1 port " + proxy.host.partition(":")[2])
    assert re.fullmatch("TLSv1.[23], issued by 'test authority', until 20[0-9-]+ [0-9:]+, trusted by %s/ca.crt,"
                        " for 127.0.0.1, 127.0.0.2, localhost, registry.test" % folder, texts["tls"])
    assert texts["/v2/"].startswith("401 Unauthorized in ")
    assert (texts["challenge"], texts["token"]) == (
        "bearer, token server " + host, "from %s for repository:r:pull" % host)
    assert texts["quota"].startswith("76 of 100 pulls left")
    assert re.fullmatch("sha256:[0-9a-f]{64}, " + re.escape(images.OCI_MANIFEST), texts["manifest"])
    assert re.fullmatch("linux/[a-z0-9]+, 2 layers, [0-9.]+kB", texts["platform"])
    assert re.fullmatch("first byte of sha256:[0-9a-f]{64} from " + blobs.host, texts["blob"])
    assert len(blobs.requests) == 2  # one for each format
    blobs.assert_no_credentials()


@pytest.mark.parametrize("settings, args, env, rule", [
    ({}, ["--plain-http"], {}, "yes: plain-http is true"),
    ({}, [], {"MINIPULL_TLS_VERIFY": "false"}, "yes: tls-verify is false"),
    ({"insecure_registries": ["HOST"]}, [], {}, "yes: insecure-registries has HOST in FILE"),
    ({"insecure_registries": ["127.0.0.0/24"]}, [], {}, "yes: insecure-registries has 127.0.0.0/24 in FILE")])
def test_the_rule_by_which_a_registry_is_insecure_is_named(
    world: World, settings: Dict[str, List[str]], args: List[str], env: Dict[str, str], rule: str
) -> None:
    server = world.serve()
    host = name_of(server)
    world.settings(**{key: [value.replace("HOST", host) for value in values] for key, values in settings.items()})
    report = world.doctor(host + "/r", *args, env=env)
    file = str(world.home / ".config" / "minipull" / "config.json")
    assert (report.code, report.text("insecure")) in (
        (0, rule.replace("HOST", host).replace("FILE", file)),
        (0, "\n".join([rule.replace("HOST", host).replace("FILE", file)] * 2)))


@pytest.mark.parametrize("env, rule", [
    ({"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "a.com, .Test"}, "none: NO_PROXY has .test"),
    ({"HTTPS_PROXY": "http://127.0.0.1:1", "no_proxy": "*"}, "none: NO_PROXY has *"),
    ({"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": ""}, "http://127.0.0.1:1, from HTTPS_PROXY"),
    ({"https_proxy": "127.0.0.1:1", "HTTPS_PROXY": "x"}, "http://127.0.0.1:1, from https_proxy"),
    ({"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": ""}, "none: HTTPS_PROXY is not set")])
def test_the_rule_that_decides_the_proxy_is_named(world: World, env: Dict[str, str], rule: str) -> None:
    report = world.doctor("registry.test:%d/r" % free_port(), env=env)
    assert (report.text("proxy"), report.last["step"]) == (rule, "connect")


def test_a_mirror_that_fails_is_a_note_and_the_registry_is_asked_next(world: World) -> None:
    server, down = world.serve("valid"), "http://127.0.0.1:%d/mirror/of/it" % free_port()
    other = world.serve()
    other.on("GET", "/manifests/", error(404, "MANIFEST_UNKNOWN"))
    host = name_of(server)
    world.settings(hosts={host: {"mirrors": [down, other.url], "ca": str(world.certificates.ca)}})
    report = world.doctor(host + "/r")
    assert report.text("mirrors") == "%s, %s, from %s" % (
        down, other.url, world.home / ".config" / "minipull" / "config.json")
    assert [(step["step"], step["endpoint"], bool(step["try"])) for step in report.steps if step["status"] == "note"
            and step["step"] != "/v2/"] == [("connect", down, True), ("manifest", other.url, True)]
    assert (report.code, report.last["step"], report.last["endpoint"]) == (0, "blob", "https://" + host)


def test_a_helper_that_fails_is_named_and_the_way_goes_on_without_it(world: World) -> None:
    server = world.serve()
    world.docker(credHelpers={server.host: "absent"}, auths={server.host: auth("ann", "s3cret")})
    report = world.doctor(server.host + "/r")
    assert (report.code, report.last["step"]) == (0, "blob")
    assert report.text("credentials").endswith(".docker/config.json, asked docker-credential-absent")
    assert "docker-credential-absent: not found on PATH; going on without credentials" in report.err


def test_an_address_of_ipv6_is_shown_as_it_is(world: World) -> None:
    report = world.doctor("[::1]:%d/r" % free_port(), "--plain-http")
    assert (report.code, report.last["step"], report.text("addresses")) == (5, "connect", "::1")


def test_an_index_is_shown_with_its_platforms(world: World) -> None:
    images.multi_platform(world.layout.root, "many")
    report = world.doctor(world.serve().host + "/r:many", "--platform", "linux/arm64")
    assert report.text("manifest").endswith(", application/vnd.oci.image.index.v1+json, linux/amd64, linux/arm/v7,"
                                            " linux/arm/v6, linux/arm64/v8")
    assert report.text("platform").startswith("linux/arm64, 2 ")


def test_a_registry_may_put_nothing_of_its_own_into_the_lines(world: World) -> None:
    """No line end, and nothing that steers a terminal."""
    server = world.serve()
    server.on("GET", "/manifests/", reply(200, {
        "schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [{
            "mediaType": images.OCI_MANIFEST, "digest": images.digest_of(b""), "size": 2,
            "platform": {"os": "a\nblob \x1b[2J", "architecture": "ok"}}] * 300}, {"Content-Type": images.OCI_INDEX}))
    report = world.doctor(server.host + "/r")
    assert report.code == 3 and report.text("manifest").count("a; blob \\x1b[2J/ok") < 100
    server.on("GET", "/manifests/", reply(404, json.dumps({"errors": [
        {"code": "MANIFEST_UNKNOWN", "message": "a\nblob \x1b[2Jok"}]}), {"Content-Type": "application/json"}))
    report = world.doctor(server.host + "/r")
    assert (report.code, report.last["text"]) == (3, "manifest unknown: a; blob \\x1b[2Jok")


def test_doctor_stores_nothing(world: World, root: Path) -> None:
    assert world.doctor(world.serve().host + "/r").code == 0
    assert (root.exists(), [path.name for path in world.home.iterdir()]) == (False, [])


def test_an_old_manifest_is_a_note(world: World) -> None:
    payload = json.dumps({"schemaVersion": 1, "fsLayers": [], "history": []}, indent=3).encode()
    raw = schema1.sign(payload, 5, "2015-04-01T20:15:23Z")
    server = world.serve()
    server.on("GET", "/manifests/", content(raw, "application/vnd.docker.distribution.manifest.v1+prettyjws",
                                            headers={"Docker-Content-Digest": ""}))
    report = world.doctor(server.host + "/r")
    assert (report.code, report.last["step"], report.last["status"]) == (0, "manifest", "note")


def test_the_way_to_real_registries_is_good(world: World, registry: DockerRegistry, tmp_path: Path) -> None:
    """docker-registry behind a token server, and our own."""
    images.push_layout_http(world.layout, "latest", "%s/diagnosis/r:1" % registry.host)
    with FaultProxy(registry.host, auth=TokenAuth({"ann": "s3cret"})) as proxy:
        report = world.doctor(proxy.host + "/diagnosis/r:1")
    assert (report.code, report.last["step"]) == (0, "blob"), report
    assert report.text("token") == "from %s for repository:diagnosis/r:pull" % proxy.host
    site = Site(tmp_path / "site")
    try:
        images.push_layout_http(world.layout, "latest", "%s/r:1" % site.host)
        assert world.doctor(site.host + "/r:1").last["step"] == "blob"
    finally:
        site.stop()
