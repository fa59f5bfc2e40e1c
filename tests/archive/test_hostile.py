# SPDX-License-Identifier: Apache-2.0
"""Archives that lie, hide, or ask for too much."""
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest

from minipull.archive import reader
from minipull.archive.check import check_archive
from minipull.archive.load import load
from minipull.cancel import Cancel
from minipull.errors import InvalidDocument, InvalidReference, PolicyError, StorageError
from minipull.store.store import Store
from tests.kit.archives import NAME, Hard, Members, docker_members, layout_members, named, names, pack
from tests.kit.images import Layout, Spec, to_json
from tests.kit.stores import text_layer


def hostile(members: Members, item: Mapping[str, Any]) -> Dict[str, Tuple[Members, Sequence[Tuple[str, Any]]]]:
    """By what is wrong: an archive like docker's, and members that it has twice."""
    config, layers = item["Config"], item["Layers"]

    def but(**changes: Any) -> Members:
        return {**members, "manifest.json": to_json([{**item, **changes}])}

    def document(value: Any) -> Members:
        return {**members, "manifest.json": to_json(value)}

    chain = {"l%d" % n: "l%d" % (n + 1) for n in range(9)}
    return {
        "config outside (HA01)": (but(Config="../../../../../../etc/passwd"), ()),
        "config absolute (HA01)": (but(Config="/etc/passwd"), ()),
        "config by a link out (HA01)": ({**but(Config="c"), "c": "/etc/passwd"}, ()),
        "layer by a link up (HA01)": ({**but(Layers=["a/b"]), "a/b": "../../../etc/passwd"}, ()),
        "layer through a folder's link (HA01)": ({**but(Layers=["a/passwd"]), "a": "/etc"}, ()),
        "link to nothing (HA02)": ({**but(Layers=["x"]), "x": "nothing"}, ()),
        "link to itself (HA02)": ({**but(Layers=["x"]), "x": "x"}, ()),
        "links in a circle (HA02)": ({**but(Layers=["x"]), "x": "y", "y": Hard("x")}, ()),
        "links too many (HA02)": ({**but(Layers=["l0"]), **chain, "l9": layers[0]}, ()),
        "manifest twice (HA03)": (members, [("./manifest.json", b"[]")]),
        "config twice (HA03)": (members, [("x/../" + config, b"{}")]),
        "layer twice (HA03)": (members, [("/" + layers[0], b"")]),
        "link twice (HA03)": ({**but(Layers=["x"]), "x": layers[0]}, [("x", config)]),
        "link and file (HA03)": ({**but(Layers=["x"]), "x": layers[0]}, [("x", b"")]),
        "manifest missing (HA04)": ({config: members[config]}, ()),
        "an old image of no layers": ({"repositories": to_json({"a": {"1": ""}})}, ()),
        "manifest null (HA04)": (document(None), ()),
        "manifest empty (HA04)": (document([]), ()),
        "manifest no array (HA04)": (document({}), ()),
        "manifest of nulls (HA04)": (document([None]), ()),
        "manifest of arrays (HA04)": (document([[]]), ()),
        "manifest no JSON (HA04)": ({**members, "manifest.json": b"[] []"}, ()),
        "too many layers (HA04)": (but(Layers=layers * 2), ()),
        "no layers (HA04)": (but(Layers=None), ()),
        "layers no strings (HA04)": (but(Layers=[1]), ()),
        "config no config (HA04)": (but(Config=layers[0]), ()),
        "tag of grammar (HA06)": (but(RepoTags=["busybox"]), ()),
        "tag with digest (HA06)": (but(RepoTags=["busybox:1@sha256:" + "0" * 64]), ()),
        "tag of control characters (HA06)": (but(RepoTags=["\x1b[31m"]), ()),
        "tag that looks like a digest (HA06)": (but(RepoTags=["sha256:" + "a" * 64]), ()),
        "names with zeros (HA14)": (but(Config="x\0y"), ()),
        "names with backslashes (HA14)": (but(Config="..\\..\\etc\\passwd"), ()),
        "names of lone surrogates (HA14)": ({**members, "manifest.json": to_json([item]).replace(
            config.encode(), b"\\udcff")}, ())}


@pytest.mark.parametrize("what", sorted(hostile({"c": b""}, {"Config": "c", "Layers": ["l"]})))
def test_a_hostile_archive_is_refused_in_one_line(store: Store, layout: Layout, path: Path, what: str) -> None:
    image = layout.image([text_layer("one")])
    members = docker_members(layout, {"busybox:latest": image})
    del members["repositories"]
    [item] = json.loads(members["manifest.json"])
    path.write_bytes(pack(*hostile(members, item)[what]))
    with pytest.raises((InvalidDocument, InvalidReference)) as caught:
        load(str(path), store)
    text = str(caught.value)
    assert text.startswith("load %s: " % path) and text.isprintable() and len(text) < 500
    assert names(store) == [] and store.content.digests() == []
    assert [problem[:2] for problem in check_archive(str(path), Cancel())] == [(str(path), "archive")]


@pytest.mark.parametrize("what, change", [
    ("version", {"oci-layout": b'{"imageLayoutVersion":"9.9"}'}), ("no index", {"index.json": None}),
    ("index is an image", {"index.json": b'{"schemaVersion":2,"config":{},"layers":[]}'}),
    ("index is nothing", {"index.json": b"{}"}),
    ("index is empty", {"index.json": b'{"schemaVersion":2,"manifests":[]}'}),
    ("layout is nothing", {"oci-layout": b"x"})])
def test_a_layout_must_be_one(
        store: Store, layout: Layout, path: Path, what: str, change: Dict[str, Optional[bytes]]) -> None:
    """HA08."""
    members = {**layout_members(layout, [named(layout.image([text_layer("one")]))]), **change}
    path.write_bytes(pack({name: data for name, data in members.items() if data is not None}))
    with pytest.raises(InvalidDocument):
        load(str(path), store)


def test_blobs_of_a_layout_are_looked_for_in_the_archive_alone(
        store: Store, layout: Layout, path: Path) -> None:
    """HA08: also where they are links, to the very file on disk."""
    image = layout.image([text_layer("one")])
    members = layout_members(layout, [named(image)])
    blob = "blobs/" + image.layers[0].descriptor["digest"].replace(":", "/")
    path.write_bytes(pack({**members, blob: str(layout.path(image.layers[0].descriptor["digest"]))}))
    with pytest.raises(InvalidDocument, match="lacks " + image.layers[0].descriptor["digest"]):
        load(str(path), store)
    data = members.pop(blob)
    path.write_bytes(pack({**members, blob: "../../elsewhere", "elsewhere": data}))
    assert load(str(path), store)[0].descriptor.digest == image.digest
    other = layout.image([text_layer("two")])
    path.write_bytes(pack(layout_members(layout, [named(image), named(other)])))
    with pytest.raises(InvalidDocument, match="two images are called " + NAME):
        load(str(path), store)
    entry = {"mediaType": "application/x.unknown", "digest": image.digest, "size": 1}
    path.write_bytes(pack(layout_members(layout, [entry])))
    with pytest.raises(InvalidDocument, match="there is no image in it"):
        load(str(path), store)


def test_layer_directories_of_old_docker_lead_nowhere_outside(store: Store, layout: Layout, path: Path) -> None:
    """HA07."""
    members = dict(docker_members(layout, {"busybox:latest": layout.image([text_layer("one")])}))
    del members["manifest.json"]
    top = json.loads(members["repositories"])["busybox"]["latest"]

    def refused(text: str, **changes: Any) -> None:
        path.write_bytes(pack({**members, **changes}))
        with pytest.raises((InvalidDocument, PolicyError), match=text):
            load(str(path), store)
        assert names(store) == []

    for name in ("../x", "/etc", "A" * 64, 5):
        refused("layer .* has no valid id|must be a string", repositories=to_json({"busybox": {"latest": name}}))
    refused("must be an object", repositories=to_json({"busybox": []}))
    refused("invalid tag", repositories=to_json({"../busybox": {"latest": top}}))
    refused("is missing", repositories=to_json({"busybox": {"latest": "0" * 64}}))
    refused("too many above it|larger than", **{top + "/json": to_json({"parent": top})})


@pytest.mark.parametrize("data, text", [
    (b"", "there is no image in it"), (b"x", "cut short"), (b"PK\x03\x04" + bytes(600), "damaged header"),
    (b"\x1f\x8b", "archive's gzip stream is cut short"), (b"BZh9", "bzip2 stream is cut short"),
    (b"\xfd7zXZ\0", "xz stream is cut short"),
    (bytes(1024), "there is no image in it"),
    (gzip.compress(b"garbage" * 100), "cut short|damaged header|malformed")])
def test_a_file_that_is_no_archive_is_refused(store: Store, path: Path, data: bytes, text: str) -> None:
    """HA09."""
    path.write_bytes(data)
    with pytest.raises(InvalidDocument, match="^load .*archive.tar: .*(%s)" % text):
        load(str(path), store)
    with pytest.raises(InvalidDocument, match="^load: .*(%s)" % text):
        load(io.BytesIO(data), store)
    assert os.listdir(store.content.scratch) == []


def test_a_truncated_archive_is_refused_wherever_it_ends(store: Store, layout: Layout, path: Path) -> None:
    """HA09: even where all that is needed is there."""
    data = pack(layout_members(layout, [named(layout.image([text_layer("one")]))]))
    size = len(data.rstrip(b"\0"))
    for length in sorted({*range(0, size, 300), *range(512, size, 512), size - 1}):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidDocument):
            load(str(path), store)
        assert names(store) == []


def test_a_member_that_claims_too_much_is_not_read(
        store: Store, layout: Layout, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HA10: what is a document has its limit before it is read."""
    image = layout.image([text_layer("one")])
    docker, oci = docker_members(layout, {"busybox:latest": image}), layout_members(layout, [named(image)])
    config = json.loads(docker["manifest.json"])[0]["Config"]
    for members, name in ((docker, "manifest.json"), (docker, config), (oci, "index.json"), (oci, "oci-layout"),
                          (oci, "blobs/" + image.digest.replace(":", "/"))):
        path.write_bytes(pack({**members, name: bytes((8 << 20) + 1)}))
        with pytest.raises((PolicyError, InvalidDocument), match="larger than 8388608 bytes|lacks"):
            load(str(path), store)
    path.write_bytes(pack(docker))
    # The manifest that it lacks is made, and counts as well.
    monkeypatch.setattr(reader, "MAX_DOCUMENTS", len(docker["manifest.json"]) + len(docker[config]))
    with pytest.raises(PolicyError, match="its documents have more than [0-9]+ bytes in all"):
        load(str(path), store)
    monkeypatch.setattr("minipull.archive.members.MAX_MEMBERS", 4)
    with pytest.raises(PolicyError, match="more than 4 members"):
        load(str(path), store)
    assert names(store) == []


def test_a_layer_that_is_claimed_by_many_is_hashed_once(
        layout: Layout, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = layout.image([Spec(100000)])
    config = json.loads(layout.read(image.config["digest"]))
    config["rootfs"]["diff_ids"] = ["sha256:%064x" % n for n in range(50)]
    path.write_bytes(pack({
        "config": to_json(config), "layer": layout.read(image.layers[0].descriptor["digest"]),
        "manifest.json": to_json([{"Config": "config", "RepoTags": ["a:1"], "Layers": ["layer"] * 50}])}))
    read: List[int] = []

    def reading(fd: int, count: int, offset: int) -> bytes:
        data = pread(fd, count, offset)
        read.append(len(data))
        return data

    pread = os.pread
    monkeypatch.setattr(os, "pread", reading)
    with reader.opened(str(path), Cancel()) as archive:
        assert len(archive.references.all()) == 1
    assert sum(read) < 2 * path.stat().st_size


def test_an_image_of_too_many_layers_is_refused(store: Store, layout: Layout, path: Path) -> None:
    image = layout.image([text_layer("one")] * 1001)
    path.write_bytes(pack(docker_members(layout, {"busybox:latest": image})))
    with pytest.raises(PolicyError, match="1001 layers, the limit is 1000"):
        load(str(path), store)


def test_a_file_that_cannot_be_read_is_an_error(
        store: Store, layout: Layout, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="^load /nowhere/x: open /nowhere/x: No such file or directory$"):
        load("/nowhere/x", store)
    with pytest.raises(StorageError, match="Is a directory"):
        load(str(path.parent), store)
    path.write_bytes(pack(layout_members(layout, [named(layout.image([text_layer("one")]))])))
    real, calls = os.pread, []

    def failing(fd: int, count: int, offset: int) -> bytes:
        calls.append(fd)
        if len(calls) == after:
            raise OSError(5, "Input/output error")
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", failing)
    for after in (3, 22):
        calls.clear()
        with pytest.raises(StorageError, match="read the archive: Input/output error"):
            load(str(path), store)
        assert names(store) == []
