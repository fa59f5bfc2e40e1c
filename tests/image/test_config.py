# SPDX-License-Identifier: Apache-2.0
import json
import random
from typing import Any, Dict, Mapping

import pytest

from minipull.image.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from minipull.image.platform import Platform
from minipull.digest import Digest
from minipull.errors import Error, InvalidDocument, PolicyError
from minipull.image.config import History, Image, ImageConfig
from minipull.reference import Reference

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


def config(**more: object) -> Dict[str, Any]:
    return dict({
        "created": "2015-10-31T22:22:56.015925234Z", "author": "someone", "architecture": "arm64",
        "variant": "v8", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": None},
        "rootfs": {"type": "layers", "diff_ids": [ONE, TWO]},
        "history": [
            {"created": "2015-10-31T22:22:54Z", "author": "a",
             "created_by": "/bin/sh -c #(nop) ADD"},
            {"created_by": "ENV", "comment": "buildkit", "empty_layer": True},
            {"empty_layer": False}],
    }, **more)


def encode(obj: object) -> bytes:
    return json.dumps(obj, indent=1).encode("utf-8")


def test_a_config_is_known_by_the_digest_of_its_bytes() -> None:
    raw = encode(config())
    found = ImageConfig.parse(raw)
    assert found.raw == raw and found.id == Digest.of(raw)
    assert found.platform == Platform("linux", "arm64", "v8")
    assert found.created == "2015-10-31T22:22:56.015925234Z"
    assert found.diff_ids == (ONE, TWO)
    assert found.config == {"Env": ["PATH=/bin"], "Cmd": None}
    assert found.history == (
        History("2015-10-31T22:22:54Z", "a", "/bin/sh -c #(nop) ADD"),
        History(created_by="ENV", comment="buildkit", empty_layer=True), History())


@pytest.mark.parametrize("change", [
    {"history": None}, {"history": []}, {"config": None}, {"created": None}, {"os": None},
    {"history": [{"empty_layer": None}]}, {"history": [{"empty_layer": True}] * 50},
    {"unknown": {"a": [1]}}, {"os.version": "10.0", "os.features": ["win32k"]}])
def test_members_that_are_absent_null_or_unknown_are_no_fault(change: Mapping[str, Any]) -> None:
    assert ImageConfig.parse(encode(config(**change))).diff_ids == (ONE, TWO)


def test_an_image_of_no_layers_is_taken() -> None:
    found = ImageConfig.parse(encode({"rootfs": {"type": "layers", "diff_ids": None}}))
    assert found.diff_ids == () and found.history == () and found.config == {}


def test_a_config_has_no_more_layers_than_a_manifest_may_have() -> None:
    for count, many in ((1000, False), (1001, True)):
        raw = encode(config(rootfs={"type": "layers", "diff_ids": [ONE] * count}))
        if many:
            with pytest.raises(PolicyError, match="image config: 1001 layers, the limit is 1000"):
                ImageConfig.parse(raw)
        else:
            assert len(ImageConfig.parse(raw).diff_ids) == count


@pytest.mark.parametrize("change", [{"created": "2" * 500}, {"os": "o" * 500}, {"os.features": ["f"] * 500}])
def test_platform_and_time_have_a_bound_since_they_are_listed(change: Mapping[str, Any]) -> None:
    with pytest.raises(PolicyError, match="image config: platform and time have more than 500 characters"):
        ImageConfig.parse(encode(config(**change)))


@pytest.mark.parametrize("change, error", [
    ({"rootfs": None}, "invalid image JSON, no RootFS key"),
    ({"rootfs": []}, "'rootfs' must be an object"),
    ({"rootfs": {"diff_ids": []}}, "RootFS type"),
    ({"rootfs": {"type": "layers+base", "diff_ids": []}}, "RootFS type"),
    ({"rootfs": {"type": "layers", "diff_ids": {}}}, "must be an array"),
    ({"rootfs": {"type": "layers", "diff_ids": [None]}}, "invalid digest"),
    ({"rootfs": {"type": "layers", "diff_ids": ["sha256:../../x"]}}, "invalid digest"),
    ({"history": [{}, {}, {}]}, "too many non-empty layers in History section"),
    ({"history": {}}, "must be an array"),
    ({"history": [None]}, "history is malformed"),
    ({"history": [{"empty_layer": 1}]}, "history is malformed"),
    ({"history": [{"empty_layer": ""}]}, "history is malformed"),
    ({"history": [{"created_by": 1}]}, "must be a string"),
    ({"created": 1}, "must be a string"),
    ({"architecture": []}, "must be a string"),
    ({"os.features": "x"}, "must be an array"),
    ({"config": []}, "must be an object")])
def test_a_malformed_config_is_refused(change: Mapping[str, Any], error: str) -> None:
    with pytest.raises(InvalidDocument, match="^alpine: ") as caught:
        ImageConfig.parse(encode(config(**change)), "alpine")
    assert error in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b'"x"', b"\x1f\x8b\x08\x00"])
def test_a_config_that_is_no_object_or_has_no_layers_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidDocument):
        ImageConfig.parse(raw)


def test_garbage_raises_only_our_errors() -> None:
    rng = random.Random(21)
    raw = encode(config())
    for _ in range(3000):
        data = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at:at + rng.randint(0, 9)] = rng.choice(
                (b"", b"null", b"{}", b"[]", b'"', b"1", b"\xff"))
        try:
            assert ImageConfig.parse(bytes(data)).raw == data
        except Error as exc:
            assert str(exc).isprintable() and len(str(exc)) < 300


def test_a_pulled_image_is_known_by_its_config() -> None:
    parsed = ImageConfig.parse(encode(config()))
    manifest = Descriptor(OCI_MANIFEST, ONE, 3)
    pulled = Image(Reference.parse("alpine:3.20"), manifest, TWO, parsed)
    assert (pulled.id, pulled.os, pulled.architecture) == (parsed.id, "linux", "arm64")
    assert str(pulled) == "docker.io/library/alpine@" + TWO


def test_a_whole_index_is_known_by_its_digest() -> None:
    pulled = Image(Reference.parse("alpine"), Descriptor(OCI_INDEX, ONE, 3), ONE)
    assert (pulled.id, pulled.os, pulled.architecture) == (ONE, "", "")
