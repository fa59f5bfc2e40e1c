# SPDX-License-Identifier: Apache-2.0
"""An image in the other format has the same blobs, and only what names things changes."""
import json
from pathlib import Path
from typing import Any, Callable, List

import pytest

from tests.kit import images
from tests.kit.images import DOCKER_LIST, DOCKER_MANIFEST, Layout
from minipull.errors import Unsupported
from tests.kit.copies import (
    Target, add, artifact, below, blobs_of, copied, entries, make_artifact, make_artifacts, make_index,
    make_list, make_schema2, make_single, messages)

pytestmark = pytest.mark.usefixtures("no_repeats")



# -- formats ---------------------------------------------------------------------


def kinds(document: bytes) -> List[str]:
    members = json.loads(document)
    below = members["manifests"] if "manifests" in members else [members["config"], *members["layers"]]
    return [members["mediaType"], *(each["mediaType"] for each in below)]


def test_an_image_in_another_format_has_the_same_blobs(tmp_path: Path) -> None:
    layout, image = images.awkward(tmp_path / "layout", "latest")
    annotated = add(layout, {**json.loads(image.raw), "annotations": {"a": "b"}}, "latest")
    there, back = tmp_path / "there", tmp_path / "back"
    done = copied("oci:%s" % layout.root, "oci:%s" % there, format="docker")
    made = blobs_of(there)
    assert done.source == annotated["digest"] != done.descriptor.digest in made
    assert kinds(made[done.descriptor.digest]) == [
        DOCKER_MANIFEST, images.DOCKER_CONFIG,
        *(images.DOCKER_LAYER + kind for kind in (".gzip", ".gzip", "", ".gzip", ".gzip"))]
    assert "annotations" not in json.loads(made[done.descriptor.digest])
    assert done.descriptor.media_type == DOCKER_MANIFEST == entries(there)[0]["mediaType"]
    again = copied("oci:%s" % there, "oci:%s" % back, format="oci")
    assert json.loads(blobs_of(back)[again.descriptor.digest]) == json.loads(image.raw)
    assert set(below(layout, image.digest)) - {image.digest} == set(made) - {done.descriptor.digest}


def test_an_index_in_another_format_has_images_alone(tmp_path: Path) -> None:
    layout, index, children = images.multi_platform(tmp_path / "layout", nested=True)
    there, back = tmp_path / "there", tmp_path / "back"
    said = messages("oci:%s" % layout.root, "oci:%s" % there, format="docker")
    assert said == ["left out: 1 that are no images"]
    made = blobs_of(there)
    top = json.loads(made[entries(there)[0]["digest"]])
    assert kinds(images.to_json(top)) == [DOCKER_LIST, DOCKER_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST]
    assert [child.get("platform") for child in top["manifests"]] == [
        {"os": "linux", "architecture": "amd64"}, None, {"os": "linux", "architecture": "arm64", "variant": "v8"}]
    for child in top["manifests"]:
        assert len(made[child["digest"]]) == child["size"]
    assert messages("oci:%s" % there, "oci:%s" % back, format="oci") == []
    found = blobs_of(back)
    assert {image.digest for image in children.values()} <= {
        images.digest_of(images.to_json(json.loads(data))) for data in found.values() if data.startswith(b"{")}


def test_a_platform_is_chosen_before_it_is_converted(tmp_path: Path) -> None:
    layout, index, children = images.multi_platform(tmp_path / "layout")
    done = copied("oci:%s" % layout.root, "oci:%s:one" % (tmp_path / "new"), format="docker",
                  platforms=["linux/arm64", "linux/amd64"])
    made = blobs_of(tmp_path / "new")
    assert len(json.loads(made[done.descriptor.digest])["manifests"]) == 2
    assert done.source == index.digest


@pytest.mark.parametrize("make, format", [
    (make_single, "oci"), (make_index, "oci"), (make_artifact, "oci"), (make_artifacts, "oci"),
    (make_schema2, "docker"), (make_list, "docker")])
def test_an_image_of_the_wanted_format_keeps_its_digest(
        make: Callable[[Path], Layout], format: str, tmp_path: Path) -> None:
    layout = make(tmp_path / "layout")
    top = layout.resolve("latest")
    raw = json.dumps(json.loads(layout.read(top["digest"])), indent=3).encode()
    layout.name(layout.blob(raw, top["mediaType"]), "latest")
    assert messages("oci:%s" % layout.root, "oci:%s" % (tmp_path / "new"), format=format) == []
    assert blobs_of(tmp_path / "new") == below(layout, images.digest_of(raw))


def test_layers_of_the_other_format_are_renamed_alone(tmp_path: Path) -> None:
    """Some builders mix them."""
    layout = Layout(tmp_path / "layout")
    image = layout.image(images.specs(1))
    document = json.loads(image.raw)
    document["layers"][0]["mediaType"] = images.DOCKER_LAYER + ".gzip"
    add(layout, document, "latest")
    done = copied("oci:%s" % layout.root, "oci:%s" % (tmp_path / "new"), format="oci")
    assert json.loads(blobs_of(tmp_path / "new")[done.descriptor.digest]) == json.loads(image.raw)


def zstd(layout: Layout) -> None:
    layer = {**layout.blob(b"\x28\xb5\x2f\xfd", images.OCI_LAYER + "+zstd")}
    document = json.loads(layout.image(images.specs(1)).raw)
    add(layout, {**document, "layers": [layer]}, "latest")


def encrypted(layout: Layout) -> None:
    document = json.loads(layout.image(images.specs(1)).raw)
    document["layers"][0]["mediaType"] += "+encrypted"
    add(layout, document, "latest")


@pytest.mark.parametrize("make, text", [
    (zstd, "'application/vnd.oci.image.layer.v1.tar[+]zstd' has no equivalent in the other format"),
    (encrypted, "'application/vnd.oci.image.layer.v1.tar[+]gzip[+]encrypted' has no equivalent"),
    (lambda layout: artifact(layout, "latest", b"x"), "only an image can have another format"),
    (lambda layout: layout.index([artifact(layout)], "latest"), "only an image can have another format")])
def test_a_layer_without_equivalent_in_the_other_format_is_refused(
        make: Callable[[Layout], Any], text: str, target: Target, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    make(layout)
    with pytest.raises(Unsupported, match=text) as caught:
        copied("oci:%s" % layout.root, target, format="docker")
    assert caught.value.exit_code == 1 and target.requests == []
