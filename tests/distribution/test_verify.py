# SPDX-License-Identifier: Apache-2.0
"""pull and copy with a key keep nothing that no signature by it covers."""
import json
import os
from pathlib import Path
from typing import Any, List

import pytest

import minipull
from minipull.errors import ContentMismatch, InvalidDocument, PolicyError
from minipull.image import schema1
from minipull.image.descriptor import SCHEMA1_SIGNED
from minipull.image.signature import MAX_PAYLOAD, parse_key
from minipull.progress import Progress
from minipull.registry.endpoints import Host, RegistryService
from tests.kit import images
from tests.kit.archives import layout_members, named, pack
from tests.kit.copies import Target, copied
from tests.kit.images import OCI_INDEX, OCI_MANIFEST, Descriptor, Layout
from tests.kit.pulls import asked, blobs, pull, serve
from tests.kit.servers import ScriptedServer, Uploads, content, error, reply
from tests.kit.signatures import (
    PRIVATE, SIMPLE, STRANGER, layer_of, payload_of, public_pem, sign, signed)

pytestmark = pytest.mark.usefixtures("no_repeats")
KEYS = [parse_key(public_pem(private).encode(), name) for name, private in (
    ("cosign.pub", PRIVATE), ("unused.pub", 77))]


def refused(server: ScriptedServer, store: minipull.Store, **options: Any) -> str:
    """Pull with the keys; nothing may have been kept, and no blob of the image asked for."""
    asked(server)
    with pytest.raises((ContentMismatch, InvalidDocument)) as caught:
        pull(server, store, keys=KEYS, **options)
    assert caught.value.exit_code == 6
    assert (blobs(store), store.references.descriptors()) == ([], [])
    assert [name for _, _, names in os.walk(store.root) for name in names] == ["lock"]
    return str(caught.value)


def fetched(server: ScriptedServer) -> List[str]:
    """The blobs that were asked for."""
    return [request.path.rpartition("/")[2] for request in server.seen("GET", "/blobs/")]


# -- pull --------------------------------------------------------------------------


def test_a_signed_image_is_pulled_and_its_signature_is_looked_at_before_any_blob(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    sign(layout, image.digest)
    serve(server, layout)
    events: List[Progress] = []
    assert pull(server, store, keys=KEYS, progress=events.append).source == image.digest
    payload = images.digest_of(payload_of(image.digest))
    requests = asked(server)
    assert requests[:3] == ["GET manifests/latest", "GET manifests/%s.sig" % image.digest.replace(":", "-"),
                            "GET blobs/" + payload]
    assert payload not in blobs(store) and len(blobs(store)) == 5
    [told] = [event.message for event in events if "signed by" in event.message]
    assert told.startswith("%s is signed by cosign.pub (sha256:" % image.digest)
    # An image that is up to date is looked at as well: there may be another key by now.
    assert pull(server, store, keys=KEYS).source == image.digest
    assert "GET blobs/" + payload in asked(server)
    with pytest.raises(ContentMismatch):
        pull(server, store, keys=KEYS[1:])


SPOILT = ("unsigned", "stranger", "of another image", "payload", "signature", "no payload", "media type",
          "no manifest")


@pytest.mark.parametrize("fault", SPOILT)
def test_nothing_is_kept_of_an_image_without_a_good_signature(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, fault: str) -> None:
    layout, image = images.single(tmp_path / "layout")
    payload, tag = payload_of(image.digest), image.digest.replace(":", "-") + ".sig"
    text, media_type = signed(payload), SIMPLE
    if fault == "of another image":
        payload = payload_of("sha256:" + "1" * 64)
        text = signed(payload)
    if fault == "signature":
        text = text[:20] + ("A" if text[20] != "A" else "B") + text[21:]
    if fault == "media type":
        media_type = "application/octet-stream"
    if fault == "stranger":
        text = signed(payload, STRANGER)
    layer = layer_of(layout, payload, text, media_type)
    layout.name(layout.blob(images.to_json({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": image.config, "layers": [layer]}),
        OCI_MANIFEST), tag)
    serve(server, layout)
    if fault in ("unsigned", "no manifest"):
        server.on("GET", "/manifests/" + tag,
                  error(404) if fault == "unsigned" else content(b"{}", OCI_MANIFEST))
    if fault in ("payload", "no payload"):
        changed = payload[:9] + bytes([payload[9] ^ 1]) + payload[10:]
        server.on("GET", layer["digest"],
                  content(changed) if fault == "payload" else error(404, "BLOB_UNKNOWN"))
    text = refused(server, store)
    assert "no good signature by cosign.pub or unused.pub: " in text or fault == "no manifest"
    assert fault != "payload" or "bad signature: blob %s: content is sha256:" % layer["digest"] in text
    assert set(fetched(server)) <= {layer["digest"]}


def test_a_signature_that_can_not_be_asked_for_is_no_bad_one(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    sign(layout, image.digest)
    serve(server, layout)
    blob = "/blobs/" + images.digest_of(payload_of(image.digest))
    for pattern in (r"[.]sig$", blob):
        server.on("GET", pattern, error(503))
        with pytest.raises(minipull.Error) as caught:
            pull(server, store, keys=KEYS)
        assert caught.value.exit_code == 5
        server.serve(layout.root, "r")
    server.on("GET", blob, content(b"x" * (MAX_PAYLOAD + 1)))
    assert "size is not %d as promised" % len(payload_of(image.digest)) in refused(server, store)


def test_a_payload_is_asked_for_as_often_as_a_manifest(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipull.distribution.blobs.DOCUMENT_DELAYS", (0.001,) * 4)
    layout, image = images.single(tmp_path / "layout")
    sign(layout, image.digest)
    serve(server, layout)
    payload = payload_of(image.digest)
    server.on("GET", "/blobs/" + images.digest_of(payload), error(503), error(500), error(503), error(500),
              content(payload))
    assert pull(server, store, keys=KEYS).source == image.digest


def test_a_payload_that_is_too_large_is_not_asked_for(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    layer = layer_of(layout, payload_of(image.digest), signed(payload_of(image.digest)))
    layout.name(layout.blob(images.to_json({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": image.config,
        "layers": [{**layer, "size": MAX_PAYLOAD + 1}]}), OCI_MANIFEST), image.digest.replace(":", "-") + ".sig")
    serve(server, layout)
    with pytest.raises(PolicyError, match="larger than %d bytes" % MAX_PAYLOAD):
        pull(server, store, keys=KEYS)
    assert (blobs(store), fetched(server)) == ([], [])


@pytest.mark.parametrize("where, one, everything", [
    ("index", True, True), ("amd64", True, False), ("arm64", False, False), ("nested", True, False)])
def test_a_signature_of_an_index_covers_all_below_it_and_one_of_a_manifest_that_alone(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, where: str, one: bool,
        everything: bool) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout", nested=True)
    platform = "linux/arm/v7" if where == "nested" else "linux/amd64"
    children = {entry["mediaType"]: entry["digest"] for entry in json.loads(index.raw)["manifests"]}
    digest = {"index": index.digest, "amd64": made["linux/amd64"].digest,
              "arm64": made["linux/arm64/v8"].digest, "nested": children[OCI_INDEX]}[where]
    sign(layout, digest)
    serve(server, layout)
    if everything:
        assert pull(server, store, keys=KEYS, all_platforms=True).descriptor.digest == index.digest
    else:
        refused(server, store, all_platforms=True)
        assert fetched(server) == []
    if one:
        assert pull(server, store, keys=KEYS, platform=platform).descriptor.digest == made[platform].digest
    else:
        refused(server, store, platform=platform)
        assert fetched(server) == []


def test_a_tag_that_moves_meanwhile_changes_nothing(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    moved = layout.image(images.specs(1, seed=9), "other")
    sign(layout, image.digest)
    serve(server, layout)
    server.on("GET", "/manifests/latest", *(content(item.raw, OCI_MANIFEST) for item in (image, moved)))
    assert pull(server, store, keys=KEYS).descriptor.digest == image.digest
    assert len(server.seen("GET", "/manifests/latest")) == 1
    with pytest.raises(ContentMismatch):  # and now it has moved
        pull(server, store, keys=KEYS)
    assert [item.descriptor.digest for item in store.images()] == [image.digest]
    assert store.content.size(minipull.Digest(moved.digest)) is None


@pytest.mark.parametrize("api", [True, False], ids=["API", "tag"])
def test_a_signature_is_found_among_the_referrers(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, api: bool) -> None:
    layout, image = images.single(tmp_path / "layout")
    kind = "application/vnd.dev.cosign.artifact.sig.v1+json"
    signature = sign(layout, image.digest, name="", artifactType=kind, subject=image.descriptor)
    bill: Descriptor = {**layout.blob(b"{}", OCI_MANIFEST), "artifactType": "application/spdx+json"}
    listed = [bill, {**signature, "artifactType": kind}]
    if not api:
        layout.index(listed, image.digest.replace(":", "-"))
    serve(server, layout)
    data = layout.read(signature["digest"])
    server.on("GET", "/manifests/" + signature["digest"], content(data, OCI_MANIFEST))
    if api:
        server.on("GET", "/referrers/", reply(200, {
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}))
    assert pull(server, store, keys=KEYS).descriptor.digest == image.digest
    assert not server.seen("GET", bill["digest"])


def test_the_registry_is_asked_where_a_mirror_has_no_signature(
        server: ScriptedServer, foreign: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    foreign.on("GET", "/manifests/latest", content(image.raw, OCI_MANIFEST))
    service = RegistryService(hosts={server.host: Host((foreign.url,))})
    sign(layout, image.digest)
    serve(server, layout)
    assert pull(server, store, keys=KEYS, service=service).descriptor.digest == image.digest
    assert foreign.seen("GET", "[.]sig") and not foreign.seen("GET", "/blobs/")


def test_the_v1_protocol_which_has_no_digests_is_not_spoken(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path) -> None:
    service = RegistryService(legacy_v1=True)
    with pytest.raises(minipull.Error):
        pull(server, store, service=service)
    assert server.seen("GET", "/v1/")
    asked(server)
    with pytest.raises(minipull.Error):
        pull(server, store, keys=KEYS, service=service)
    assert server.seen() and not server.seen("GET", "/v1/")


def test_a_manifest_of_schema_1_needs_a_signature_too(server: ScriptedServer, store: minipull.Store) -> None:
    payload = json.dumps({
        "schemaVersion": 1, "name": "r", "tag": "latest", "architecture": "amd64",
        "fsLayers": [{"blobSum": "sha256:" + "1" * 64}],
        "history": [{"v1Compatibility": json.dumps({"id": "1" * 64})}]}, indent=3).encode()
    server.on("GET", "/manifests/latest", content(
        schema1.sign(payload, 5, images.CREATED), SCHEMA1_SIGNED,
        headers={"Docker-Content-Digest": images.digest_of(payload)}))
    assert "there is none" in refused(server, store)
    assert server.seen("GET", "/manifests/%s.sig$" % images.digest_of(payload).replace(":", "-"))
    assert fetched(server) == []


# -- copy --------------------------------------------------------------------------


@pytest.mark.parametrize("private", [PRIVATE, STRANGER], ids=["signed", "stranger"])
def test_copy_sends_nothing_before_the_signature_is_good(
        server: ScriptedServer, tmp_path: Path, private: int) -> None:
    layout, image = images.single(tmp_path / "layout")
    sign(layout, image.digest, private)
    server.serve(layout.root, "r")
    sources = ["docker://%s/r" % server.host, "oci:%s:latest" % layout.root]
    if private == PRIVATE:
        for source in sources:
            with Target() as target:
                assert copied(source, target, keys=KEYS).descriptor.digest == image.digest
                assert target.put() == ["1"]
        return
    before = sorted(os.listdir(str(tmp_path)))
    for source in sources:
        with Target() as target:
            for place in (target.place, "oci:%s:x" % (tmp_path / "new"),
                          "oci-archive:%s" % (tmp_path / "x.tar")):
                with pytest.raises(ContentMismatch, match="^copy .*: no good signature by cosign.pub"):
                    copied(source, place, keys=KEYS)
            assert target.seen() == []
    assert fetched(server) == [images.digest_of(payload_of(image.digest))] * 3
    assert sorted(os.listdir(str(tmp_path))) == before


def test_copy_of_one_platform_takes_a_signature_of_its_manifest_or_of_the_index(
        server: ScriptedServer, tmp_path: Path) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    sign(layout, made["linux/arm64/v8"].digest)
    serve(server, layout)
    source = "docker://%s/r" % server.host
    for platforms in ([], ["linux/amd64"], ["linux/arm64", "linux/amd64"]):
        with Target() as target, pytest.raises(ContentMismatch):
            copied(source, target, keys=KEYS, platforms=platforms)
        assert target.seen() == []
    with Target() as target:
        copied(source, target, keys=KEYS, platforms=["linux/arm64"])
        sign(layout, index.digest)
        server.serve(layout.root, "r")
        copied(source, target, keys=KEYS, platforms=["linux/arm64", "linux/amd64"])


def test_an_uncovered_image_of_an_archive_keeps_all_of_it_from_being_sent(tmp_path: Path) -> None:
    layout, path = Layout(tmp_path / "layout"), tmp_path / "images.tar"
    label, repository = "docker.io/library/app:%s", "library/app"
    tops = [layout.image(images.specs(1, seed=seed)) for seed in (1, 2)]
    entries = [named(top, label % number, str(number)) for number, top in enumerate(tops)]
    for number, top in enumerate(tops):
        signature = sign(layout, top.digest, name="")
        entries.append({**signature, "annotations": {
            images.NAME: label % top.digest.replace(":", "-") + ".sig"}})
        path.write_bytes(pack(layout_members(layout, entries)))
        with ScriptedServer() as target:
            uploads = Uploads(target, repository)
            place = "docker://%s/" % target.host
            if top is tops[0]:
                with pytest.raises(ContentMismatch, match="library/app:1: no good signature by cosign.pub"):
                    copied("oci-archive:%s" % path, place, keys=KEYS)
                assert target.seen() == []
            else:
                copied("oci-archive:%s" % path, place, keys=KEYS)
                assert {"0", "1", top.digest.replace(":", "-") + ".sig"} <= set(uploads.manifests)




def test_a_name_that_moves_while_others_of_its_store_are_copied_is_looked_at_again(
        store: minipull.Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    tops = [layout.image(images.specs(1, seed=seed), str(seed)).descriptor for seed in (1, 2, 3)]
    for top in tops[:2]:
        tag = top["digest"].replace(":", "-") + ".sig"
        sign(layout, top["digest"])
        minipull.copy("oci:%s:%s" % (layout.root, tag), "store:app:" + tag, store=store)
    for name in "12":
        minipull.copy("oci:%s:%s" % (layout.root, name), "store:app:" + name, store=store)

    def move(event: Progress) -> None:
        if event.message.startswith("Copying ") and "app:2 " in event.message:
            minipull.copy("oci:%s:3" % layout.root, "store:app:2", store=store)

    with pytest.raises(ContentMismatch, match="app:2.*: no good signature by cosign.pub"):
        minipull.copy("store:", "oci:%s" % (tmp_path / "new"), store=store, keys=KEYS, progress=move)
    assert not (tmp_path / "new/blobs/sha256" / tops[2]["digest"][7:]).exists()


@pytest.mark.parametrize("way", ["referrer", "tag", "index"])
def test_an_unsigned_image_does_not_come_along_as_a_referrer(
        server: ScriptedServer, store: minipull.Store, tmp_path: Path, way: str) -> None:
    layout, image = images.single(tmp_path / "layout")
    sign(layout, image.digest)
    members: Any = {} if way == "tag" else {"subject": image.descriptor}
    disguised = layout.image(images.specs(1, seed=9), artifactType="application/x", **members).descriptor
    if way != "referrer":
        top = disguised if way == "tag" else layout.index([disguised]).descriptor
        layout.name(top, image.digest.replace(":", "-") + ".sbom")
    serve(server, layout)
    data = layout.read(disguised["digest"])
    server.on("GET", "/manifests/" + disguised["digest"], content(data, OCI_MANIFEST))
    server.on("GET", "/referrers/", reply(200, {
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [disguised] if way == "referrer" else []}))
    pull(server, store, keys=KEYS, referrers=True)
    source = "docker://%s/r:latest" % server.host
    copied(source, "oci:%s:1" % (tmp_path / "new"), keys=KEYS, referrers=True)
    assert disguised["digest"] not in blobs(store)
    assert not (tmp_path / "new/blobs/sha256" / disguised["digest"][7:]).exists()
