# SPDX-License-Identifier: Apache-2.0
"""Whose certificates are believed, which is shown, and what is said when one is missing."""
import random
import re
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.kit import images
from tests.kit.processes import Finished, Minipull, clean_env, peer, run
from tests.kit.images import Layout
from minipull.registry.endpoints import RegistryService
from minipull.errors import InvalidReference, PolicyError, StorageError, TLSError
from minipull.registry.proxy import Proxies
from minipull.cancel import Cancel
from minipull.registry.request import Request
from minipull.registry.tls import add_folder, parse_certificate
from tests.kit.certificates import Certificates
from tests.kit.proxies import Proxy
from tests.kit.servers import Connection, ScriptedServer, close, reply

HOST = "registry.test:5000"


def openssl(*args: str) -> str:
    done = subprocess.run([peer("openssl"), *args], check=True, timeout=60, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Another authority of the same name, which nobody knows."""
    return Certificates(tmp_path_factory.mktemp("strangers"), peer("openssl"))


# -- a directory -----------------------------------------------------------------


def loaded(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    add_folder(context, str(folder))
    return context


def test_a_folder_adds_its_authorities_and_nothing_else(certificates: Certificates, tmp_path: Path) -> None:
    folder = certificates.folder(tmp_path / "certs", client="client")
    (folder / "README").write_text("x")
    (folder / "ca.pem").write_text("x")
    (folder / "hosts.toml").mkdir()
    assert [ca["subject"] for ca in loaded(folder).get_ca_certs()] == [((("commonName", "test authority"),),)]
    assert loaded(certificates.folder(tmp_path / "empty", ca=False)).get_ca_certs() == []


def test_half_a_pair_is_refused_in_the_engines_words(certificates: Certificates, tmp_path: Path) -> None:
    folder = certificates.folder(tmp_path / "certs", client="client")
    (folder / "client.key").rename(tmp_path / "client.key")
    with pytest.raises(InvalidReference) as caught:
        loaded(folder)
    assert str(caught.value) == (
        "%s: missing key client.key for client certificate client.cert. CA certificates must use the"
        " extension .crt" % folder)
    (tmp_path / "client.key").rename(folder / "client.key")
    (folder / "client.cert").unlink()
    with pytest.raises(InvalidReference) as caught:
        loaded(folder)
    assert str(caught.value) == "%s: missing client certificate client.cert for key client.key" % folder


def test_a_file_that_can_not_be_used_is_named(
    certificates: Certificates, strangers: Certificates, tmp_path: Path
) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(StorageError) as caught:
            loaded(folder)
        return str(caught.value)

    assert refused(tmp_path / "none") == "certificates in %s/none: No such file or directory" % tmp_path
    for data in (b"", b"x", ssl.PEM_cert_to_DER_cert(certificates.ca.read_text())):
        folder = certificates.folder(tmp_path / "ca")
        (folder / "ca.crt").write_bytes(data)
        assert refused(folder).startswith("CA file %s/ca.crt: " % folder)
        shutil.rmtree(str(folder))
    folder = certificates.folder(tmp_path / "pair", client="client")
    shutil.copy(str(strangers.root / "client.key"), str(folder / "client.key"))
    assert refused(folder).startswith("client certificate %s/client.cert (" % folder)
    # A terminal must not be asked, which would wait for ever.
    openssl("ec", "-in", str(certificates.root / "client.key"), "-out", str(folder / "client.key"),
            "-aes128", "-passout", "pass:x")
    assert "its key must have no password" in refused(folder)


# -- names in certificates -------------------------------------------------------


@pytest.mark.parametrize("subject, name", [
    ("/CN=ca", "ca"), ("/O=Org/OU=x/CN=the ca", "the ca"), ("/C=DE/O=Org", "Org"), ("/C=DE", ""),
    ("/CN=a/O=b/CN=%s" % ("x" * 64), "x" * 64), ("/CN=B\u00fccher", "B\u00fccher")])
def test_an_issuer_is_known_by_its_name(tmp_path: Path, subject: str, name: str) -> None:
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-utf8", "-subj",
            subject, "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "pem"))
    assert parse_certificate(ssl.PEM_cert_to_DER_cert((tmp_path / "pem").read_text())).issuer == name


def test_a_certificate_is_read_as_openssl_reads_it(certificates: Certificates, tmp_path: Path) -> None:
    for kind in certificates.KINDS:
        pem = certificates.root / (kind + ".pem")
        certificate = parse_certificate(ssl.PEM_cert_to_DER_cert(pem.read_text()))
        shown = openssl("x509", "-in", str(pem), "-noout", "-startdate", "-enddate", "-ext", "subjectAltName")
        names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", shown)
        dates = [ssl.cert_time_to_seconds(text) for text in re.findall(r"=(.*GMT)", shown)]
        assert certificate[:1] + certificate[2:] == (tuple(names), *dates)
    # Dates from 2050 on have four digits of the year.
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a",
            "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "pem"), "-days", "20000",
            "-addext", "subjectAltName=critical,IP:2001:db8::1")
    late = parse_certificate(ssl.PEM_cert_to_DER_cert((tmp_path / "pem").read_text()))
    assert late.names == ("2001:db8::1",) and late.not_after - late.not_before == 20000 * 86400


def test_garbage_has_no_issuer_and_does_no_harm(certificates: Certificates) -> None:
    der = ssl.PEM_cert_to_DER_cert((certificates.root / "valid.pem").read_text())
    assert parse_certificate(der).issuer == "test authority"
    dice = random.Random(1)
    for end in range(len(der)):
        parse_certificate(der[:end])
        spoilt = bytearray(der)
        for _ in range(3):
            spoilt[dice.randrange(len(der))] = dice.randrange(256)
        parse_certificate(bytes(spoilt))
    for text in (b"", b"0", b"0\x80", b"0\xff" + b"\xff" * 300, b"0\x04" * 1000):
        assert parse_certificate(text) == ((), "", 0, 0)


# -- a registry that must be known, and must know us -------------------------------


class Registry:
    """TLS on a name that is not loopback's, reached by a proxy; asks for a certificate."""

    def __init__(self, certificates: Certificates, run: Minipull, layout: Layout, home: Path) -> None:
        self.server = ScriptedServer(tls=certificates.context(mutual=True))
        self.server.serve(layout.root, "r")
        self.proxy = Proxy({HOST: self.server.host})
        self.home, self._run = home, run

    def pull(self, *flags: str, **env: str) -> Finished:
        """A pull into a store of its own; HTTPS_PROXY is set."""
        shutil.rmtree(str(self.home / "root"), ignore_errors=True)
        return self._run("--root", "root", "pull", "-q", *flags, HOST + "/r:1",
                         env=dict(env, HTTPS_PROXY=self.proxy.host))


@pytest.fixture
def registry(
    certificates: Certificates, run_minipull: Minipull, home: Path, tmp_path: Path
) -> Iterator[Registry]:
    made = Registry(certificates, run_minipull, images.single(tmp_path / "layout", "1")[0], home)
    with made.server, made.proxy:
        yield made


@pytest.mark.parametrize("place", [
    ".config/containers/certs.d/" + HOST, ".config/docker/certs.d/" + HOST, "xdg/docker/certs.d/" + HOST])
def test_certs_d_at_home_opens_a_registry(registry: Registry, certificates: Certificates, place: str) -> None:
    env = {"XDG_CONFIG_HOME": str(registry.home / "xdg")} if place.startswith("xdg") else {}
    folder = certificates.folder(registry.home / place, client="client")
    done = registry.pull(**env)
    assert done.code == 0, done
    folder.rename(folder.parent / "other.test")
    assert registry.pull(**env).code == 9


def test_flags_open_a_registry(registry: Registry, certificates: Certificates, tmp_path: Path) -> None:
    ca, both = str(certificates.ca), str(certificates.folder(tmp_path / "both", client="client"))
    pair = str(certificates.folder(tmp_path / "pair", ca=False, client="client"))
    for flags, env in [(["--cert-dir", both], {}), (["--ca-file", ca, "--cert-dir", pair], {}),
                       ([], {"MINIPULL_CERT_DIR": both}), (["--cert-dir", pair], {"SSL_CERT_FILE": ca})]:
        done = registry.pull(*flags, **env)
        assert done.code == 0, done
    # One more directory, whose pair comes before the others'.
    certificates.folder(registry.home / ".config/docker/certs.d" / HOST, client="self-signed")
    assert registry.pull("--cert-dir", pair).code == 0


def test_skopeo_takes_the_same_folders(registry: Registry, certificates: Certificates, tmp_path: Path) -> None:
    env = clean_env(registry.home, {"HTTPS_PROXY": registry.proxy.host})

    def inspect(*flags: str) -> int:
        return run([peer("skopeo"), "inspect", "--raw", *flags, "docker://%s/r:1" % HOST], env, check=False).code

    assert inspect() == 1
    assert inspect("--cert-dir", str(certificates.folder(tmp_path / "given", client="client"))) == 0
    # The first directory wins as a whole.
    certificates.folder(registry.home / ".config/containers/certs.d" / HOST, client="client")
    assert (inspect(), registry.pull().code) == (0, 0)
    certificates.folder(registry.home / ".config/docker/certs.d" / HOST, ca=False)
    assert (inspect(), registry.pull().code) == (0, 0)


def test_a_registry_of_an_unknown_authority_is_exit_9_and_its_name(registry: Registry) -> None:
    done = registry.pull()
    assert done.code == 9
    assert done.err.startswith(
        "minipull: pull %s/r:1: certificate of %s is not trusted (" % (HOST, HOST)), done
    assert done.err.endswith(
        "): it was issued by 'test authority'; put the certificate of that CA in certs.d/%s/ca.crt or give"
        " it with --ca-file\n" % HOST), done
    assert done.err.count("\n") == 1
    assert registry.server.requests == []
    assert {request.method for request in registry.proxy.requests} == {"CONNECT"}


def test_a_registry_that_wants_a_certificate_says_so(
    registry: Registry, certificates: Certificates, strangers: Certificates, tmp_path: Path
) -> None:
    stranger = str(strangers.folder(tmp_path / "certs", ca=False, client="client"))
    for flags in ([], ["--cert-dir", stranger]):
        done = registry.pull("--ca-file", str(certificates.ca), *flags)
        assert done.code == 5
        assert "%s wants a client certificate that it trusts (" % HOST in done.err, done
        assert "put NAME.cert and NAME.key in certs.d/%s or in a --cert-dir\n" % HOST in done.err
    assert registry.server.requests == []


def test_an_old_server_that_wants_a_certificate_may_be_understood(certificates: Certificates) -> None:
    tls = certificates.context(mutual=True)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with ScriptedServer(tls=tls) as server:
        transport = RegistryService().transport()
        with pytest.raises(TLSError, match="TLS failed .*; it may want a client certificate"):
            transport.send(Request("GET", server.url, Cancel()))
        transport.close()


def test_a_client_certificate_is_shown_to_its_own_host_alone(certificates: Certificates, tmp_path: Path) -> None:
    folder = str(certificates.folder(tmp_path / "certs", client="client"))
    with ScriptedServer(tls=certificates.context(mutual=True)) as server:
        server.on("GET", "", reply(200))

        def ask(**settings: Any) -> int:
            transport = RegistryService(ca_file=str(certificates.ca), timeout=5, **settings).transport()
            try:
                with transport.send(Request("GET", server.url, Cancel())) as response:
                    return response.status
            finally:
                transport.close()

        assert ask(cert_dirs={server.host: folder}) == 200
        with pytest.raises(TLSError, match="wants a client certificate"):
            ask(cert_dirs={"other.test": folder, "127.0.0.1": folder})
        with pytest.raises(InvalidReference, match="host"):
            RegistryService(cert_dirs={"a/b": folder})


class Once(Proxy):
    def _tunnel(self, connection: Connection, address: str) -> None:
        if len(self.requests) > 1:
            close(connection)
        super()._tunnel(connection, address)


def test_an_authority_may_stay_unknown(certificates: Certificates) -> None:
    """Who refused a certificate asks for it once more, only to name its issuer."""
    with ScriptedServer(tls=certificates.context()) as server, Once({HOST: server.host}) as proxy:
        transport = RegistryService(proxies=Proxies(https=proxy.host)).transport()
        with pytest.raises(PolicyError, match="it was issued by an unknown CA"):
            transport.send(Request("GET", "https://" + HOST, Cancel()))
        transport.close()
        assert len(proxy.requests) == 2
