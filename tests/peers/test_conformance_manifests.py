# SPDX-License-Identifier: Apache-2.0
"""The checks of conformance that are about manifests, tags and referrers; see test_conformance."""
from typing import Callable, List

import pytest

from tests.kit.conformance import (
    ALGORITHMS, KIND_1, KIND_2, Answer, Remote, assert_deleted, digest_of, with_query)
from tests.kit.datasets import DATA, DataSet, Manifest
from tests.kit.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, to_json


# -- data sets -----------------------------------------------------------------


@pytest.mark.parametrize("build", DATA, ids=lambda build: build.__name__)
def test_a_data_set_comes_in_is_there_and_goes(remote: Remote, build: Callable[[DataSet], None]) -> None:
    data = DataSet(remote.repository)
    build(data)
    for digest, blob in data.blobs.items():
        assert remote.blob(blob, data.algorithm) == digest
    for made in data.manifests:
        answer = remote.put(made.raw, made.media_type, made.digest)
        if not remote.check(build.__name__, answer.outcome, (201, "")):
            return
        assert_pushed(remote, answer, made)
    for tag, made in data.tags.items():
        assert_pushed(remote, remote.put(made.raw, made.media_type, tag), made)
    if data.tags:
        assert remote.tags() == sorted(data.tags)
    for reference, made in [(made.digest, made) for made in data.manifests] + list(data.tags.items()):
        assert_manifest(remote.head("manifests", reference), made, b"")
        assert_manifest(remote.get("manifests", reference), made, made.raw)
    for subject, wanted in data.referrers.items():
        assert_referrers(remote, subject, wanted)
    for tag in data.tags:
        answer = remote.delete("manifests", tag)
        if remote.check("a tag is deleted", answer.status, 202):
            assert remote.head("manifests", tag).status == 404
    for made in reversed(data.manifests):
        assert_deleted(remote, "manifests", made.digest)
    for digest in data.blobs:
        assert_deleted(remote, "blobs", digest)
    for subject in data.referrers:
        assert_referrers(remote, subject, [])


def assert_pushed(remote: Remote, answer: Answer, made: Manifest) -> None:
    assert answer.status == 201
    assert answer.headers["docker-content-digest"] == made.digest
    subject = answer.headers.get("oci-subject", "")
    if not made.subject or remote.check("OCI-Subject", subject != "", True):
        assert subject == made.subject
    assert_manifest(remote.ask("GET", answer.location), made, made.raw)


def assert_manifest(answer: Answer, made: Manifest, body: bytes) -> None:
    assert (answer.status, answer.headers["content-type"]) == (200, made.media_type)
    assert answer.headers["content-length"] == str(len(made.raw))
    assert answer.headers["docker-content-digest"] == made.digest
    assert answer.body == body


def assert_referrers(remote: Remote, subject: str, wanted: List[Descriptor]) -> None:
    """All that refer to ``subject``, and those of each type alone."""
    answer = remote.referrers(subject)
    if not remote.check("referrers", answer.status, 200):
        return
    kinds = {described.get("artifactType", "") for described in wanted} | {"application/vnd.example.none"}
    for kind in ["", *sorted(kinds - {""})]:
        if kind:
            answer = remote.referrers(subject, artifactType=kind)
        assert (answer.status, answer.headers["content-type"]) == (200, OCI_INDEX)
        assert answer.headers.get("oci-filters-applied") == ("artifactType" if kind else None)
        found = answer.json
        assert (found["schemaVersion"], found["mediaType"]) == (2, OCI_INDEX)
        expected = [item for item in wanted if kind in ("", item.get("artifactType"))]
        assert by_digest(found["manifests"]) == by_digest(expected)


def by_digest(descriptors: List[Descriptor]) -> List[Descriptor]:
    return sorted(descriptors, key=lambda described: str(described["digest"]))


# -- manifests -----------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_manifest_that_is_not_what_its_digest_says_is_refused(remote: Remote, algorithm: str) -> None:
    _, raw = remote.image()
    changed = raw + b"  "
    answer = remote.put(changed, OCI_MANIFEST, digest_of(raw, algorithm))
    assert answer.outcome == (400, "DIGEST_INVALID")
    for bad in (digest_of(raw, "sha512"), digest_of(changed), digest_of(changed, "sha512")):
        assert remote.head("manifests", bad).status == 404


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]",
    to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
    to_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [], "manifests": []}),
], ids=["empty", "cut", "array", "index", "both"])
def test_a_document_of_another_kind_is_refused_as_an_image_manifest(remote: Remote, body: bytes) -> None:
    assert remote.put(body, OCI_MANIFEST, "bad").outcome == (400, "MANIFEST_INVALID")
    assert remote.head("manifests", "bad").status == 404


def test_a_manifest_without_a_config_is_refused(remote: Remote) -> None:
    answer = remote.put(b'{"schemaVersion":2}', OCI_MANIFEST, "bad")
    remote.check("a manifest without a config", answer.outcome, (400, "MANIFEST_INVALID"))
    assert remote.head("manifests", "bad").status == 404


def test_a_manifest_comes_as_it_is_whatever_is_accepted(remote: Remote) -> None:
    _, raw = remote.image("tag")
    answer = remote.get("manifests", "tag", headers={"Accept": "text/plain"})
    remote.check("a manifest that is not accepted", answer.body == raw, True)


def test_a_manifest_is_as_large_as_the_limit_and_no_larger(remote: Remote) -> None:
    limit = 8 << 20 if remote.name == "minipull" else 4 << 20
    _, raw = remote.image()
    large = raw + b" " * (limit - len(raw))
    assert remote.put(large, OCI_MANIFEST, "large").status == 201
    answer = remote.put(large + b" ", OCI_MANIFEST, "larger")
    remote.check("a manifest above the limit", answer.outcome, (413, "SIZE_INVALID"))
    assert remote.tags() == ["large"]


@pytest.mark.parametrize("lost", ["config", "layer", "child"])
def test_a_manifest_needs_what_it_names(remote: Remote, lost: str) -> None:
    data = DataSet(remote.repository)
    config, layer = data.config(), data.layer()
    child = data.image(config=config, layers=[layer])
    data.index([child], "index")
    skipped = {"config": config, "layer": layer, "child": child}[lost]["digest"]
    for digest, blob in data.blobs.items():
        if digest != skipped:
            remote.blob(blob)
    made = data.manifests[1 if lost == "child" else 0]
    answer = remote.put(made.raw, made.media_type, made.digest)
    assert answer.status in (400, 404)
    assert answer.code == "MANIFEST_BLOB_UNKNOWN"
    assert remote.head("manifests", made.digest).status == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tags_may_come_with_the_manifest(remote: Remote, algorithm: str) -> None:
    _, raw = remote.image("there")
    digest, names = digest_of(raw, algorithm), ["t%d" % n for n in range(10)]
    reference = digest + "?" + "&".join("tag=" + name for name in names)
    answer = remote.put(raw, OCI_MANIFEST, reference)
    if algorithm == "sha512" and not remote.check("a manifest by sha512", answer.outcome, (201, "")):
        return
    assert answer.status == 201
    if remote.check("tags with the manifest", "oci-tag" in answer.headers, True):
        assert answer.headers["oci-tag"].split(", ") == names
        assert remote.tags() == sorted(names + ["there"])
        for name in names:
            assert remote.head("manifests", name).headers["docker-content-digest"] == digest


# -- tags ----------------------------------------------------------------------


def test_a_list_of_tags_comes_in_pages(remote: Remote) -> None:
    names = ["B", "a", "b", "c"]
    remote.image(*reversed(names))
    assert remote.tags() == names
    remote.check("n tags", [remote.tags(n=str(n)) for n in range(1, 5)], [names[:n] for n in range(1, 5)])
    remote.check("no tags", remote.tags(n="0"), [])
    remote.check("tags after one", remote.tags(last="a"), ["b", "c"])
    remote.check("tags after one that is not there", remote.tags(last="aa"), ["b", "c"])
    remote.check("n tags after one", remote.tags(n="1", last="a"), ["b"])
    target, found = with_query(remote.path("tags", "list"), n="1"), []
    for answer in remote.pages(target):
        found.append(answer.json["tags"] if "link" in answer.headers else sorted(answer.json["tags"]))
    remote.check("tags page by page", found, [[name] for name in names])


@pytest.mark.parametrize("n", ["-1", "many", "1.5"])
def test_a_page_of_no_size_is_refused(remote: Remote, n: str) -> None:
    remote.image("there")
    answer = remote.ask("GET", with_query(remote.path("tags", "list"), n=n))
    remote.check("a page of no size", answer.status, 400)


def test_a_tag_moves_and_the_manifest_stays(remote: Remote) -> None:
    first, raw = remote.image("tag")
    second, _ = remote.image("tag")
    assert remote.head("manifests", "tag").headers["docker-content-digest"] == second
    assert remote.get("manifests", first).body == raw
    assert remote.tags() == ["tag"]


def test_a_deleted_tag_leaves_the_manifest_and_its_other_tags(remote: Remote) -> None:
    digest, raw = remote.image("stays", "goes")
    answer = remote.delete("manifests", "goes")
    if remote.check("a tag alone is deleted", answer.outcome, (202, "")):
        assert remote.head("manifests", "goes").status == 404
        assert remote.tags() == ["stays"]
    for reference in ("stays", digest):
        assert remote.get("manifests", reference).body == raw


def test_a_deleted_manifest_takes_its_tags_along(remote: Remote) -> None:
    digest, _ = remote.image("one", "two")
    remote.image("other")
    assert remote.delete("manifests", digest).status == 202
    assert remote.tags() == ["other"]
    for reference in (digest, "one", "two"):
        assert remote.head("manifests", reference).status == 404
        assert remote.get("manifests", reference).outcome == (404, "MANIFEST_UNKNOWN")


# -- referrers -----------------------------------------------------------------


def test_every_referrer_is_counted_once(remote: Remote) -> None:
    data = DataSet(remote.repository)
    subject, lonely = data.image("image"), data.image("lonely")
    never = data.describe(remote.noise(), OCI_MANIFEST)
    for kind in (KIND_1, KIND_1, KIND_2):
        data.artifact(kind=kind, subject=subject, annotations=data.notes())
    data.image(subject=subject)
    data.index([], subject=subject, artifactType=KIND_2)
    data.artifact(subject=never)
    for blob in data.blobs.values():
        remote.blob(blob)
    for made in data.manifests:
        assert remote.put(made.raw, made.media_type, made.digest).status == 201
    for described, kind, wanted in [
            (subject, "", 5), (subject, KIND_1, 2), (subject, KIND_2, 2), (subject, OCI_CONFIG, 1),
            (subject, "application/vnd.example.none", 0), (never, "", 1), (lonely, "", 0)]:
        query = {"artifactType": kind} if kind else {}
        answer = remote.referrers(described["digest"], **query)
        if remote.check("referrers counted", answer.status, 200):
            assert len(answer.json["manifests"]) == wanted
    for made in reversed(data.manifests):
        assert remote.delete("manifests", made.digest).status == 202


def test_a_long_list_of_referrers_comes_in_pages_that_a_client_takes(remote: Remote) -> None:
    data = DataSet(remote.repository)
    subject = data.describe(remote.noise(), OCI_MANIFEST)
    config = data.config()
    for _ in range(20):
        notes = {**data.notes(), "org.example.long": "A" * 240000}
        data.image(subject=subject, config=config, layers=[], annotations=notes)
    remote.blob(data.blobs[config["digest"]])
    for made in data.manifests:
        assert remote.put(made.raw, made.media_type, made.digest).status == 201
    answer = remote.referrers(subject["digest"])
    if not remote.check("referrers in pages", answer.status, 200):
        return
    found: List[Descriptor] = []
    for answer in remote.pages(remote.path("referrers", subject["digest"])):
        assert (answer.status, answer.headers["content-type"]) == (200, OCI_INDEX)
        assert len(answer.body) < 4 << 20
        found += answer.json["manifests"]
    assert by_digest(found) == by_digest(data.referrers[subject["digest"]])
