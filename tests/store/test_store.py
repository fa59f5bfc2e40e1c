# SPDX-License-Identifier: Apache-2.0
"""The store: images by name, what they need, and which of it is there."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest

from minipull.digest import Digest
from minipull.errors import InvalidReference, NotFound, PolicyError, StorageError
from minipull.image.config import Image
from minipull.image.descriptor import Descriptor
from minipull.reference import Reference
from minipull.store.gc import gc
from minipull.store.store import Store
from tests.kit import ROOT, images
from tests.kit.images import Layout
from tests.kit.stores import NAME, blobs, descriptor, keep, keep_index, multi, problems, text_layer


# -- images --------------------------------------------------------------------


def test_reading_an_absent_store_creates_nothing(store: Store) -> None:
    with store.reading():
        assert store.images() == []
        assert gc(store, 0) == ([], 0)
        assert problems(store) == []
    with pytest.raises(NotFound, match="No such image: busybox:latest"):
        store.image("busybox")
    assert not os.path.exists(store.root)


def test_an_image_is_found_by_name_id_and_prefix(store: Store, layout: Layout) -> None:
    made = layout.image([text_layer("one")])
    keep(store, layout, made)
    found = store.image("busybox")
    assert (found.id, found.descriptor.digest, str(found.name)) == (made.config["digest"], made.digest, NAME)
    for text in (found.id, found.id.encoded, found.id.short, "docker.io/library/busybox:latest"):
        assert store.image(text) == found
    assert store.image(Reference.parse(NAME)) == found
    with pytest.raises(NotFound, match="No such image"):
        store.image("f" * 64)
    with pytest.raises(NotFound, match="No such image: deadbeef:latest"):
        store.image("deadbeef")


def test_an_ambiguous_id_prefix_is_refused(store: Store, layout: Layout) -> None:
    made = [layout.image([], config={"comment": str(n)}) for n in range(5000)]
    by_prefix: Dict[str, images.Image] = {}
    for one in made:
        other = by_prefix.setdefault(one.config["digest"][:13], one)
        if other is not one:
            break
    else:
        pytest.fail("no two configs begin alike")
    keep(store, layout, one, "one:1")
    keep(store, layout, other, "other:1")
    prefix = one.config["digest"][7:13]
    ids = sorted(((made.config["digest"][7:19], name) for made, name in ((one, "one:1"), (other, "other:1"))))
    text = "image ID prefix %s is ambiguous: %s (%s), %s (%s)$" % (prefix, *ids[0], *ids[1])
    with pytest.raises(InvalidReference, match=re.sub("[()]", r"\\\g<0>", text)):
        store.image(prefix)


def test_one_damaged_image_hides_no_other(store: Store, layout: Layout) -> None:
    good, bad = (layout.image([], config={"comment": text}) for text in ("good", "bad"))
    keep(store, layout, good, "good:1")
    keep(store, layout, bad, "bad:1")
    Path(store.content.path(Digest(bad.config["digest"]))).write_bytes(b"{")
    assert [str(image.name) for image in store.images()] == ["docker.io/library/good:1"]
    with pytest.raises(StorageError, match="corrupt"):
        store.image("bad:1")


def test_an_index_as_a_whole_and_an_artifact_have_no_config(store: Store, tmp_path: Path) -> None:
    layout, top, _ = multi(tmp_path / "multi")
    keep_index(store, layout, top)
    image = store.image("busybox")
    assert (image.config, image.id) == (None, top.digest)
    chart = layout.blob(b"{}", "application/vnd.cncf.helm.config.v1+json")
    manifest = layout.blob(images.to_json({"schemaVersion": 2, "mediaType": images.OCI_MANIFEST,
                                           "config": chart, "layers": []}), images.OCI_MANIFEST)
    keep_index(store, layout, images.Image(manifest, {}, [], b""), "chart:1")
    assert store.image("chart:1").config is None
    assert problems(store) == []


def test_a_document_that_became_unreadable_is_the_disks_fault(store: Store) -> None:
    raw = b"not a manifest"
    digest = Digest.of(raw)
    store.content.put(digest, raw)
    with pytest.raises(StorageError, match="run minipull check"):
        store.document(Descriptor(images.OCI_MANIFEST, digest, len(raw)))


def test_walk_meets_everything_once_children_first(store: Store, tmp_path: Path) -> None:
    layout, top, made = multi(tmp_path / "multi", nested=True)
    keep_index(store, layout, top)
    met = [item.digest for item, _ in store.walk(descriptor(top.descriptor))]
    assert len(met) == len(set(met)) and sorted(met) == blobs(store)
    for image in made.values():
        places = [met.index(Digest(d)) for d in (image.config["digest"], image.digest, top.digest)]
        assert places == sorted(places)
    assert store.size(descriptor(top.descriptor)) == sum(
        path.stat().st_size for path in (layout.root / "blobs" / "sha256").iterdir())


def test_walk_meets_a_child_that_is_listed_twice_once(store: Store, layout: Layout) -> None:
    made = layout.image([])
    top = layout.index([made.descriptor, made.descriptor])
    keep_index(store, layout, top)
    met = [item.digest for item, _ in store.walk(descriptor(top.descriptor))]
    assert met == [made.config["digest"], made.digest, top.digest]


def test_a_nest_of_indexes_has_a_bottom(store: Store, layout: Layout) -> None:
    top = layout.index([])
    for _ in range(9):
        top = layout.index([top.descriptor])
    keep_index(store, layout, top)
    with pytest.raises(PolicyError, match="nested"):
        list(store.walk(descriptor(top.descriptor)))
    with pytest.raises(PolicyError):
        gc(store, 0)
    assert "image" in [problem.kind for problem in problems(store)]


def test_an_index_past_the_bounds_of_a_walk_is_still_listed_with_a_size(
        store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, top, *_ = multi(tmp_path / "layout")
    keep_index(store, layout, top)
    whole = store.size(descriptor(top.descriptor))
    monkeypatch.setattr("minipull.image.walk.MAX_DOCUMENTS", 2)
    with pytest.raises(PolicyError):
        list(store.missing(descriptor(top.descriptor)))
    assert 0 < store.size(descriptor(top.descriptor)) < whole
    assert [str(image.name) for image in store.images()] == [NAME]


def test_a_blob_of_another_size_is_missing(store: Store, layout: Layout) -> None:
    made = layout.image([text_layer("one")])
    keep(store, layout, made)
    top = descriptor(made.descriptor)
    assert list(store.missing(top)) == []
    blob = Path(store.content.path(Digest(made.layers[0].descriptor["digest"])))
    blob.write_bytes(blob.read_bytes()[:-1])
    assert [item.digest for item in store.missing(top)] == [made.layers[0].descriptor["digest"]]
    blob.unlink()
    assert [item.digest for item in store.missing(top)] == [made.layers[0].descriptor["digest"]]


def test_a_foreign_layer_may_be_elsewhere(store: Store, layout: Layout) -> None:
    made = layout.image([text_layer("one")])
    document = json.loads(made.raw.decode())
    document["layers"][0].update(
        mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", urls=["https://a/b"])
    top = layout.blob(images.to_json(document), images.OCI_MANIFEST)
    for part in (made.config, top):
        store.content.put(Digest(part["digest"]), layout.read(part["digest"]))
    store.references.set(Reference.parse(NAME), descriptor(top), Digest(top["digest"]))
    assert list(store.missing(descriptor(top))) == []
    assert [problem.kind for problem in problems(store)] == ["unverified"]


# -- names ---------------------------------------------------------------------


def test_a_tag_needs_every_blob(store: Store, layout: Layout) -> None:
    made = layout.image([text_layer("one")])
    keep(store, layout, made)
    image = store.image("busybox")
    store.tag("copy", image)
    assert store.image("copy:latest").descriptor == image.descriptor
    with pytest.raises(InvalidReference, match="digest reference"):
        store.tag("copy@" + image.source, image)
    os.unlink(store.content.path(Digest(made.layers[0].descriptor["digest"])))
    with pytest.raises(StorageError, match="lacks blob"):
        store.tag("other", image)
    assert [str(item.name) for item in store.references.all()] == [NAME, "docker.io/library/copy:latest"]


def test_removing_a_name_keeps_the_blobs(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    before = blobs(store)
    store.remove(Reference.parse(NAME))
    assert blobs(store) == before and store.references.all() == []
    with pytest.raises(NotFound, match="No such image: busybox:latest"):
        store.remove(Reference.parse(NAME))


# -- what a caller sees --------------------------------------------------------


def test_the_image_says_what_its_tag_resolved_to(store: Store, tmp_path: Path) -> None:
    layout, top, made = multi(tmp_path / "multi")
    keep(store, layout, made["linux/arm64"], index=top)
    image: Image = store.image("busybox")
    assert (image.source, image.architecture, str(image)) == (
        top.digest, "arm64", "docker.io/library/busybox@" + top.digest)


def test_removing_a_name_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "absent"))
    with pytest.raises(NotFound, match="No such image: x:1"):
        store.remove(Reference.parse("x:1"))
    assert not (tmp_path / "absent").exists()


# -- other users of the host -----------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of another user")
@pytest.mark.parametrize("name, mode, owner, told", [
    ("", 0o755, 0, ""), ("a", 0o775, 0, ""), ("a/root", 0o2775, 0, ""), ("a/root/blobs", 0o770, 0, ""),
    ("", 0o1777, 0, ""), ("a", 0o1777, 0, ""),
    ("", 0o777, 0, "is writable by all users"), ("a", 0o757, 0, "is writable by all users"),
    ("a/root", 0o1777, 0, "is writable by all users"), ("a/root", 0o702, 0, "is writable by all users"),
    ("a/root/blobs", 0o777, 0, "is writable by all users"), ("a/root/ingest", 0o1777, 0, "is writable by all users"),
    ("a/root/blobs/sha256", 0o777, 0, "is writable by all users"),
    ("a/root/blobs/sha512", 0o777, 0, "is writable by all users"),
    ("a/root/index.json", 0o666, 0, "is writable by all users"),
    ("", 0o755, 1234, "belongs to another user (1234)"), ("a", 0o700, 1234, "belongs to another user (1234)"),
    ("a/root", 0o700, 1234, "belongs to another user (1234)"),
    ("a/root/blobs/sha256", 0o700, 1234, "belongs to another user (1234)"),
    ("a/root/index.json", 0o600, 1234, "belongs to another user (1234)")])
def test_what_lets_other_users_change_a_store_is_told(
        tmp_path: Path, layout: Layout, name: str, mode: int, owner: int, told: str) -> None:
    store, path = Store(str(tmp_path / "a" / "root")), str(tmp_path / name)
    assert store.exposure() == ""  # nothing is there yet
    keep(store, layout, layout.image([text_layer("one")]))
    (tmp_path / "a" / "root" / "blobs" / "sha512").mkdir()
    assert store.exposure() == ""
    os.chown(path, owner, owner)
    os.chmod(path, mode)
    linked = tmp_path / "link"
    linked.symlink_to(store.root)
    expected = "%s %s" % (path, told) if told else ""
    assert store.exposure() == Store(str(linked)).exposure() == expected
    os.chmod(path, 0o755)
    os.chown(path, 0, 0)
    os.chown(str(linked), 1234, 1234, follow_symlinks=False)
    assert Store(str(linked)).exposure() == "%s belongs to another user (1234)" % linked


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of another user")
def test_a_root_that_is_not_there_is_judged_by_the_directories_above(tmp_path: Path) -> None:
    os.chmod(str(tmp_path), 0o777)
    store = Store(str(tmp_path / "a" / "b"))
    assert store.exposure() == "%s is writable by all users" % tmp_path and not os.path.exists(store.root)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_user_of_his_own_home_and_of_a_store_of_root_is_told_nothing(tmp_path: Path) -> None:
    for name, owner in (("ann", 1234), ("shared", 0)):
        (tmp_path / name / "root").mkdir(parents=True)
        for path in (tmp_path / name, tmp_path / name / "root"):
            os.chown(str(path), owner, owner)
            path.chmod(0o755)
    folder = tmp_path
    while folder != folder.parent:  # pytest's are its user's alone
        if not folder.stat().st_mode & 0o1:
            folder.chmod(0o711)
        folder = folder.parent
    script = ("import os, sys; from minipull.store.store import Store; os.setuid(int(sys.argv[1]))\n"
              "for root in sys.argv[2:]: print(Store(root).exposure())")
    roots = [str(tmp_path / name / "root") for name in ("ann", "shared")]
    done = subprocess.run([sys.executable, "-c", script, "1234", *roots], stdout=subprocess.PIPE, cwd=str(ROOT), check=True)
    assert done.stdout == b"\n\n"
    done = subprocess.run([sys.executable, "-c", script, "1235", *roots], stdout=subprocess.PIPE, cwd=str(ROOT), check=True)
    assert done.stdout.decode() == "%s belongs to another user (1234)\n\n" % (tmp_path / "ann")
