# SPDX-License-Identifier: Apache-2.0
"""save: what is in an archive, and how the file comes to be."""
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, List, Optional, cast

import pytest

import minipull
from minipull.archive.load import load
from minipull.cancel import Cancel
from minipull.digest import Digest
from minipull.errors import Cancelled, InvalidReference, NotFound, StorageError
from minipull.reference import Reference
from minipull.store.check import check
from minipull.store.store import Store
from tests.kit import images
from tests.kit.archives import HERE, NAME, OTHER, Messages, Three, document, members_of, names, plain
from tests.kit.images import Layout, Spec, to_json
from tests.kit.layers import in_child
from tests.kit.processes import minipull_env, run
from tests.kit.stores import descriptor, keep, keep_index, text_layer


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


def test_manifest_json_lists_the_images_for_this_host(three: Three, path: Path) -> None:
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


def test_manifest_json_leaves_out_images_for_other_hosts(store: Store, layout: Layout, path: Path) -> None:
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


def test_save_verifies_every_blob(three: Three, path: Path) -> None:
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
    assert not [name for name in os.listdir(str(path.parent)) if name.startswith(".minipull-")]


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


def test_save_writes_into_a_device_or_pipe(three: Three, tmp_path: Path) -> None:
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


def test_an_open_file_that_takes_a_part_at_a_time_gets_all(three: Three) -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.taken = bytearray()

        def write(self, data: Any) -> int:
            self.taken += bytes(data[:1000])
            return len(data[:1000])

    slow, whole = Slow(), io.BytesIO()
    minipull.save(["demo/one:1"], three[0], cast(BinaryIO, slow))
    minipull.save(["demo/one:1"], three[0], whole)
    assert bytes(slow.taken) == whole.getvalue()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_open_file_that_is_full_is_an_error_of_ours(three: Three) -> None:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(StorageError, match="write the tar: No space"):
        minipull.save(["demo/one:1"], three[0], file)


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_failing_disk_leaves_the_former_file(
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


@pytest.mark.parametrize("end", ["save", "copy"])
def test_what_a_kill_leaves_beside_an_archive_goes_with_the_next_run_there(
        three: Three, path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    store, _, made = three

    def run() -> None:
        if end == "save":
            minipull.save(["two"], store, str(path))
        else:
            minipull.copy("store:two:2", "oci-archive:%s" % path, store=store)

    before = set(os.listdir(str(path.parent)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new: os._exit(9) if new == str(path) else os.rename(old, new))
        with pytest.raises(EOFError):
            in_child(run)
    debris = set(os.listdir(str(path.parent))) - before
    assert len(debris) == (1 if end == "save" else 2), debris
    assert all(name.startswith(".minipull-archive.tar-") for name in debris)
    minipull.save(["two"], store, str(path.parent / "other.tar"))
    assert debris < set(os.listdir(str(path.parent)))
    minipull.save(["two"], store, str(path))
    assert set(os.listdir(str(path.parent))) - before == {"archive.tar", "other.tar"}


def test_save_and_load_hold_no_layer_in_memory(store: Store, layout: Layout, home: Path, path: Path) -> None:
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
