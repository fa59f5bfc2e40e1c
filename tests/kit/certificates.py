# SPDX-License-Identifier: Apache-2.0
"""Certificates for servers that speak TLS."""
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import List


class Certificates:
    """A certificate authority and what can be wrong with its certificates.

    ``context(kind)`` is a server's side, which with ``mutual`` demands a certificate
    of the client's, such as ``client``; ``ca`` is the file that a client trusts.
    """

    KINDS = ("valid", "expired", "wrong-host", "self-signed", "client")

    def __init__(self, root: Path, openssl: str) -> None:
        self.root, self._openssl = root, openssl
        self.ca = root / "ca.pem"
        local = "subjectAltName=IP:127.0.0.1,IP:127.0.0.2,DNS:localhost,DNS:registry.test"
        self._ask("req", "-x509", *self._key("ca"), "-subj", "/CN=test authority", "-days", "30",
                  "-out", "ca.pem")
        self._ask("req", "-x509", *self._key("self-signed"), "-subj", "/CN=localhost", "-days", "30",
                  "-addext", local, "-out", "self-signed.pem")
        self._sign("valid", local, "30")
        self._sign("lan", "subjectAltName=DNS:registry.lan", "30")
        self._sign("wrong-host", "subjectAltName=DNS:registry.invalid", "30")
        self._sign("expired", local, "-1")
        self._sign("client", "extendedKeyUsage=clientAuth", "30")

    def _ask(self, *args: str) -> None:
        subprocess.run([self._openssl, *args], cwd=self.root, check=True, timeout=60,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _key(self, kind: str) -> List[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", kind + ".key"]

    def _sign(self, kind: str, names: str, days: str) -> None:
        (self.root / (kind + ".ext")).write_text(names + "\n")
        self._ask("req", "-new", *self._key(kind), "-subj", "/CN=" + kind, "-out", kind + ".csr")
        self._ask("x509", "-req", "-in", kind + ".csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                  "-CAcreateserial", "-days", days, "-extfile", kind + ".ext", "-out", kind + ".pem")

    def dated(self, kind: str, start: float, end: float) -> None:
        """Make another kind, for registry.test, that is valid from one time to another (seconds)."""
        (self.root / "index.txt").write_text("")
        (self.root / "dated.cnf").write_text(
            "[ca]\ndefault_ca=x\n[x]\ndatabase=index.txt\nnew_certs_dir=.\npolicy=p\nrand_serial=yes\n"
            "default_md=sha256\n[p]\ncommonName=supplied\n[names]\nsubjectAltName=DNS:registry.test\n")
        self._ask("req", "-new", *self._key(kind), "-subj", "/CN=" + kind, "-out", kind + ".csr")
        dates = [time.strftime("%y%m%d%H%M%SZ", time.gmtime(seconds)) for seconds in (start, end)]
        self._ask("ca", "-batch", "-config", "dated.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-notext",
                  "-extensions", "names", "-startdate", dates[0], "-enddate", dates[1], "-in", kind + ".csr",
                  "-out", kind + ".pem")

    def context(self, kind: str = "valid", mutual: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(self.root / (kind + ".pem")), str(self.root / (kind + ".key")))
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(str(self.ca))
        return context

    def folder(self, path: Path, ca: bool = True, client: str = "") -> Path:
        """Make a folder as certs.d/HOST or --cert-dir may be."""
        path.mkdir(parents=True)
        if ca:
            shutil.copy(str(self.ca), str(path / "ca.crt"))
        if client:
            shutil.copy(str(self.root / (client + ".pem")), str(path / "client.cert"))
            shutil.copy(str(self.root / (client + ".key")), str(path / "client.key"))
        return path
