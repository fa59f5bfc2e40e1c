# SPDX-License-Identifier: Apache-2.0
import base64
import json
from typing import Any, Callable, Dict, List, Mapping, Tuple

import pytest

from tests.kit import DATA
from minipull.image.descriptor import (
    DOCKER_CONFIG, DOCKER_LAYER, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor, select)
from minipull.image.platform import Platform, preference
from minipull.image.strictjson import digest_at, int_at, list_at, object_at, parse_json, string_at, strings_at
from minipull.digest import Digest
from minipull.errors import InvalidDocument, InvalidReference

TABLES = DATA / "tables.json"
DIGEST = Digest.of(b"content")
HOST = Platform("linux", "riscv64")
JSON: Mapping[str, Any] = {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 7}


def cases(name: str) -> List[Any]:
    return list(json.loads(TABLES.read_text())[name]["cases"])


def platform(text: str) -> Platform:
    return Platform.parse(text, HOST)


AMBIGUOUS_JSON: Dict[str, bytes] = {
    "empty": b"",
    "no object": b"[]",
    "null": b"null",
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "invalid utf-8": b'{"a": "\xff"}',
    "surrogate in utf-8": b'{"a": "\xed\xa0\x80"}',
    "escaped lone surrogate": b'{"a": ["\\ud800"]}',
    "escaped lone surrogate in a key": b'{"\\udfff": 1}',
    "duplicate key": b'{"digest": 1, "digest": 1}',
    "duplicate key by escape": b'{"digest": 1, "d\\u0069gest": 1}',
    "deep duplicate key": b'{"a": [{"b": {"c": 1, "c": 2}}]}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": Infinity}',
    "-Infinity": b'{"a": [-Infinity]}',
    "overflow": b'{"a": 1e999}',
    "5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "4000000 digits": b'{"a": -' + b"9" * 4000000 + b"}",
    "trailing data": b'{"a": 1} {}',
    "trailing garbage": b'{"a": 1}\x00',
    "control character": b'{"a": "\n"}',
    "deep array": b'{"a": ' + b"[" * 200000 + b"]" * 200000 + b"}",
    "deep object": b'{"a": ' * 50000 + b"1" + b"}" * 50000,
    "unclosed": b'{"a": ' * 50000,
}


@pytest.mark.parametrize("name", sorted(AMBIGUOUS_JSON))
def test_json_that_parsers_disagree_about_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse_json(AMBIGUOUS_JSON[name], "the thing")
    message = str(caught.value)
    assert message.startswith("the thing")
    assert message.isprintable() and len(message) < 250


def test_json_error_does_not_echo_control_characters_or_much_input() -> None:
    key = b'"' + b"\\u001b" * 500 + b'"'
    with pytest.raises(InvalidDocument) as caught:
        parse_json(b"{%s: 1, %s: 2}" % (key, key), "config")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    hostile = {"mediaType": "x", "digest": DIGEST, "size": 1, "annotations": {"\x1b" * 500: 1}}
    with pytest.raises(InvalidDocument) as caught:
        Descriptor.from_json(hostile, "config")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_valid_json_keeps_every_value() -> None:
    text = '{"a": [1, -2, 1.5, true, null, "\\ud83d\\ude00é"], "A": {"a": {}}, "b": %d}'
    text %= 1 << 65
    assert parse_json(text.encode("utf-8"), "x") == json.loads(text)


def test_a_duplicate_among_very_many_keys_is_found_in_linear_time() -> None:
    keys = ['"%d": 0' % i for i in range(100000)]
    assert len(parse_json(("{%s}" % ", ".join(keys)).encode(), "x")) == 100000
    with pytest.raises(InvalidDocument, match="duplicate key '99999'"):
        parse_json(("{%s}" % ", ".join(keys + keys[-1:])).encode(), "x")


@pytest.mark.parametrize(
    "value", [-1, 1 << 63, 10 ** 300, 1e3, 1.0, True, False, "12", None, [], {}])
def test_a_size_is_an_integer_of_63_bits(value: object) -> None:
    with pytest.raises(InvalidDocument, match="x: size must be an integer"):
        int_at({"size": value}, "size", "x")
    with pytest.raises(InvalidDocument):
        int_at({}, "size", "x")


@pytest.mark.parametrize("value", [0, 1, (1 << 63) - 1])
def test_sizes_at_the_limits_are_taken(value: int) -> None:
    assert int_at({"size": value}, "size", "x") == value


Accessor = Callable[[Mapping[str, Any], str, str], object]
ACCESSORS: List[Tuple[Accessor, object, object]] = [
    (string_at, "", "text"), (list_at, [], [1]), (object_at, {}, {"a": 1}),
    (strings_at, (), ["a", "b"])]


@pytest.mark.parametrize("accessor, empty, value", ACCESSORS)
def test_null_is_absent_and_other_types_are_refused(
    accessor: Accessor, empty: object, value: object
) -> None:
    assert accessor({}, "k", "x") == empty
    assert accessor({"k": None}, "k", "x") == empty
    assert accessor({"k": value}, "k", "x") in (value, ("a", "b"))
    for wrong in (1, 1.5, True, False, "text", [1], {"a": 1}):
        if type(wrong) is not type(value):
            with pytest.raises(InvalidDocument, match="x: 'k' must be"):
                accessor({"k": wrong}, "k", "x")


def test_an_array_of_strings_holds_only_strings() -> None:
    with pytest.raises(InvalidDocument, match="'urls' must be a string"):
        strings_at({"urls": ["a", 1]}, "urls", "x")


def test_a_string_may_have_another_default() -> None:
    assert string_at({}, "k", "x", "layers") == "layers"


@pytest.mark.parametrize("value", [
    None, 1, [], "", "sha256", "sha256:", "sha256:../../x", "sha256:" + "a" * 63,
    "sha256:" + "a" * 65, "sha256:" + "A" * 64, "sha256:" + "a" * 64 + "\n",
    "sha256:" + "a" * 63 + "\0", "md5:" + "a" * 32, "sha256:sha256:" + "a" * 64,
    " sha256:" + "a" * 64])
def test_digest_tricks_are_refused(value: object) -> None:
    with pytest.raises(InvalidDocument, match="x: digest: invalid digest"):
        digest_at({"digest": value}, "digest", "x")
    with pytest.raises(InvalidDocument):
        Descriptor.from_json(dict(JSON, digest=value), "x")


FULL: Mapping[str, Any] = {
    "mediaType": "application/x", "digest": DIGEST, "size": 0, "urls": ["https://example.com/a"],
    "annotations": {"a": "b"},
    "platform": {
        "architecture": "arm64", "os": "windows", "os.version": "10.0", "os.features": ["f"],
        "variant": "v8"},
    "artifactType": "application/y"}


@pytest.mark.parametrize("obj", [JSON, FULL])
def test_a_descriptor_survives_json_in_the_order_of_the_specification(
    obj: Mapping[str, Any]
) -> None:
    descriptor = Descriptor.from_json(dict(obj), "x")
    assert json.dumps(descriptor.to_json()) == json.dumps(obj)
    assert str(descriptor) == DIGEST.short


def test_unknown_and_empty_members_of_a_descriptor_are_ignored() -> None:
    extra = dict(JSON, data="e30=", other=[1], platform={}, annotations={}, urls=None)
    assert Descriptor.from_json(extra, "x") == Descriptor(OCI_MANIFEST, DIGEST, 7)


INLINE: List[Tuple[object, bool]] = [
    ("Y29udGVudA==", True), ("Y29udGVudA", False), ("Y29udGVudA=", False), (" Y29udGVudA==", False),
    ("Y29u\ndGVudA==", False),
    ("Y29udGVudB==", True), ("Y29udGVuZA==", False), ("Y29udGVudA==Y29udGVudA==", False), ("Y2-_dGVudA==", False),
    ("\u00e9", False), ("", False), (None, False), (7, False), ([], False), ("A" * 4000000, False)]


@pytest.mark.parametrize("text, used", INLINE, ids=lambda value: ascii(value)[:30])
def test_inline_content_is_used_where_it_is_what_the_descriptor_says(text: object, used: bool) -> None:
    found = Descriptor.from_json(dict(JSON, data=text), "x")
    assert found == Descriptor(OCI_MANIFEST, DIGEST, 7, data=b"content" if used else b"")
    assert found.to_json() == JSON


def test_inline_content_of_more_than_a_mebibyte_is_not_kept() -> None:
    for size, used in ((1 << 20, True), ((1 << 20) + 1, False)):
        data = bytes(size)
        obj = dict(Descriptor.of(data, "x").to_json(), data=base64.b64encode(data).decode())
        assert bool(Descriptor.from_json(obj, "x").data) is used


@pytest.mark.parametrize("change", [
    {"mediaType": ""}, {"mediaType": None}, {"mediaType": 1}, {"mediaType": ["x"]}, {"size": "7"},
    {"urls": "https://x"}, {"urls": [None, 1]}, {"annotations": {"a": 1}}, {"annotations": []},
    {"platform": []}, {"platform": {"os": 1}}, {"platform": {"os.features": "x"}},
    {"artifactType": {}}])
def test_a_malformed_descriptor_is_refused(change: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidDocument, match="^the layer: "):
        Descriptor.from_json(dict(JSON, **change), "the layer")


@pytest.mark.parametrize("value", [None, [], "text", 1, {}])
def test_a_descriptor_that_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(InvalidDocument, match="not a descriptor"):
        Descriptor.from_json(value, "x")


@pytest.mark.parametrize("media_type, foreign", [
    (DOCKER_LAYER, True), (OCI_LAYER, True), (OCI_LAYER + "+gzip", True), ("text/plain", True),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", True),
    (OCI_MANIFEST, False), (OCI_INDEX, False), (OCI_CONFIG, False), (DOCKER_CONFIG, False)])
def test_foreign_layers_are_told_by_their_urls(media_type: str, foreign: bool) -> None:
    layer = Descriptor(media_type, DIGEST, 7)
    assert not layer.is_foreign and layer._replace(urls=("https://a/b",)).is_foreign is foreign


@pytest.mark.parametrize("case", cases("platform_parse"), ids=lambda case: case["input"])
def test_platforms_parse_as_in_containerd(case: Mapping[str, Any]) -> None:
    def on_host(text: str) -> str:
        for name, value in (("os", HOST.os), ("arch", HOST.architecture), ("variant", "")):
            text = text.replace("[/<host %s>]" % name, "").replace("<host %s>" % name, value)
        return text

    parsed = platform(case["input"])
    assert list(parsed[:3]) == [
        on_host(case["expected"][key]) for key in ("os", "architecture", "variant")]
    assert str(parsed) == on_host(case["formatted"])
    assert platform(str(parsed)) == parsed
    for other in case["also_matches"]:
        assert parsed.matches(Platform.from_json(other, "x"))


@pytest.mark.parametrize("text", cases("platform_parse_invalid") + [
    "linux/", "linux/arm/", "nonsense", "linux/amd64\n", "linux()/amd64", "linux(1/amd64",
    "linüx/amd64", "(1)/amd64", "linux/\x1b[31m", "linux/" + "a" * 100000 + "!"])
def test_a_malformed_platform_is_the_users_mistake(text: str) -> None:
    with pytest.raises(InvalidReference, match="^invalid platform ") as caught:
        platform(text)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 150


def test_half_a_platform_needs_a_host_for_the_other_half() -> None:
    with pytest.raises(InvalidReference):
        Platform.parse("arm64")
    assert Platform.parse("linux/arm64") == Platform("linux", "arm64")


def test_an_os_version_is_read_and_shown_in_parentheses() -> None:
    windows = platform("windows(10.0.17763)/amd64")
    assert windows == Platform("windows", "amd64", "", "10.0.17763")
    assert str(windows) == "windows(10.0.17763)/amd64"
    assert str(platform("windows(10.0.17763)")) == "windows(10.0.17763)/riscv64"


@pytest.mark.parametrize("case", cases("platform_normalize_arch"), ids=str)
def test_architectures_have_one_spelling(case: Mapping[str, Any]) -> None:
    normal = Platform("Linux", case["arch"], case["variant"]).normalized()
    assert normal == Platform("linux", *case["expected"])
    assert normal.normalized() == normal


@pytest.mark.parametrize("case", cases("platform_vector"), ids=lambda case: case["platform"])
def test_preference_is_containerds_vector(case: Mapping[str, Any]) -> None:
    vector = [platform(text).normalized() for text in case["vector"]]
    assert preference(platform(case["platform"])) == vector


@pytest.mark.parametrize("text, vector", [
    ("linux/amd64/zen", ["linux/amd64/zen", "linux/386"]),
    ("linux/arm/v4", ["linux/arm/v4"]),
    ("linux/arm64/v10", ["linux/arm64/v10"]),
    ("linux/arm64/v9.1", [
        "linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.6", "linux/arm64/v8.5",
        "linux/arm64/v8.4", "linux/arm64/v8.3", "linux/arm64/v8.2", "linux/arm64/v8.1",
        "linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
    ("linux/amd64/v999999999", ["linux/amd64/v999999999", "linux/386"])])
def test_preference_knows_levels_and_is_bounded(text: str, vector: List[str]) -> None:
    assert [str(found) for found in preference(platform(text))] == vector


@pytest.mark.parametrize("case", cases("platform_only"), ids=lambda case: case["platform"])
def test_platforms_are_preferred_only_if_they_run_on_the_host(case: Mapping[str, Any]) -> None:
    order = preference(platform(case["platform"]))
    for text in case["match"]:
        assert any(found.matches(platform(text)) for found in order), text
    for text in case["no_match"]:
        assert not any(found.matches(platform(text)) for found in order), text


@pytest.mark.parametrize("case", cases("platform_only_strict"), ids=lambda case: case["platform"])
def test_matching_is_strict_but_for_spelling(case: Mapping[str, Any]) -> None:
    wanted = platform(case["platform"])
    assert all(wanted.matches(platform(text)) for text in case["match"])
    assert not any(wanted.matches(platform(text)) for text in case["no_match"])


def entry(text: str, name: str = "") -> Descriptor:
    found = platform(text) if text else None
    return Descriptor(OCI_MANIFEST, DIGEST, 1, platform=found, artifact_type=name)


def test_selection_is_by_preference_then_by_position_and_no_platform_is_last() -> None:
    entries = [
        entry("", "no platform"), entry("linux/arm/v5"), entry("linux/arm64", "first"),
        entry("linux/amd64"), entry("linux/arm/v7"), entry("linux/arm64/v8", "second"),
        entry("unknown/unknown"), entry("", "nor here")]
    order = [2, 5, 4, 1, 0, 7]
    assert select(platform("linux/arm64"), entries) == [entries[i] for i in order]


FEATURES = [  # os.features asked for, those of the entries, the order
    ([], [["x"], [], ["y"]], [1, 0, 2]), ([], [[], ["x"]], [0, 1]), ([], [["x"], ["x", "y"]], [0, 1]),
    (["x"], [["x"], []], [0, 1]), (["x"], [["x", "y"], ["x"], []], [1, 2, 0]),
    (["x", "y"], [["y", "x"], ["z"], []], [0, 2, 1])]


@pytest.mark.parametrize("asked, entries, order", FEATURES)
def test_an_entry_with_features_that_nobody_asked_for_comes_after_those_without(
        asked: List[str], entries: List[List[str]], order: List[int]) -> None:
    host = Platform("linux", "amd64", os_features=tuple(asked))
    offered = [Descriptor(OCI_MANIFEST, DIGEST, n, platform=Platform("linux", "amd64", os_features=tuple(features)))
               for n, features in enumerate(entries)]
    assert [found.size for found in select(host, offered)] == order


def test_a_weaker_variant_comes_before_features_that_nobody_asked_for() -> None:
    special = entry("linux/arm64")._replace(platform=Platform("linux", "arm64", os_features=("sve",)))
    entries = [entry("", "no platform"), special, entry("linux/arm/v7"), entry("linux/arm64")]
    assert select(platform("linux/arm64"), entries) == [entries[i] for i in (3, 2, 1, 0)]


def test_an_attestation_is_never_selected() -> None:
    assert select(Platform("unknown", "unknown"), [entry("unknown/unknown")]) == []


def test_nothing_is_selected_for_another_platform() -> None:
    assert select(platform("linux/s390x"), [entry("linux/amd64"), entry("windows/s390x")]) == []


def test_windows_entries_are_selected_by_build() -> None:
    old, new, any_build = (entry(text) for text in (
        "windows(10.0.14393.1066)/amd64", "windows(10.0.17763.2114)/amd64", "windows/amd64"))
    entries = [old, new, any_build]
    assert select(platform("windows(10.0.17763)/amd64"), entries) == [new, any_build]
    assert select(platform("windows/amd64"), entries) == entries
