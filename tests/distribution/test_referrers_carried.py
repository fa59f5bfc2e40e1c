# SPDX-License-Identifier: Apache-2.0
"""Signatures, attestations and SBOMs stay with their image through stores, archives and layouts."""
import json
import tarfile
from pathlib import Path
from typing import Any, List

import pytest

import minipull
from minipull.archive.load import load
from minipull.archive.save import save
from minipull.errors import ContentMismatch, InvalidReference
from minipull.progress import Progress
from minipull.reference import Reference
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.store.store import Store
from tests.kit import images
from tests.kit.copies import Target, artifact, copied
from tests.kit.images import Layout
from tests.kit.pulls import pull
from tests.kit.servers import ScriptedServer, content
from tests.kit.signed import Signed, about, serve_signed

pytestmark = pytest.mark.usefixtures("no_repeats")


def labels(archive: Path) -> List[str]:
    with tarfile.open(str(archive)) as tar:
        member = tar.extractfile("index.json")
        assert member is not None
        return [entry.get("annotations", {}).get(images.NAME, "") for entry in json.load(member)["manifests"]]


def names_of(signed: Signed, repository: str) -> List[str]:
    """The names of everything that belongs to the image, in order."""
    digests = [signed.signature["digest"], signed.again["digest"], signed.bill["digest"]]
    return sorted(["%s:%s" % (repository, tag) for tag in signed.cosign]
                  + ["%s@%s" % (repository, digest) for digest in digests])


def names(store: Store) -> List[str]:
    return [str(item.name) for item in store.references.all()]


@pytest.mark.parametrize("api, name, repository", [
    (True, ":registry.example.com/app:v1", "registry.example.com/app"), (False, ":app:v1", "docker.io/library/app"),
    (True, "", "localhost/loaded")])
def test_an_archive_brings_referrers_to_another_registry(
        api: bool, name: str, repository: str, server: ScriptedServer, signed: Signed, target: Target,
        tmp_path: Path) -> None:
    source, archive = serve_signed(server, signed, api), tmp_path / "a.tar"
    copied(source, target, referrers=True)
    copied(source, "oci-archive:%s%s" % (archive, name), referrers=True)
    first = "%s:v1" % repository if name else ""
    assert labels(archive) == [first, *names_of(signed, repository)], "the image comes first"
    with Target() as other:
        copied("oci-archive:%s" % archive, other, referrers=True)
        assert other.manifests == target.manifests and other.put()[-1] == "1"
    with Target() as other:  # only on request
        copied("oci-archive:%s" % archive, other)
        assert len(other.put()) == 6 and not [tag for tag in other.put() if tag.startswith("sha256-")]
    store = Store(str(tmp_path / "root"))
    load(str(archive), store)
    image = first or "localhost/loaded@" + signed.top["digest"]
    assert names(store) == sorted([image, *names_of(signed, repository)]) and check(store) == []
    with Target() as other:
        copied("store:" + image, other, store=store, referrers=True)
        assert other.manifests == target.manifests


def test_without_the_flag_nothing_else_goes_into_an_archive(
        server: ScriptedServer, signed: Signed, tmp_path: Path) -> None:
    source, store = serve_signed(server, signed, True), Store(str(tmp_path / "root"))
    copied(source, "oci-archive:%s:app:1" % (tmp_path / "a.tar"))
    copied(source, "store:app:1", store=store, referrers=True)
    save(["app:1"], store, str(tmp_path / "b.tar"))
    assert labels(tmp_path / "a.tar") == labels(tmp_path / "b.tar") == ["docker.io/library/app:1"]
    pull(server, store, all_platforms=True)
    assert not [name for name in names(store) if name.startswith(server.host) and "sha256" in name]


@pytest.mark.parametrize("api", [True, False])
def test_pull_save_and_load_keep_referrers(
        api: bool, server: ScriptedServer, signed: Signed, target: Target, tmp_path: Path) -> None:
    source, near, far = serve_signed(server, signed, api), Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    copied(source, target, referrers=True)
    image = pull(server, near, all_platforms=True, referrers=True)
    repository = "%s/r" % server.host
    assert names(near) == sorted([repository + ":latest", *names_of(signed, repository)])
    assert gc(near, 0).blobs == [] and check(near) == []
    saved, again = str(tmp_path / "saved.tar"), str(tmp_path / "again.tar")
    events: List[Progress] = []
    save([image.name], near, saved, referrers=True, progress=events.append)
    assert not [event.message for event in events if "warning" in event.message], "docker need not find them"
    load(saved, far)
    assert names(far) == names(near) and check(far) == []
    save([image.name], far, again, referrers=True)
    assert Path(saved).read_bytes() == Path(again).read_bytes()
    for store in (near, far):
        with Target() as other:
            copied("store:%s" % (image.name,), other, store=store, referrers=True)
            assert other.manifests == target.manifests


def test_a_pull_of_what_is_up_to_date_brings_new_referrers(
        server: ScriptedServer, signed: Signed, store: Store) -> None:
    serve_signed(server, signed, True)
    pull(server, store)
    assert len(names(store)) == 1
    pull(server, store, referrers=True)
    assert len(names(store)) == 1 + len(signed.cosign) + 3, "also those of the index of the platform"


def test_save_takes_the_signature_of_the_index_of_a_platform(
        server: ScriptedServer, signed: Signed, store: Store, tmp_path: Path) -> None:
    serve_signed(server, signed, True)
    image = pull(server, store, platform="linux/amd64", referrers=True)
    save([image.name], store, str(tmp_path / "a.tar"), referrers=True)
    assert sorted(labels(tmp_path / "a.tar")) == sorted(names(store))
    # The signature of the index counts as no image, though its index is not there.
    with Target() as other:
        copied("oci-archive:%s" % (tmp_path / "a.tar"), other, referrers=True)
        assert {tag for tag in other.put() if tag.endswith(".sig")} == {
            tag for tag in signed.cosign if signed.top["digest"][7:] not in tag}


def test_an_image_has_no_name_before_its_signatures_are_there(
        server: ScriptedServer, signed: Signed, store: Store, tmp_path: Path) -> None:
    source = serve_signed(server, signed, True)
    server.on("GET", "/blobs/" + images.digest_of(b"bill"), content(b"?ill"))
    with pytest.raises(ContentMismatch):
        pull(server, store, all_platforms=True, referrers=True)
    assert "%s/r:latest" % server.host not in names(store)
    with pytest.raises(ContentMismatch):
        copied(source, "oci-archive:%s:app:1" % (tmp_path / "a.tar"), referrers=True)
    assert not (tmp_path / "a.tar").exists()


@pytest.fixture
def twice(tmp_path: Path) -> Store:
    """A store that has one image in two repositories, each with signatures of its own."""
    layout, image = images.single(tmp_path / "two", "1", layers=1)
    store = Store(str(tmp_path / "twice"))
    for repository in ("dev", "prod"):
        layout.name(about(layout, image.descriptor, repository.encode()), "about")
        layout.name(artifact(layout, payload=repository.encode() * 2), "sig")
        digest = layout.resolve("about")["digest"]
        copied("oci:%s:1" % layout.root, "store:%s:1" % repository, store=store)
        copied("oci:%s:about" % layout.root, "store:%s@%s" % (repository, digest), store=store)
        tag = image.digest.replace(":", "-") + ".sig"
        copied("oci:%s:sig" % layout.root, "store:%s:%s" % (repository, tag), store=store)
    return store


def carried(repository: str, source: str, **options: Any) -> List[bytes]:
    """The payloads of what comes to a registry with the image."""
    with Target() as target:
        copied(source, target, referrers=True, **options)
        payloads = [data for data in target.blobs.values() if data in (b"dev", b"prod", b"dev" * 2, b"prod" * 2)]
        assert sorted(target.put()) == sorted(set(target.put()))
        return sorted(payloads)


def test_each_repository_keeps_the_signatures_of_its_own(twice: Store, tmp_path: Path) -> None:
    both = "oci-archive:%s" % (tmp_path / "both.tar")
    save(["dev:1", "prod:1"], twice, both.partition(":")[2], referrers=True)
    assert len(labels(tmp_path / "both.tar")) == 6
    for repository in ("dev", "prod"):
        own = [repository.encode(), repository.encode() * 2]
        assert carried(repository, "store:%s:1" % repository, store=twice) == own
        assert carried(repository, both + ":%s:1" % repository) == own
        save([repository + ":1"], twice, str(tmp_path / "one.tar"), referrers=True)
        assert {Reference.parse(label).familiar_name for label in labels(tmp_path / "one.tar")} == {repository}
        assert carried(repository, "oci-archive:%s" % (tmp_path / "one.tar")) == own
    with Target() as target, pytest.raises(InvalidReference, match="several images, so name one: [^,]*/dev:1, [^,]*/prod:1, [.]{3}; or write"):
        copied(both, target, referrers=True)


def test_save_by_id_knows_no_referrers(twice: Store, tmp_path: Path) -> None:
    image = twice.image("dev:1")
    with pytest.raises(InvalidReference, match="referrers go with the name of an image, not with its ID"):
        save([image.id], twice, str(tmp_path / "a.tar"), referrers=True)
    assert not (tmp_path / "a.tar").exists()


def test_an_archive_of_a_signature_alone_is_copied(signed: Signed, target: Target, tmp_path: Path) -> None:
    tag = min(signed.cosign)
    signed.layout.name(signed.cosign[tag], tag)
    archive = "oci-archive:%s" % (tmp_path / "a.tar")
    copied("oci:%s:%s" % (signed.layout.root, tag), "%s:app:%s" % (archive, tag))
    copied(archive, target, referrers=True)
    assert images.digest_of(target.manifests["1"]) == signed.cosign[tag]["digest"]
    store, other = Store(str(tmp_path / "root")), max(signed.cosign)
    signed.layout.name(signed.cosign[other], other)
    for each in (tag, other):
        copied("oci:%s:%s" % (signed.layout.root, each), "store:app:" + each, store=store)
    save(["app"], store, str(tmp_path / "a.tar"))
    with pytest.raises(InvalidReference, match="several images, so name one: "):
        copied(archive, target)


def test_a_store_says_what_a_name_belongs_to(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image(images.specs(1, 100))
    store, hexadecimal = Store(str(tmp_path / "root")), image.digest[7:]
    tags = {"1": None, "sha256-%s.sig" % hexadecimal: image.digest, "sha256-" + hexadecimal: image.digest,
            "sha256-%s.sig" % hexadecimal[1:]: None, "sha256-%s.other" % hexadecimal: None, "sha256-": None}
    for tag in tags:
        layout.name(image.descriptor, tag)
        copied("oci:%s:%s" % (layout.root, tag), "store:app:" + tag, store=store)
    assert {item.name.tag: store.subject(item.name, item.descriptor) for item in store.references.all()} == tags
    assert minipull.Digest(image.digest) == store.subject(
        None, minipull.image.descriptor.Descriptor.from_json(_with_subject(layout, store, image), "test"))


def _with_subject(layout: Layout, store: Store, image: images.Image) -> images.Descriptor:
    descriptor = about(layout, image.descriptor, b"bill")
    layout.name(descriptor, "bill")
    copied("oci:%s:bill" % layout.root, "store:app:bill", store=store)
    return descriptor
