# SPDX-License-Identifier: Apache-2.0
import json
import random
from typing import Any, Dict, List, Mapping, Optional, Set

import pytest

from tests.kit import DATA
from minipull.image import manifest
from minipull.image.descriptor import (
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST,
    SCHEMA1, SCHEMA1_SIGNED, Descriptor)
from minipull.image.platform import Platform
from minipull.digest import Digest
from minipull.errors import Error, InvalidDocument, PolicyError, Unsupported
from minipull.image.manifest import Index, Manifest

TABLES = DATA / "tables.json"
JSON = Dict[str, Any]


def cases(name: str) -> List[Any]:
    return list(json.loads(TABLES.read_text())[name]["cases"])


def descriptor(media_type: str, content: bytes = b"content", **more: object) -> JSON:
    known = {"mediaType": media_type, "digest": Digest.of(content), "size": len(content)}
    return dict(known, **more)


def image(media_type: str = OCI_MANIFEST, **more: object) -> JSON:
    docker = media_type == DOCKER_MANIFEST
    layer = DOCKER_LAYER if docker else OCI_LAYER
    return dict({
        "schemaVersion": 2, "mediaType": media_type,
        "config": descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, b"{}"),
        "layers": [descriptor(layer, b"one"), descriptor(layer, b"two")]}, **more)


def index(media_type: str = OCI_INDEX, **more: object) -> JSON:
    return dict({
        "schemaVersion": 2, "mediaType": media_type,
        "manifests": [descriptor(OCI_MANIFEST, platform={"os": "linux", "architecture": "arm64"})],
    }, **more)


def schema1(**more: object) -> JSON:
    return dict({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []}, **more)


def without(obj: JSON, *keys: str) -> JSON:
    return {key: obj[key] for key in obj if key not in keys}


def encode(obj: JSON) -> bytes:
    return json.dumps(obj, indent=3).encode("utf-8")


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_manifest_keeps_bytes_digest_and_layers(media_type: str) -> None:
    raw = encode(image(media_type, annotations={"a": "b"}, unknown=[1], data=None))
    found = manifest.parse(raw, media_type)
    assert isinstance(found, Manifest)
    assert found.raw == raw and found.digest == Digest.of(raw)
    assert found.config.digest == Digest.of(b"{}")
    assert [str(layer.digest) for layer in found.layers] == [Digest.of(b"one"), Digest.of(b"two")]
    assert found.descriptor == Descriptor(media_type, Digest.of(raw), len(raw))
    assert found.subject is None and found.artifact_type == ""


def test_an_artifact_manifest_has_a_type_and_a_subject() -> None:
    subject = descriptor(OCI_MANIFEST, b"subject")
    found = manifest.parse(encode(image(artifactType="application/x", subject=subject)))
    assert isinstance(found, Manifest)
    assert found.artifact_type == "application/x"
    assert found.subject == Descriptor.from_json(subject, "x")


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_keeps_bytes_digest_and_platforms(media_type: str) -> None:
    raw = encode(index(media_type))
    found = manifest.parse(raw, media_type + "; charset=utf-8")
    assert isinstance(found, Index)
    assert found.raw == raw
    assert found.manifests[0].platform == Platform("linux", "arm64")
    assert found.descriptor == Descriptor(media_type, Digest.of(raw), len(raw))


@pytest.mark.parametrize("layers", [[], None])
def test_an_image_without_layers_is_taken(layers: Optional[List[object]]) -> None:
    found = manifest.parse(encode(image(layers=layers)))
    assert isinstance(found, Manifest) and found.layers == ()


@pytest.mark.parametrize("content_type", [
    "", " ", "text/plain", "text/plain; charset=utf-8", "application/octet-stream",
    "binary/octet-stream", "application/json", "Application/JSON; charset=utf-8", ";"])
@pytest.mark.parametrize("obj, media_type", [
    (image(), OCI_MANIFEST), (image(DOCKER_MANIFEST), DOCKER_MANIFEST), (index(), OCI_INDEX),
    (index(DOCKER_LIST), DOCKER_LIST), (without(image(), "mediaType"), OCI_MANIFEST),
    (without(index(), "mediaType"), OCI_INDEX)])
def test_a_content_type_that_claims_nothing_leaves_it_to_the_document(
    content_type: str, obj: JSON, media_type: str
) -> None:
    assert manifest.parse(encode(obj), content_type).media_type == media_type


@pytest.mark.parametrize("content_type", [
    OCI_MANIFEST, OCI_MANIFEST.upper(), " %s ; charset=utf-8" % OCI_MANIFEST])
@pytest.mark.parametrize("obj", [image(), image(mediaType=None), without(image(), "mediaType")])
def test_a_content_type_is_compared_without_case_and_parameters(
    content_type: str, obj: JSON
) -> None:
    assert manifest.parse(encode(obj), content_type).media_type == OCI_MANIFEST


@pytest.mark.parametrize("manifest_type, config_type", [(OCI_MANIFEST, OCI_CONFIG), (DOCKER_MANIFEST, DOCKER_CONFIG)])
@pytest.mark.parametrize("absent", [{}, {"mediaType": ""}, {"mediaType": None}], ids=["absent", "empty", "null"])
def test_a_config_without_a_media_type_is_of_the_manifests_own_kind(
        manifest_type: str, config_type: str, absent: JSON) -> None:
    config = dict(without(descriptor("x", b"{}"), "mediaType"), **absent)
    raw = encode(image(manifest_type, config=config))
    found = manifest.parse(raw)
    assert isinstance(found, Manifest) and manifest.is_runnable(found)
    assert found.config == Descriptor(config_type, Digest.of(b"{}"), 2) and found.raw == raw


REFUSED: Mapping[str, JSON] = {
    "image and index": image(manifests=[]),
    "image and null index": image(manifests=None),
    "index and layers": index(layers=[]),
    "index and config": index(config=None),
    "index and schema 1": index(fsLayers=[]),
    "image and schema 1": image(fsLayers=[]),
    "undeclared image and index": without(image(manifests=[]), "mediaType"),
    "no shape": {"schemaVersion": 2},
    "index without manifests": without(index(), "manifests"),
    "image without config": without(image(), "config"),
    "null config": image(config=None),
    "config is empty": image(config={}),
    "layer without type": image(layers=[descriptor("")]),
    "config is an array": image(config=[descriptor(OCI_CONFIG)]),
    "layers is an object": image(layers={}),
    "null layer": image(layers=[None]),
    "layer with an upper case digest": image(layers=[descriptor("x", digest="sha256:" + "A" * 64)]),
    "layer digest with another case of key": image(
        layers=[{"mediaType": "x", "Digest": Digest.of(b""), "size": 0}]),
    "negative size": image(layers=[descriptor("x", size=-1)]),
    "subject is a string": image(subject="x"),
    "no schemaVersion": without(image(), "schemaVersion"),
    "schemaVersion is text": image(schemaVersion="2"),
    "schemaVersion is a float": image(schemaVersion=2.0),
    "schemaVersion is true": image(schemaVersion=True),
    "schemaVersion 3": image(schemaVersion=3),
    "mediaType is a number": image(mediaType=2),
    "unknown mediaType": image(mediaType="application/vnd.\x1b[31m"),
    "manifests is a string": index(manifests="x"),
    "entry without mediaType": index(manifests=[descriptor("")]),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_ambiguous_or_malformed_document_is_refused(name: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        manifest.parse(encode(REFUSED[name]), "", "busybox")
    message = str(caught.value)
    assert message.startswith("busybox: ") and message.isprintable() and len(message) < 250


@pytest.mark.parametrize("obj, content_type", [
    (image(), OCI_INDEX), (image(), DOCKER_MANIFEST), (index(), OCI_MANIFEST),
    (index(), DOCKER_LIST),
    (image(DOCKER_MANIFEST), OCI_MANIFEST), (image(), "text/html"), (image(), SCHEMA1_SIGNED),
    (image(OCI_MANIFEST.upper()), OCI_MANIFEST)])
def test_media_type_and_content_type_must_agree(obj: JSON, content_type: str) -> None:
    with pytest.raises(InvalidDocument, match="came with Content-Type"):
        manifest.parse(encode(obj), content_type)


@pytest.mark.parametrize("obj, content_type, error", [
    (image(), OCI_INDEX, "should not have"), (index(), OCI_MANIFEST, "should not have"),
    (image(), "text/html", "unsupported manifest format 'text/html'"),
    (image(), DOCKER_MANIFEST, "mediaType is missing"),
    (index(), DOCKER_LIST, "mediaType is missing"),
    (schema1(), OCI_MANIFEST, "should not have")])
def test_without_a_media_type_the_content_type_must_fit_the_shape(
    obj: JSON, content_type: str, error: str
) -> None:
    with pytest.raises(InvalidDocument, match=error):
        manifest.parse(encode(without(obj, "mediaType")), content_type)


@pytest.mark.parametrize("obj, content_type", [
    (schema1(), ""), (schema1(), "application/json"), (schema1(), SCHEMA1),
    (schema1(), SCHEMA1_SIGNED),
    (schema1(mediaType=SCHEMA1), "text/plain"), ({"schemaVersion": 1}, ""),
    (schema1(schemaVersion=2), ""), ({"schemaVersion": 1}, SCHEMA1)])
def test_a_manifest_of_schema_1_is_refused_by_that_name(obj: JSON, content_type: str) -> None:
    with pytest.raises(Unsupported, match="^busybox: .* old schema 1 format") as caught:
        manifest.parse(encode(obj), content_type, "busybox")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("obj, key, limit", [
    (image(), "layers", 1000), (index(), "manifests", 10000)])
def test_documents_are_taken_up_to_a_limit(obj: JSON, key: str, limit: int) -> None:
    manifest.parse(encode(dict(obj, **{key: [obj[key][0]] * limit})))
    with pytest.raises(PolicyError, match="limit"):
        manifest.parse(encode(dict(obj, **{key: [obj[key][0]] * (limit + 1)})))


@pytest.mark.parametrize("case", cases("detect_manifest_media_type"),
                         ids=lambda case: json.dumps(case["json"]))
def test_detection_is_that_of_moby(case: Mapping[str, Any]) -> None:
    if case["error"] is None:
        assert manifest.detect(case["json"], "x") == case["media_type"]
        return
    with pytest.raises(InvalidDocument) as caught:
        manifest.detect(case["json"], "x")
    assert str(caught.value) == "x: " + case["error"]


def mutated(rng: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        end = min(len(data), at + rng.randint(1, 20))
        choice = rng.randrange(4)
        if choice == 0:
            data[at] = rng.randrange(256)
        elif choice == 1:
            data[at:end] = b""
        elif choice == 2:
            data[at:at] = data[at:end]
        else:
            data[at:end] = rng.choice(
                (b"null", b"{}", b"[]", b'""', b"-1", b"1e3", b"true", b'"', b"9" * 20))
        data = data or bytearray(b" ")
    return bytes(data)


def replaced(rng: random.Random, value: Any) -> Any:
    """The same document with some values swapped for others."""
    if rng.random() < 0.08:
        return rng.choice((
            None, True, -1, 2, 1.5, 1 << 70, "", "sha256:x", "\ud800", [], {}, [None], {"a": 1}))
    if isinstance(value, dict):
        return {key: replaced(rng, value[key]) for key in value if rng.random() > 0.02}
    if isinstance(value, list):
        return [replaced(rng, item) for item in value] * rng.choice((1, 1, 1, 2))
    return value


def test_garbage_raises_only_our_errors() -> None:
    rng = random.Random(20)
    valid = [image(), image(DOCKER_MANIFEST), index(), index(DOCKER_LIST), schema1()]
    outcomes: Set[type] = set()
    for round in range(6000):
        obj = rng.choice(valid)
        raw = mutated(rng, encode(obj)) if round % 2 else encode(replaced(rng, obj))
        content_type = rng.choice(("", "text/plain", str(obj.get("mediaType")), SCHEMA1))
        try:
            found = manifest.parse(raw, content_type)
        except Error as exc:
            assert str(exc).isprintable() and len(str(exc)) < 400
            outcomes.add(type(exc))
        else:
            assert found.raw == raw
            outcomes.add(type(found))
    assert {Manifest, Index, InvalidDocument, Unsupported} <= outcomes
