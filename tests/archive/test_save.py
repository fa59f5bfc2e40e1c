# SPDX-License-Identifier: Apache-2.0
"""Archives: the same bytes every time, and nothing of one is believed before it is verified."""
import gzip
import hashlib
import io
import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import (IO, Any, BinaryIO, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple,
                    Union, cast)

import pytest

from tests.kit import images
import minipull
from tests.kit.processes import Minipull, end, minipull_env, peer, run
from tests.kit.images import Layout, Spec, to_json
from minipull.archive import reader
from minipull.archive.check import check_archive
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.image import manifest
from minipull.image.descriptor import DOCKER_LAYER, DOCKER_MANIFEST, DOCKER_TAR
from minipull.digest import Digest
from minipull.store.store import host_platform
from minipull.distribution.archives import archive_end
from minipull.distribution.places import Place
from minipull.errors import (
    Cancelled, ContentMismatch, Error, InvalidDocument, InvalidReference, NotFound, PolicyError, StorageError)
from minipull.archive.load import load
from minipull.progress import Progress, discard
from minipull.reference import Reference
from minipull.store.store import Store
from minipull.cancel import Cancel
from minipull.xfer.transfer import TransferManager
from tests.kit.servers import ScriptedServer, Uploads, error, head, hold, send
from tests.store.test_store import descriptor, keep, keep_index, text_layer

NAME = "docker.io/library/busybox:latest"
HERE = str(host_platform())
OTHER = "linux/s390x"


class Hard(str):
    """The target of a hard link; a plain string is that of a symbolic one."""


Members = Mapping[str, Union[bytes, str]]


def pack(members: Members, extra: Sequence[Tuple[str, Union[bytes, str]]] = ()) -> bytes:
    """A tar of files and links, by somebody else's writer; ``extra`` may repeat a name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in [*members.items(), *extra]:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = tarfile.LNKTYPE if isinstance(data, Hard) else tarfile.SYMTYPE, data
                tar.addfile(info)
    return out.getvalue()


def members_of(path: Path) -> Dict[str, bytes]:
    with tarfile.open(str(path)) as tar:
        return {info.name: cast(IO[bytes], tar.extractfile(info)).read() for info in tar if info.isfile()}


def document(path: Path, name: str) -> Any:
    return json.loads(members_of(path)[name])


def layout_members(layout: Layout, entries: Sequence[Mapping[str, Any]]) -> Dict[str, Union[bytes, str]]:
    """An image layout with all blobs of ``layout``."""
    index = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": list(entries)}
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": to_json(index), **{
        "blobs/sha256/" + blob.name: blob.read_bytes()
        for blob in sorted((layout.root / "blobs" / "sha256").iterdir())}}


def named(image: images.Image, name: str = NAME, tag: str = "latest") -> Dict[str, Any]:
    """An entry as docker 25 writes it."""
    return {**image.descriptor, "annotations": {"io.containerd.image.name": name, images.NAME: tag}}


def plain(layout: Layout, layer: images.Layer) -> bytes:
    data = layout.read(layer.descriptor["digest"])
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def docker_members(layout: Layout, made: Mapping[str, images.Image]) -> Dict[str, Union[bytes, str]]:
    """What docker 1.10 to 24 saves: a layer that two images have is a link in the second."""
    members: Dict[str, Union[bytes, str]] = {}
    manifest = []
    repositories: Dict[str, Dict[str, str]] = {}
    seen: Dict[str, str] = {}
    for name, image in made.items():
        config, parent, paths = layout.read(image.config["digest"]), "", []
        for position, layer in enumerate(image.layers):
            top = config if layer is image.layers[-1] else b""
            v1 = hashlib.sha256(layer.diff_id.encode() + parent.encode() + top).hexdigest()
            members[v1 + "/VERSION"] = b"1.0"
            members[v1 + "/json"] = to_json({"id": v1, "parent": parent or None, "created": images.CREATED,
                                             "container_config": {"Cmd": ["make", str(position)]}})
            first = seen.setdefault(layer.diff_id, v1)
            members[v1 + "/layer.tar"] = plain(layout, layer) if first == v1 else "../%s/layer.tar" % first
            paths.append(v1 + "/layer.tar")
            parent = v1
        members[image.config["digest"][7:] + ".json"] = config
        manifest.append({"Config": image.config["digest"][7:] + ".json", "RepoTags": [name], "Layers": paths})
        path, _, tag = name.rpartition(":")
        repositories.setdefault(path, {})[tag] = parent
    return {**members, "manifest.json": to_json(manifest), "repositories": to_json(repositories)}


def hybrid_members(layout: Layout, image: images.Image, hollow: bool = False) -> Dict[str, Union[bytes, str]]:
    """What docker 25 saves: the same as before, and an image layout of uncompressed layers.

    ``hollow`` is what 25.0.0 made of it.
    """
    other = Layout(layout.root.parent / "hybrid")
    config = other.blob(layout.read(image.config["digest"]), images.OCI_CONFIG)
    layers = [other.blob(plain(layout, layer), images.OCI_LAYER) for layer in image.layers]
    raw = to_json({"schemaVersion": 2, "mediaType": images.OCI_MANIFEST, "config": config,
                   "layers": [] if hollow else layers})
    top = images.Image(other.blob(raw, images.OCI_MANIFEST), config, image.layers, raw)
    item = {"Config": "blobs/sha256/" + config["digest"][7:], "RepoTags": ["busybox:latest"],
            "Layers": ["blobs/sha256/" + layer["digest"][7:] for layer in layers]}
    return {**layout_members(other, [named(top)]), "manifest.json": to_json([item])}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"), timeout=10)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar"


def names(store: Store) -> List[str]:
    return [str(known.name) for known in store.references.all()]


class Messages(List[str]):
    def __call__(self, event: Progress) -> None:
        if event.message:
            self.append(event.message)


Three = Tuple[Store, Layout, Dict[str, images.Image]]


@pytest.fixture
def three(store: Store, layout: Layout) -> Three:
    """A store of three images: one for many platforms, one of schema 2 with two names."""
    _, index, _ = images.multi_platform(layout.root, "x")
    one = layout.image([text_layer("one"), text_layer("two", compression="")])
    old = Layout(layout.root.parent / "old", docker=True)
    two = old.image([text_layer("three"), text_layer("one")])
    keep_index(store, layout, index, "r.example.com/many:3")
    keep(store, layout, one, "docker.io/demo/one:1")
    keep(store, old, two, "docker.io/library/two:2")
    keep(store, old, two, "docker.io/library/two:b")
    return store, layout, {"r.example.com/many:3": index, "docker.io/demo/one:1": one,
                           "docker.io/library/two:2": two, "docker.io/library/two:b": two}


# -- what save writes ----------------------------------------------------------


def test_an_archive_has_what_every_reader_looks_for(three: Three, path: Path) -> None:
    store, _, made = three
    minipull.save(list(made), store, str(path))
    with tarfile.open(str(path)) as tar:
        infos = tar.getmembers()
    order = [info.name for info in infos]
    assert order[:6] == ["oci-layout", "index.json", "manifest.json", "repositories", "blobs", "blobs/sha256"]
    assert order[6:] == sorted(order[6:]) and len(set(order)) == len(order)
    for info in infos:
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
        assert info.mode == (0o755 if info.isdir() else 0o644)
    for name, data in members_of(path).items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(data).hexdigest() == name[len("blobs/sha256/"):]
    assert document(path, "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    index = document(path, "index.json")
    assert (index["schemaVersion"], index["mediaType"]) == (2, images.OCI_INDEX)
    assert [(entry["digest"], entry["annotations"]) for entry in index["manifests"]] == [
        (made[name].digest, {images.NAME: name, "io.containerd.image.name": name}) for name in sorted(made)]


def test_docker_is_told_of_the_images_for_this_host(three: Three, path: Path) -> None:
    store, layout, made = three
    minipull.save(list(made), store, str(path))
    items = {tuple(item["RepoTags"]): item for item in document(path, "manifest.json")}
    two = made["docker.io/library/two:2"]
    assert items["two:2", "two:b"] == {
        "Config": "blobs/" + two.config["digest"].replace(":", "/"), "RepoTags": ["two:2", "two:b"],
        "Layers": ["blobs/" + layer.descriptor["digest"].replace(":", "/") for layer in two.layers]}
    assert set(items) == {("two:2", "two:b"), ("demo/one:1",), ("r.example.com/many:3",)}
    config = json.loads(members_of(path)[items["r.example.com/many:3",]["Config"]])
    assert HERE == "%(os)s/%(architecture)s" % config
    repositories = document(path, "repositories")
    assert set(repositories) == {"two", "demo/one", "r.example.com/many"}
    assert repositories["two"] == dict.fromkeys("2b", two.layers[-1].descriptor["digest"][7:])


def test_the_same_images_are_the_same_bytes(
        three: Three, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, made = three
    minipull.save(list(made), store, str(tmp_path / "a"))
    first = (tmp_path / "a").read_bytes()
    later = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: later)
    again = io.BytesIO()
    minipull.save([*sorted(made, reverse=True), "two:b"], store, again)
    assert again.getvalue() == first
    fresh = Store(str(tmp_path / "fresh"))
    load(str(tmp_path / "a"), fresh)
    assert names(fresh) == names(store) and check(fresh) == []
    minipull.save([Reference.parse(name) for name in made], fresh, str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == first


def test_a_name_without_a_tag_is_all_of_its_tags_and_an_id_is_none(three: Three, path: Path) -> None:
    store, _, made = three
    two = made["docker.io/library/two:2"]

    def saved(*refs: str) -> List[Optional[str]]:
        minipull.save(refs, store, str(path))
        return [entry.get("annotations", {}).get(images.NAME)
                for entry in document(path, "index.json")["manifests"]]

    assert saved("two") == ["docker.io/library/two:2", "docker.io/library/two:b"]
    assert saved("two:b", "demo/one") == ["docker.io/demo/one:1", "docker.io/library/two:b"]
    for name in (two.config["digest"], two.config["digest"][7:], two.config["digest"][7:19]):
        assert saved(name) == [None]
        assert document(path, "manifest.json")[0]["RepoTags"] is None
        assert "repositories" not in members_of(path)
    store.references.set(Reference.parse("two@" + two.digest), descriptor(two.descriptor), Digest(two.digest))
    assert saved("two@" + two.digest) == ["docker.io/library/two@" + two.digest]
    with pytest.raises(NotFound, match="No such image: nope:latest"):
        saved("nope")
    with pytest.raises(InvalidReference):
        saved("UPPER")


def test_one_platform_of_an_index_is_an_image_of_its_own(three: Three, path: Path) -> None:
    store, layout, made = three
    minipull.save(["r.example.com/many"], store, str(path), platform="linux/arm/v6")
    [entry] = document(path, "index.json")["manifests"]
    index = json.loads(made["r.example.com/many:3"].raw)
    assert entry["digest"] == next(
        child["digest"] for child in index["manifests"] if child["platform"].get("variant") == "v6")
    assert len([name for name in members_of(path) if name.startswith("blobs/")]) == 4
    assert document(path, "manifest.json")[0]["RepoTags"] == ["r.example.com/many:3"]
    with pytest.raises(NotFound, match="^r.example.com/many has nothing for linux/s390x$"):
        minipull.save(["r.example.com/many"], store, str(path), platform=OTHER)


def test_what_docker_cannot_run_here_is_not_told_to_it(store: Store, layout: Layout, path: Path) -> None:
    child = layout.image([text_layer("x")], platform=OTHER)
    index = layout.index([dict(child.descriptor, platform=images.parse_platform(OTHER))])
    chart = layout.image([], config={}, artifactType="application/x.chart")
    empty = layout.image([], config={"comment": "no layers"})
    for name, image in (("many", index), ("chart", chart), ("empty", empty)):
        keep_index(store, layout, image, "docker.io/library/%s:1" % name)
    messages = Messages()
    minipull.save(["many", "chart", "empty"], store, str(path), progress=messages)
    assert messages == ["warning: %s:1 has nothing for %s, so docker before 25 won't find it" % (name, HERE)
                        for name in ("chart", "many")]
    assert [item["RepoTags"] for item in document(path, "manifest.json")] == [["empty:1"]]
    assert "repositories" not in members_of(path)
    fresh = Store(str(path.parent / "fresh"))
    load(str(path), fresh)
    assert names(fresh) == names(store) and check(fresh) == []


def test_other_digest_algorithms_have_their_folder(store: Store, layout: Layout, path: Path) -> None:
    data = plain(layout, layout.layer(text_layer("x")))
    digest = "sha512:" + hashlib.sha512(data).hexdigest()
    store.content.put(Digest(digest), data)
    config = layout.blob(to_json({"rootfs": {"type": "layers", "diff_ids": [images.digest_of(data)]}}),
                         images.OCI_CONFIG)
    raw = to_json({"schemaVersion": 2, "mediaType": images.OCI_MANIFEST, "config": config,
                   "layers": [{"mediaType": images.OCI_LAYER, "digest": digest, "size": len(data)}]})
    made = images.Image(layout.blob(raw, images.OCI_MANIFEST), config, [], raw)
    keep_index(store, layout, made)
    minipull.save([NAME], store, str(path))
    with tarfile.open(str(path)) as tar:
        assert "blobs/sha512" in tar.getnames() and "blobs/" + digest.replace(":", "/") in tar.getnames()
    fresh = Store(str(path.parent / "fresh"))
    load(str(path), fresh)
    assert check(fresh) == []


def test_what_is_written_is_verified(three: Three, path: Path) -> None:
    store, _, made = three
    two = made["docker.io/library/two:2"]
    blob = Path(store.content.path(Digest(two.layers[0].descriptor["digest"])))
    data = blob.read_bytes()
    path.write_bytes(b"what was there")
    for wrong in (data[:-1] + b"?", data[:-1]):
        blob.write_bytes(wrong)
        with pytest.raises(StorageError, match="corrupt; run minipull check|lacks blob sha256:"):
            minipull.save(["two"], store, str(path))
    blob.unlink()
    with pytest.raises(StorageError, match="^two:2 lacks blob sha256:.* pull it again, with --foreign"):
        minipull.save(["two"], store, str(path))
    assert path.read_bytes() == b"what was there" and os.listdir(str(path.parent)).count(path.name) == 1
    assert not [name for name in os.listdir(str(path.parent)) if name.startswith("tmp-")]


def test_a_file_is_replaced_in_one_step_with_its_mode(three: Three, tmp_path: Path) -> None:
    store, _, _ = three
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    minipull.save(["two"], store, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and members_of(tmp_path / "real")
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    minipull.save(["two"], store, str(tmp_path / "new"))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600  # as docker does


def test_what_is_no_file_is_written_into(three: Three, tmp_path: Path) -> None:
    store, _, _ = three
    minipull.save(["two"], store, str(tmp_path / "file"))
    fifo, got = tmp_path / "fifo", []
    os.mkfifo(str(fifo))
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    minipull.save(["two"], store, str(fifo))
    reader.join(10)
    assert got == [(tmp_path / "file").read_bytes()] and stat.S_ISFIFO(fifo.stat().st_mode)
    minipull.save(["two"], store, os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_disk_that_fails_leaves_what_was_there(
        three: Three, path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store, _, _ = three
    path.write_bytes(b"what was there")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(StorageError, match="^write .*archive.tar: No space left on device$"):
            minipull.save(["two"], store, str(path))
    assert path.read_bytes() == b"what was there"
    assert sorted(os.listdir(str(path.parent))) == ["archive.tar", "layout", "old", "root"]
    with pytest.raises(StorageError, match="^write .*/nowhere/x: No such file or directory$"):
        minipull.save(["two"], store, str(path.parent / "nowhere" / "x"))


def test_neither_way_holds_a_layer_in_memory(store: Store, layout: Layout, home: Path, path: Path) -> None:
    size = 64 << 20
    keep(store, layout, layout.image([Spec(size, files=2, text=1.0, compression="")]))
    code = """if True:
        import minipull, sys
        name, root, path = sys.argv[1:]
        minipull.save([name], minipull.Store(root), path)
        minipull.load(path, minipull.Store(root + "2"))
        print(open("/proc/self/status").read())"""
    done = run([sys.executable, "-c", code, NAME, store.root, path], minipull_env(home))
    [peak] = [int(line.split()[1]) << 10 for line in done.out.splitlines() if line.startswith("VmHWM:")]
    assert peak < size


def test_save_and_load_end_when_cancelled(three: Three, path: Path) -> None:
    store, _, made = three
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        minipull.save(list(made), store, str(path), cancel=cancel)
    assert not path.exists()
    minipull.save(list(made), store, str(path))
    fresh = Store(str(path.parent / "fresh"))
    with pytest.raises(Cancelled):
        load(str(path), fresh, cancel=cancel)
    assert names(fresh) == []


# -- what load takes -----------------------------------------------------------


class Kind(NamedTuple):
    """An archive of somebody's, and what load makes of it."""

    members: Callable[[Layout, images.Image], Members]
    media_type: str  # of the layers
    same: bool = False  # has the manifest of the image


def crane_members(layout: Layout, image: images.Image) -> Members:
    blobs = [layer.descriptor["digest"] for layer in image.layers]
    config, paths = image.config["digest"], [blob[7:] + ".tar.gz" for blob in blobs]
    return {config: layout.read(config), **{path: layout.read(blob) for path, blob in zip(paths, blobs)},
            "manifest.json": to_json([{"Config": config, "RepoTags": [NAME], "Layers": paths}])}


def linked_members(layout: Layout, image: images.Image) -> Members:
    """skopeo's and podman's way: a file for each layer, with links from where docker had it."""
    members = dict(docker_members(layout, {"busybox:latest": image}))
    [item] = json.loads(members["manifest.json"])
    for number, name in enumerate(item["Layers"]):
        diff_id = image.layers[number].diff_id[7:]
        members[diff_id + ".tar"] = plain(layout, image.layers[number])
        members[name] = "../%s.tar" % diff_id
    return {"./" + name: data for name, data in members.items()}


KINDS = {
    "docker": Kind(lambda layout, image: docker_members(layout, {"busybox:latest": image}), DOCKER_TAR),
    "linked": Kind(linked_members, DOCKER_TAR),
    "hybrid": Kind(hybrid_members, images.OCI_LAYER),
    "hollow": Kind(lambda layout, image: hybrid_members(layout, image, True), DOCKER_TAR),
    "crane": Kind(crane_members, DOCKER_LAYER),
    "containerd": Kind(
        lambda layout, image: layout_members(layout, [named(image)]), images.OCI_LAYER + "+gzip", True),
    "podman": Kind(lambda layout, image: layout_members(
        layout, [{**image.descriptor, "annotations": {images.NAME: NAME}}]), images.OCI_LAYER + "+gzip", True),
    "skopeo": Kind(lambda layout, image: layout_members(
        layout, [{**image.descriptor, "annotations": {images.NAME: "busybox:latest"}}]),
        images.OCI_LAYER + "+gzip", True)}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_others_write_is_loaded(store: Store, layout: Layout, path: Path, kind: str) -> None:
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


def test_what_docker_saved_before_it_had_a_manifest_is_loaded(store: Store, layout: Layout, path: Path) -> None:
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


def test_of_an_index_that_is_there_in_part_the_part_is_loaded(store: Store, layout: Layout, path: Path) -> None:
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
def test_what_has_no_whole_name_is_known_by_its_digest(
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


def test_a_layer_that_nobody_can_read_here_is_kept_unverified(
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


# -- names ---------------------------------------------------------------------


def test_each_name_that_is_replaced_is_told(store: Store, layout: Layout, path: Path) -> None:
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


@pytest.mark.parametrize("kind", ["docker", "crane", "containerd"])
def test_a_layer_must_be_what_its_config_says(store: Store, layout: Layout, path: Path, kind: str) -> None:
    """HA05, and HA04: one member is no two layers."""
    image = layout.image([text_layer("one"), text_layer("two")])
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


# -- hostile archives ----------------------------------------------------------


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
        "link twice (HA03)": ({**but(Layers=["x"]), "x": layers[0]}, [("x", layers[0])]),
        "manifest missing (HA04)": ({config: members[config]}, ()),
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


def test_blobs_of_a_layout_are_looked_for_in_the_archive_alone(store: Store, layout: Layout, path: Path) -> None:
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


def test_old_directories_are_no_way_out_either(store: Store, layout: Layout, path: Path) -> None:
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
    (b"\x1f\x8b", "archive's gzip stream is cut short"), (b"BZh9", "bzip2 or xz"), (b"\xfd7zXZ\0", "bzip2 or xz"),
    (bytes(1024), "there is no image in it"),
    (gzip.compress(b"garbage" * 100), "cut short|damaged header|malformed")])
def test_what_is_no_archive_is_told(store: Store, path: Path, data: bytes, text: str) -> None:
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
    monkeypatch.setattr(reader, "MAX_DOCUMENTS", 400)
    path.write_bytes(pack(docker))
    with pytest.raises(PolicyError, match="larger than"):
        load(str(path), store)
    monkeypatch.setattr(reader, "MAX_MEMBERS", 4)
    with pytest.raises(PolicyError, match="more than 4 members"):
        load(str(path), store)
    assert names(store) == []


def test_an_image_of_too_many_layers_is_refused(store: Store, layout: Layout, path: Path) -> None:
    image = layout.image([text_layer("one")] * 1001)
    path.write_bytes(pack(docker_members(layout, {"busybox:latest": image})))
    with pytest.raises(PolicyError, match="1001 layers, the limit is 1000"):
        load(str(path), store)


def test_a_file_that_cannot_be_read_is_told(
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


# -- commands ------------------------------------------------------------------


@pytest.fixture
def saved(three: Three, path: Path) -> Path:
    """An archive of :func:`three`."""
    store, _, made = three
    minipull.save(list(made), store, str(path))
    return path


def test_save_and_load_as_a_user_sees_them(saved: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    root = ["--root", tmp_path / "fresh"]
    done = run_minipull(*root, "load", "-i", saved)
    lines = "".join("Loaded image: %s\n" % name for name in (
        "demo/one:1", "two:2", "two:b", "r.example.com/many:3"))
    assert (done.code, done.out) == (0, lines) and "Loading layer" in done.err, done
    assert run_minipull(*root, "load", "-q", stdin=saved.read_bytes()).out == lines
    done = run_minipull(*root, "save", "demo/one", "two", "r.example.com/many")
    assert done.code == 0 and done.raw == saved.read_bytes() and "Saving" in done.err
    done = run_minipull(*root, "save", "-q", "-o", tmp_path / "again", "demo/one", "two", "r.example.com/many")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    done = run_minipull(*root, "load", "--format", "json", stdin=gzip.compress(saved.read_bytes()))
    assert [item["name"] for item in json.loads(done.out)][0] == "docker.io/demo/one:1"
    done = run_minipull(
        *root, "save", "--platform", "linux/arm64", "-o", tmp_path / "again", "r.example.com/many")
    assert done.code == 0 and document(tmp_path / "again", "index.json")["manifests"][0]["mediaType"] == (
        images.OCI_MANIFEST)


def test_an_image_without_a_name_is_loaded_by_id(
        layout: Layout, path: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    image = layout.image([text_layer("one")])
    path.write_bytes(pack(layout_members(layout, [image.descriptor])))
    root = ["--root", tmp_path / "root"]
    assert run_minipull(*root, "load", "-i", path).out == "Loaded image ID: %s\n" % image.config["digest"]
    assert run_minipull(*root, "tag", image.config["digest"], "x:1").code == 0
    assert run_minipull(*root, "rm", "localhost/loaded@" + image.digest).code == 0
    assert "docker.io/library/x:1" in run_minipull(*root, "images").out


@pytest.mark.parametrize("args, code, text", [
    (["load", "-i", "/nowhere"], 7, "load /nowhere: open /nowhere: No such file or directory"),
    (["load"], 6, "load: there is no image in it: no index.json, manifest.json or repositories"),
    (["save", "nope"], 3, "No such image: nope:latest"), (["save", "-o", "x", "UPPER"], 2, None),
    (["save"], 2, None), (["save", "--platform", "x/y/z/w", "two"], 2, None)])
def test_what_goes_wrong_is_one_line(
        three: Three, run_minipull: Minipull, args: List[str], code: int, text: Optional[str]) -> None:
    done = run_minipull("--root", three[0].root, *args)
    assert (done.code, done.out) == (code, "") and done.err.count("\n") == 1, done
    assert text is None or done.err == "minipull: %s\n" % text


@pytest.mark.parametrize("args, text", [
    (["save", "two"], "refusing to write an archive to a terminal"), (["load"], "give -i FILE")])
def test_a_terminal_is_no_archive(three: Three, home: Path, args: List[str], text: str) -> None:
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "minipull", "--root", three[0].root, *args], stdin=slave, stdout=slave,
            stderr=subprocess.PIPE, env=minipull_env(home), cwd=str(home), timeout=60)
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 2 and text in done.stderr.decode()


def test_a_reader_that_leaves_ends_save_quietly(
        store: Store, layout: Layout, home: Path) -> None:
    """HA11."""
    keep(store, layout, layout.image([Spec(4 << 20, compression="")]))
    with subprocess.Popen(
            [sys.executable, "-m", "minipull", "--root", store.root, "save", "-q", NAME], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=minipull_env(home), cwd=str(home)) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1000)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_writer_that_leaves_is_told(saved: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    """HA11."""
    data = saved.read_bytes()
    done = run_minipull("--root", tmp_path / "fresh", "load", stdin=data[:len(data) // 2])
    assert (done.code, done.out) == (6, "") and "cut short" in done.err, done
    assert run_minipull("--root", tmp_path / "fresh", "images", "--format", "json").out == "[]\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", ["file", "gzip"])
def test_a_load_that_is_killed_leaves_nothing_that_gc_does_not_take(
        store: Store, layout: Layout, home: Path, path: Path, number: int, how: str) -> None:
    data = pack(layout_members(layout, [named(layout.image(images.specs(2, 3 << 20)))]))
    path.write_bytes(gzip.compress(data) if how == "gzip" else data)
    code = ("import minipull, sys, time\n"
            "def wait(event):\n    print('go', flush=True)\n    time.sleep(60)\n"
            "minipull.load(sys.argv[1], minipull.Store(sys.argv[2]), progress=wait)")
    process = subprocess.Popen([sys.executable, "-c", code, str(path), store.root], stdout=subprocess.PIPE,
                               env=minipull_env(home))
    assert process.stdout is not None
    try:
        assert process.stdout.read(2) == b"go"
        process.send_signal(number)
        assert process.wait(10) == -number
    finally:
        end(process)
    with process.stdout:
        assert names(store) == [] and check(store) == []
    gc(store, 0)
    assert store.content.digests() == [] == os.listdir(store.content.scratch)
    assert len(load(str(path), store)) == 1 and check(store) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_save_that_is_killed_leaves_the_file_that_was_there(
        store: Store, layout: Layout, home: Path, path: Path, number: int) -> None:
    """CR09, CR11."""
    keep(store, layout, layout.image([text_layer("one")]))
    path.write_bytes(b"what was there")
    process = subprocess.Popen(
        [sys.executable, "-c", "import minipull, sys, time\n"
         "def wait(event):\n    print('go', flush=True)\n    time.sleep(60)\n"
         "minipull.save(sys.argv[1:2], minipull.Store(sys.argv[2]), sys.argv[3], progress=wait)",
         NAME, store.root, str(path)], stdout=subprocess.PIPE, env=minipull_env(home))
    assert process.stdout is not None
    try:
        assert process.stdout.read(2) == b"go"
        process.send_signal(number)
        assert process.wait(10) == -number
    finally:
        end(process)
    with process.stdout:
        assert path.read_bytes() == b"what was there"


# -- check ---------------------------------------------------------------------


def test_check_validates_an_archive(saved: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    root = ["--root", tmp_path / "none"]
    done = run_minipull(*root, "check", saved)
    assert (done.code, done.out, done.err) == (0, "%s: ok\n" % saved, "")
    assert not (tmp_path / "none").exists()
    data = bytearray(saved.read_bytes())
    with tarfile.open(str(saved)) as tar:
        data[tar.getmembers()[-1].offset_data] ^= 1
    saved.write_bytes(data)
    done = run_minipull(*root, "check", "--format", "json", saved)
    problems = json.loads(done.out)
    assert done.code == 6 and not problems["ok"]
    assert problems["problems"][0]["path"].startswith("%s/blobs/sha256/" % saved)
    done = run_minipull("--root", tmp_path / "root", "check", saved, "two:2")
    assert done.code == 6 and done.out.endswith("%s: damaged\n%s: ok\n" % (saved, tmp_path / "root"))
    saved.write_bytes(b"x")
    done = run_minipull(*root, "check", saved)
    assert (done.code, done.out.count("\n")) == (6, 2) and "%s: archive: tar:" % saved in done.out
    assert run_minipull(*root, "check", tmp_path / "nothing.tar").code != 0


def test_one_flipped_byte_of_an_archive_is_found(three: Three, path: Path) -> None:
    """But for what nobody reads: owners, times, and what docker alone would."""
    store, _, made = three
    minipull.save(["two:2"], store, str(path))
    sound = path.read_bytes()
    with tarfile.open(str(path)) as tar:
        spans = [(info.name, info.offset_data, info.size)
                 for info in tar if info.name.startswith("blobs/sha256/")]
    with path.open("r+b", buffering=0) as file:
        for name, start, size in spans:
            for offset in {start, start + size // 2, start + size - 1, start - 512, start - 512 + 130}:
                os.pwrite(file.fileno(), bytes([sound[offset] ^ 1]), offset)
                assert check_archive(str(path), Cancel()), (name, offset)
                os.pwrite(file.fileno(), sound[offset:offset + 1], offset)
    assert check_archive(str(path), Cancel()) == []
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        check_archive(str(path), cancel)


# -- copy ----------------------------------------------------------------------


def test_every_image_of_an_archive_goes_to_a_registry(three: Three, saved: Path, server: ScriptedServer) -> None:
    store, _, made = three
    targets = {name: Uploads(server, "mirror/" + path) for name, path in (
        ("r.example.com/many:3", "many"), ("docker.io/demo/one:1", "demo/one"),
        ("docker.io/library/two:2", "library/two"))}
    minipull.copy("docker-archive:%s" % saved, "docker://%s/mirror/" % server.host)
    for name, target in targets.items():
        assert target.manifests[name.rpartition(":")[2]] == made[name].raw
    assert "b" in targets["docker.io/library/two:2"].manifests


def test_an_archive_is_copied_as_it_is(three: Three, saved: Path, tmp_path: Path) -> None:
    store, _, made = three
    minipull.copy("oci-archive:%s" % saved, "docker-archive:%s" % (tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    minipull.copy("oci-archive:%s" % saved, "oci:%s" % (tmp_path / "layout2"))
    entries = json.loads((tmp_path / "layout2" / "index.json").read_bytes())["manifests"]
    assert {entry["annotations"][images.NAME]: entry["digest"] for entry in entries} == {
        name: image.digest for name, image in made.items()}
    fresh = Store(str(tmp_path / "fresh"))
    copied = minipull.copy("docker-archive:%s:demo/one:1" % saved, "store:x:1", store=fresh)
    assert copied.source == made["docker.io/demo/one:1"].digest and check(fresh) == []
    minipull.copy("store:x:1", "oci-archive:%s:app" % (tmp_path / "one"), store=fresh)
    assert document(tmp_path / "one", "manifest.json")[0]["RepoTags"] == ["app:latest"]
    minipull.copy("oci-archive:%s" % (tmp_path / "one"), "store:y:1", store=fresh)  # the only one
    assert sorted(os.listdir(str(tmp_path))) == [
        "again", "archive.tar", "fresh", "layout", "layout2", "old", "one", "root"]


def test_an_odd_label_and_no_label_are_found(layout: Layout, path: Path, tmp_path: Path) -> None:
    one, two = layout.image([text_layer("one")]), layout.image([text_layer("two")])
    path.write_bytes(pack(layout_members(layout, [
        {**one.descriptor, "annotations": {images.NAME: "v1"}}, two.descriptor])))
    target = "oci:%s" % (tmp_path / "out")
    assert minipull.copy("oci-archive:%s:v1" % path, target + ":x").source == one.digest
    minipull.copy("oci-archive:%s" % path, target)
    entries = json.loads((tmp_path / "out" / "index.json").read_bytes())["manifests"]
    assert [(entry["digest"], entry.get("annotations", {}).get(images.NAME)) for entry in entries] == [
        (one.digest, "x"), (one.digest, "v1"), (two.digest, None)]


@pytest.mark.parametrize("source, target, text", [
    ("oci-archive:%s", "store:x", "several images, so name one: docker.io/demo/one:1, docker.io"),
    ("oci-archive:%s:nope", "store:x", "no image docker.io/library/nope:latest; there is docker.io/demo/one:1"),
    ("oci-archive:%s:UPPER", "store:x", "must be lowercase"),
    ("store:two:2", "docker://localhost/", "is for all images of an archive"),
    ("oci-archive:/nowhere", "store:x", "open /nowhere: No such file"),
    ("store:two:2", "oci-archive:/nowhere/x", "write /nowhere/x: No such file")])
def test_what_cannot_be_copied_says_so(three: Three, saved: Path, source: str, target: str, text: str) -> None:
    with pytest.raises(Error, match="^copy .* to .*: .*" + text):
        minipull.copy(source % saved if "%" in source else source, target, store=three[0])


def test_nothing_is_left_of_an_archive_that_failed(
        layout: Layout, tmp_path: Path, server: ScriptedServer) -> None:
    """Also where another layer is still on its way when the first has failed."""
    image = layout.image(images.specs(2, 200000), "1")
    server.serve(layout.root, "r")
    first, second = (layer.descriptor["digest"] for layer in image.layers)
    began, go, data = threading.Event(), threading.Event(), layout.read(first)
    server.on("GET", "/blobs/" + first, [send(head(200, {"Content-Length": str(len(data))}) + data[:1000]),
                                         lambda connection: began.set(), hold(go)])
    server.on("GET", "/blobs/" + second, [hold(began), error(404, "BLOB_UNKNOWN")])
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(Error, match="^copy .* to .*/out/a.tar: "):
        minipull.copy("docker://%s/r:1" % server.host, "oci-archive:%s" % (folder / "a.tar"))
    assert os.listdir(str(folder)) == []
    go.set()


def test_a_transfer_that_starts_late_makes_nothing(layout: Layout, path: Path) -> None:
    blob = descriptor(layout.image([text_layer("one")]).config)
    manager = TransferManager(1)
    with archive_end(Place.parse("oci-archive:%s" % path), discard, Cancel()) as made:
        pass
    watcher = manager.transfer("late", lambda transfer: made.receive(blob, made, transfer), discard)
    with pytest.raises(Cancelled):
        manager.wait([watcher], Cancel())
    manager.release(watcher)
    assert sorted(os.listdir(str(path.parent))) == ["archive.tar", "layout"]


def test_a_damaged_archive_is_not_copied(
        three: Three, saved: Path, tmp_path: Path, server: ScriptedServer) -> None:
    store, _, made = three
    layer = made["docker.io/demo/one:1"].layers[0].descriptor["digest"]
    with tarfile.open(str(saved)) as tar:
        start = tar.getmember("blobs/" + layer.replace(":", "/")).offset_data
    with saved.open("r+b") as file:
        file.seek(start + 20)
        byte = file.read(1)
        file.seek(start + 20)
        file.write(bytes([byte[0] ^ 1]))
    target = Uploads(server, "r")
    for place in ("docker://%s/r:1" % server.host, "oci:%s:x" % (tmp_path / "out"),
                  "oci-archive:%s" % (tmp_path / "a")):
        with pytest.raises(Error):
            minipull.copy("oci-archive:%s:demo/one:1" % saved, place)
    assert target.manifests == {} and not (tmp_path / "a").exists()
    assert not (tmp_path / "out" / "index.json").exists()
