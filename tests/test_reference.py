# SPDX-License-Identifier: Apache-2.0
import json
import re
from typing import Any, List, Mapping

import pytest

from tests.kit import DATA
from minipull import reference
from minipull.digest import Digest
from minipull.errors import InvalidReference
from minipull.reference import Reference, is_tag

TABLES = DATA / "tables.json"
SHA = "sha256:" + "ab" * 32


def cases(name: str) -> List[Any]:
    return list(json.loads(TABLES.read_text())[name]["cases"])


def parse_name(text: str) -> Reference:
    return reference._parse_strict(text)


@pytest.mark.parametrize("case", cases("reference_parse"), ids=lambda case: case["input"][:60])
def test_the_grammar_is_that_of_distribution(case: Mapping[str, str]) -> None:
    if "error" in case:
        with pytest.raises(InvalidReference, match="^%s$" % re.escape(case["error"])):
            parse_name(case["input"])
        return
    expected = (case["domain"], case["path"], case["tag"], case["digest"] or None)
    assert parse_name(case["input"]) == expected


@pytest.mark.parametrize("case", cases("reference_domain_path"), ids=lambda case: case["input"])
def test_domain_and_path_are_split_by_the_grammar(case: Mapping[str, str]) -> None:
    assert parse_name(case["input"])[:2] == (case["domain"], case["path"])


@pytest.mark.parametrize("case", cases("regexp_name"), ids=lambda case: case["input"])
def test_names_match_in_whole_or_not_at_all(case: Mapping[str, Any]) -> None:
    try:
        found = parse_name(case["input"])
    except InvalidReference:
        assert not case["match"]
        return
    if case["match"]:
        assert not found.tag
        assert found[:2] == (case.get("domain", found.domain), case.get("path", found.path))
    else:
        assert found.tag  # "foo_bar.com:8080": no name, but a name with a tag


@pytest.mark.parametrize("case", cases("regexp_domain"), ids=lambda case: case["input"])
def test_domains_match_in_whole_or_not_at_all(case: Mapping[str, Any]) -> None:
    assert bool(re.fullmatch(reference.DOMAIN, case["input"])) is case["match"]


@pytest.mark.parametrize("text", cases("reference_normalize_valid"))
def test_normalising_accepts_and_is_stable(text: str) -> None:
    parsed = Reference.parse(text)
    assert Reference.parse(str(parsed)) == parsed
    assert Reference.parse(parsed.familiar) == parsed


@pytest.mark.parametrize("text", cases("reference_normalize_invalid") + [
    "", "/", "/x", "x/", "REG/", "x:", "x@", "x:t@", "-x", "a//b", "a/../b", "alpine\n",
    "alpine:3\n", "alpine@%s\n" % SHA, "\nalpine", "alpine:" + "a" * 129, "alpine:.a",
    "alpine:-a", "alpine@sha256:abc", "user:pass@host/x", "host/x?y", "host/x#y", "host/x y",
    "héllo", "host/\u2460", "alpine:\u0663",
    "host/\u212a", "a" * 300, "host/\x1b[31m", "example.com:99999/x", "example.com:655360/x",
    "example.com:%s/x" % ("9" * 5000), "[::1]:99999/x", "alpine@" + SHA.upper(), "docker://alpine"])
def test_malformed_references_are_the_users_mistake(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250


@pytest.mark.parametrize("text, error", [
    ("", "repository name must have at least one component"),
    ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
    ("example.com/Foo:Tag", "invalid reference format: repository name (Foo) must be lowercase"),
    ("ab" * 32, "invalid repository name (%s), cannot specify 64-byte hexadecimal strings"
     % ("ab" * 32)),
    ("x" * 248, "repository name must not be more than 255 characters"),
    ("x@sha256:" + "a" * 63, "invalid checksum digest length"),
    ("x@sha256:" + "A" * 64, "invalid checksum digest format"),
    ("x@md5:" + "a" * 32, "unsupported digest algorithm"),
    ("a//b", "invalid reference format"),
    ("example.com:99999/x", "invalid port in example.com:99999")])
def test_the_message_names_the_most_telling_mistake(text: str, error: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert str(caught.value) == error


@pytest.mark.parametrize("text, told", [
    ("https://ann:s3/cr@t@reg.lan/a", "https://ann:***@reg.lan/a"),
    ("ann:s3cret@reg.lan:5000/a", "ann:***@reg.lan:5000/a"),
    ("docker://ann:s3cret@reg.lan/a", "docker://ann:***@reg.lan/a"), ("reg.lan:5000//a:1@b", "reg.lan:5000//a:1@b")])
def test_a_password_in_a_name_is_not_told(text: str, told: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.of(text)
    assert str(caught.value) == told + ": invalid reference format"
    assert str(caught.value.within("copy " + text)).startswith("copy %s: " % told)


@pytest.mark.parametrize("case", cases("reference_repository_info"),
                         ids=lambda case: case["full_name"])
def test_all_spellings_of_a_repository_are_one(case: Mapping[str, Any]) -> None:
    for text in case["inputs"]:
        parsed = Reference.parse(text)
        assert parsed == Reference(case["domain"], case["path"])
        assert parsed.name == str(parsed) == case["full_name"]
        assert parsed.familiar_name == parsed.familiar == case["familiar_name"]


@pytest.mark.parametrize("case", cases("reference_normalized_domain_path"),
                         ids=lambda case: case["input"])
def test_docker_hub_is_the_default_domain(case: Mapping[str, str]) -> None:
    assert Reference.parse(case["input"])[:2] == (case["domain"], case["path"])


@pytest.mark.parametrize("case", cases("reference_any"), ids=lambda case: case["input"][:40])
def test_typed_references_become_canonical(case: Mapping[str, str]) -> None:
    if case["kind"] == "named":
        assert str(Reference.parse(case["input"])) == case["expected"]


@pytest.mark.parametrize("case", cases("reference_parse_canonical_named"),
                         ids=lambda case: case["input"])
def test_a_canonical_name_is_one_that_parsing_leaves_alone(case: Mapping[str, str]) -> None:
    assert (Reference.parse(case["input"]).name == case["input"]) is ("error" not in case)


@pytest.mark.parametrize("case", cases("reference_docker_ref"), ids=lambda case: case["name"])
def test_docker_asks_for_the_digest_or_a_tag(case: Mapping[str, str]) -> None:
    assert str(Reference.parse(case["input"]).docker_ref()) == case["expected"]


@pytest.mark.parametrize("case", cases("reference_tag_and_digest"), ids=lambda case: case["input"])
def test_tag_and_digest_are_both_kept(case: Mapping[str, str]) -> None:
    parsed = Reference.parse(case["input"])
    assert str(parsed) == case["string"]
    assert parsed.familiar == case["familiar"]
    assert parsed.with_default_tag() == parsed
    assert parsed.docker_ref() == parsed._replace(tag="")


@pytest.mark.parametrize("case", cases("reference_with_tag") + cases("reference_with_digest"),
                         ids=lambda case: case["combined"])
def test_a_tag_and_a_digest_can_be_added(case: Mapping[str, str]) -> None:
    named = Reference.parse(case["name"])
    if "tag" in case:
        named = named.with_tag(case["tag"])
    if "digest" in case:
        named = named.with_digest(Digest(case["digest"]))
    assert named.familiar == case["combined"]


@pytest.mark.parametrize("tag", ["latest", "3.20", "_", "A-b.c_d", "0", "a" * 128])
def test_tags_of_the_grammar_are_taken(tag: str) -> None:
    assert is_tag(tag)
    assert Reference.parse("alpine").with_tag(tag).tag == tag


@pytest.mark.parametrize("tag", [
    "", "a" * 129, ".a", "-a", "a/b", "a:b", "a b", "a\n", "\u0661", "a\0", "../x"])
def test_other_tags_are_refused(tag: str) -> None:
    assert not is_tag(tag)
    with pytest.raises(InvalidReference, match="invalid tag format"):
        Reference.parse("alpine").with_tag(tag)


def test_latest_is_added_only_to_a_bare_name() -> None:
    assert str(Reference.parse("alpine").with_default_tag()) == "docker.io/library/alpine:latest"
    for text in ("alpine:3", "alpine@" + SHA):
        assert Reference.parse(text).with_default_tag() == Reference.parse(text)


@pytest.mark.parametrize("text", [
    "docker.io/example.com/x", "docker.io/localhost/x", "docker.io/" + "ab" * 32,
    "docker.io/library/x/y", "docker.io/library/library", "localhost:5000/x",
    "docker.io/docker.io/x", "docker.io/library/library/x"])
def test_a_familiar_name_always_means_the_same(text: str) -> None:
    parsed = Reference.parse(text)
    assert Reference.parse(parsed.familiar) == parsed


HOSTILE = 200000  # a quadratic pattern would need hours


@pytest.mark.parametrize("text", [
    "a" * HOSTILE + "!", "a-" * HOSTILE, "a-" * HOSTILE + "!", "-" * HOSTILE,
    "a" + "-" * HOSTILE + "!", "a." * HOSTILE + "!", "a/" * HOSTILE + "!", "a_" * HOSTILE + "!",
    "a__" * HOSTILE + "!", "_" * HOSTILE, "a" + "_" * HOSTILE, "A." * HOSTILE + "/!",
    "[" + ":" * HOSTILE, "a:" * HOSTILE, "a:" + "1" * HOSTILE + "/!", "a@" + "b+" * HOSTILE,
    "a@" + "b" * HOSTILE + ":" + "c" * HOSTILE + "!",
    "a@sha256:" + "a" * HOSTILE, "x/" + "A" * HOSTILE, "a.b/" + "c" * HOSTILE, "@" * HOSTILE,
    "." * HOSTILE, "a.b/" + "c--" * HOSTILE + "!"])
def test_hostile_references_are_refused_in_linear_time(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert len(str(caught.value)) < 250
