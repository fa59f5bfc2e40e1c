# SPDX-License-Identifier: Apache-2.0
"""JSON is counted before it is built, and built once."""
import json
import tracemalloc
from typing import Callable, Dict

import pytest

from minipull.errors import InvalidDocument, PolicyError
from minipull.image import strictjson
from minipull.image.strictjson import check_memory, parse_value
from tests.kit.images import OCI_LAYER, OCI_MANIFEST, digest_of

SURROGATES: Dict[str, bool] = {  # whether they are text
    r"\ud83d\ude00": True, r"\uD83D\uDE00\ud83d\ude00": True, r"\\ud800": True, r"\\\\udfff": True,
    r"\\\ud83d\ude00": True,
    r"\ud7ff\ue000": True, r"\ud800": False, r"\uDFFF": False, r"x\ud83d": False, r"\ud83d\ud83d\ude00": False,
    r"\ud83d\ude00\ude00": False, r"\ude00\ud83d": False, r"\ud83d\\\ude00": False, r"\ud83d\\ude00": False,
    r"\ud83dx\ude00": False, r"\\\ud800": False, r"\ud83d\u0041": False}


@pytest.mark.parametrize("text", list(SURROGATES))
def test_lone_surrogates_are_found_in_the_bytes(text: str) -> None:
    for data in ('["%s"]' % text, '{"%s":1}' % text):
        if SURROGATES[text]:
            assert parse_value(data.encode(), "x") == json.loads(data)
        else:
            with pytest.raises(InvalidDocument, match="x: invalid JSON: lone surrogate"):
                parse_value(data.encode(), "x")


def array(piece: str) -> Callable[[int], bytes]:
    return lambda count: ("[%s]" % ",".join([piece] * count)).encode()


#: Documents of a number of things, by what is in them.
THINGS: Dict[str, Callable[[int], bytes]] = {
    "objects": array("{}"), "arrays": array("[]"), "arrays in arrays": array("[[]]"),
    "numbers": array("1000"), "fractions": array("1.5"), "nulls": array("null"), "no text": array('""'),
    "words": array('"ab"'), "letters": array('"\u00e9\u00e9"'), "wide words": array('"\U0001f600"'),
    "members": array('{"a":0}'), "members of members": array('{"a":{"b":0}}'), "lists of members": array('{"a":[]}'),
    "six members": array('{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0}'), "deep arrays": array("[" * 200 + "]" * 200),
    "deep objects": array('{"":' * 200 + "0" + "}" * 200),
    "keys": lambda count: ("{%s}" % ",".join('"%x":0' % n for n in range(count))).encode(),
    "digests": lambda count: ("[%s]" % ",".join('"sha256:%064x"' % n for n in range(count))).encode(),
    "newlines": lambda count: ('["%s"]' % ("\\n" * count)).encode(),
    "quotes": lambda count: ('["%s"]' % ('\\"a' * count)).encode(),
    "backslashes": lambda count: ('["%s"]' % ("\\\\" * count)).encode(),
    "escaped letters": lambda count: ('["%s"]' % ("\\u4e00" * count)).encode(),
    "escaped pairs": lambda count: ('["%s"]' % ("\\ud83d\\ude00" * count)).encode(),
    "text": lambda count: ('["%s"]' % ("x" * count)).encode(),
    "wide text": lambda count: ('["\U0001f600%s"]' % ("x" * count)).encode(),
    "blanks": lambda count: b"[" + b" " * count + b"]"}


@pytest.mark.parametrize("things", list(THINGS.values()), ids=list(THINGS))
def test_what_is_built_takes_no_more_than_was_counted(
        things: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    data = things((1 << 16) // (len(things(2)) - len(things(1))))
    least, most = 0, 1 << 24
    while most - least > 1000:
        monkeypatch.setattr(strictjson, "MAX_MEMORY", (least + most) // 2)
        try:
            check_memory(data, "the thing")
            most = strictjson.MAX_MEMORY
        except PolicyError as exc:
            assert str(exc).startswith("the thing: its JSON would take ")
            least = strictjson.MAX_MEMORY
    monkeypatch.setattr(strictjson, "MAX_MEMORY", most)
    tracemalloc.start()
    try:
        parse_value(data, "x")
        peak = tracemalloc.get_traced_memory()[1] + len(data)
    finally:
        tracemalloc.stop()
    assert peak < most + (1 << 17)  # besides, a piece of the document is in memory while it is counted


def test_a_flood_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strictjson, "MAX_MEMORY", 4 << 20)
    floods = [THINGS["newlines"](500000)]  # which take no less than that in CPython 3.6
    for kind in ("objects", "words", "deep arrays", "blanks"):
        data = THINGS[kind](1)
        floods.append(data[:1] + (data[1:-1] + b",") * ((1 << 20) // len(data)) + data[1:])
    for data in floods:
        tracemalloc.start()
        try:
            with pytest.raises(PolicyError):
                parse_value(data, "x")
            assert tracemalloc.get_traced_memory()[1] < 4 * len(data)
        finally:
            tracemalloc.stop()


def entry(number: int, **more: object) -> Dict[str, object]:
    return dict({"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d" % number), "size": 1234 + number}, **more)


def labels(number: int) -> Dict[str, str]:
    name = "registry.example.com/team/application-%d:v1.2.3" % number
    return {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name,
            "io.minipull.source.digest": digest_of(b"%d" % number)}


LEGITIMATE: Dict[str, Callable[[], object]] = {
    "a config of commands": lambda: {"history": [{"created_by": 'RUN a "$b" {c,d,e} [[ f, g ]] && ' * 800}] * 100},
    "a config with JSON in its labels": lambda: {
        "config": {"Labels": {"io.buildpacks.build.metadata": json.dumps([labels(n) for n in range(3000)])}}},
    "a manifest of 1000 layers": lambda: {"layers": [
        entry(n, mediaType=OCI_LAYER, annotations={"containerd.io/snapshot/%d" % i: "x" * 80 for i in range(10)})
        for n in range(1000)]},
    "an index of 10000 manifests": lambda: {"manifests": [
        entry(n, platform={"os": "linux", "architecture": "arm64", "variant": "v8"}) for n in range(10000)]},
    "a manifest of 4 MiB": lambda: {"annotations": {"a": "x" * (4 << 20)}},
    "a page of 100000 tags": lambda: {"name": "r", "tags": ["v1.2.%06d-alpine3.20-amd64" % n for n in range(100000)]},
    "a store of 8000 names": lambda: {"manifests": [entry(n, annotations=labels(n)) for n in range(8000)]}}


@pytest.mark.parametrize("document", list(LEGITIMATE.values()), ids=list(LEGITIMATE))
def test_documents_as_they_are_made_are_taken(document: Callable[[], object]) -> None:
    check_memory(json.dumps(document()).encode(), "x")
