# SPDX-License-Identifier: Apache-2.0
"""A copy is the same image, or the one that was asked for; and no end learns a secret of the other's."""
import base64
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Union

import pytest

from tests.kit import images
import minipull
from tests.kit.processes import clean_env, minipull_env, wait_until
from tests.kit.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor, Layout
from minipull.cli import main as cli
from minipull.distribution import blobs as blobs_module
from minipull.registry import transport as transport_module
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.errors import (
    ContentMismatch, InvalidDocument, InvalidReference, NotFound, PolicyError, Unsupported)
from minipull.progress import Progress
from minipull.store.store import MAX_DEPTH, Store
from minipull.xfer.upload import LayerUploadManager
from tests.kit.servers import (
    Certificates, Connection, Proxy, Request, ScriptedServer, Uploads, challenge, content, drip, error, head,
    hold, redirect, reply, send)

#: The module, which the function of that name hides.
module = importlib.import_module("minipull.distribution.copy")
HEX = "0123456789abcdef" * 4
EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "RETRY_DELAYS", ())
    monkeypatch.setattr(blobs_module, "DOCUMENT_DELAYS", ())


def who(request: Request) -> str:
    """USER:PASSWORD, or whatever a request brings to prove itself with."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    return base64.b64decode(rest).decode() if scheme == "Basic" else rest


class Target(ScriptedServer):
    """A registry that takes pushes to ``r``.

    ``logins`` are USER:PASSWORD by how a path begins: who asks there must be that user.
    """

    def __init__(self, logins: Optional[Dict[str, str]] = None, **options: Any) -> None:
        self.logins = logins or {}
        super().__init__(**options)
        self.uploads = Uploads(self)
        self.on("GET", "^/v2/r/manifests/", self._manifest)

    def _manifest(self, connection: Connection) -> None:
        data = self.manifests.get(connection.request.path.rpartition("/")[2])
        kind = json.loads(data)["mediaType"] if data else ""
        (error(404, "MANIFEST_UNKNOWN") if data is None else content(data, kind, ranges=False))(connection)

    def handle(self, connection: Connection) -> None:
        for path, login in self.logins.items():
            if connection.request.path.startswith(path) and who(connection.request) != login:
                connection.body()
                return challenge('Basic realm="r"')(connection)
        super().handle(connection)

    @property
    def blobs(self) -> Dict[str, bytes]:
        return self.uploads.blobs

    @property
    def manifests(self) -> Dict[str, bytes]:
        return self.uploads.manifests

    @property
    def place(self) -> str:
        return "docker://%s/r:1" % self.host

    def put(self) -> List[str]:
        """What manifests were put under, in their order."""
        return [request.path.rpartition("/")[2] for request in self.seen("PUT", "/manifests/")]


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as made:
        yield made


def copied(source: str, target: Union[str, Target], **options: Any) -> Any:
    place = target.place if isinstance(target, Target) else target
    options.setdefault("uploads", LayerUploadManager(tick=0.001))
    return minipull.copy(source, place, **options)


def messages(source: str, target: Union[str, Target], **options: Any) -> List[str]:
    events: List[Progress] = []
    copied(source, target, progress=events.append, **options)
    return [event.message for event in events if event.message]


# -- images --------------------------------------------------------------------


def add(layout: Layout, document: Any, name: Optional[str] = None) -> Descriptor:
    descriptor = layout.blob(images.to_json(document), document["mediaType"])
    if name is not None:
        layout.name(descriptor, name)
    return descriptor


def artifact(layout: Layout, name: Optional[str] = None, payload: Optional[bytes] = None,
             **members: Any) -> Descriptor:
    """Not an image; without ``payload`` it has no layers."""
    layers = [layout.blob(payload, "application/spdx+json")] if payload is not None else []
    return add(layout, {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.test",
        "config": layout.blob(b"{}", EMPTY), "layers": layers, **members}, name)


def bare(descriptor: Descriptor) -> Descriptor:
    return {key: descriptor[key] for key in ("mediaType", "digest", "size")}


def make_single(root: Path) -> Layout:
    return images.single(root)[0]


def make_schema2(root: Path) -> Layout:
    return images.single(root, docker=True)[0]


def make_awkward(root: Path) -> Layout:
    return images.awkward(root, "latest")[0]


def make_index(root: Path) -> Layout:
    return images.multi_platform(root, nested=True)[0]


def make_list(root: Path) -> Layout:
    return images.multi_platform(root, docker=True)[0]


def make_artifact(root: Path) -> Layout:
    layout = Layout(root)
    artifact(layout, "latest")
    return layout


def make_artifacts(root: Path) -> Layout:
    """An index of an artifact, an image twice and one more index that is empty."""
    layout = Layout(root)
    image = layout.image(images.specs(1)).descriptor
    layout.index([artifact(layout, payload=b"bill"), image, image, layout.index([]).descriptor], "latest")
    return layout


def make_nothing(root: Path) -> Layout:
    layout = Layout(root)
    layout.index([], "latest")
    return layout


MAKERS = [make_single, make_schema2, make_awkward, make_index, make_list, make_artifact, make_artifacts, make_nothing]


def below(layout: Layout, digest: str) -> Dict[str, bytes]:
    """Every blob and manifest of an image, by digest."""
    document = json.loads(layout.read(digest))
    found = {digest: layout.read(digest)}
    for child in document.get("manifests", []):
        found.update(below(layout, child["digest"]))
    for blob in [document["config"], *document["layers"]] if "config" in document else []:
        found[blob["digest"]] = layout.read(blob["digest"])
    return found


def blobs_of(path: Path) -> Dict[str, bytes]:
    return {"sha256:" + file.name: file.read_bytes() for file in (path / "blobs" / "sha256").iterdir()}


def entries(path: Path) -> Any:
    return json.loads((path / "index.json").read_text())["manifests"]


# -- from place to place ---------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("start", ["docker", "oci", "store"])
@pytest.mark.parametrize("end", ["docker", "oci", "store"])
def test_an_image_is_the_same_wherever_it_goes(
        make: Callable[[Path], Layout], start: str, end: str, server: ScriptedServer, target: Target,
        tmp_path: Path) -> None:
    layout = make(tmp_path / "layout")
    top = layout.resolve("latest")
    wanted = below(layout, top["digest"])
    server.serve(layout.root, "r")
    store = Store(str(tmp_path / "store"))
    source = {"docker": "docker://%s/r" % server.host, "oci": "oci:%s" % layout.root, "store": "store:r.com/a"}[start]
    if start == "store":
        copied("oci:%s" % layout.root, source, store=store)
    place = {"docker": target.place, "oci": "oci:%s:it" % (tmp_path / "new"), "store": "store:r.com/b:2"}[end]
    events: List[Progress] = []
    done = copied(source, place, store=store, progress=events.append)
    assert done.descriptor.to_json() == bare(top) and done.source == top["digest"]
    if end == "docker":
        assert {**target.blobs, **target.manifests} == {**wanted, "1": layout.read(top["digest"])}
        assert target.put()[-1] == "1" and len(target.put()) == len(set(target.put()))
        last_blob = max([-1, *(n for n, request in enumerate(target.requests) if "/blobs/" in request.path)])
        assert all(request.method == "PUT" for request in target.requests[last_blob + 1:])
    elif end == "oci":
        assert blobs_of(tmp_path / "new") == wanted
        assert entries(tmp_path / "new") == [{**bare(top), "annotations": {images.NAME: "it"}}]
        assert list((tmp_path / "new" / "ingest").iterdir()) == []
    else:
        assert blobs_of(tmp_path / "store") == wanted
        assert [str(image.name) for image in store.images()] == (
            ["r.com/a:latest"] if start == "store" else []) + ["r.com/b:2"]
        gc(store, 0)
        assert blobs_of(tmp_path / "store") == wanted and check(store) == []
    assert make is make_nothing or "Preparing" in {event.action for event in events}
    assert all(event.id in {digest[7:19] for digest in wanted} for event in events)


def test_a_digest_names_an_image_at_either_end(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")
    store = Store(str(tmp_path / "store"))
    copied("docker://%s/r:gone@%s" % (server.host, image.digest), "store:r@" + image.digest, store=store)
    assert [str(each.name) for each in store.images()] == ["docker.io/library/r@" + image.digest]
    gc(store, 0)
    copied("store:r@" + image.digest, "docker://%s/r@%s" % (target.host, image.digest), store=store)
    assert target.put() == [image.digest]
    asked = len(target.requests)
    for place in ("docker://%s/r@sha256:%s" % (target.host, HEX), "store:r@sha512:" + HEX * 2):
        with pytest.raises(ContentMismatch, match="the image is %s, not sha" % image.digest):
            copied("store:r@" + image.digest, place, store=store)
    assert len(target.seen("POST")) == len([each for each in target.requests[:asked] if each.method == "POST"])


def test_sha512_is_a_digest_like_others(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    (layout.root / "blobs" / "sha512").mkdir()

    def again(descriptor: Descriptor) -> Descriptor:
        data = layout.read(descriptor["digest"])
        digest = str(minipull.Digest.of(data, "sha512"))
        layout.path(digest).write_bytes(data)
        return {**bare(descriptor), "digest": digest}
    image = layout.image(images.specs(2))
    manifest = add(layout, {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": again(image.config),
        "layers": [again(layer.descriptor) for layer in image.layers]})
    index = layout.index([again(manifest)], "latest")
    store = Store(str(tmp_path / "store"))
    copied("oci:%s" % layout.root, "store:a", store=store)
    copied("store:a", "oci:%s" % (tmp_path / "new"), store=store)
    for root in (tmp_path / "store", tmp_path / "new"):
        names = {path.name for path in (root / "blobs" / "sha512").iterdir()}
        assert len(names) == 4 and names <= {path.name for path in (layout.root / "blobs" / "sha512").iterdir()}
        assert set(blobs_of(root)) == {index.digest}
    assert check(store) == []


def test_what_the_other_end_has_is_not_sent(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout")
    server.serve(layout.root, "r")
    source = "docker://%s/r" % server.host
    for place in (target.place, "oci:%s:x" % (tmp_path / "new")):
        copied(source, place)
        asked = len(server.seen("GET", "/blobs/"))
        events: List[Progress] = []
        copied(source, place, progress=events.append)
        assert len(server.seen("GET", "/blobs/")) == asked
        assert {event.action for event in events if event.id} <= {"Preparing", "Waiting", "Layer already exists"}
    uploads = len(target.seen("POST"))
    assert uploads == len(target.blobs) == len(target.seen("HEAD", "/blobs/")) - uploads - 2
    assert len(entries(tmp_path / "new")) == 1


def test_foreign_layers_stay_where_they_are(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout", docker=True)
    image = layout.image(images.specs(1))
    document = json.loads(image.raw)
    document["layers"].append({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "size": 5,
        "digest": "sha256:" + HEX, "urls": ["https://example.invalid/layer"]})
    top = add(layout, document, "latest")
    server.serve(layout.root, "r")
    for place in (target.place, "oci:%s" % (tmp_path / "new")):
        events: List[Progress] = []
        copied("docker://%s/r" % server.host, place, progress=events.append)
        assert Progress(id=HEX[:12], action="Skipped foreign layer") in events
    assert set(target.manifests) == {"1", top["digest"]}
    assert not server.seen("", HEX)
    copied("docker://%s/r" % server.host, "oci:%s:oci" % (tmp_path / "new"), format="oci")
    converted = json.loads(blobs_of(tmp_path / "new")[entries(tmp_path / "new")[1]["digest"]])
    assert converted["layers"][1] == {
        **document["layers"][1], "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"}


def test_copies_that_share_a_manager_share_no_blob_with_another_place(target: Target, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", layers=1, size=300000)
    go, uploads = threading.Event(), LayerUploadManager()
    target.on("POST", "/uploads/", [hold(go), target.uploads.start])
    results: List[Any] = []
    first = threading.Thread(target=lambda: results.append(
        copied("oci:%s" % layout.root, target, uploads=uploads)))
    first.start()
    wait_until(lambda: bool(target.seen("POST")), "the first copy")
    copied("oci:%s" % layout.root, "oci:%s" % (tmp_path / "new"), uploads=uploads)
    assert blobs_of(tmp_path / "new") == blobs_of(layout.root)
    go.set()
    first.join(20)
    assert results[0].source == image.digest


# -- what is refused -------------------------------------------------------------


def test_what_is_wrong_at_the_source_gets_no_name(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    server.serve(layout.root, "r")
    child = made["linux/arm/v7"]
    store = Store(str(tmp_path / "store"))
    places = (target.place, "oci:%s" % (tmp_path / "new"), "store:a")
    blob = child.layers[1].descriptor["digest"]
    server.on("GET", blob, content(layout.read(blob)[:-1] + b"?"))
    for place in places:
        with pytest.raises(ContentMismatch, match="^copy %s/r to .*%s" % (server.host, blob)) as caught:
            copied("docker://%s/r" % server.host, place, store=store)
        assert caught.value.exit_code == 6
    server.on("GET", child.digest, content(child.raw + b" ", OCI_MANIFEST))
    for place in places:
        with pytest.raises(ContentMismatch, match="manifest verification failed"):
            copied("docker://%s/r" % server.host, place, store=store)
    assert target.manifests == {} and store.images() == []
    assert blob not in {*target.blobs, *blobs_of(tmp_path / "new"), *blobs_of(tmp_path / "store")}
    assert not (tmp_path / "new" / "index.json").exists()


def test_an_error_says_at_which_end_it_is(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    server.serve(layout.root, "r")
    source = "docker://%s/r" % server.host
    what = "^copy %s/r to %s/r: " % (server.host, target.host)
    with pytest.raises(minipull.Error, match=what + "manifest unknown.*%s" % server.host):
        server.on("GET", "/manifests/latest", error(404, "MANIFEST_UNKNOWN"))
        copied(source, target)
    server.serve(layout.root, "r")
    server.on("GET", "/blobs/", error(404, "BLOB_UNKNOWN"))
    with pytest.raises(minipull.Error, match=what + "%s/r: blob unknown" % server.host) as caught:
        copied(source, target)
    assert caught.value.exit_code == NotFound.exit_code
    target.on("POST", "", error(403, "DENIED"))
    what = "^copy %s to %s/r: denied" % (layout.root, target.host)
    with pytest.raises(minipull.Error, match="%s .%s" % (what, target.host)):
        copied("oci:%s" % layout.root, target)


def test_an_index_that_lies_about_its_children_is_refused(target: Target, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    for change, error_type, text in (
            ({"size": 1}, InvalidDocument, "is not as its index says"),
            ({"mediaType": DOCKER_MANIFEST}, InvalidDocument, "is not as its index says"),
            ({"mediaType": "text/html"}, Unsupported, "an index of 'text/html' can't be copied"),
            ({"digest": "sha256:" + HEX}, NotFound, "is not there")):
        layout.index([{**image.descriptor, **change}], "latest")
        with pytest.raises(error_type, match=text):
            copied("oci:%s:latest" % layout.root, target)
    assert target.requests == []


def test_indexes_may_not_be_nested_for_ever(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    top = layout.image(images.specs(1)).descriptor
    for depth in range(MAX_DEPTH + 1):
        top = layout.index([{**top, "platform": {"os": "linux", "architecture": "amd64"}}], "%d" % depth).descriptor
    place = "oci:%s:%%d" % layout.root
    copied(place % (MAX_DEPTH - 1), "oci:%s" % (tmp_path / "new"))
    copied(place % (MAX_DEPTH - 1), "oci:%s" % (tmp_path / "one"), platforms=["linux/amd64"])
    for options in ({}, {"platforms": ["linux/amd64"]}):
        with pytest.raises(PolicyError, match="nested deeper than %d" % MAX_DEPTH):
            copied(place % MAX_DEPTH, "oci:%s" % (tmp_path / "deep"), **options)
    assert not (tmp_path / "deep").exists()


def test_manifests_have_a_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    size = sum(len(layout.read(digest)) for digest in {
        index.digest, *(child["digest"] for child in json.loads(index.raw)["manifests"])})
    monkeypatch.setattr(module, "MAX_DOCUMENTS", size)
    copied("oci:%s" % layout.root, "oci:%s" % (tmp_path / "new"))
    monkeypatch.setattr(module, "MAX_DOCUMENTS", size - 1)
    with pytest.raises(PolicyError, match="more than %d bytes of manifests" % (size - 1)):
        copied("oci:%s" % layout.root, "oci:%s" % (tmp_path / "new"))


@pytest.mark.parametrize("options, text", [
    ({"format": "zip"}, "invalid format 'zip', not oci or docker"),
    ({"format": "docker", "referrers": True}, "does not follow it into another format"),
    ({"platforms": ["x/y/z/a"]}, "invalid platform")])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: Dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidReference, match=text):
        copied("oci:%s" % tmp_path, "oci:%s" % (tmp_path / "new"), **options)


# -- platforms -------------------------------------------------------------------


def test_of_one_platform_it_is_the_image_itself(target: Target, tmp_path: Path) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    wanted = made["linux/arm64/v8"]
    done = copied("oci:%s" % layout.root, target, platforms=["linux/arm64"])
    assert (done.descriptor.digest, done.source) == (wanted.digest, index.digest)
    assert set(target.manifests) == {"1", wanted.digest}
    assert set(target.blobs) == set(below(layout, wanted.digest)) - {wanted.digest}
    # An image is what it is, and of a nested index too one image is taken.
    nested, *_ = images.multi_platform(tmp_path / "nested", nested=True)
    done = copied("oci:%s" % nested.root, target, platforms=[minipull.Platform.parse("linux/arm/v6")])
    assert done.descriptor.digest == made["linux/arm/v6"].digest
    single, image = images.single(tmp_path / "single")
    assert copied("oci:%s" % single.root, target, platforms=["windows/amd64"]).descriptor.digest == image.digest


def test_of_several_platforms_it_is_a_smaller_index(target: Target, tmp_path: Path) -> None:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    events: List[Progress] = []
    done = copied("oci:%s" % layout.root, target, platforms=["linux/amd64", "linux/arm64"], progress=events.append)
    assert Progress(message="the index is rewritten, with 3 of its 5 manifests") in events
    before = json.loads(index.raw)
    kept = [child for child in before["manifests"]
            if child["digest"] in {made["linux/amd64"].digest, made["linux/arm64/v8"].digest}
            or child["platform"]["os"] == "unknown"]
    assert len(kept) == 3 and json.loads(target.manifests["1"]) == {**before, "manifests": kept}
    assert images.digest_of(target.manifests["1"]) == done.descriptor.digest != done.source == index.digest
    assert set(target.put()) == {"1", *(child["digest"] for child in kept)}
    nested, *_ = images.multi_platform(tmp_path / "nested", nested=True)
    copied("oci:%s" % nested.root, target, platforms=["linux/arm/v6", "linux/arm64", "linux/amd64"])
    assert [child["platform"]["os"] for child in json.loads(target.manifests["1"])["manifests"]] == [
        "linux", "linux", "linux", "unknown"]
    # The attestation of an image that is left out is left out too.
    copied("oci:%s" % layout.root, target, platforms=["linux/arm/v7", "linux/arm64"])
    assert len(json.loads(target.manifests["1"])["manifests"]) == 2


@pytest.mark.parametrize("docker", [False, True])
def test_a_platform_that_is_not_there_is_exit_3(docker: bool, target: Target, tmp_path: Path) -> None:
    layout, *_ = images.multi_platform(tmp_path / "layout", docker=docker)
    with pytest.raises(NotFound) as caught:
        copied("oci:%s" % layout.root, target, platforms=["linux/amd64", "linux/s390x"])
    assert str(caught.value) == (
        "copy %s to %s/r: no linux/s390x in the index; there is linux/amd64, linux/arm/v6, linux/arm/v7,"
        " linux/arm64/v8" % (layout.root, target.host))
    layout.index([], "empty")
    with pytest.raises(NotFound, match="there is none"):
        copied("oci:%s:empty" % layout.root, target, platforms=["linux/amd64"])
    assert target.requests == []


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
def test_what_is_in_the_format_already_stays_as_it_is(
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
def test_what_the_other_format_cannot_say_is_refused(
        make: Callable[[Layout], Any], text: str, target: Target, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    make(layout)
    with pytest.raises(Unsupported, match=text) as caught:
        copied("oci:%s" % layout.root, target, format="docker")
    assert caught.value.exit_code == 1 and target.requests == []


# -- what refers to an image -------------------------------------------------------


def about(layout: Layout, subject: Descriptor, payload: bytes, **members: Any) -> Descriptor:
    return artifact(layout, payload=payload, subject=bare(subject), **members)


def listing(found: List[Descriptor]) -> Any:
    return reply(200, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found})


class Signed(NamedTuple):
    """An index, with what is about it and about its first child."""
    layout: Layout
    top: Descriptor
    signature: Descriptor  # of the index
    again: Descriptor  # of the signature
    bill: Descriptor  # of the first child
    cosign: Dict[str, Descriptor]  # by tag

    @property
    def listed(self) -> Dict[str, List[Descriptor]]:
        """What a list says, by subject."""
        first = json.loads(self.layout.read(self.top["digest"]))["manifests"][0]
        note = {"artifactType": "application/vnd.test", "annotations": {"a": "b"}}
        return {self.top["digest"]: [{**self.signature, **note}],
                self.signature["digest"]: [{**self.again, **note}], first["digest"]: [{**self.bill, **note}]}


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    layout, index, made = images.multi_platform(tmp_path / "layout")
    signature = about(layout, index.descriptor, b"signature", annotations={"a": "b"})
    cosign = {index.digest.replace(":", "-") + suffix: artifact(layout, payload=suffix.encode())
              for suffix in (".sig", ".att", ".sbom")}
    cosign[made["linux/amd64"].digest.replace(":", "-") + ".sig"] = artifact(layout, payload=b"child")
    return Signed(layout, index.descriptor, signature, about(layout, signature, b"of a signature"),
                  about(layout, made["linux/amd64"].descriptor, b"bill"), cosign)


def serve_signed(server: ScriptedServer, signed: Signed, api: bool) -> str:
    """Serve it with lists of referrers, or else with the tags that stand for them."""
    layout = signed.layout
    for tag, descriptor in signed.cosign.items():
        layout.name(descriptor, tag)
    for subject, found in signed.listed.items():
        if not api:
            layout.index(found, subject.replace(":", "-"))
    server.serve(layout.root, "r")
    for descriptor in (signed.signature, signed.again, signed.bill):
        data = layout.read(descriptor["digest"])
        server.on("GET", "/manifests/" + descriptor["digest"], content(data, OCI_MANIFEST))
    if api:
        server.on("GET", "/v2/r/referrers/", listing([]))
        for subject, found in signed.listed.items():
            server.on("GET", "/v2/r/referrers/%s$" % subject, listing(found))
    return "docker://%s/r" % server.host


@pytest.mark.parametrize("api", [True, False])
def test_what_refers_to_an_image_goes_along(
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


def test_who_notes_a_subject_gets_no_tag(server: ScriptedServer, signed: Signed, target: Target) -> None:
    source = serve_signed(server, signed, True)

    def put(connection: Connection) -> None:
        connection.body()
        reply(201, headers={"OCI-Subject": "sha256:" + HEX})(connection)
    for descriptor in (signed.signature, signed.again, signed.bill):
        target.on("PUT", "/manifests/" + descriptor["digest"], put)
    copied(source, target, referrers=True)
    assert {tag for tag in target.put() if ":" not in tag} == {"1", *signed.cosign}


def test_a_list_that_is_there_is_kept(server: ScriptedServer, signed: Signed, target: Target) -> None:
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


def test_a_list_can_say_anything(listed: Listed, target: Target) -> None:
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


def test_what_is_listed_and_gone_is_left_out(listed: Listed, target: Target) -> None:
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


def test_a_tag_may_list_no_more_than_that_either(
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
def test_who_cannot_say_what_refers_to_it_is_an_error(where: str, listed: Listed, target: Target) -> None:
    listed.server.on("GET", where, error(500))
    with pytest.raises(minipull.Error):
        listed.copied(target)
    assert target.put() == []


def test_a_page_that_is_no_list_is_as_good_as_none(listed: Listed, target: Target) -> None:
    listed.server.on("GET", "/referrers/", reply(200, b"<html>"))
    listed.copied(target)
    assert target.put() == ["1"] and listed.server.seen("GET", "/manifests/sha256-[0-9a-f]{64}$")


# -- giving up -------------------------------------------------------------------


class Slow(NamedTuple):
    """An image on a server whose large layer all but stops in its middle, the first time."""
    server: ScriptedServer
    layout: Layout
    large: str

    @property
    def place(self) -> str:
        return "docker://%s/r" % self.server.host


@pytest.fixture
def slow(server: ScriptedServer, tmp_path: Path) -> Slow:
    layout = Layout(tmp_path / "slow")
    image = layout.image([images.Spec(2500000, text=0, compression=""), *images.specs(2)], "latest")
    server.serve(layout.root, "r")
    large = image.layers[0].descriptor["digest"]
    data = layout.read(large)
    server.on("GET", "/blobs/" + large, [
        send(head(200, {"Content-Length": str(len(data))}) + data[:1500000]), drip(data[1500000:], 1, 0.02)],
        content(data))
    return Slow(server, layout, large)


def under_way(slow: Slow, target: Target, new: Path) -> bool:
    """Whether all but the rest of the large layer has arrived."""
    partial = new / "ingest" / slow.large.replace(":", "-")
    sessions = target.uploads.sessions.values()
    size = max([*map(len, list(sessions)), partial.stat().st_size if partial.exists() else 0])
    arrived = max(len(target.blobs), len(list(new.glob("blobs/sha256/*"))))
    return size >= 1500000 and arrived == 3


@pytest.mark.parametrize("end", ["docker", "oci"])
def test_a_copy_that_is_cancelled_leaves_no_name_and_no_half_blob(
        end: str, slow: Slow, target: Target, tmp_path: Path) -> None:
    new, cancel = tmp_path / "new", minipull.Cancel()
    results: List[Any] = []

    def work() -> None:
        with pytest.raises(minipull.Cancelled) as caught:
            copied(slow.place, target.place if end == "docker" else "oci:%s" % new, cancel=cancel)
        results.append(caught.value)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: under_way(slow, target, new), "the copy")
    cancel.cancel()
    thread.join(5)
    assert results and results[0].exit_code == 130
    wait_until(lambda: not slow.server._open, "the sockets", seconds=5)
    assert target.put() == [] and not (new / "index.json").exists()
    assert slow.large not in {*target.blobs, *(blobs_of(new) if end == "oci" else ())}


@pytest.mark.parametrize("end", ["docker", "oci"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_copy_that_is_interrupted_goes_on_where_it_was(
        end: str, number: signal.Signals, slow: Slow, target: Target, tmp_path: Path, home: Path) -> None:
    new = tmp_path / "new"
    place = target.place if end == "docker" else "oci:%s" % new
    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "copy", slow.place, place], env=minipull_env(home), cwd=home,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: under_way(slow, target, new), "minipull copy", process)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (128 + number, b"") and b"Traceback" not in err
    assert target.put() == [] and not (new / "index.json").exists()
    asked = len(slow.server.seen("GET", "/blobs/"))
    copied(slow.place, place)
    [again] = slow.server.seen("GET", "/blobs/")[asked:]
    assert slow.large in again.path
    if end == "oci":
        assert int(re.findall("[0-9]+", again.headers["range"])[0]) >= 1500000
    assert below(slow.layout, slow.layout.resolve("latest")["digest"]).items() <= {
        **target.blobs, **target.manifests, **(blobs_of(new) if end == "oci" else {})}.items()


@pytest.mark.parametrize("when", ["message", "Preparing", "Pushing", "Pushed"])
def test_a_progress_callback_that_raises_ends_its_copy(when: str, target: Target, tmp_path: Path) -> None:
    layout, *_ = images.multi_platform(tmp_path / "layout")
    layout_place = "oci:%s" % layout.root

    def progress(event: Progress) -> None:
        if when in (event.action, "message" if event.message else ""):
            raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        copied(layout_place, target, platforms=["linux/amd64", "linux/arm64"], progress=progress)
    assert "1" not in target.manifests


def test_copies_into_one_layout_at_once_lose_no_name(tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    errors: List[BaseException] = []

    def work(number: int) -> None:
        try:
            for name in range(4):
                copied("oci:%s" % layout.root, "oci:%s:%d-%d" % (tmp_path / "new", number, name))
        except BaseException as exc:
            errors.append(exc)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert sorted(entry["annotations"][images.NAME] for entry in entries(tmp_path / "new")) == [
        "%d-%d" % (number, name) for number in range(5) for name in range(4)]
    assert blobs_of(tmp_path / "new") == blobs_of(layout.root)


# -- the package -----------------------------------------------------------------


def test_the_function_hides_its_module() -> None:
    assert minipull.copy is module.copy and callable(minipull.copy)
    assert importlib.import_module("minipull.distribution.copy") is module is not minipull.copy


def test_a_store_is_needed_for_its_images_alone(target: Target, tmp_path: Path) -> None:
    images.single(tmp_path / "layout")
    copied("oci:%s" % (tmp_path / "layout"), target)
    for source, place in (("store:a", "oci:x"), ("oci:%s" % (tmp_path / "layout"), "store:a")):
        with pytest.raises(InvalidReference, match="no store is given for docker.io/library/a"):
            copied(source, place)


# -- the command -------------------------------------------------------------------


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.count("\n") == 1 and self.err.startswith("minipull: copy "), self.err
        return self.err[len("minipull: copy "):-1]


Call = Callable[..., Result]


@pytest.fixture
def call(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run ``copy`` in this process, with an environment of its own."""
    monkeypatch.chdir(home)

    def run(*args: Union[str, Path], env: Optional[Dict[str, str]] = None) -> Result:
        for name in list(os.environ):
            if not name.startswith("COVERAGE"):
                monkeypatch.delenv(name)
        for name, value in {**clean_env(home), "MINIPULL_ROOT": str(tmp_path / "root"), **(env or {})}.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        code = cli.main(["copy", *map(str, args)])
        return Result(code, *capfd.readouterr())
    return run


def test_copy_says_what_became_of_it(call: Call, target: Target, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout")
    source = "oci:%s" % layout.root
    done = call(source, target.place)
    assert (done.code, done.out) == (
        0, "Digest: %s\nStatus: Copied %s to %s\n" % (index.digest, source, target.place))
    assert ": Pushed\n" in done.err
    assert call("-q", source, "store:a") == (0, index.digest + "\n", "")
    done = call("--platform", "linux/amd64", "--platform", "linux/arm64", "store:a", "oci:new:b")
    digest = images.digest_of(blobs_of(Path("new"))[entries(Path("new"))[0]["digest"]])
    assert done.out.startswith("Digest: %s\n" % digest)
    assert "the index is rewritten, with 3 of its 5 manifests\n" in done.err
    done = call("--format", "docker", "store:a", "oci:new:c")
    assert done.code == 0 and "left out: 1 that are no images\n" in done.err
    assert done.out.startswith("Digest: %s\n" % entries(Path("new"))[1]["digest"])


@pytest.mark.parametrize("args, code, line", [
    (["alpine", "oci:x"], 2, "alpine oci:x: want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]"),
    (["oci:x", "docker:x"], 2, "oci:x docker:x: want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]"),
    (["oci:x", "docker://UPPER"], 2, "oci:x docker://UPPER: invalid reference format: repository name (library/UPPER)"
     " must be lowercase"),
    (["oci:x\n", "\x1b[1m"], 2, "oci:x\\n \\x1b[1m: want docker://REF, store:REF, oci:DIR[:NAME] or oci-archive:FILE[:REF]"),
    (["--format", "docker", "--referrers", "oci:x", "oci:y"], 2, None),
    (["--platform", "x", "oci:x", "oci:y"], 2, None),
    (["--chunk-size", "x", "oci:x", "oci:y"], 2, None),
    (["--format", "xml", "oci:x", "oci:y"], 2, None),
    (["oci:x"], 2, None),
    (["oci:none", "oci:y"], 3, None),
    (["store:a", "oci:y"], 3, None)])
def test_what_cannot_be_copied_is_one_line(call: Call, args: List[str], code: int, line: Optional[str]) -> None:
    done = call(*args)
    assert (done.code, done.out) == (code, "") and done.err.count("\n") == 1
    assert line is None or done.line == line
    assert not Path("y").exists()


def test_a_layout_of_several_images_wants_a_name(call: Call, target: Target, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", "one")
    layout.image(images.specs(1), "two")
    for name, said in (("", "no image without a name"), (":no", "no image no")):
        done = call("oci:%s%s" % (layout.root, name), target.place)
        assert (done.code, done.line) == (3, "%s to %s/r: %s: %s; there is one, two" % (
            layout.root, target.host, layout.root, said))
    assert target.requests == []
    assert call("-q", "oci:%s:one" % layout.root, target.place).out == image.digest + "\n"


ANN, BOB = "ann:4pple", "bob:b4nana"


class Ends(NamedTuple):
    """Two registries that want to know who asks, ann and bob."""
    source: Target
    target: Target
    layout: Layout

    @property
    def places(self) -> List[str]:
        return [self.source.place.replace(":1", ":latest"), self.target.place]

    def assert_told_apart(self) -> None:
        assert {who(request) for request in self.source.requests} <= {"", ANN}
        assert {who(request) for request in self.target.requests} <= {"", BOB}
        for server, foreign in ((self.source, BOB), (self.target, ANN)):
            for request in server.requests:
                text = request.target + repr(sorted(request.headers.items()))
                for secret in foreign.split(":"):
                    assert secret not in text
                    assert base64.b64encode(foreign.encode()).decode() not in text


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with Target({"/": ANN}) as source, Target({"/": BOB}, host="127.0.0.2") as target:
        layout, _ = images.single(tmp_path / "layout")
        source.serve(layout.root, "r")
        yield Ends(source, target, layout)


def authfile(path: Path, **logins: str) -> Path:
    path.write_text(json.dumps({"auths": {
        host: {"auth": base64.b64encode(login.encode()).decode()} for host, login in logins.items()}}))
    path.chmod(0o600)
    return path


def give_flags(ends: Ends, tmp_path: Path) -> Any:
    return ["--src-creds", ANN, "--dest-creds", BOB], {}


def give_variables(ends: Ends, tmp_path: Path) -> Any:
    return [], {"MINIPULL_SRC_CREDS": ANN, "MINIPULL_DEST_CREDS": BOB}


def give_files(ends: Ends, tmp_path: Path) -> Any:
    """Each file has a wrong password for the other end."""
    one = authfile(tmp_path / "one.json", **{ends.source.host: ANN, ends.target.host: "wrong:wrong"})
    two = authfile(tmp_path / "two.json", **{ends.source.host: "wrong:wrong", ends.target.host: BOB})
    return ["--src-authfile", one, "--dest-authfile", two], {}


def give_file(ends: Ends, tmp_path: Path) -> Any:
    return [], {"REGISTRY_AUTH_FILE": str(
        authfile(tmp_path / "both.json", **{ends.source.host: ANN, ends.target.host: BOB}))}


def give_both(ends: Ends, tmp_path: Path) -> Any:
    """A flag beats its variable, and a file."""
    _, env = give_file(ends, tmp_path)
    return ["--dest-creds", BOB], {"MINIPULL_DEST_CREDS": "wrong:wrong", **env}


@pytest.mark.parametrize("give", [give_flags, give_variables, give_files, give_file, give_both])
def test_each_end_is_told_its_own_password_alone(
        give: Callable[[Ends, Path], Any], call: Call, ends: Ends, tmp_path: Path) -> None:
    flags, env = give(ends, tmp_path)
    done = call(*flags, *ends.places, env=env)
    assert done.code == 0, done
    assert ends.target.put()[-1] == "1"
    ends.assert_told_apart()
    assert not any(secret in done.out + done.err for secret in (ANN, BOB, "4pple", "b4nana"))


@pytest.mark.parametrize("flags, missing", [
    (["--src-creds", ANN], "target"), (["--dest-creds", BOB], "source"),
    (["--src-creds", ANN, "--dest-creds", "bob:wrong"], "target")])
def test_one_ends_password_does_not_open_the_other(
        flags: List[str], missing: str, call: Call, ends: Ends) -> None:
    done = call("-q", *flags, *ends.places)
    assert done.code == 4 and getattr(ends, missing).host in done.line
    assert ends.target.put() == []
    assert {who(request) for request in ends.source.requests} <= {"", ANN}
    assert ANN not in {who(request) for request in ends.target.requests}


@pytest.mark.parametrize("flags, env", [
    (["--creds", ANN], {}), (["--registry-token", "t"], {}), ([], {"MINIPULL_CREDS": ANN}),
    (["--creds", ANN, "--dest-creds", BOB], {})])
def test_one_password_for_two_registries_is_refused(
        flags: List[str], env: Dict[str, str], call: Call, ends: Ends) -> None:
    done = call(*flags, *ends.places, env=env)
    assert done.code == 2 and "are for one registry, not for %s and %s" % (
        ends.source.host, ends.target.host) in done.err
    assert ends.source.requests == ends.target.requests == []
    assert call("-q", "--creds", ANN, ends.places[0], "store:a").code == 0
    assert call("-q", "--creds", BOB, "store:a", ends.places[1]).code == 0
    ends.assert_told_apart()


def test_no_password_goes_along_a_redirect(call: Call, ends: Ends, foreign: ScriptedServer) -> None:
    for path in (ends.layout.root / "blobs" / "sha256").iterdir():
        foreign.on("GET", path.name, content(path.read_bytes()))
    ends.source.on("GET", "/blobs/", lambda connection: redirect(
        foreign.url + connection.request.path)(connection))
    assert call("-q", "--src-creds", ANN, "--dest-creds", BOB, *ends.places).code == 0
    assert len(foreign.seen("GET", "/blobs/")) == 4
    ends.assert_told_apart()


def test_a_mount_is_asked_for_by_who_writes(call: Call, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    with Target({"/v2/a/b/": ANN, "/v2/r/": BOB}) as server:
        server.serve(layout.root, "a/b")
        server.uploads.elsewhere["a/b"] = blobs_of(layout.root)
        place = "docker://%s/a/b:latest" % server.host
        done = call("--src-creds", ANN, "--dest-creds", BOB, place, server.place)
        assert done.code == 0 and done.err.count("Mounted from a/b") == 4, done
        for request in server.requests:
            assert who(request) in ("", ANN if "/v2/a/b/" in request.path else BOB)
        assert not server.seen("GET", "/blobs/") and not server.seen("PATCH|PUT", "/blobs/")
        # One password will do if there is one registry.
        server.logins = {"/": ANN}
        assert call("-q", "--creds", ANN, place, server.place).code == 0


# Of certificates and schemes, by way of a proxy: on loopback everything is trusted.


@pytest.mark.parametrize("flags, port, refused", [
    (["--ca-file", "CA"], 5443, ""),
    (["--src-ca-file", "CA", "--dest-ca-file", "CA"], 5443, ""),
    (["--src-ca-file", "CA"], 5443, "registry.test:5443"),
    (["--dest-ca-file", "CA"], 5443, "registry.test"),
    (["--src-tls-verify=false", "--dest-cert-dir", "DIR"], 5443, ""),
    (["--src-cert-dir", "DIR", "--dest-tls-verify", "no"], 5443, ""),
    (["--tls-verify", "0", "--dest-tls-verify", "1"], 5443, "registry.test:5443"),
    (["--src-tls-verify=0"], 5443, "registry.test:5443"),
    (["--src-cert-dir", "DIR"], 5443, "registry.test:5443"),
    (["--src-ca-file", "CA", "--dest-plain-http"], 5000, ""),
    (["--src-plain-http", "--dest-ca-file", "CA"], 5443, ""),
    (["--plain-http"], 5000, ""),
    (["--src-plain-http"], 5443, "registry.test:5443")])
def test_what_one_end_is_trusted_with_the_other_is_not(
        flags: List[str], port: int, refused: str, call: Call, certificates: Certificates, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout", layers=1)
    folder = certificates.folder(tmp_path / "certs")
    given = [flag.replace("CA", str(certificates.ca)).replace("DIR", str(folder)) for flag in flags]
    tls = certificates.context()
    with Target(tls=tls) as source, Target() as plain, Target(tls=tls) as target, Target() as bare_target:
        for server in (source, plain):
            server.serve(layout.root, "r")
        hosts = {"registry.test:443": source.host, "registry.test": plain.host,
                 "registry.test:5443": target.host, "registry.test:5000": bare_target.host}
        with Proxy(hosts) as proxy:
            done = call("-q", *given, "docker://registry.test/r", "docker://registry.test:%d/r:1" % port,
                        env={"https_proxy": proxy.url, "HTTP_PROXY": proxy.url})
        if refused:
            assert (done.code, "certificate of %s is not trusted" % refused in done.line) == (9, True), done
            assert {**target.manifests, **bare_target.manifests} == {}
        else:
            assert done.code == 0, done
            assert set((bare_target if port == 5000 else target).manifests) == {"1", image.digest}
        trusted = refused != "registry.test" and not {"--src-plain-http", "--plain-http"} & set(flags)
        assert bool(source.requests) == trusted
