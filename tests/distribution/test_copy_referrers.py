# SPDX-License-Identifier: Apache-2.0
"""Signatures and attestations go along with their image, or it gets no name."""
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Union

import pytest

from tests.kit import images
import minipull
from tests.kit.images import OCI_INDEX, OCI_MANIFEST, Descriptor, Layout
from minipull.errors import ContentMismatch, PolicyError
from tests.kit.servers import Connection, ScriptedServer, content, error, reply
from tests.kit.copies import Target, add, artifact, bare, copied
from tests.kit.signed import Signed, about, listing, serve_signed

pytestmark = pytest.mark.usefixtures("no_repeats")

#: The module, which the function of that name hides.
module = importlib.import_module("minipull.distribution.referrers")
HEX = "0123456789abcdef" * 4


# -- what refers to an image -------------------------------------------------------


@pytest.mark.parametrize("api", [True, False])
def test_referrers_are_copied_with_their_image(
        api: bool, server: ScriptedServer, signed: Signed, target: Target, tmp_path: Path) -> None:
    source = serve_signed(server, signed, api)
    copied(source, target)
    assert not server.seen("GET", "referrers") and len(target.manifests) == 1 + 6
    copied(source, target, referrers=True)
    for tag, descriptor in signed.cosign.items():
        assert images.digest_of(target.manifests[tag]) == descriptor["digest"]
    for descriptor in (signed.signature, signed.again, signed.bill):
        assert target.manifests[descriptor["digest"]] == signed.layout.read(descriptor["digest"])
    for subject, found in signed.listed.items():
        document = json.loads(target.manifests[subject.replace(":", "-")])
        assert document == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
    assert target.put()[-1] == "1"
    # From a layout it is found by its tags.
    copied(source, "oci:%s:latest" % (tmp_path / "new"), referrers=True)
    with Target() as other:
        copied("oci:%s:latest" % (tmp_path / "new"), other, referrers=True)
        assert {**other.manifests} == {**target.manifests}


def test_an_attestation_that_its_index_lists_too_is_a_referrer_all_the_same(
        server: ScriptedServer, layout: Layout, target: Target) -> None:
    image = layout.image(images.specs(1)).descriptor
    attestation = artifact(layout, payload=b"{}", subject=bare(image))
    layout.index([{**image, "platform": {"os": "linux", "architecture": "amd64"}},
                  {**attestation, "platform": {"os": "unknown", "architecture": "unknown"}}], "latest")
    server.serve(layout.root, "r")
    server.on("GET", "/referrers/", listing([]))
    server.on("GET", "/referrers/" + image["digest"], listing([attestation]))
    copied("docker://%s/r" % server.host, target, referrers=True)
    assert target.put()[-1] == "1" and attestation["digest"] in target.put()


def test_copy_writes_no_fallback_tag_when_the_registry_supports_referrers(server: ScriptedServer, signed: Signed, target: Target) -> None:
    source = serve_signed(server, signed, True)

    def put(connection: Connection) -> None:
        connection.body()
        reply(201, headers={"OCI-Subject": "sha256:" + HEX})(connection)
    for descriptor in (signed.signature, signed.again, signed.bill):
        target.on("PUT", "/manifests/" + descriptor["digest"], put)
    copied(source, target, referrers=True)
    assert {tag for tag in target.put() if ":" not in tag} == {"1", *signed.cosign}


def test_the_fallback_tag_keeps_the_referrers_that_it_lists(server: ScriptedServer, signed: Signed, target: Target) -> None:
    source = serve_signed(server, signed, True)
    tag = signed.top["digest"].replace(":", "-")
    old = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + HEX, "size": 7, "artifactType": "application/x"}
    target.manifests["sha256:" + HEX] = b"{}"
    there = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [old]}
    target.manifests[tag] = images.to_json(there)
    copied(source, target, referrers=True)
    assert json.loads(target.manifests[tag])["manifests"] == [old, *signed.listed[signed.top["digest"]]]
    puts = target.put().count(tag)
    copied(source, target, referrers=True)
    assert puts == target.put().count(tag) == 1, "what is complete is not written again"


class Listed(NamedTuple):
    """An image on a server, whose lists of referrers a test may fill."""
    server: ScriptedServer
    layout: Layout
    image: Descriptor

    def refer(self, *found: Descriptor, subject: str = "", shown: bool = True) -> None:
        """Let the list say so; with ``shown`` the manifests are there as well."""
        self.server.on("GET", "/v2/r/referrers/" + (subject or self.image["digest"]), listing(list(found)))
        for each in found if shown else ():
            self.server.on("GET", "/manifests/" + each["digest"], content(
                self.layout.read(each["digest"]), json.loads(self.layout.read(each["digest"]))["mediaType"]))
        for path in (self.layout.root / "blobs" / "sha256").iterdir():
            self.server.on("GET", "/blobs/sha256:" + path.name, content(path.read_bytes()))

    def copied(self, target: Union[str, Target]) -> Any:
        return copied("docker://%s/r" % self.server.host, target, referrers=True)


@pytest.fixture
def listed(server: ScriptedServer, tmp_path: Path) -> Listed:
    layout, image = images.single(tmp_path / "layout", layers=1, size=100)
    server.serve(layout.root, "r")
    server.on("GET", "/v2/r/referrers/", listing([]))
    return Listed(server, layout, image.descriptor)


def test_a_listed_manifest_with_another_subject_is_left_out(listed: Listed, target: Target) -> None:
    other = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + HEX, "size": 5}
    right = about(listed.layout, listed.image, b"right")
    lying = {**right, "size": 1, "mediaType": "text/html", "annotations": {"a": "b"}}
    listed.refer(right, listed.image, subject=right["digest"])  # a circle
    listed.refer(about(listed.layout, other, b"of another"), artifact(listed.layout, payload=b"of nothing"),
                 lying, right, right)
    listed.copied(target)
    tag = listed.image["digest"].replace(":", "-")
    assert set(target.put()) == {"1", right["digest"], tag}
    first = json.loads(target.manifests[tag])["manifests"][0]
    assert first == {**right, "annotations": {"a": "b"}}


def test_a_listed_manifest_that_is_gone_is_left_out(listed: Listed, target: Target) -> None:
    listed.refer({"mediaType": OCI_MANIFEST, "digest": "sha256:" + HEX, "size": 5}, shown=False)
    listed.copied(target)
    assert target.put() == ["1"]


def test_an_index_may_refer_to_an_image(listed: Listed, target: Target) -> None:
    child = artifact(listed.layout, payload=b"part")
    index = add(listed.layout, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child],
                                "subject": bare(listed.image)})
    listed.refer(index)
    listed.server.on("GET", "/manifests/" + child["digest"], content(
        listed.layout.read(child["digest"]), OCI_MANIFEST))
    listed.copied(target)
    assert target.put() == [child["digest"], index["digest"], listed.image["digest"].replace(":", "-"), "1"]


def test_a_wrong_signature_ends_the_copy_without_a_name(listed: Listed, target: Target) -> None:
    wrong = about(listed.layout, listed.image, b"signature")
    listed.refer(wrong)
    listed.server.on("GET", "/blobs/" + images.digest_of(b"signature"), content(b"?ignature"))
    with pytest.raises(ContentMismatch):
        listed.copied(target)
    assert target.put() == []


@pytest.mark.parametrize("count, pages", [(1001, 1), (1001, 3), (1000, 2)])
def test_referrers_have_a_limit(count: int, pages: int, listed: Listed, target: Target) -> None:
    found = [{"mediaType": OCI_MANIFEST, "digest": "sha256:%064x" % n, "size": 5} for n in range(count)]
    size = -(-count // pages)
    for page in range(pages):
        link = {"Link": '</v2/r/referrers/%s?page=%d>; rel="next"' % (listed.image["digest"], page + 1)}
        data = json.dumps({"schemaVersion": 2, "manifests": found[page * size:(page + 1) * size]})
        query = r"\?page=%d" % page if page else ""
        listed.server.on("GET", "/v2/r/referrers/%s%s$" % (listed.image["digest"], query),
                         reply(200, data, link if page + 1 < pages else {}))
    if count > 1000:
        with pytest.raises(PolicyError, match="more than 1000 referrers"):
            listed.copied(target)
        assert target.put() == []
    else:
        listed.copied(target)
        assert len(listed.server.seen("GET", "/manifests/sha256:0000")) == count


def test_referrers_of_referrers_have_a_limit_together(
        listed: Listed, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REFERRERS", 10)
    subject = listed.image
    for number in range(11):
        found = about(listed.layout, subject, b"%d" % number)
        listed.refer(found, subject=subject["digest"])
        subject = found
    with pytest.raises(PolicyError, match="more than 10 referrers"):
        listed.copied(target)
    assert "1" not in target.manifests


def test_the_fallback_tag_has_the_same_limit(
        listed: Listed, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REFERRERS", 10)
    tag = listed.image["digest"].replace(":", "-")
    index = listed.layout.index([
        {"mediaType": OCI_MANIFEST, "digest": "sha256:%064x" % n, "size": 5} for n in range(11)])
    for status in (404, 400, 405):
        listed.server.on("GET", "/referrers/", error(status))
        listed.server.on("GET", "/manifests/%s$" % tag, content(index.raw, OCI_INDEX))
        with pytest.raises(PolicyError, match="more than 10 referrers"):
            listed.copied(target)
    # What has that tag but is no index says nothing.
    listed.server.on("GET", "/manifests/%s$" % tag, content(listed.layout.read(listed.image["digest"]), OCI_MANIFEST))
    listed.copied(target)
    assert target.put() == ["1"]


@pytest.mark.parametrize("where", ["/referrers/", "/manifests/sha256-"])
def test_a_registry_that_fails_to_list_referrers_ends_the_copy(where: str, listed: Listed, target: Target) -> None:
    listed.server.on("GET", where, error(500))
    with pytest.raises(minipull.Error):
        listed.copied(target)
    assert target.put() == []


def test_a_malformed_list_of_referrers_counts_as_none(listed: Listed, target: Target) -> None:
    listed.server.on("GET", "/referrers/", reply(200, b"<html>"))
    listed.copied(target)
    assert target.put() == ["1"] and listed.server.seen("GET", "/manifests/sha256-[0-9a-f]{64}$")
