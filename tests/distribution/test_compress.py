# SPDX-License-Identifier: Apache-2.0
"""copy --compress gzip: layers in zstd and plain ones become gzip, and nothing else changes."""
import gzip
import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

import pytest

from minipull.cancel import Cancel
from minipull.errors import Cancelled, ContentMismatch, InvalidReference, StorageError, Unsupported
from minipull.progress import Progress
from minipull.store.store import Store
from tests.kit import images
from tests.kit.copies import Target, artifact, copied, messages
from tests.kit.images import DOCKER_LAYER, DOCKER_MANIFEST, OCI_LAYER, Layout, Spec, specs
from tests.kit.processes import peer
from tests.kit.servers import ScriptedServer, error

pytestmark = pytest.mark.usefixtures("no_repeats")
ZSTD = {"io.github.containers.zstd-chunked.manifest-checksum": "sha256:0", "keep": "me"}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are, none of which may be left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def decoder(tmp_path: Path) -> Store:
    """A store, which knows the zstd program."""
    return Store(str(tmp_path / "root"), zstd=peer("zstd"))


def plain(layout: Layout, layer: Dict[str, Any]) -> bytes:
    """The tar of a layer."""
    data = layout.read(layer["digest"])
    if layer["mediaType"].endswith("zstd"):
        return subprocess.run([peer("zstd"), "-dqc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return gzip.decompress(data) if layer["mediaType"].endswith("gzip") else data


def mixed(layout: Layout, name: str = "1", **options: Any) -> images.Image:
    """An image with layers in zstd, one of them twice, a plain one and one in gzip."""
    first, second = specs(2, 30000, compression="zstd")
    kinds = [first, second, Spec(9000, seed=7, compression=""), Spec(9000, seed=8), first]
    made = layout.image(kinds, **options)
    document = json.loads(made.raw)
    for layer in document["layers"]:
        layer["annotations"] = ZSTD
    raw = images.to_json(document)
    descriptor = layout.blob(raw, made.descriptor["mediaType"])
    layout.name(descriptor, name)
    return made._replace(raw=raw, descriptor=descriptor)


@pytest.mark.parametrize("docker", [False, True])
def test_layers_become_gzip_and_keep_their_diff_ids(
        docker: bool, target: Target, decoder: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout", docker)
    image = mixed(layout)
    done = copied("oci:%s:1" % layout.root, target, store=decoder, compress="gzip")
    raw = target.manifests["1"]
    assert done.descriptor.digest == images.digest_of(raw) != done.source == image.digest
    before, after = json.loads(image.raw), json.loads(raw)
    assert after["config"] == before["config"]
    assert target.blobs[image.config["digest"]] == layout.read(image.config["digest"])
    assert {**after, "layers": []} == {**before, "layers": []}
    for number, (old, new) in enumerate(zip(before["layers"], after["layers"])):
        data = target.blobs[new["digest"]]
        assert new["size"] == len(data) and images.digest_of(gzip.decompress(data)) == image.diff_ids[number]
        if number == 3:
            assert new == old, "a layer in gzip is as it was"
            continue
        packer = zlib.compressobj(6, wbits=31)
        assert data == packer.compress(plain(layout, old)) + packer.flush()
        assert new["mediaType"] == (DOCKER_LAYER + ".gzip" if docker else OCI_LAYER + "+gzip")
        assert new["annotations"] == {"keep": "me"}
    assert len(target.blobs) == 1 + 4, "no blob in zstd, and none twice"


def test_the_same_image_becomes_the_same_from_everywhere_to_everywhere(
        server: ScriptedServer, target: Target, decoder: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    mixed(layout)
    server.serve(layout.root, "r")
    archive = "oci-archive:%s:app:1" % (tmp_path / "a.tar")
    copied("oci:%s:1" % layout.root, archive, store=decoder)
    copied("oci:%s:1" % layout.root, "store:app:1", store=decoder)
    digests = {copied(source, place, store=decoder, compress="gzip").descriptor.digest
               for source, place in [
                   ("docker://%s/r:1" % server.host, target.place), (archive, "oci:%s:1" % (tmp_path / "new")),
                   ("oci:%s:1" % (tmp_path / "new"), "oci-archive:%s:app:2" % (tmp_path / "b.tar")),
                   ("store:app:1", "store:app:2")]}
    assert len(digests) == 1
    assert digests == {copied("oci-archive:%s" % (tmp_path / "b.tar"), target).descriptor.digest}
    assert list((tmp_path / "new" / "ingest").iterdir()) == []


@pytest.mark.parametrize("compress, kept", [("", {True}), ("gzip", {False})])
def test_an_interrupt_promises_nothing_of_what_is_downloaded_to_be_compressed(
        compress: str, kept: Set[bool], server: ScriptedServer, decoder: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image([Spec(3 << 20, compression="")], "1")
    server.serve(layout.root, "r")
    events: List[Progress] = []
    copied("docker://%s/r:1" % server.host, "oci:%s:1" % (tmp_path / "new"), store=decoder, compress=compress,
           progress=events.append)
    assert {event.kept for event in events if event.action == "Downloading"} == kept


def test_the_children_of_an_index_change_as_far_as_they_must(
        target: Target, decoder: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image, same = mixed(layout), layout.image(specs(1), platform="linux/arm64")
    pretty = layout.blob(json.dumps(json.loads(same.raw), indent=3).encode(), same.descriptor["mediaType"])
    note = {"io.github.containers.compression.zstd": "true", "keep": "me"}
    nested = layout.index([{**pretty, "platform": images.parse_platform("linux/arm64")}])
    layout.index([{**image.descriptor, "platform": images.parse_platform("linux/amd64"), "annotations": note},
                  nested.descriptor, images.attestation(layout, image.digest)], "1")
    events = messages("oci:%s:1" % layout.root, target, store=decoder, compress="gzip")
    assert "left out: 1 that are no images" in events
    first, second = json.loads(target.manifests["1"])["manifests"]
    assert first["platform"] == images.parse_platform("linux/amd64") and first["annotations"] == {"keep": "me"}
    assert first["digest"] != image.digest and first["digest"] in target.manifests
    [child] = json.loads(target.manifests[second["digest"]])["manifests"]
    assert child["digest"] == pretty["digest"], "an image in gzip is as it was"


def test_what_has_no_such_layer_stays_as_it_is(target: Target, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    index = images.multi_platform(layout.root, "index")[1]
    for name, digest in [("index", index.digest), ("bill", artifact(layout, "bill", payload=b"bill")["digest"])]:
        layout.name(layout.blob(layout.read(digest), json.loads(layout.read(digest))["mediaType"]), name)
        copied("oci:%s:%s" % (layout.root, name), target, compress="gzip")
        assert target.manifests["1"] == layout.read(digest)


def test_gzip_is_what_the_format_of_docker_takes(target: Target, decoder: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    mixed(layout)
    copied("oci:%s:1" % layout.root, target, store=decoder, compress="gzip", format="docker")
    document = json.loads(target.manifests["1"])
    assert document["mediaType"] == DOCKER_MANIFEST
    assert {layer["mediaType"] for layer in document["layers"]} == {DOCKER_LAYER + ".gzip"}


def test_a_registry_need_not_say_that_it_has_the_new_layer(
        target: Target, decoder: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    mixed(layout)
    target.on("HEAD", "/blobs/", error(405))
    copied("oci:%s:1" % layout.root, target, store=decoder, compress="gzip")
    assert target.put() == ["1"]


def test_a_foreign_layer_is_left_alone(target: Target, decoder: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image(specs(1, compression="zstd"))
    document = json.loads(image.raw)
    document["layers"][0]["urls"] = ["https://example.com/layer"]
    layout.name(layout.blob(images.to_json(document), image.descriptor["mediaType"]), "1")
    copied("oci:%s:1" % layout.root, target, store=decoder, compress="gzip")
    assert target.manifests["1"] == images.to_json(document)


def spoil_diff_id(layout: Layout, image: images.Image) -> None:
    config = json.loads(layout.read(image.config["digest"]))
    config["rootfs"]["diff_ids"][0] = "sha256:" + "0" * 64
    described = layout.blob(images.to_json(config), image.config["mediaType"])
    document = {**json.loads(image.raw), "config": described}
    layout.name(layout.blob(images.to_json(document), image.descriptor["mediaType"]), "1")


def spoil_layer(layout: Layout, image: images.Image) -> None:
    path = layout.path(image.layers[0].descriptor["digest"])
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def spoil_config(layout: Layout, image: images.Image) -> None:
    path = layout.path(image.config["digest"])
    path.write_bytes(path.read_bytes().replace(b"layer 0", b"layer ?"))


@pytest.mark.parametrize("spoil, text", [
    (spoil_diff_id, "is sha256:[0-9a-f]{64}, not sha256:0{64} as its config says"),
    (spoil_layer, "is something else|content is|expected"), (spoil_config, "is something else|content is")])
@pytest.mark.parametrize("remote", [True, False])
def test_a_layer_is_verified_before_the_new_one_has_a_name(
        remote: bool, spoil: Any, text: str, server: ScriptedServer, target: Target, decoder: Store,
        tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    spoil(layout, layout.image(specs(1, 30000, compression="zstd"), "1"))
    server.serve(layout.root, "r")
    source = "docker://%s/r:1" % server.host if remote else "oci:%s:1" % layout.root
    with pytest.raises(ContentMismatch, match=text):
        copied(source, target, store=decoder, compress="gzip")
    assert not target.blobs and not target.manifests
    with pytest.raises(ContentMismatch, match=text):
        copied(source, "oci:%s:1" % (tmp_path / "new"), store=decoder, compress="gzip")
    assert not (tmp_path / "new" / "index.json").exists()
    assert not list((tmp_path / "new").glob("blobs/*/*"))


def test_zstd_needs_a_decoder(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(specs(1, compression="zstd"), "1")
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(Unsupported, match="layer is compressed with zstd: install zstd or use Python 3.14") as caught:
        copied("oci:%s:1" % layout.root, target, compress="gzip")
    assert "\n" not in str(caught.value) and not target.blobs


def test_a_host_without_room_for_temporary_files_says_so(
        target: Target, decoder: Store, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(specs(1, compression="zstd"), "1")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / "absent"))
    with pytest.raises(StorageError, match="make a temporary directory: No such file or directory"):
        copied("oci:%s:1" % layout.root, target, store=decoder, compress="gzip")


def test_a_cancelled_copy_leaves_no_temporary_file(
        server: ScriptedServer, target: Target, decoder: Store, tmp_path: Path, scratch: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image(specs(2, 3000000, compression="zstd"), "1")
    cancel = Cancel()
    started: List[Path] = []

    def output(progress: Progress) -> None:
        if progress.action == "Compressing":
            started.extend(scratch.iterdir())
            cancel.cancel()
    with pytest.raises(Cancelled):
        copied("oci:%s:1" % layout.root, target, store=decoder, compress="gzip", progress=output, cancel=cancel)
    assert started and not list(scratch.iterdir()) and not target.manifests


@pytest.mark.parametrize("options, text", [
    ({"compress": "zstd"}, "^invalid compression 'zstd', not gzip$"),
    ({"compress": "gzip", "referrers": True}, "does not follow it into another format or compression$")])
def test_what_makes_no_sense_is_refused(options: Dict[str, Any], text: str, target: Target) -> None:
    with pytest.raises(InvalidReference, match=text):
        copied("oci:nowhere:1", target, **options)
