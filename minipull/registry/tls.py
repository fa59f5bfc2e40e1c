# SPDX-License-Identifier: Apache-2.0
"""TLS contexts, and the certificates of ``certs.d``.

A directory ``certs.d/HOST[:PORT]`` holds authorities to trust besides the
system's (``*.crt``) and client certificates (``NAME.cert`` with ``NAME.key``).
Of several client certificates the last one counts, for each kind of key.

Mirrors moby's registry/registry.go (ReadCertsDirectory).
"""
import contextlib
import ipaddress
import os
import time
from typing import Dict, List, NamedTuple, Tuple

from ..errors import InvalidReference, file_errors
from ..parts import calendar, ssl

#: SSL_OP_IGNORE_UNEXPECTED_EOF, which ssl does not name before 3.10.
_IGNORE_UNEXPECTED_EOF = 1 << 7
_COMMON_NAME, _ORGANIZATION, _ALTERNATIVE_NAMES = b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x1d\x11"
_DNS_NAME, _ADDRESS = 0x82, 0x87  # tags of a GeneralName (RFC 5280, 4.2.1.6)


class Certificate(NamedTuple):
    """The certificate of a host; what could not be read is empty or 0."""
    names: Tuple[str, ...]  # and IP addresses that it is for
    issuer: str  # by common name or organization
    not_before: float  # seconds since the epoch
    not_after: float


def client_context(verify: bool) -> "ssl.SSLContext":
    """A TLS context with the same rules under every Python, distribution and OpenSSL.

    TLS 1.2 is the least.  A stream that ends without a close_notify is an error
    (Python 3.8, 3.9 and Debian's 3.11 tell OpenSSL 3 to ignore that).  Python 3.13's
    strict X.509 checks are off: the certificates of docker's documentation don't pass
    them.  Without ``verify`` no peer is verified, and no authorities are loaded.
    """
    context = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.options &= ~_IGNORE_UNEXPECTED_EOF
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:  # Python 3.6
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    return context


def add_authorities(context: "ssl.SSLContext", path: str) -> None:
    """Trust the certificates in a PEM file; raises StorageError."""
    with file_errors("CA file %s" % path):
        context.load_verify_locations(path)


def add_folder(context: "ssl.SSLContext", folder: str) -> None:
    """Use the certificates in a directory; raises StorageError, InvalidReference for half a pair."""
    with file_errors("certificates in %s" % folder):
        names = sorted(os.listdir(folder))
    for name in names:
        stem, extension = os.path.splitext(name)
        path = os.path.join(folder, name)
        if extension == ".crt":
            add_authorities(context, path)
        elif extension == ".cert":
            key = stem + ".key"
            if key not in names:
                raise InvalidReference(
                    "%s: missing key %s for client certificate %s. CA certificates must use the"
                    " extension .crt" % (folder, key, name))
            with file_errors("client certificate %s (its key must have no password)" % path):
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(path, os.path.join(folder, key), lambda: "")
        elif extension == ".key" and stem + ".cert" not in names:
            raise InvalidReference("%s: missing client certificate %s.cert for key %s" % (folder, stem, name))


def parse_certificate(der: bytes) -> Certificate:
    """The certificate in DER, as far as it can be read."""
    issuer: Dict[bytes, str] = {}
    names: List[str] = []
    dates: List[float] = []
    with contextlib.suppress(LookupError, ValueError):
        #   TBSCertificate ::= [version] serialNumber signature issuer validity subject ...  (RFC 5280, 4.1)
        fields = _parts(_parts(_parts(der)[0][1])[0][1])
        first = 3 if fields[0][0] == 0xA0 else 2
        for _, relative in _parts(fields[first][1]):
            for _, attribute in _parts(relative):
                (_, kind), (_, value) = _parts(attribute)
                issuer[kind] = value.decode("utf-8", "replace")
        for tag, value in _parts(fields[first + 1][1]):
            form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
            dates.append(calendar.timegm(time.strptime(value.decode(), form)))
        for _, extension in _parts(_parts(dict(fields)[0xA3])[0][1]):
            (_, kind), *_, (_, value) = _parts(extension)
            for tag, name in _parts(_parts(value)[0][1]) if kind == _ALTERNATIVE_NAMES else ():
                if tag in (_DNS_NAME, _ADDRESS):
                    names.append(name.decode() if tag == _DNS_NAME else str(ipaddress.ip_address(name)))
    not_before, not_after = dates if len(dates) == 2 else (0.0, 0.0)
    return Certificate(
        tuple(names), issuer.get(_COMMON_NAME) or issuer.get(_ORGANIZATION) or "", not_before, not_after)


def _parts(der: bytes) -> List[Tuple[int, bytes]]:
    """The tag and the value of each element of a DER sequence."""
    parts = []
    while der:
        start, length = 2, der[1]
        if length > 127:
            start += length - 128
            length = int.from_bytes(der[2:start], "big")
        parts.append((der[0], der[start:start + length]))
        der = der[start + length:]
    return parts
