# SPDX-License-Identifier: Apache-2.0
"""A request that could be read in two ways is refused, and a body ends where it says."""
import json
import random
from typing import Callable, Dict, List, Optional, Tuple

import pytest

from minipull.server.message import (
    MAX_DRAINED, MAX_FIELDS, MAX_LINE, Body, Refusal, Request, json_response, parse_request)


def lines(*fields: bytes, first: bytes = b"GET / HTTP/1.1", host: bool = True) -> bytes:
    return b"\r\n".join([first, *([b"Host: r"] if host else []), *fields])


def parsed(head: bytes, proceed: Callable[[], None] = lambda: None) -> Request:
    return parse_request(head, Wire(b"x"), proceed)


def refused(head: bytes) -> int:
    with pytest.raises(Refusal) as caught:
        parsed(head)
    return caught.value.response.status


# -- heads ---------------------------------------------------------------------


def test_a_head_is_understood() -> None:
    head = parsed(lines(
        b"Content-Type:text/plain", b"X-Empty:", b"x-more: \t one \t", b"X-More: t\xf6o",
        b"Content-Length: 12", first=b"PUT /v2/a%2Fb/%252e?n=1&n=2&last=%41+b&empty= HTTP/1.1"))
    assert (head.method, head.path) == ("PUT", "/v2/a/b/%2e")  # decoded once
    assert head.query == {"n": ["1", "2"], "last": ["A b"], "empty": [""]}
    assert [head.parameter(name) for name in ("n", "last", "empty", "none")] == ["1", "A b", "", ""]
    assert head.headers == {"host": "r", "content-type": "text/plain", "x-empty": "", "x-more": "one, t\xf6o",
                            "content-length": "12"}
    assert (head.body.length, head.last) == (12, False)


@pytest.mark.parametrize("first", [
    b"", b"GET", b"GET /", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1",
    b"GET\t/ HTTP/1.1", b"GET / x HTTP/1.1", b"GET / http/1.1", b"GET / HTTP/1", b"GET / HTTP/1.10",
    b"GET / HTTP/11.1", b"GET /\x00 HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET /\xff HTTP/1.1",
    b"G(T / HTTP/1.1", b"GET / HTTP/1.1\n", b"GET /\nX HTTP/1.1", b"GET /\rX HTTP/1.1", b"GET / HTTP/+.1",
    b"/ HTTP/1.1"])
def test_a_malformed_request_line_is_refused(first: bytes) -> None:
    assert refused(lines(first=first)) == 400


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0", b"HTTP/3.0"])
def test_only_the_first_major_version_is_spoken(version: bytes) -> None:
    assert refused(lines(first=b"GET / " + version)) == 505


@pytest.mark.parametrize("field", [
    b"X : y", b"X\t: y", b" X: y", b"\tfolded", b" folded", b"X", b": y", b"", b"X: a\x00b", b"X: a\rb",
    b"X: a\nb", b"X: y\r", b"X: y\n", b"X: a\x0bb", b"X: a\x7fb", b"X\xe9: y", b"X(: y", b"X\x00: y",
    b"Content-Length\n: 5"])
def test_a_malformed_field_is_refused(field: bytes) -> None:
    assert refused(lines(field, b"X-Next: y")) == 400


@pytest.mark.parametrize("fields", [
    [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: chunked", b"content-length: 5"],
    [b"Content-Length: 5", b"Content-Length: 6"], [b"Content-Length: 5", b"content-LENGTH: 5"],
    [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
    [b"Transfer-Encoding: identity", b"Content-Length: 5"], [b"Host: other"],
    [b"Content-Range: 0-4", b"Content-Range: 5-9"], [b"Content-Type: a/b", b"Content-Type: a/c"]])
def test_a_second_opinion_is_refused(fields: List[bytes]) -> None:
    assert refused(lines(*fields)) == 400


@pytest.mark.parametrize("value", [
    b"", b"+5", b"-5", b"5, 5", b"5,6", b"5 5", b"0x5", b"5.0", b"1e3", b"5;", b"1_0", b"\xb2", b"9" * 19])
def test_a_malformed_content_length_is_refused(value: bytes) -> None:
    assert refused(lines(b"Content-Length: " + value)) == 400


@pytest.mark.parametrize("value", [
    b"", b"identity", b"gzip, chunked", b"chunked, chunked", b"chunked, identity", b"chunked;q=1",
    b'"chunked"', b"xchunked", b"chunkedx", b"\xa0chunked", b"chunked,"])
def test_a_body_in_another_coding_is_refused(value: bytes) -> None:
    assert refused(lines(b"Transfer-Encoding: " + value)) == 501


@pytest.mark.parametrize("fields,length", [
    ([], 0), ([b"Content-Length: 0"], 0), ([b"Content-Length:\t007 "], 7),
    ([b"Content-Length: " + b"9" * 18], 10**18 - 1),
    ([b"Transfer-Encoding: chunked"], None), ([b"tRANSFER-eNCODING:  Chunked\t"], None)])
def test_the_length_of_a_body_is_told(fields: List[bytes], length: Optional[int]) -> None:
    assert parsed(lines(*fields)).body.length == length


def test_chunks_are_unknown_to_the_old_protocol() -> None:
    assert refused(lines(b"Transfer-Encoding: chunked", first=b"PUT / HTTP/1.0")) == 400


def test_host_is_needed_but_in_the_old_protocol() -> None:
    assert refused(lines(host=False)) == 400
    assert parsed(lines(first=b"GET / HTTP/1.0", host=False)).headers == {}


@pytest.mark.parametrize("version,fields,waits,last", [
    (b"HTTP/1.1", [], False, False),
    (b"HTTP/1.1", [b"Connection: Close"], False, True),
    (b"HTTP/1.1", [b"Connection: keep-alive", b"Connection: te, close"], False, True),
    (b"HTTP/1.1", [b"Expect: 100-Continue"], True, False),
    (b"HTTP/1.1", [b"Expect: 200-ok"], False, False),
    (b"HTTP/1.0", [b"Expect: 100-continue", b"Connection: keep-alive"], False, True)])
def test_expect_100_continue_is_recognised(
        version: bytes, fields: List[bytes], waits: bool, last: bool) -> None:
    told: List[int] = []
    request = parsed(lines(b"Content-Length: 1", *fields, first=b"PUT / " + version), lambda: told.append(1))
    assert (request.body.read(1), told, request.last) == (b"x", [1] * waits, last)


def test_headers_and_parameters_have_a_number() -> None:
    fields = [b"X-%d: y" % number for number in range(MAX_FIELDS - 1)]
    assert len(parsed(lines(*fields)).headers) == MAX_FIELDS
    assert refused(lines(*fields, b"X: y")) == 431
    for separator in (b"&", b";"):
        query = separator.join(b"n=%d" % number for number in range(MAX_FIELDS))
        assert parsed(lines(first=b"GET /?" + query + b" HTTP/1.1")).parameter("n")[0] == "0"
        assert refused(lines(first=b"GET /?" + query + separator + b" HTTP/1.1")) == 400


def test_a_spoilt_head_is_refused_or_unambiguous() -> None:
    head = lines(b"Content-Length: 10", b"Expect: 100-continue", b"Connection: keep-alive", b"X-Y: z",
                 first=b"PUT /v2/a/b?digest=sha256:0%31&n=5 HTTP/1.1")
    spoils = [b"\r\n", b"\r", b"\n", b"\x00", b" ", b"\t", b":", b",", b"%", b"%ff", b"%0d%0a", b"\xff", b"5",
              b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked", b"\r\n Transfer-Encoding: chunked"]
    dice, understood = random.Random(7), 0
    for _ in range(2000):
        data = bytearray(head)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(data))
            data[at:at + dice.randint(0, 2)] = dice.choice(spoils)
        try:
            request = parsed(bytes(data))
        except Refusal as exc:
            assert exc.response.status in (400, 431, 501, 505)
        else:
            understood += 1
            names = [line.partition(b":")[0].lower() for line in bytes(data).split(b"\r\n")]
            assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
            assert not any(set(value) & {"\r", "\n", "\0"} for value in request.headers.values())
            assert data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n")
    assert understood > 100


# -- bodies --------------------------------------------------------------------


class Wire:
    """Gives out the bytes that arrive, piece by piece; counts what was taken."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [memoryview(piece) for piece in pieces if piece]
        self.taken = 0

    def __call__(self, limit: int) -> memoryview:
        assert limit > 0
        if not self.pieces:
            raise EOFError
        piece = self.pieces.pop(0)
        if len(piece) > limit:
            self.pieces.insert(0, piece[limit:])
        self.taken += len(piece[:limit])
        return piece[:limit]


def splits(data: bytes) -> List[Wire]:
    """The same bytes in two pieces, split at each byte, in pieces of one byte, and at once."""
    bytewise = Wire(*[data[at:at + 1] for at in range(len(data))])
    return [bytewise, *[Wire(data[:at], data[at:]) for at in range(len(data))]]


CHUNKED = (b'3\r\nabc\r\n00A;name="v" ;x\r\n\r\n0\r\n\r\nGET\r\n1 ;\r\n!\r\n'
           b"0;last\r\nX-Sum: 1\r\nContent-Length: 5\r\n\r\n")
NEXT = b"GET /next HTTP/1.1\r\n"


@pytest.mark.parametrize("length,data,content", [
    (None, CHUNKED, b"abc\r\n0\r\n\r\nGET!"), (None, b"0\r\n\r\n", b""),
    (12, b"hello, world", b"hello, world")])
def test_a_body_ends_where_it_says_however_it_arrives(
        length: Optional[int], data: bytes, content: bytes) -> None:
    for wire in splits(data + NEXT):
        body = Body(length, wire)
        assert b"".join(bytes(piece) for piece in body) == content
        assert (body.finished, wire.taken, list(body)) == (True, len(data), [])
        assert b"".join(bytes(piece) for piece in wire.pieces) == NEXT


@pytest.mark.parametrize("length,data", [(None, CHUNKED), (5, b"hello")])
def test_a_body_that_is_cut_has_not_ended(length: Optional[int], data: bytes) -> None:
    for end in range(len(data)):
        body = Body(length, Wire(data[:end]))
        with pytest.raises(EOFError):
            body.read(100)
        assert not body.finished


def test_a_body_without_bytes_asks_for_none() -> None:
    told: List[int] = []
    body = Body(0, Wire(), lambda: told.append(1))
    assert (list(body), body.read(0), body.drain(), told) == ([], b"", True, [])


@pytest.mark.parametrize("data", [
    b"\r\n", b"x\r\n", b"-1\r\n", b"+1\r\n", b" 1\r\n", b"1 \r\n", b"0x1\r\n", b"1_0\r\n", b"1,\r\n", b"1\n",
    b"1\r", b"1;a\nb\r\n", b"1;a\rb\r\n", b"1;\x00\r\n", b"1;\xff\r\n", b"1" * 16 + b"\r\n",
    b"1;" + b"x" * MAX_LINE + b"\r\n", b"3\r\nabcd\r\n", b"3\r\nabc\n", b"3\r\nabc0\r\n", b"3\r\nabc\r0\r\n",
    b"0\r\nX: y\nZ: y\r\n\r\n", b"0\r\nX: \r \r\n\r\n", b"0\r\n\n",
    b"0\r\n" + b"X: y\r\n" * MAX_FIELDS + b"\r\n", b"0\r\nX: " + b"y" * MAX_LINE + b"\r\n\r\n"])
def test_a_malformed_chunk_is_refused(data: bytes) -> None:
    for wire in splits(data + b" " * MAX_LINE)[:2]:
        body = Body(None, wire)
        with pytest.raises(Refusal) as caught:
            for _ in body:
                pass
        assert caught.value.response.status == 400
        assert (body.finished, body.drain(), list(body)) == (False, False, [])


def test_lines_and_trailers_may_be_long_and_many() -> None:
    size = b"1;" + b"x" * (MAX_LINE - 4) + b"\r\n"
    assert len(size) == MAX_LINE
    body = Body(None, Wire(size + b"!\r\n0\r\n" + b"X: y\r\n" * (MAX_FIELDS - 1) + b"\r\n"))
    assert (body.read(1), body.finished) == (b"!", True)


def chunked(content: bytes, size: int = 5000) -> bytes:
    parts = [content[at:at + size] for at in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


Encoding = Callable[[bytes], Tuple[Optional[int], bytes]]
encodings = pytest.mark.parametrize("encode", [
    lambda content: (len(content), content), lambda content: (None, chunked(content))],
    ids=["sized", "chunked"])


@encodings
def test_a_small_body_is_read_up_to_its_limit(encode: Encoding) -> None:
    length, data = encode(b"x" * 20000)
    assert Body(length, Wire(data)).read(20000) == b"x" * 20000
    wire = Wire(data)
    body = Body(length, wire)
    with pytest.raises(Refusal) as caught:
        body.read(19999)
    assert (caught.value.response.status, body.finished) == (413, False)
    assert b'"code":"SIZE_INVALID"' in caught.value.response.body
    assert length is None or wire.taken == 0


@encodings
def test_a_small_unread_body_is_drained(encode: Encoding) -> None:
    length, data = encode(b"x" * MAX_DRAINED)
    wire = Wire(data + NEXT)
    assert Body(length, wire).drain()
    assert wire.taken == len(data)
    length, data = encode(b"x" * (MAX_DRAINED + 1))
    wire = Wire(data + NEXT)
    assert not Body(length, wire).drain()
    assert wire.taken == 0 or length is None


@encodings
def test_the_rest_of_a_body_is_drained(encode: Encoding) -> None:
    length, data = encode(b"x" * 20000)
    wire = Wire(data[:7000], data[7000:])
    body = Body(length, wire)
    next(iter(body))
    assert body.drain()
    assert (wire.taken, wire.pieces) == (len(data), [])


@encodings
def test_a_client_that_waits_is_told_once_when_its_body_is_wanted(encode: Encoding) -> None:
    length, data = encode(b"content")
    told: List[int] = []
    wire = Wire(data)
    body = Body(length, wire, lambda: told.append(wire.taken))
    assert (body.drain(), told, wire.taken) == (False, [], 0)
    assert (body.read(100), body.drain(), told) == (b"content", True, [0])


# -- answers -------------------------------------------------------------------


def test_json_is_sent_as_it_is_meant() -> None:
    response = json_response(200, {"a": ["\xe9"]}, [("X-Y", "z")], "application/x+json")
    assert response.body == b'{"a":["\\u00e9"]}'
    assert (response.status, list(response.headers)) == (
        200, [("Content-Type", "application/x+json"), ("X-Y", "z")])


def test_a_refusal_is_an_answer() -> None:
    response = Refusal(404, "NAME_UNKNOWN", "no\r\nsuch <b>", [("Retry-After", "1")]).response
    document: Dict[str, List[Dict[str, Optional[str]]]] = json.loads(response.body)
    [error] = document["errors"]
    assert error == {"code": "NAME_UNKNOWN", "message": "no\r\nsuch <b>", "detail": None}
    assert dict(response.headers) == {"Content-Type": "application/json", "Retry-After": "1"}
