# SPDX-License-Identifier: Apache-2.0
"""Random cases from a seed, and the hunt for those that break the rules.

A case is broken by :func:`spoiled`, which changes bytes, or :func:`spoiled_json`, which
knows what a document is made of.  :func:`hunt` gives cases to a function that may raise
:class:`minipull.Error` and nothing else, within a second and within 64 MiB.  The n-th
case of a seed is always the same, whatever comes before it.
"""
import copy
import faulthandler
import json
import random
import resource
import signal
import socket
import sys
import time
import traceback
from types import FrameType
from typing import Any, Callable, List, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple, Union

from minipull.cancel import Cancel
from minipull.errors import Error

SECONDS = 1.0  # of the processor, for a case
GROWTH = 64 << 20  # bytes
MOST_FAILURES = 3


class Raw(str):
    """A piece of JSON as it stands."""


JSON_VALUES: List[Any] = [
    None, True, False, -1, 0, 1, 2, 1.5, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, "", "x", "\0",
    "\ud800",
    "\udcff", "a" * 5000, "../../etc/passwd", "/", ".", "\u202e", "\n", "\x1b[2J", "sha256:",
    "sha256:" + "0" * 64,
    "sha512:" + "f" * 128, [], {}, [[]], [None], [{}], {"": None}, {"a": {"a": {"a": []}}}, Raw("NaN"),
    Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("-0"), Raw("0.1e-999"), Raw("9" * 350),
    Raw("9" * 5000),
    Raw("[" * 2000 + "]" * 2000), Raw('{"a":' * 2000 + "1" + "}" * 2000), Raw("[" * 100000),
    Raw('{"a":1,"a":2}'),
    Raw('"\\ud800"'), Raw('"\\u0000"'), Raw("tru"), Raw("'x'"), Raw("01"), Raw("[1,]"), Raw("\"\t\""),
    Raw("[" + "{}," * 3000 + "{}]"), Raw("[" + '"",' * 3000 + '""]')]
BYTES: List[bytes] = [
    b"\0", b"\xff", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b'"', b"'", b"\\", b"/", b"..", b"%00",
    b"%2f",
    b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"-1", b"0", b"18446744073709551616",
    b"1e999",
    b"NaN", b"{", b"[", b"}", b"]", b",", b":", b"=", b";", b"@", b"#", b"?", b"&", b"*", b"A" * 300,
    b"9" * 400]


def spoiled(rng: random.Random, data: bytes, tokens: Sequence[bytes] = ()) -> bytes:
    """Flip, insert, delete, repeat, move, splice or cut bytes of ``data``, a few times."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 16, 200)))
        part, token = data[start:end], rng.choice([*BYTES, *tokens, *tokens])
        change = rng.randrange(9)
        if change == 0 and part:
            part = bytes(byte ^ 1 << rng.randrange(8) for byte in part)
        elif change == 1:
            part = bytes(rng.randrange(256) for _ in part)
        elif change == 2:
            part = token + part
        elif change == 3:
            part = token
        elif change == 4:
            part = b""
        elif change == 5:
            part *= rng.choice((2, 3, 50))
        elif change == 6:
            other = rng.randrange(len(data) + 1)
            part = data[other:other + 50]
        elif change == 7 and rng.random() < 0.3:
            data, part = data[:start], b""
        else:
            part = part.swapcase()
        data = data[:start] + part + data[end:]
    return data


def spoiled_text(rng: random.Random, text: str, tokens: Sequence[str] = ()) -> str:
    data = spoiled(rng, text.encode("utf-8", "surrogatepass"), [token.encode() for token in tokens])
    return data.decode("utf-8", rng.choice(("surrogateescape", "replace", "ignore")))


def dump(value: Any) -> str:
    """JSON, with pieces that json.dumps would not write."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        pairs = ["%s:%s" % (json.dumps(key), dump(item)) for key, item in value.items()]
        return "{%s}" % ",".join(pairs)
    if isinstance(value, list):
        return "[%s]" % ",".join(map(dump, value))
    return json.dumps(value)


def _nodes(value: Any) -> List[Tuple[Any, Any]]:
    """Every container in a value, with a key of each thing in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    nodes = [(value, key) for key, _ in items]
    for _, item in items:
        nodes += _nodes(item)
    return nodes


def spoiled_json(rng: random.Random, value: Any, tokens: Sequence[Any] = ()) -> bytes:
    """A document with members of other types, missing, doubled, renamed, very large, or with broken bytes."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        nodes = _nodes(value)
        if not nodes:
            break
        container, key = rng.choice(nodes)
        nasty = copy.deepcopy(rng.choice(JSON_VALUES + list(tokens)))
        change, item = rng.randrange(9), container[key]
        if change == 0:
            del container[key]
        elif change == 1 and isinstance(container, dict):
            del container[key]
            container[rng.choice((key.upper(), key + " ", "", "\0", key[1:], "mediaType", "manifests"))] = item
        elif change == 2 and isinstance(container, dict):
            container[key] = Raw("%s,%s:%s" % (dump(item), json.dumps(key), dump(rng.choice((item, nasty)))))
        elif change == 3:
            container[key] = [item] * rng.choice((1, 2, 300 if len(dump(item)) < 300 else 3))
        elif change == 4:
            other, name = rng.choice(nodes)
            container[key] = copy.deepcopy(other[name])
        elif change == 5 and isinstance(item, str):
            container[key] = spoiled_text(rng, item)
        elif change == 6 and isinstance(item, int):
            container[key] = rng.choice((item + 1, -item, float(item), str(item), item << 40))
        else:
            container[key] = nasty
    data = dump(value).encode("utf-8", "surrogatepass")
    return spoiled(rng, data) if rng.random() < 0.15 else data


# -- the hunt ------------------------------------------------------------------------


class Kind(NamedTuple):
    """A maker of cases, and what is done with each."""
    make: Callable[[random.Random], Any]
    use: Callable[[Any], object]


class TooLong(BaseException):
    """Raised within a case that takes more than its time."""


def case_of(kind: Kind, name: str, seed: int, number: int) -> Any:
    return kind.make(random.Random("%s %d %d" % (name, seed, number)))


def hunt(kind: Kind, name: str, seed: int, numbers: Sequence[int]) -> List[str]:
    """Try some cases; returns a text for each that broke a rule."""
    def interrupted(number: int, frame: Optional[FrameType]) -> NoReturn:
        raise TooLong("more than %g s" % SECONDS)

    signal.signal(signal.SIGPROF, interrupted)
    failures: List[str] = []
    least = _peak()
    for count, number in enumerate(numbers):
        if count % 100 == 0:  # a case that no signal ends shows where it stands
            faulthandler.dump_traceback_later(200, exit=True)
        before = _peak()
        case, text = case_of(kind, name, seed, number), ""
        least += _peak() - before  # what the maker took does not count
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        begun = time.process_time()
        try:
            try:
                kind.use(case)
            except Error:
                pass
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except BaseException:
            text = "".join(traceback.format_exc().splitlines(True)[-12:])
        seconds = time.process_time() - begun
        if not text and seconds > SECONDS:
            text = "%.1f seconds" % seconds
        if not text and _peak() - least > GROWTH:
            text, least = "%d MiB" % ((_peak() - least) >> 20), _peak()
        if text:
            failures.append("%s, seed %d, case %d: %s\n%s" % (name, seed, number, ascii(case)[:3000], text))
            if len(failures) == MOST_FAILURES:
                break
    faulthandler.cancel_dump_traceback_later()
    return failures


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def without_waiting_or_network(ports: Set[int]) -> None:
    """Let this process connect to some ports of its own alone, resolve no name, and wait for nothing."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def connected(sock: socket.socket, address: Any) -> None:
        if not isinstance(address, tuple) or address[:1] != ("127.0.0.1",) or address[1] not in ports:
            raise ConnectionRefusedError("refused by the test")
        connect(sock, address)

    def resolved(host: Union[str, bytes, None], *args: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", None):
            raise socket.gaierror(socket.EAI_NONAME, "refused by the test")
        return lookup(host, *args, **options)

    setattr(socket.socket, "connect", connected)
    setattr(socket, "getaddrinfo", resolved)
    setattr(Cancel, "pause", lambda cancel, seconds: cancel.check())
