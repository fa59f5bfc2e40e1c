# SPDX-License-Identifier: Apache-2.0
"""Errors of registries: an answer or a failed exchange as an error, and whether another endpoint is asked.

Mirrors moby's distribution/errors.go and docker/distribution's errcode.
"""
import errno
import json
import socket
from typing import ContextManager, Dict, List, NamedTuple, Optional, Sequence, Type

from ..errors import (
    Cancelled, Error, InvalidDocument, InvalidReference, NetworkError, NoSupport, NotFound, PolicyError,
    RateLimited, StorageError, TLSError, Unauthorized, Unsupported, one_line, shown)
from ..image.strictjson import check_memory, number
from ..parts import ssl
from .head import MalformedHead, NoAnswer

#: The error codes of docker/distribution and distribution-spec, each with its
#: default message: an entry that says no more is shown as its code alone.
CODES = {
    "UNKNOWN": "unknown error",
    "UNSUPPORTED": "The operation is unsupported.",
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "UNAVAILABLE": "service unavailable",
    "TOOMANYREQUESTS": "too many requests",
    "DIGEST_INVALID": "provided digest did not match uploaded content",
    "SIZE_INVALID": "provided length did not match content length",
    "NAME_INVALID": "invalid repository name",
    "TAG_INVALID": "manifest tag did not match URI",
    "NAME_UNKNOWN": "repository name not known to registry",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "MANIFEST_INVALID": "manifest invalid",
    "MANIFEST_UNVERIFIED": "manifest failed signature verification",
    "MANIFEST_BLOB_UNKNOWN": "blob unknown to registry",
    "BLOB_UNKNOWN": "blob unknown to registry",
    "BLOB_UPLOAD_UNKNOWN": "blob upload unknown to registry",
    "BLOB_UPLOAD_INVALID": "blob upload invalid",
    "PAGINATION_NUMBER_INVALID": "invalid number of results requested",
    "RANGE_INVALID": "invalid content range",
    "NOT_FOUND": "not found"}  # Harbor's


class ErrorDetail(NamedTuple):
    """An entry of a registry's error body (distribution-spec, "Error Codes")."""
    code: str
    message: str

    def __str__(self) -> str:
        words = self.code.lower().replace("_", " ")
        return "%s: %s" % (words, self.message) if self.message not in ("", words) else words


MAX_TEXT = 1000  # characters of an answer in an error
#: Codes that another attempt would not change (moby: retryOnError).
_DO_NOT_RETRY = frozenset(
    ("UNAUTHORIZED", "UNSUPPORTED", "DENIED", "TOOMANYREQUESTS", "NAME_UNKNOWN", "BLOB_UNKNOWN"))

#: The code for a status whose body has none that we know.
_BY_STATUS = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}
_BEARER_ERRORS = {"invalid_token": "UNAUTHORIZED", "insufficient_scope": "DENIED"}


class RegistryError(Error):
    """An answer that refuses a request; ``status`` is the HTTP status.

    One whose code says so is also a NotFound, an Unauthorized or a RateLimited.
    """
    exit_code = NetworkError.exit_code

    def __new__(cls, status: int, details: Sequence[ErrorDetail] = (), text: str = "") -> "RegistryError":
        # Of an error that is copied or unpickled, the class is known.
        code = details[0].code if details else _BY_STATUS.get(status, "")
        return super().__new__(_CLASSES.get(code, cls) if cls is RegistryError else cls, status)

    def __init__(self, status: int, details: Sequence[ErrorDetail] = (), text: str = "") -> None:
        super().__init__(one_line(text or "; ".join(map(str, details)))[:MAX_TEXT])
        self.status = status
        self.details = details
        #: The first code, or nothing if the body named none.
        self.code = details[0].code if details else ""
        # An unreadable answer below 500 comes from a proxy or a portal, not from a registry.
        self.retry = self.code not in _DO_NOT_RETRY if details else status >= 500


class _Missing(NotFound, RegistryError):
    """An answer that there is no such manifest, blob or repository."""


class _Refused(Unauthorized, RegistryError):
    """An answer that a credential, or a permission, is lacking."""


class _Limited(RateLimited, RegistryError):
    """An answer that a client has asked too often."""


_CLASSES: Dict[str, Type[RegistryError]] = {
    "UNAUTHORIZED": _Refused, "DENIED": _Refused, "TOOMANYREQUESTS": _Limited, "NOT_FOUND": _Missing,
    "MANIFEST_UNKNOWN": _Missing, "NAME_UNKNOWN": _Missing, "BLOB_UNKNOWN": _Missing}


def decode_answer(status: int, reason: str, content_type: str, body: bytes,
                  bearer_error: str = "") -> RegistryError:
    """The error for an answer; ``bearer_error`` is that of its challenge (moby: HandleErrorResponse)."""
    words = ("%d %s" % (status, reason)).strip()
    if not 400 <= status < 500:
        return RegistryError(status, text="received unexpected HTTP status: %s" % words)
    text = body.decode("utf-8", "replace")
    details: List[ErrorDetail] = []
    if bearer_error in _BEARER_ERRORS:
        details.append(ErrorDetail(_BEARER_ERRORS[bearer_error], ""))
    default = _BY_STATUS.get(status, "UNKNOWN")
    if content_type.partition(";")[0].strip().lower() not in ("application/json", "application/vnd.api+json"):
        return RegistryError(status, details + [ErrorDetail(default, text.strip()[:1000] or words)])
    problem = "no error details found in HTTP response body"
    try:
        check_memory(body, "answer")
        answer = json.loads(text, parse_int=number)
        if isinstance(answer.get("details"), str) and answer["details"]:  # of old registries
            return RegistryError(status, details + [ErrorDetail(default, answer["details"][:1000])])
        for entry in answer["errors"]:
            code = entry["code"] if entry.get("code") in CODES else default
            message = str(entry.get("message") or "")
            bare = message == CODES[code] and entry.get("detail") is None
            details.append(ErrorDetail(code, "" if bare else message[:1000]))
    except (ValueError, PolicyError) as exc:
        problem = str(exc)
    except (LookupError, TypeError, AttributeError, RecursionError):
        pass  # the entries before the malformed one count
    if not details and status == 401:
        details.append(ErrorDetail("UNAUTHORIZED", "authentication required"))
    return RegistryError(status, details, "" if details else "error parsing HTTP %d response body: %s: %s" % (
        status, problem, json.dumps(text[:1000])))


class Dispensable(ContextManager["Dispensable"]):
    """A block whose requests only save work: their failure is passed over (moby: push_v2.go logs it).

    Raises Cancelled, StorageError, and a token server's Unauthorized, since another try may lock an account.
    """

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> bool:
        return isinstance(error, RegistryError) or isinstance(error, Error) and not isinstance(
            error, (Cancelled, StorageError, Unauthorized))


class IfThere(ContextManager["IfThere"]):
    """A block that ends, without an error, at an answer that there is no such thing (404)."""

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> bool:
        return error.status == 404 if isinstance(error, RegistryError) else isinstance(error, NotFound)


#: Codes of a v2 answer after which v1 may still have the image (moby: shouldV2Fallback).
_V1_MAY_KNOW = frozenset(("UNAUTHORIZED", "MANIFEST_UNKNOWN", "NAME_UNKNOWN", "NOT_FOUND", "UNKNOWN"))


def continue_on_error(error: Error, mirror: bool, v1_follows: bool = False) -> bool:
    """Whether the next endpoint may be tried after this one failed (moby: continueOnError).

    A mirror's answer never binds the registry.  The registry's own answer is final,
    unless a v1 endpoint follows and none has proved to speak v2 (``v1_follows``).
    Without an answer the next one is asked; after trouble of our own none is.
    """
    if isinstance(error, (Cancelled, StorageError, InvalidReference, Unsupported)):
        return isinstance(error, NoSupport)
    if isinstance(error, RegistryError) and not error.details:
        return True
    if v1_follows and (error.code in _V1_MAY_KNOW if isinstance(error, RegistryError)
                       else isinstance(error, (InvalidDocument, Unauthorized))):
        return True
    return mirror or isinstance(error, NetworkError)


class Outage(NetworkError):
    """A peer that refused, reset or closed the connection; it may be back in seconds."""


class WrongScheme(TLSError):
    """A ``peer`` that ``speaks`` https where plain http was asked, or http where TLS was."""

    def __init__(self, peer: str, speaks: str, reason: str = "") -> None:
        super().__init__("%s speaks TLS, and was asked without" % peer if speaks == "https" else
                         "%s does not speak TLS (%s)" % (peer, reason))
        self.peer = peer
        self.speaks = speaks


#: The words of OpenSSL, by version, for a record that is none of TLS.
_NO_TLS = "wrong version number", "unknown protocol", "packet length too long", "record layer failure", "http"


def foreign_error(exc: Exception, peer: str, host: str, secure: bool) -> Error:
    """The error of ours for any exception of socket, ssl and of heads while we speak to a peer."""
    text = shown(str(getattr(exc, "strerror", None) or exc) or type(exc).__name__, 200)
    of_tls = type(exc).__module__ == "ssl"  # which is not imported for plain http, and may be missing
    if of_tls and (isinstance(exc, ssl.CertificateError) or "CERTIFICATE_VERIFY_FAILED" in text):
        return PolicyError("certificate of %s is not trusted (%s)" % (peer, certificate_problem(exc)))
    if isinstance(exc, socket.timeout):
        return NetworkError("%s: timed out" % peer)
    if of_tls and isinstance(exc, ssl.SSLError):
        reason = str(getattr(exc, "reason", None) or text).lower().replace("_", " ")
        if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
            return TLSError(
                "%s wants a client certificate that it trusts (%s); put NAME.cert and NAME.key in"
                " certs.d/%s or in a --cert-dir" % (peer, reason, peer))
        if not secure:
            if reason.startswith(_NO_TLS):
                return WrongScheme(peer, "http", reason)
            if "eof" in reason:  # by its class only where Python and OpenSSL are of one age
                return Outage("%s closed the connection during the TLS handshake" % peer)
            hint = "; it may want a client certificate" if "alert handshake" in reason else ""
            return TLSError("%s: TLS failed (%s)%s" % (peer, reason, hint))
    if isinstance(exc, (socket.gaierror, UnicodeError)):  # the latter from its IDNA
        return NetworkError("lookup %s: %s" % (host, text))
    if isinstance(exc, NoAnswer):
        return Outage("%s closed the connection without an answer" % peer)
    if isinstance(exc, MalformedHead) and str(exc).startswith("\x15\x03"):  # an alert of TLS
        return Outage("%s answered with an alert of TLS" % peer)
    if isinstance(exc, OSError) and exc.errno in (errno.EIO, errno.ESTALE):  # no socket's, but a file's
        return StorageError("read what is sent to %s: %s" % (peer, text))
    if isinstance(exc, OSError):
        kind = Outage if isinstance(exc, ConnectionError) else NetworkError
        return kind("%s: %s" % (peer, text.lower()))
    return NetworkError("malformed answer of %s (%s)" % (peer, type(exc).__name__))


def certificate_problem(exc: Exception) -> str:
    """The words of the TLS library for why it refused a certificate."""
    return shown(str(getattr(exc, "verify_message", "") or getattr(exc, "strerror", "") or exc), 300)
