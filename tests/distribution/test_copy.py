# SPDX-License-Identifier: Apache-2.0
"""A copy is the same image, or the one that was asked for."""
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import pytest

from tests.kit import images
import minipull
from tests.kit.processes import minipull_env, wait_until
from tests.kit.images import DOCKER_MANIFEST, OCI_MANIFEST, Descriptor, Layout
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.errors import (
    ContentMismatch, InvalidDocument, InvalidReference, NotFound, PolicyError)
from minipull.progress import Progress
from minipull.image import walk
from minipull.image.walk import MAX_DEPTH
from minipull.store.store import Store
from minipull.xfer.upload import LayerUploadManager
from tests.kit.servers import ScriptedServer, close, content, drip, error, head, hold, send
from tests.kit.copies import (
    Target, add, bare, below, blobs_of, copied, entries, make_artifact, make_artifacts, make_awkward,
    make_index, make_list, make_nothing, make_schema2, make_single)

pytestmark = pytest.mark.usefixtures("no_repeats")


#: The module, which the function of that name hides.
module = importlib.import_module("minipull.distribution.copy")
HEX = "0123456789abcdef" * 4
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
MAKERS = [make_single, make_schema2, make_awkward, make_index, make_list, make_artifact, make_artifacts, make_nothing]


# -- from place to place ---------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux tells who holds a lock")
def test_a_blob_on_its_way_into_a_store_holds_the_lock_itself(tmp_path: Path) -> None:
    """A transfer may outlive the copy that began it, and gc must not run meanwhile."""
    layout, root = make_single(tmp_path / "layout"), tmp_path / "store"
    holders: List[int] = []

    def held() -> int:
        inode = ":%d" % (root / "lock").stat().st_ino
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return sum(row[1] == "FLOCK" and row[5].endswith(inode) for row in rows)

    def look(event: Progress) -> None:
        if event.action == "Download complete":
            # The table is read in parts, so that it may lack a line while other processes lock files.
            holders.append(max(held() for _ in range(5)))

    copied("oci:%s" % layout.root, "store:r.com/a", store=Store(str(root)), progress=look)
    assert holders and min(holders) >= 2  # the copy, and the transfer


def test_a_copy_to_a_layout_takes_away_what_a_killed_one_left_there(
        server: ScriptedServer, tmp_path: Path) -> None:
    layout = MAKERS[0](tmp_path / "layout")
    server.serve(layout.root, "r")
    place, scratch = "oci:%s:it" % (tmp_path / "new"), tmp_path / "new" / "ingest"
    copied("docker://%s/r" % server.host, place)
    blob = sorted(blobs_of(tmp_path / "new"))[0].replace(":", "-")
    for name in (blob, blob + ".json", ".minipull-index.json-12345678"):
        (scratch / name).write_bytes(b"x")
    copied("docker://%s/r" % server.host, place)
    assert list(scratch.iterdir()) == []


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


def test_blobs_that_the_target_has_are_not_sent(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("media_type", [images.DOCKER_LAYER + ".gzip", FOREIGN])
def test_foreign_layers_that_the_source_has_are_copied_if_asked_for(
        server: ScriptedServer, target: Target, tmp_path: Path, media_type: str) -> None:
    layout = Layout(tmp_path / "layout", docker=True)
    image = layout.image(images.specs(2))
    document = json.loads(image.raw)
    elsewhere = {"mediaType": media_type, "size": 5, "digest": "sha256:" + HEX, "urls": ["https://x.invalid/"]}
    document["layers"][0].update(mediaType=media_type, urls=["https://example.invalid/layer"])
    document["layers"].append(elsewhere)
    top = add(layout, document, "latest")
    server.serve(layout.root, "r")
    digest = image.layers[0].descriptor["digest"]
    new = tmp_path / "new"
    for source in ("docker://%s/r" % server.host, "oci:%s:latest" % layout.root):
        for foreign in (False, True):
            for place in (target.place, "oci:%s" % new):
                events: List[Progress] = []
                copied(source, place, foreign=foreign, progress=events.append)
                assert Progress(id=HEX[:12], action="Skipped foreign layer") in events
            assert (digest in target.blobs, digest in blobs_of(new)) == (foreign, foreign)
            assert json.loads(target.manifests["1"]) == document
        target.blobs.clear()
        shutil.rmtree(str(new))
    # Where the registry does not say whether it has the layer, it is not passed over.
    server.on("HEAD", HEX, error(500))
    with pytest.raises(minipull.Error, match="500"):
        copied("docker://%s/r" % server.host, target, foreign=True)
    assert top["digest"] in target.manifests


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


def test_a_tag_that_can_not_be_changed_may_have_the_image_already(
        server: ScriptedServer, target: Target, tmp_path: Path) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout")
    source = "oci:%s" % layout.root
    copied(source, target)
    target.on("PUT", "/manifests/", error(409, "CONFLICT"))
    assert copied(source, target).descriptor.digest == index.digest
    assert [request.path.rpartition("/")[2] for request in target.seen("HEAD", "/manifests/")][-1] == "1"
    with pytest.raises(minipull.Error, match="conflict"):
        copied(source, target, platforms=["linux/amd64"])


@pytest.mark.parametrize("end", ["docker", "oci"])
def test_a_blob_of_two_backends_is_copied_whole(
        server: ScriptedServer, target: Target, tmp_path: Path, end: str) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image([images.Spec(2500000, text=0, compression="")], "latest")
    server.serve(layout.root, "r")
    digest = image.layers[0].descriptor["digest"]
    data = layout.read(digest)
    half = [send(head(200, {"Content-Length": str(len(data))}) + data[:1500000]), close]
    server.on("GET", "/blobs/" + digest, half, content(data[:-1] + b"?"), content(data))
    copied("docker://%s/r" % server.host, target.place if end == "docker" else "oci:%s" % (tmp_path / "new"))
    assert {**target.blobs, **(blobs_of(tmp_path / "new") if end == "oci" else {})}[digest] == data
    assert len(server.seen("GET", "/blobs/" + digest)) == 3


# -- what is refused -------------------------------------------------------------


def test_a_wrong_source_leaves_no_name_at_the_target(server: ScriptedServer, target: Target, tmp_path: Path) -> None:
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
    monkeypatch.setattr(walk, "MAX_BYTES", size)
    copied("oci:%s" % layout.root, "oci:%s" % (tmp_path / "new"))
    monkeypatch.setattr(walk, "MAX_BYTES", size - 1)
    with pytest.raises(PolicyError, match="more than %d bytes of manifests" % (size - 1)) as caught:
        copied("oci:%s" % layout.root, "oci:%s" % (tmp_path / "new"))
    assert caught.value.exit_code == 9


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
