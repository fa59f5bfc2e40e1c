# SPDX-License-Identifier: Apache-2.0
"""JSON from outside, read one way only.

Foreign bytes become typed values, or InvalidDocument is raised, which begins with
``source``, the document, or PolicyError where the values would take too much memory.
A null string, array or object counts as absent, as in Go.
"""
import json
import re
from typing import Any, Dict, List, Mapping, Tuple, TypeVar

from ..digest import Digest
from ..errors import InvalidDocument, PolicyError

MAX_MEMORY = 33 << 20  # bytes of a document, of its text and of all its values

#: Bytes that values take at most (CPython 3.6), by the marks outside of strings that come with them.
_COSTS = ((b"{", 220), (b":", 150), (b"[", 110), (b",", 40))
_LONE_SURROGATE = br"\\u[dD][89abAB](?!..\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
#: Bytes that CPython takes for each character of a text with one of these.
_WIDE = ((4, br"[\xf0-\xff]|\\u[dD]"), (2, br"[\xc4-\xff]|\\u(?!00)"))
_KINDS: Dict[type, str] = {str: "a string", list: "an array", dict: "an object"}
_T = TypeVar("_T")


def parse_json(data: bytes, source: str) -> Dict[str, Any]:
    """Parse an object, and refuse JSON that parsers read in different ways; raises InvalidDocument."""
    value = parse_value(data, source)
    if not isinstance(value, dict):
        raise InvalidDocument("%s must be an object" % source)
    return value


def parse_value(data: bytes, source: str) -> object:
    """Parse any JSON value by the same rules."""
    check_memory(data, source)
    try:
        if b"\\u" in data and re.search(_LONE_SURROGATE, data.replace(br"\\", b"--")):
            raise ValueError("lone surrogate")
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=number,
                          parse_float=number, parse_constant=number)
    except (ValueError, RecursionError, MemoryError) as exc:
        raise InvalidDocument("%s: invalid JSON: %s" % (source, str(exc)[:150])) from None


def check_memory(data: bytes, source: str) -> None:
    """Raise PolicyError if JSON would take more than MAX_MEMORY; what it holds is counted, not built."""
    marks = data.replace(br"\\", b"--")  # so that every other backslash begins an escape of its own
    narrow = b"\\u" not in marks and not marks.translate(None, bytes(range(128)))  # else by slow patterns
    width = 1 if narrow else next((width for width, pattern in _WIDE if re.search(pattern, marks)), 1)
    cost = len(data) * (1 + 2 * width) + 70 * (marks.count(b"\\") + data.count(br"\\"))
    marks = marks.replace(br"\"", b"--")
    within = 0  # 1 if a piece begins within a string
    for start in range(0, len(marks), 1 << 12):
        parts = marks[start:start + (1 << 12)].split(b'"')
        outside = b"".join(parts[within::2])
        cost += 20 * (len(parts) - 1) + sum(outside.count(mark) * size for mark, size in _COSTS)
        within = (within + len(parts) - 1) % 2
    if cost > MAX_MEMORY:
        raise PolicyError("%s: its JSON would take %d MiB of memory, the limit is %d" % (
            source, (cost >> 20) + 1, MAX_MEMORY >> 20))


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result: Dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError("duplicate key " + ascii(key)[:100])
        result[key] = value
    return result


def number(text: str) -> float:
    # int() is quadratic; the interpreters that limit it differ in where.
    value = int(text) if len(text) < 400 and text.lstrip("-").isdigit() else float(text)
    if isinstance(value, float) and value - value != 0:  # infinite
        raise ValueError("number out of range: " + text[:20])
    return value


def compact(value: object) -> bytes:
    """Serialize a value as ASCII JSON without blanks; the digest of a document that we write is of this."""
    return json.dumps(value, separators=(",", ":")).encode()


def _typed(value: Any, name: str, source: str, default: _T) -> _T:
    if value is None:
        return default
    if not isinstance(value, type(default)):
        raise InvalidDocument("%s: %s must be %s" % (source, ascii(name)[:80], _KINDS[type(default)]))
    return value


def as_object(value: object, name: str, source: str) -> Dict[str, Any]:
    """Check that a value, which errors call ``name``, is an object."""
    return _typed(value, name, source, {})


def string_at(obj: Mapping[str, Any], key: str, source: str, default: str = "") -> str:
    return _typed(obj.get(key), key, source, default)


def list_at(obj: Mapping[str, Any], key: str, source: str) -> List[Any]:
    return _typed(obj.get(key), key, source, [])


def object_at(obj: Mapping[str, Any], key: str, source: str) -> Dict[str, Any]:
    return as_object(obj.get(key), key, source)


def strings_at(obj: Mapping[str, Any], key: str, source: str) -> Tuple[str, ...]:
    return tuple(_typed(item, key, source, "") for item in list_at(obj, key, source))


def objects_at(obj: Mapping[str, Any], key: str, source: str) -> Tuple[Dict[str, Any], ...]:
    return tuple(as_object(item, key, source) for item in list_at(obj, key, source))


def int_at(obj: Mapping[str, Any], key: str, source: str) -> int:
    """A whole number from 0 to 2**63-1, which must be there."""
    value = obj.get(key)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InvalidDocument("%s: %s must be an integer from 0 to 2^63-1" % (source, key))
    return value


def digest_at(obj: Mapping[str, Any], key: str, source: str) -> Digest:
    return _digest(obj.get(key), key, source)


def digests_at(obj: Mapping[str, Any], key: str, source: str) -> Tuple[Digest, ...]:
    return tuple(_digest(item, key, source) for item in list_at(obj, key, source))


def _digest(value: object, key: str, source: str) -> Digest:
    try:
        return Digest.parse(value)
    except InvalidDocument as exc:
        raise InvalidDocument("%s: %s: %s" % (source, key, exc)) from None
