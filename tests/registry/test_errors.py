# SPDX-License-Identifier: Apache-2.0
"""Each answer of a registry is one error, with its text, its exit code, and a rule for the next endpoint."""
import contextlib
import json
import pickle
from typing import Any, Dict, List, Mapping

import pytest

from minipull.errors import (
    Cancelled, ContentMismatch, Error, InvalidDocument, InvalidReference, NetworkError, NoSupport, NotFound,
    PolicyError, RateLimited, StorageError, Unauthorized, Unsupported)
from minipull.registry.errors import (
    CODES, Dispensable, ErrorDetail, RegistryError, continue_on_error, decode_answer)
from tests.kit import DATA

TABLES = json.loads((DATA / "tables.json").read_text())


def cases(name: str) -> List[Dict[str, Any]]:
    return list(TABLES[name]["cases"])


def answer(code: str, status: int = 400) -> RegistryError:
    return RegistryError(status, [ErrorDetail(code, "some text")])


def made(error: Mapping[str, Any]) -> Error:
    """What minipull makes of an error of the upstream tables."""
    text = error.get("text", "")
    if error["kind"] == "Errors":
        return RegistryError(400, [ErrorDetail(entry["code"], "") for entry in error["list"]])
    if error["kind"] == "url":
        inner = error["inner"]["text"]
        return Unauthorized(inner) if "credentials" in inner else NetworkError(inner)
    if "no space" in text or "no such process" in text:
        return StorageError(text)
    if error["kind"] == "Error":
        return answer(error["code"])
    return {
        "UnexpectedHTTPResponseError": RegistryError(404, text="error parsing"),
        "BlobUnknown": answer("BLOB_UNKNOWN", 404),
        "ImageConfigPullError": ContentMismatch("image config verification failed"),
        "cancelled": Cancelled(),
        "other": NetworkError(text),
    }[error["kind"]]


@pytest.mark.parametrize("case", cases("retry_on_error"), ids=str)
def test_only_what_may_change_is_retried(case: Mapping[str, Any]) -> None:
    assert made(case["error"]).retry is not case["do_not_retry"]


@pytest.mark.parametrize("case", cases("continue_on_error"), ids=str)
def test_a_mirror_never_binds_the_origin_and_the_origin_is_final(case: Mapping[str, Any]) -> None:
    assert continue_on_error(made(case["error"]), case["mirror"]) is case["expected"]
    wanted = case.get("v1_follows", case["expected"])
    assert continue_on_error(made(case["error"]), case["mirror"], v1_follows=True) is wanted


@pytest.mark.parametrize("error", [Cancelled(), StorageError(""), InvalidReference(""), Unsupported("")])
def test_after_trouble_of_our_own_no_other_endpoint_is_asked(error: Error) -> None:
    assert not continue_on_error(error, True, True)


@pytest.mark.parametrize("error, v1_follows", [
    (Unauthorized(""), True), (InvalidDocument(""), True), (answer("UNKNOWN"), True), (answer("UNAUTHORIZED"), True),
    (answer("DENIED"), False), (ContentMismatch(""), False), (PolicyError(""), False), (RateLimited(""), False)])
def test_v1_is_asked_after_an_unconfirmed_v2_said_no(error: Error, v1_follows: bool) -> None:
    assert continue_on_error(error, False, True) is v1_follows
    assert not continue_on_error(error, False)


@pytest.mark.parametrize("error, passed_over", [
    (answer("DENIED", 403), True), (answer("BLOB_UNKNOWN", 404), True), (NetworkError(""), True),
    (Unauthorized(""), False), (StorageError(""), False), (Cancelled(), False)], ids=repr)
def test_a_refused_saving_is_passed_over_but_not_a_refused_password(error: Error, passed_over: bool) -> None:
    with contextlib.suppress(*([] if passed_over else [type(error)])):
        with Dispensable():
            raise error
        assert passed_over


def test_after_a_protocol_that_can_not_do_it_the_next_endpoint_is_asked() -> None:
    assert continue_on_error(NoSupport(""), False)


def test_an_unreadable_answer_is_retried_only_if_the_server_failed() -> None:
    assert RegistryError(503).retry
    assert not RegistryError(404).retry
    assert continue_on_error(RegistryError(503), False)


@pytest.mark.parametrize("case", cases("error_responses"), ids=str)
def test_answers_read_as_upstream(case: Mapping[str, Any]) -> None:
    status, _, reason = case["status"].partition(" ")
    error = decode_answer(int(status), reason, case["content_type"] or "", case["body"].encode())
    assert error.status == int(status)
    assert case["text_contains"] in str(error)
    assert str(error).endswith(case.get("text_ends", ""))


@pytest.mark.parametrize("case", cases("error_codes"), ids=str)
def test_a_message_that_adds_nothing_to_its_code_is_left_out(case: Mapping[str, Any]) -> None:
    code = case["code"]
    words = code.lower().replace("_", " ")
    assert CODES[code] == case["default_message"]
    for entry, text in [
        ({"code": code}, words),
        ({"code": code, "message": ""}, words),
        ({"code": code, "message": None, "detail": None}, words),
        ({"code": code, "message": CODES[code], "detail": None}, words),
        ({"code": code, "message": "because"}, words + ": because"),
    ]:
        error = decode(400, {"errors": [entry]})
        assert (str(error), error.code) == (text, code)


def decode(status: int, body: Any, bearer_error: str = "") -> RegistryError:
    return decode_answer(status, "Reason", "application/json", json.dumps(body).encode(), bearer_error)


DECODED = [
    # status, body, text, code, exit code, retry
    (404, {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]},
     "manifest unknown", "MANIFEST_UNKNOWN", 3, True),
    (400, {"errors": [{"code": "MANIFEST_INVALID", "message": "no"}, {"code": "DENIED"}]},
     "manifest invalid: no; denied", "MANIFEST_INVALID", 5, True),
    (404, {"errors": [{"code": "ALIEN", "message": "other world"}]},
     "unknown: other world", "UNKNOWN", 5, True),
    (404, {"errors": [{"code": "NOT_FOUND", "message": "artifact a/b:1"}]},
     "not found: artifact a/b:1", "NOT_FOUND", 3, True),
    # Harbor, Artifactory and others: what has no code of ours is named by its status.
    (403, {"errors": [{"code": "FORBIDDEN", "message": "no pull"}]}, "denied: no pull", "DENIED", 4, False),
    (401, {"errors": [{"status": 401, "message": "bad token"}]},
     "unauthorized: bad token", "UNAUTHORIZED", 4, False),
    (429, {"errors": [{"message": "slow down"}]},
     "toomanyrequests: slow down", "TOOMANYREQUESTS", 8, False),
    (404, {"errors": [{"code": ["NAME_UNKNOWN"]}]}, None, "", 5, False),
    (404, {"errors": [{"code": "NAME_UNKNOWN", "message": {"a": 1}}]},
     "name unknown: {'a': 1}", "NAME_UNKNOWN", 3, False),
    (404, {"errors": [{"code": "NAME_UNKNOWN"}, 7]}, "name unknown", "NAME_UNKNOWN", 3, False),
    (429, {"details": "later"}, "toomanyrequests: later", "TOOMANYREQUESTS", 8, False),
    (404, {"details": "x" * 5000}, ("unknown: " + "x" * 1000)[:1000], "UNKNOWN", 5, True),
    (404, {"errors": [{"code": "NAME_INVALID", "message": "x" * 5000}]},
     ("name invalid: " + "x" * 1000)[:1000], "NAME_INVALID", 5, True),
    (404, {"errors": [{"code": "UNKNOWN", "message": "x" * 900}] * 1000},
     ("unknown: " + "x" * 900 + "; unknown: " + "x" * 900)[:1000], "UNKNOWN", 5, True),
    (400, {"errors": [{"code": "TAG_INVALID"}]}, "tag invalid", "TAG_INVALID", 5, True),
    (404, {"details": ""}, None, "", 5, False),
    (404, {"errors": []}, None, "", 5, False),
    (404, {"errors": None}, None, "", 5, False),
    (404, {"errors": "many"}, None, "", 5, False),
    (403, [], None, "", 4, False),
    (429, "text", None, "", 8, False),
    (401, None, "unauthorized: authentication required", "UNAUTHORIZED", 4, False),
    (500, {"errors": [{"code": "DENIED"}]},
     "received unexpected HTTP status: 500 Reason", "", 5, True),
    (304, {}, "received unexpected HTTP status: 304 Reason", "", 5, False),
]


@pytest.mark.parametrize("status,body,text,code,exit_code,retry", DECODED)
def test_every_answer_becomes_one_error_with_text_and_policy(
    status: int, body: Any, text: str, code: str, exit_code: int, retry: bool
) -> None:
    error = decode(status, body)
    parsing = "error parsing HTTP %d response body: no error details found in HTTP response body: %s"
    assert str(error) == (text or parsing % (status, json.dumps(json.dumps(body))))
    assert (error.code, error.exit_code, error.retry) == (code, exit_code, retry)
    kinds = {3: NotFound, 4: Unauthorized, 8: RateLimited}
    for other in (error, error.within("pull x"), error.reworded("no"), pickle.loads(pickle.dumps(error))):
        assert isinstance(other, RegistryError) and other.status == status and other.exit_code == exit_code
        assert [number for number, kind in kinds.items() if isinstance(other, kind)] == [
            number for number in kinds if number == exit_code]


@pytest.mark.parametrize("bearer_error,text,code", [
    ("invalid_token", "unauthorized; unknown: x", "UNAUTHORIZED"),
    ("insufficient_scope", "denied; unknown: x", "DENIED"),
    ("other", "unknown: x", "UNKNOWN"),
])
def test_the_error_of_a_bearer_challenge_comes_first(bearer_error: str, text: str, code: str) -> None:
    body = {"errors": [{"code": "UNKNOWN", "message": "x"}]}
    error = decode(401, body, bearer_error)
    assert (str(error), error.code) == (text, code)
    assert str(decode_answer(401, "", "text/plain", b"x", "invalid_token")) == "unauthorized; unauthorized: x"
    assert str(decode(401, {}, "invalid_token")) == "unauthorized"


@pytest.mark.parametrize("status,body,text", [
    (401, b"", "unauthorized: 401 Reason"),
    (403, b" <html>no\n ", "denied: <html>no"),
    (429, b"\xff", "toomanyrequests: \ufffd"),
    (404, b"x" * 5000, ("unknown: " + "x" * 1000)[:1000]),
    (404, b" \n", "unknown: 404 Reason"),
])
def test_a_body_that_is_not_json_gets_the_code_of_its_status(status: int, body: bytes, text: str) -> None:
    assert str(decode_answer(status, "Reason", "text/html", body)) == text


@pytest.mark.parametrize("body", [
    b"", b"{", b"\xff\xfe", b"[" * 200000, b'{"a":' * 200000, b'{"errors": ' + b"9" * 5000 + b"}",
    b'{"errors": [%s{}]}' % (b"{}," * 300000),
])
def test_no_body_breaks_the_decoder(body: bytes) -> None:
    error = decode_answer(404, "Reason", "Application/JSON; charset=utf-8", body)
    assert str(error).startswith("error parsing HTTP 404 response body: ")
    assert len(str(error)) < 7000 and "\n" not in str(error)
    assert decode_answer(401, "Reason", "application/vnd.api+json", body).exit_code == 4
