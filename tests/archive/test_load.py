# SPDX-License-Identifier: Apache-2.0
"""load: archives as other tools write them, and the names they get."""
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional, cast

import pytest

import minipull
from minipull.archive.check import check_archive
from minipull.archive.load import load
from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.errors import ContentMismatch, InvalidDocument, StorageError
from minipull.image import manifest
from minipull.image.descriptor import DOCKER_MANIFEST, DOCKER_TAR
from minipull.store.check import check
from minipull.store.store import Store
from tests.kit import images
from tests.kit.archives import (
    HERE, KINDS, NAME, OTHER, Messages, docker_members, document, layout_members, named, names, pack)
from tests.kit.images import Layout, to_json
from tests.kit.processes import peer, run
from tests.kit.stores import keep, text_layer


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_archives_of_other_tools_are_loaded(store: Store, layout: Layout, path: Path, kind: str) -> None:
    what = KINDS[kind]
    image = layout.image([text_layer("one"), text_layer("two"), text_layer("one")])
    path.write_bytes(pack(what.members(layout, image)))
    [found] = load(str(path), store)
    assert (str(found.name), found.id) == (NAME, image.config["digest"])
    document = store.document(found.descriptor)
    assert isinstance(document, manifest.Manifest)
    assert {layer.media_type for layer in document.layers} == {what.media_type}
    assert (found.descriptor.digest == image.digest) == what.same
    if what.media_type == DOCKER_TAR:
        assert found.descriptor.media_type == DOCKER_MANIFEST
        assert [layer.digest for layer in document.layers] == image.diff_ids  # kept as they are
        assert Digest.of(document.raw) == load(str(path), Store(store.root + "2"))[0].descriptor.digest
    assert check(store) == [] == check_archive(str(path), Cancel())
    assert os.listdir(store.content.scratch) == []


def test_an_archive_of_docker_before_1_10_is_loaded(store: Store, layout: Layout, path: Path) -> None:
    one = layout.image([text_layer("one"), text_layer("two")])
    two = layout.image([text_layer("one"), text_layer("three")])
    members = dict(docker_members(layout, {"busybox:1": one, "busybox:latest": two}))
    del members["manifest.json"]
    path.write_bytes(pack(members))
    for found, image in zip(load(str(path), store), (one, two)):
        assert found.config is not None and list(found.config.diff_ids) == image.diff_ids
        assert [step.created_by for step in found.config.history] == ["make 0", "make 1"]
        assert (found.os, found.config.created) == ("linux", images.CREATED)
        assert not {"id", "parent"} & set(json.loads(found.config.raw))
    assert names(store) == ["docker.io/library/busybox:1", NAME] and check(store) == []
    first = [image.descriptor.digest for image in store.images()]
    members[next(name for name in members if name.endswith("layer.tar"))] = gzip.compress(b"\0" * 1024)
    path.write_bytes(pack(members))
    load(str(path), store)
    assert [image.descriptor.digest for image in store.images()] != first and check(store) == []


def test_the_present_part_of_an_index_is_loaded(store: Store, layout: Layout, path: Path) -> None:
    """As docker 29 and ``ctr images export`` save an image pulled for one platform."""
    made = {platform: layout.image([text_layer(platform)], platform=platform) for platform in (HERE, OTHER)}
    index = layout.index([dict(image.descriptor, platform=images.parse_platform(platform))
                          for platform, image in made.items()]
                         + [images.attestation(layout, made[HERE].digest)])
    whole = layout_members(layout, [named(index)])
    item = {"RepoTags": ["busybox:latest", "busybox:2"]}
    for there, gone in ((HERE, OTHER), (OTHER, HERE)):
        members = dict(whole)
        for blob in (made[gone].digest, made[gone].config["digest"], made[gone].layers[0].descriptor["digest"]):
            del members["blobs/" + blob.replace(":", "/")]
        path.write_bytes(pack(members))
        [found] = load(str(path), store)
        assert (found.descriptor.digest, str(found.name)) == (made[there].digest, NAME)
        assert check(store) == [] == check_archive(str(path), Cancel())
        image = made[there]
        members["manifest.json"] = to_json([dict(
            item, Config="blobs/" + image.config["digest"].replace(":", "/"),
            Layers=["blobs/" + image.layers[0].descriptor["digest"].replace(":", "/")])])
        path.write_bytes(pack(members))
        assert [(str(each.name), each.descriptor.digest) for each in load(str(path), store)] == [
            (name, image.digest) for name in (NAME, "docker.io/library/busybox:2")]
    del members["manifest.json"], members["blobs/" + made[there].digest.replace(":", "/")]
    path.write_bytes(pack(members))
    with pytest.raises(InvalidDocument, match="archive.tar: docker.io/library/busybox:latest lacks sha256:"):
        load(str(path), store)


@pytest.mark.parametrize("annotations", [
    None, {images.NAME: "v1"}, {images.NAME: "latest"}, {images.NAME: "../x"}, {images.NAME: "\x1b[1m"},
    {images.NAME: "x" * 1000}, {"io.containerd.image.name": "busybox@sha256:" + "0" * 64}])
def test_an_image_without_a_full_name_is_named_by_its_digest(
        store: Store, layout: Layout, path: Path, annotations: Optional[Dict[str, str]]) -> None:
    image = layout.image([text_layer("one")])
    entry = {**image.descriptor, **({"annotations": annotations} if annotations else {})}
    path.write_bytes(pack(layout_members(layout, [entry])))
    [found] = load(str(path), store)
    assert str(found.name) == "localhost/loaded@" + image.digest
    assert store.image(image.config["digest"]) == found and check(store) == []
    minipull.save([image.config["digest"]], store, str(path))
    again = path.read_bytes()
    load(str(path), Store(store.root + "2"))
    minipull.save([image.config["digest"]], Store(store.root + "2"), str(path))
    assert path.read_bytes() == again


def test_a_name_by_digest_stays_one(store: Store, layout: Layout, path: Path) -> None:
    image = layout.image([text_layer("one")])
    keep(store, layout, image, "docker.io/library/busybox@" + image.digest)
    minipull.save(["busybox@" + image.digest], store, str(path))
    assert document(path, "manifest.json")[0]["RepoTags"] is None
    fresh = Store(store.root + "2")
    assert [str(found.name) for found in load(str(path), fresh)] == names(store)


def test_where_layout_and_manifest_disagree_the_layout_counts(store: Store, layout: Layout, path: Path) -> None:
    one, two = layout.image([text_layer("one")]), layout.image([text_layer("two")])

    def item(image: images.Image, *tags: str) -> Dict[str, Any]:
        return {"Config": "blobs/" + image.config["digest"].replace(":", "/"), "RepoTags": list(tags) or None,
                "Layers": ["blobs/" + image.layers[0].descriptor["digest"].replace(":", "/")]}

    members = layout_members(layout, [named(one), {**two.descriptor, "annotations": {images.NAME: "v2"}}])
    items = [item(two, "busybox:latest", "busybox:2"), item(one), item(one, "busybox:1")]
    path.write_bytes(pack({**members, "manifest.json": to_json(items)}))
    found = {str(image.name): image.descriptor.digest for image in load(str(path), store)}
    assert found == {NAME: one.digest, "docker.io/library/busybox:2": two.digest,
                     "docker.io/library/busybox:1": one.digest, "localhost/loaded@" + two.digest: two.digest}


@pytest.mark.parametrize("how", ["pipe", "file", "gzip", "gzip pipe", "zstd", "object"])
def test_an_archive_may_come_any_way(store: Store, layout: Layout, path: Path, how: str) -> None:
    image = layout.image([text_layer("one"), text_layer("two", compression="")])
    data = pack(layout_members(layout, [named(image)]))
    if "gzip" in how:
        data = gzip.compress(data)
    elif how == "zstd":
        data = run([peer("zstd"), "-qc"], stdin=data).raw
        store.layers.zstd = peer("zstd")
    path.write_bytes(data)
    if how == "object":
        load(io.BytesIO(data), store)
    elif "pipe" in how:
        with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as process:
            load(cast(BinaryIO, process.stdout), store)
    elif how == "file":
        with path.open("rb") as file:
            load(file, store)
    else:
        load(str(path), store)
    assert names(store) == [NAME] and check(store) == []
    assert os.listdir(store.content.scratch) == []


def test_a_zstd_layer_without_a_decoder_is_loaded_unverified(
        store: Store, layout: Layout, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer("zstd")
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    path.write_bytes(pack(layout_members(layout, [named(layout.image([text_layer("x", compression="zstd")]))])))
    messages = Messages()
    load(str(path), store, progress=messages)
    assert messages == ["Not verified: layer is compressed with zstd: install zstd or use Python 3.14"]
    assert {problem.kind for problem in check(store)} == {"unverified"}
    assert {problem.kind for problem in check_archive(str(path), Cancel())} == {"unverified"}
    assert check_archive(str(path), Cancel(), peer("zstd")) == []
    store.layers.zstd = peer("zstd")
    load(str(path), store)
    assert check(store) == []


def test_a_foreign_layer_may_be_missing(store: Store, layout: Layout, path: Path) -> None:
    layer = layout.layer(text_layer("base"))
    config = layout.blob(to_json({"rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}), images.OCI_CONFIG)
    foreign = dict(layer.descriptor, mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                   urls=["https://example.com/x"])
    raw = to_json({"schemaVersion": 2, "mediaType": images.OCI_MANIFEST, "config": config, "layers": [foreign]})
    image = images.Image(layout.blob(raw, images.OCI_MANIFEST), config, [], raw)
    members = layout_members(layout, [named(image)])
    del members["blobs/" + layer.descriptor["digest"].replace(":", "/")]
    path.write_bytes(pack(members))
    load(str(path), store)
    assert {problem.kind for problem in check(store)} == {"unverified"}
    with pytest.raises(StorageError, match="^busybox:latest lacks blob sha256:.*--foreign"):
        minipull.save([NAME], store, str(path))


def test_a_replaced_name_is_reported(store: Store, layout: Layout, path: Path) -> None:
    one, two = layout.image([text_layer("one")]), layout.image([text_layer("two")])
    path.write_bytes(pack(layout_members(layout, [named(two), named(two, NAME[:-6] + "2")])))
    keep(store, layout, one)
    messages = Messages()
    load(str(path), store, progress=messages)
    assert messages == ["The image busybox:latest already exists, renaming the old one with ID %s to empty string"
                        % one.config["digest"]]
    load(str(path), store, progress=messages)
    assert len(messages) == 1 and len(names(store)) == 2
    Path(store.content.path(Digest(two.config["digest"]))).unlink()
    path.write_bytes(pack(layout_members(layout, [named(one)])))
    load(str(path), store, progress=messages)
    assert two.digest in messages[1]  # whose ID can't be told any more


def test_nothing_has_a_name_before_all_is_verified(store: Store, layout: Layout, path: Path) -> None:
    """Whichever member is damaged, even one of the last image."""
    made = [layout.image([text_layer("%d" % n), text_layer("b", compression="")]) for n in range(2)]
    members = layout_members(layout, [named(image, NAME[:-6] + str(n)) for n, image in enumerate(made)])
    for name in members:
        data = members[name]
        if name.startswith("blobs/") and isinstance(data, bytes):
            for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data + b"\0", data[:-1]):
                path.write_bytes(pack({**members, name: wrong}))
                with pytest.raises((ContentMismatch, InvalidDocument)):
                    load(str(path), store)
                assert names(store) == []
                assert check_archive(str(path), Cancel())
                shutil.rmtree(store.root)
    path.write_bytes(pack(members))
    assert len(load(str(path), store)) == 2 and check(store) == []


@pytest.mark.parametrize("kind, compression", [
    ("docker", "gzip"), ("crane", "gzip"), ("containerd", "gzip"), ("containerd", "")])
def test_a_layer_must_be_what_its_config_says(store: Store, layout: Layout, path: Path, kind: str,
                                              compression: str) -> None:
    """HA05, and HA04: one member is no two layers."""
    image = layout.image([text_layer("one", compression=compression), text_layer("two")])
    lying = layout.blob(layout.read(image.config["digest"]).replace(
        image.diff_ids[0].encode(), images.digest_of(b"x").encode()), images.OCI_CONFIG)
    raw = image.raw.replace(image.config["digest"].encode(), lying["digest"].encode())
    other = image._replace(config=lying, raw=raw, descriptor=layout.blob(raw, images.OCI_MANIFEST))
    path.write_bytes(pack(KINDS[kind].members(layout, other)))
    with pytest.raises(ContentMismatch, match="^load .*(content is|layer sha256:.* is) sha256:"):
        load(str(path), store)
    assert names(store) == []
    [problem] = check_archive(str(path), Cancel())
    assert problem.path.startswith(str(path)) and problem.kind in ("config", "blob")
    if kind == "docker":
        members = dict(docker_members(layout, {"busybox:latest": image}))
        [item] = json.loads(members["manifest.json"])
        item["Layers"][1] = item["Layers"][0]
        path.write_bytes(pack({**members, "manifest.json": to_json([item])}))
        shutil.rmtree(store.root)
        with pytest.raises(ContentMismatch):
            load(str(path), store)


def test_an_image_has_as_many_layers_as_its_config_says(store: Store, layout: Layout, path: Path) -> None:
    image = layout.image([text_layer("one"), text_layer("two")])
    raw = to_json(dict(json.loads(image.raw), layers=[image.layers[0].descriptor]))
    short = images.Image(layout.blob(raw, images.OCI_MANIFEST), image.config, image.layers[:1], raw)
    path.write_bytes(pack(layout_members(layout, [named(short)])))
    with pytest.raises(ContentMismatch, match="layers from manifest don't match image configuration"):
        load(str(path), store)
    assert [problem.kind for problem in check_archive(str(path), Cancel())] == ["config"]
