# SPDX-License-Identifier: Apache-2.0
"""Heads are read whole and to the letter, and written as one message."""
import contextlib
import io
import time
from typing import Any

import pytest

from minipull.registry.head import MAX_LINE, MAX_LINES, Head, MalformedHead, NoAnswer, request_head

OK = b"HTTP/1.1 200 OK\r\n"


def read(data: bytes, method: str = "GET") -> Head:
    return Head.read(io.BytesIO(data), method)


@pytest.mark.parametrize("line, status, reason", [
    (b"HTTP/1.1 200 OK\r\n", 200, "OK"), (b"HTTP/1.0 404 Not  Found \n", 404, "Not  Found"),
    (b"HTTP/1.1 204\r\n", 204, ""), (b"HTTP/1.1 299 \r\n", 299, ""), (b"HTTP/1.9\t500 \xe9\r\n", 500, "\xe9")])
def test_a_status_line_is_status_and_reason(line: bytes, status: int, reason: str) -> None:
    assert read(line + b"\r\n")[:2] == (status, reason)


def test_a_field_is_known_by_any_case_and_kept_as_often_as_it_came() -> None:
    head = read(OK + b"A: 1\r\nb:\t two  words \r\na:2\nC:\r\nD: x\r\n \t y\r\n\tz\r\n\r\n")
    assert head.fields == {"a": ["1", "2"], "b": ["two  words"], "c": [""], "d": ["x y z"]}


@pytest.mark.parametrize("data", [
    b"\r\n", b"garbage\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/0.9 200 OK\r\n\r\n", b"http/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 099 Low\r\n\r\n", b"HTTP/1.1 +20 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 \r\n\r\n",
    b"HTTP/1.1 200 a\rb\r\n\r\n", b"HTTP/1.1 200 " + b"x" * MAX_LINE + b"\r\n\r\n",
    OK + b"no colon\r\nContent-Length: 5\r\n\r\n", OK + b": no name\r\n\r\n", OK + b"A : blank\r\n\r\n",
    OK + b" folded: at first\r\n\r\n", OK + b"A: x\rContent-Length: 5\r\n\r\n", OK + b"A: \0\r\n\r\n",
    OK + b"\xe9: x\r\n\r\n", OK + b"A: x\r\n y\rz\r\n\r\n", OK + b"A: " + b"x" * MAX_LINE + b"\r\n\r\n",
    OK + b"A: x\r\n" * (MAX_LINES + 1) + b"\r\n"], ids=lambda data: repr(data[:40]))
def test_a_head_that_two_readers_may_take_differently_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedHead):
        read(data)


@pytest.mark.parametrize("start", [b"HTTP/1.1", b"HTTP/1.1 200", OK + b"A:", OK + b"A: x\r\n", OK + b"A: x"])
@pytest.mark.parametrize("end", [b"\0\r\n\r\n", b"y\r\n\r\n", b"\xa0\r\n\r\n", b""])
def test_a_line_of_blanks_is_read_at_once(start: bytes, end: bytes) -> None:
    before = time.process_time()
    with contextlib.suppress(MalformedHead, NoAnswer):
        read(start + b" \t" * 32000 + end)
    assert time.process_time() - before < 2


def test_a_head_may_have_as_many_fields_as_the_limit_says() -> None:
    assert len(read(OK + b"A: x\r\n" * MAX_LINES + b"\r\n").fields["a"]) == MAX_LINES


def test_only_blanks_and_tabs_are_no_part_of_a_value() -> None:
    assert read(OK + b"Content-Length:\t \xa05\x0b \r\n \x85 \r\n\r\n").fields == {
        "content-length": ["\xa05\x0b \x85"]}


@pytest.mark.parametrize("data", [b"", OK, OK + b"A: x\r\n", OK + b"Content-Length: 5", OK + b"A", OK + b"\r"])
def test_a_head_without_its_end_is_no_answer(data: bytes) -> None:
    with pytest.raises(NoAnswer):
        read(data)


@pytest.mark.parametrize("version, fields, closes", [
    (1, b"", False), (1, b"Connection: close\r\n", True), (1, b"Connection: a\r\nConnection: b, Close\r\n", True),
    (0, b"", True), (0, b"Connection: Keep-Alive\r\n", False), (0, b"Keep-Alive: timeout=5\r\n", False),
    (0, b"Proxy-Connection: keep-alive\r\n", False), (0, b"Connection: close\r\n", True)])
def test_a_connection_is_kept_as_its_version_and_fields_say(version: int, fields: bytes, closes: bool) -> None:
    assert read(b"HTTP/1.%d 200 OK\r\n%s\r\n" % (version, fields)).closes is closes


@pytest.mark.parametrize("method, status, bodiless", [
    ("GET", 200, False), ("HEAD", 200, True), ("GET", 103, True), ("PUT", 204, True), ("GET", 304, True)])
def test_some_answers_have_no_body_whatever_they_say(method: str, status: int, bodiless: bool) -> None:
    assert read(b"HTTP/1.1 %d\r\nContent-Length: 5\r\n\r\n" % status, method).bodiless is bodiless


def test_a_request_is_one_head() -> None:
    head = request_head("GET", "/v2/?a=b", {"Host": "r.com:5000", "X": "\xe9 \t"})
    assert head == b"GET /v2/?a=b HTTP/1.1\r\nHost: r.com:5000\r\nX: \xe9 \t\r\n\r\n"


@pytest.mark.parametrize("target, fields", [
    ("/a b", {}), ("/\r\nX: y", {}), ("/\x7f", {}), ("/\xe9", {}), ("", {}), ("/", {"A\r\nB": "x"}), ("/", {"A:": "x"}),
    ("/", {"": "x"}), ("/", {"A B": "x"}), ("/", {"A": "x\r\nB: y"}), ("/", {"A": "x\n"}), ("/", {"A": "\0"}),
    ("/", {"A": "\u20ac"})])
def test_a_request_that_would_be_more_than_one_head_is_refused(target: str, fields: Any) -> None:
    with pytest.raises(ValueError):
        request_head("GET", target, fields)
