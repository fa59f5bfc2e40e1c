# SPDX-License-Identifier: Apache-2.0
"""A registry's answer as an error, and who is asked next.

Mirrors moby's distribution/errors.go and docker/distribution's errcode.
"""
import json
from typing import List, NamedTuple, Sequence

from ..errors import (
    Cancelled, Error, InvalidDocument, InvalidReference, NetworkError, NoSupport, NotFound, RateLimited,
    StorageError, Unauthorized, Unsupported)

#: The codes of docker/distribution and of distribution-spec, each with the
#: message that adds nothing to it: an entry that says no more is shown as the code.
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
    "RANGE_INVALID": "invalid content range"}


class ErrorDetail(NamedTuple):
    """One entry of a registry's error body (distribution-spec, "Error Codes")."""
    code: str
    message: str

    def __str__(self) -> str:
        words = self.code.lower().replace("_", " ")
        return "%s: %s" % (words, self.message) if self.message not in ("", words) else words


_EXIT_CODES = dict.fromkeys(("UNAUTHORIZED", "DENIED"), Unauthorized.exit_code)
_EXIT_CODES.update(dict.fromkeys(("NAME_INVALID", "TAG_INVALID"), InvalidReference.exit_code))
_EXIT_CODES.update(dict.fromkeys(("MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN"), NotFound.exit_code))
_EXIT_CODES["TOOMANYREQUESTS"] = RateLimited.exit_code

#: Codes that another attempt would not change (moby: retryOnError).
DO_NOT_RETRY = frozenset(
    ("UNAUTHORIZED", "UNSUPPORTED", "DENIED", "TOOMANYREQUESTS", "NAME_UNKNOWN", "BLOB_UNKNOWN"))

#: What a status means where the body has no code that we know.
_BY_STATUS = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}


class RegistryError(Error):
    """An answer of the registry that says no; ``status`` is the HTTP status."""

    def __init__(self, status: int, details: Sequence[ErrorDetail] = (), text: str = "") -> None:
        super().__init__(text or "; ".join(str(detail) for detail in details))
        self.status = status
        self.details = details
        #: The first code decides; empty when the body named none.
        self.code = details[0].code if details else ""
        code = self.code or _BY_STATUS.get(status, "")
        self.exit_code = _EXIT_CODES.get(code, NetworkError.exit_code)
        # An unreadable answer below 500 is no registry's: a proxy or a portal.
        self.retry = self.code not in DO_NOT_RETRY if details else status >= 500


def decode_answer(status: int, reason: str, content_type: str, body: bytes,
                  bearer_error: str = "") -> RegistryError:
    """The error that a registry's answer is; ``bearer_error`` is its challenge's.

    docker/distribution registry/client/errors.go (HandleErrorResponse).
    """
    text = body.decode("utf-8", "replace")
    words = ("%d %s" % (status, reason)).strip()
    if not 400 <= status < 500:
        return RegistryError(status, text="received unexpected HTTP status: %s" % words)
    details: List[ErrorDetail] = []
    code = {"invalid_token": "UNAUTHORIZED", "insufficient_scope": "DENIED"}.get(bearer_error)
    if code is not None:
        details.append(ErrorDetail(code, ""))
    by_status = _BY_STATUS.get(status, "UNKNOWN")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/vnd.api+json"):
        return RegistryError(status, details + [ErrorDetail(by_status, text.strip()[:1000] or words)])
    try:
        answer = json.loads(text)
        if isinstance(answer.get("details"), str) and answer["details"]:
            return RegistryError(status, details + [ErrorDetail(by_status, answer["details"][:1000])])
        for entry in answer["errors"]:
            known = entry["code"] if entry.get("code") in CODES else by_status
            message = str(entry.get("message") or "")
            bare = message == CODES[known] and entry.get("detail") is None
            details.append(ErrorDetail(known, "" if bare else message[:1000]))
        reason = "no error details found in HTTP response body"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, ValueError) else "no error details found in HTTP response body"
    if not details and status == 401:
        details.append(ErrorDetail("UNAUTHORIZED", "authentication required"))
    return RegistryError(
        status, details, "" if details else "error parsing HTTP %d response body: %s: %s"
        % (status, reason, json.dumps(text[:1000])))


#: What may be said of an image that the v1 side has (moby: shouldV2Fallback), or by who has no other.
_V1_MAY_KNOW = frozenset(("UNAUTHORIZED", "MANIFEST_UNKNOWN", "NAME_UNKNOWN", "UNKNOWN"))


def continue_on_error(error: Error, mirror: bool, v1_follows: bool = False) -> bool:
    """Whether the next endpoint may be tried after this one failed.

    What a mirror's registry says never binds the origin; what the origin says
    is final, but for the lack of an answer, and for what one says who has not
    proved to speak v2, if ``v1_follows``.  Trouble of our own never is a reason
    to ask somebody else (moby: continueOnError).
    """
    if isinstance(error, (Cancelled, StorageError, InvalidReference, Unsupported)):
        return isinstance(error, NoSupport)
    if isinstance(error, RegistryError) and not error.details:
        return True
    if v1_follows and (isinstance(error, (InvalidDocument, Unauthorized))
                       or isinstance(error, RegistryError) and error.code in _V1_MAY_KNOW):
        return True
    return mirror or isinstance(error, NetworkError)
