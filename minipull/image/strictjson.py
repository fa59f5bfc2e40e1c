# SPDX-License-Identifier: Apache-2.0
"""JSON from outside, read one way only.

Foreign bytes become typed values, or InvalidDocument is raised, which begins with
``source``, the document.  A null string, array or object counts as absent, as in Go.
"""
import json
from typing import Any, Dict, List, Mapping, Tuple, TypeVar

from ..digest import Digest
from ..errors import InvalidDocument

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
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
        # Lone surrogates, NaN, Infinity and 1e999 are found by writing the values again.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError, MemoryError) as exc:
        raise InvalidDocument("%s: invalid JSON: %s" % (source, str(exc)[:150])) from None
    return value


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result: Dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError("duplicate key " + ascii(key)[:100])
        result[key] = value
    return result


def _integer(text: str) -> float:
    # int() is quadratic; the interpreters that limit it differ in where.
    return int(text) if len(text) < 400 else float("inf")


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
