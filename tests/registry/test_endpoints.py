# SPDX-License-Identifier: Apache-2.0
"""Who is asked, in which order, and how far they are trusted."""
import json
import ssl
from pathlib import Path
from typing import Any, Dict, List, Sequence, Type

import pytest

from tests.kit import DATA
import minipull
from minipull.registry.request import Request
from minipull.registry.transport import Transport
from minipull.registry.url import Origin
from minipull.registry.endpoints import Endpoint, Host, RegistryService, addresses_of, validate_mirror
from minipull.errors import Error, InvalidReference, NetworkError, StorageError
from minipull.registry.errors import RegistryError
from minipull.reference import Reference
from minipull.cancel import Cancel
from tests.kit.certificates import Certificates
from tests.kit.servers import ScriptedServer, close, error, reply

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
NAMES = {"localhost": ["127.0.0.1", "::1"], "example.com": ["42.42.42.42"], "other.com": ["43.43.43.43", "fe80::1%eth0"]}


def lookup(host: str) -> Sequence[str]:
    return NAMES.get(host, [])


def urls(service: RegistryService, name: str) -> List[str]:
    return [endpoint.url for endpoint in service.pull_endpoints(Reference.parse(name))]


# -- insecure ------------------------------------------------------------------


@pytest.mark.parametrize("case", TABLES["is_secure_index"], ids=lambda case: "%(name)s %(insecure)s" % case)
def test_only_loopback_and_listed_hosts_are_insecure(case: Dict[str, Any]) -> None:
    service = RegistryService(insecure=case["insecure"], lookup=lookup)
    assert service.is_secure(case["name"]) is case["secure"]


def test_names_are_resolved_for_networks_only() -> None:
    def refuse(host: str) -> Sequence[str]:
        raise AssertionError(host)
    service = RegistryService(insecure=["registry.example.com:5000"], lookup=refuse)
    assert service.is_secure("example.com")
    assert RegistryService(insecure=["10.0.0.0/8"], lookup=lookup).is_secure("other.com")
    assert not RegistryService(insecure=["fe80::/10"], lookup=lookup).is_secure("other.com")


def test_a_name_that_can_not_be_resolved_has_no_addresses() -> None:
    assert "127.0.0.1" in addresses_of("localhost")
    assert addresses_of("::1::1") == []
    assert addresses_of("a" * 70 + ".invalid") == []


@pytest.mark.parametrize("case", TABLES["insecure_invalid"], ids=lambda case: ascii(case["input"]))
def test_an_insecure_entry_that_is_no_host_is_refused(case: Dict[str, Any]) -> None:
    with pytest.raises(InvalidReference) as caught:
        RegistryService(insecure=[case["input"]])
    assert case["error"] in str(caught.value)


def test_nothing_is_verified_where_the_user_says_so() -> None:
    service = RegistryService(tls_verify=False)
    assert not service.is_secure("example.com")
    assert urls(service, "example.com/a") == ["https://example.com", "http://example.com"]


# -- mirrors -------------------------------------------------------------------


@pytest.mark.parametrize("case", TABLES["validate_mirror"], ids=lambda case: ascii(case["input"]))
def test_a_mirror_is_scheme_host_and_path(case: Dict[str, Any]) -> None:
    if case["error"]:
        with pytest.raises(InvalidReference) as caught:
            validate_mirror(case["input"])
        assert case["error"] in str(caught.value)
    else:
        assert validate_mirror(case["input"]) == case["output"]


@pytest.mark.parametrize("text", ["http://foo:bar@m.com/", "foo:bar@m.com", "http://foo:/bar@m.com", "https://a@foo:bar@m"])
def test_a_refused_mirror_is_shown_without_its_password(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        RegistryService(mirrors=[text])
    assert "bar" not in str(caught.value) and "xxxxx@m" in str(caught.value)


# -- the order -----------------------------------------------------------------


def test_mirrors_come_first_each_under_its_own_name() -> None:
    service = RegistryService(
        mirrors=["https://m1.com", "http://localhost:5000/"],
        hosts={"docker.io": Host(("https://m0.com",)), "r.com": Host(("https://m2.com:8443",))})
    assert service.pull_endpoints(Reference.parse("alpine")) == [
        Endpoint("https://m0.com", "m0.com", True),
        Endpoint("https://m1.com", "m1.com", True),
        Endpoint("http://localhost:5000", "localhost:5000", True),
        Endpoint("https://registry-1.docker.io", "docker.io"),
    ]
    assert urls(service, "r.com/a") == ["https://m2.com:8443", "https://r.com"]
    assert urls(service, "other.com/a") == ["https://other.com"]
    assert [endpoint.url for endpoint in service.push_endpoints(Reference.parse("alpine"))] == [
        "https://registry-1.docker.io"]


def test_without_fallback_the_mirrors_are_all() -> None:
    hosts = {"r.com": Host(("https://m.com",), fallback=False), "s.com": Host(fallback=False)}
    service = RegistryService(hosts=hosts)
    assert urls(service, "r.com/a") == ["https://m.com"]
    assert urls(service, "s.com/a") == ["https://s.com"]


@pytest.mark.parametrize("answer, kind, text", [
    (error(404, "MANIFEST_UNKNOWN"), RegistryError, "manifest unknown"), (error(403, "DENIED"), RegistryError, "denied"),
    (error(401), RegistryError, "unauthorized"), (close, NetworkError, "closed the connection"),
    (reply(200, "<html>", {"Content-Type": "text/html"}), Error, "")])
def test_a_mirror_without_fallback_has_the_last_word(
    server: ScriptedServer, foreign: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    answer: Any, kind: Type[Error], text: str
) -> None:
    monkeypatch.setattr("minipull.registry.transport.RETRY_DELAYS", ())
    monkeypatch.setattr("minipull.registry.client.OUTAGE_DELAYS", ())
    monkeypatch.setattr("minipull.distribution.blobs.DOCUMENT_DELAYS", ())
    foreign.on("GET", "", answer)
    service = RegistryService(hosts={server.host: Host((foreign.url,), fallback=False)})
    with pytest.raises(kind) as caught:
        minipull.pull(server.host + "/r:1", minipull.Store(str(tmp_path / "store")), service=service)
    assert text in str(caught.value) and foreign.host in str(caught.value)
    assert (server.connections, len(foreign.requests)) == (0, 1)


@pytest.mark.parametrize("name, insecure, expected", [
    ("r.com/a", [], ["https://r.com"]),
    ("r.com/a", ["r.com"], ["https://r.com", "http://r.com"]),
    ("r.com:5000/a", ["r.com"], ["https://r.com:5000"]),
    ("localhost/a", [], ["https://localhost", "http://localhost"]),
    ("127.0.0.1:5000/a", [], ["https://127.0.0.1:5000", "http://127.0.0.1:5000"]),
    ("[::1]:5000/a", [], ["https://[::1]:5000", "http://[::1]:5000"]),
    ("10.0.0.1:5000/a", ["10.0.0.0/8"], ["https://10.0.0.1:5000", "http://10.0.0.1:5000"]),
    ("alpine", [], ["https://registry-1.docker.io"]),
])
def test_plain_http_comes_last_and_for_insecure_hosts_only(
    name: str, insecure: List[str], expected: List[str]
) -> None:
    assert urls(RegistryService(insecure=insecure, lookup=lookup), name) == expected


def test_plain_http_alone_if_the_user_says_so() -> None:
    assert urls(RegistryService(plain_http=True), "r.com/a") == ["http://r.com"]


def test_an_endpoint_is_shown_as_its_host() -> None:
    assert [str(Endpoint(url, "x")) for url in ("https://r.com", "http://r.com:5000")] == ["r.com", "r.com:5000"]
    mirror = RegistryService(mirrors=["https://art.lan/api/hub/"]).pull_endpoints(Reference.parse("alpine"))[0]
    assert (str(mirror), mirror) == ("art.lan", Endpoint("https://art.lan/api/hub", "art.lan", True))


@pytest.mark.parametrize("url, api", [
    ("https://r.com", "https://r.com/v2/"), ("https://r.com:5000/api/hub", "https://r.com:5000/api/hub/v2/"),
    ("https://r.com/v2/proxy", "https://r.com/v2/proxy/"), ("https://r.com/hub/v2", "https://r.com/hub/v2/"),
    ("https://r.com/v2", "https://r.com/v2/"), ("https://r.com/v2x", "https://r.com/v2x/v2/"),
    ("https://r.com/a/v2/b", "https://r.com/a/v2/b/v2/"), ("https://v2", "https://v2/v2/")])
def test_a_mirrors_path_may_be_the_root_of_the_api(url: str, api: str) -> None:
    assert Endpoint(url, "x").api == api


# -- TLS -----------------------------------------------------------------------


def test_a_host_that_is_secure_is_verified() -> None:
    service = RegistryService(insecure=["Bad.com:5000", "docker.io"])
    for url, mode in [
        ("https://good.com", ssl.CERT_REQUIRED), ("https://bad.com:5000", ssl.CERT_NONE),
        ("https://bad.com", ssl.CERT_REQUIRED), ("https://localhost:1", ssl.CERT_NONE),
        ("https://registry-1.docker.io", ssl.CERT_NONE), ("https://auth.docker.io", ssl.CERT_REQUIRED),
    ]:
        context = service.tls_context(Origin.of(url))
        assert (context.verify_mode, context.check_hostname) == (mode, mode is ssl.CERT_REQUIRED)


@pytest.mark.parametrize("secure", [True, False])
def test_a_context_does_not_depend_on_how_python_was_built(secure: bool) -> None:
    """Debian's allows TLS 1.0, and takes an end without a goodbye for the end of a body."""
    service = RegistryService(insecure=[] if secure else ["r.com"])
    context = service.tls_context(Origin.of("https://r.com"))
    assert (context.verify_mode == ssl.CERT_REQUIRED) is secure
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & 1 << 7 == 0  # SSL_OP_IGNORE_UNEXPECTED_EOF
    assert context.verify_flags & ssl.VERIFY_X509_STRICT == 0


def test_a_ca_is_trusted_for_its_host_alone(certificates: Certificates) -> None:
    ca = str(certificates.ca)

    def trusts(service: RegistryService, url: str) -> bool:
        known = service.tls_context(Origin.of(url)).get_ca_certs()
        return any("test authority" in str(entry["subject"]) for entry in known)

    assert trusts(RegistryService(ca_file=ca), "https://r.com")
    for_one = RegistryService(hosts={"R.com:443": Host(ca=ca), "docker.io": Host(ca=ca)})
    assert trusts(for_one, "https://r.com")
    assert trusts(for_one, "https://registry-1.docker.io")
    assert not trusts(for_one, "https://s.com")
    assert not trusts(RegistryService(), "https://r.com")


def test_a_ca_file_that_can_not_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for name in ("missing", "empty", "."):
        with pytest.raises(StorageError, match="CA file"):
            RegistryService(ca_file=str(tmp_path / name)).tls_context(Origin.of("https://r.com"))


@pytest.mark.parametrize("url, folder", [
    ("https://r.com:5000", "r.com:5000"), ("https://r.com", "r.com"), ("https://r.com", "r.com:443"),
    ("https://[2001:db8::1]:5000", "[2001:db8::1]:5000"), ("https://registry-1.docker.io", "docker.io")])
def test_certs_d_is_for_one_host_and_the_first_counts(
    certificates: Certificates, tmp_path: Path, url: str, folder: str
) -> None:
    roots = [tmp_path / name for name in ("missing", "first", "second")]
    certificates.folder(roots[2] / folder)
    service = RegistryService(certs=[str(root) for root in roots])

    def authorities(url: str) -> int:
        return len(service.tls_context(Origin.of(url)).get_ca_certs())

    system = authorities("https://other.com")
    assert authorities(url) == system + 1
    assert [authorities(each) for each in ("https://r.com:5001", "https://auth.docker.io")] == [system] * 2
    certificates.folder(roots[1] / folder, ca=False)
    assert authorities(url) == system
    (roots[1] / folder / "x.key").write_text("")
    with pytest.raises(InvalidReference, match="missing client certificate x.cert for key x.key"):
        authorities(url)


def test_an_unverified_context_loads_no_authorities() -> None:
    context = RegistryService().tls_context(Origin.of("https://[::1]:5000"))
    assert (context.get_ca_certs(), context.verify_mode) == ([], ssl.CERT_NONE)


@pytest.mark.parametrize("settings", [
    {"ca_file": "/ca\0.crt"}, {"hosts": {"127.0.0.1:1": Host(ca="ca\0\n")}}, {"ca_file": "/\ud800.crt"},
    {"cert_dirs": {"127.0.0.1:1": "/certs\0"}}, {"cert_dirs": {"127.0.0.1:1": "/\ud800"}}])
def test_a_path_that_no_file_can_have_is_an_error_of_the_settings(settings: Any) -> None:
    transport = RegistryService(timeout=5, **settings).transport()
    with pytest.raises(InvalidReference, match="^certificates for 127.0.0.1:1: .") as caught:
        transport.send(Request("GET", "https://127.0.0.1:1/", Cancel()))
    assert "\0" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("failure", [ValueError("a bug"), KeyError("a bug"), StorageError("no such file")])
def test_trouble_with_our_own_certificates_is_never_blamed_on_the_registry(
        server: ScriptedServer, failure: Exception) -> None:
    def context(origin: Origin) -> ssl.SSLContext:
        raise failure

    with pytest.raises(type(failure)) as caught:
        Transport(context, 5).send(Request("GET", "https://" + server.host, Cancel()))
    assert caught.value is failure and server.connections == 0


# -- headers -------------------------------------------------------------------


@pytest.mark.parametrize("name, value", [
    ("Authorization", "x"), ("COOKIE", "x"), ("Proxy-Authorization", "x"), ("Host", "x"), ("Content-Length", "1"),
    ("Transfer-Encoding", "chunked"), ("Range", "bytes=0-"), ("", "x"), ("a b", "x"), ("a:", "x"), ("a\n", "x"),
    ("a", "x\r\nb: c"), ("a", "x\r\n y"), ("a", "\0"), ("a", "\u00e9"), ("a", "\u20ac"),
])
def test_a_header_that_would_break_a_request_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidReference, match="can't be set"):
        RegistryService(headers={name: value})


def test_headers_go_with_every_request(server: ScriptedServer) -> None:
    server.on("GET", "", reply(200))
    transport = RegistryService(headers={"X-Meta-A": "b c", "User-Agent": "me"}).transport()
    transport.send(Request("GET", server.url, Cancel())).close()
    transport.close()
    assert server.requests[0].headers["x-meta-a"] == "b c"
    assert server.requests[0].headers["user-agent"] == "me"
