# SPDX-License-Identifier: Apache-2.0
"""gc: what no name needs goes, what any name needs stays."""
import errno
import os
from pathlib import Path
from typing import Any, Sequence

import pytest

from minipull.cancel import Cancel
from minipull.digest import ChainID, Digest
from minipull.errors import Cancelled, StorageError
from minipull.reference import Reference
from minipull.store.gc import collectable, gc, partials
from minipull.store.ingest import Ingest
from minipull.store.store import Store
from tests.kit.images import Layout
from tests.kit.stores import (
    NAME, age, blobs, descriptor, keep, keep_index, multi, problems, text_layer, twin_images)


def test_gc_removes_blobs_that_no_name_needs(store: Store, layout: Layout) -> None:
    shared = text_layer("shared")
    one, two = (layout.image([shared, text_layer(text)]) for text in ("one", "two"))
    keep(store, layout, one, "one:1")
    keep(store, layout, two, "two:1")
    assert gc(store, 0) == ([], 0)
    store.remove(Reference.parse("one:1").docker_ref())
    collected = gc(store, 0)
    gone = {one.digest, one.config["digest"], one.layers[1].descriptor["digest"]}
    assert set(collected.blobs) == gone
    assert collected.size == sum(len(layout.read(digest)) for digest in gone)
    assert not gone & set(blobs(store)) and problems(store) == []
    assert store.image("two:1").id == two.config["digest"]
    store.remove(Reference.parse("two:1").docker_ref())
    gc(store, 0)
    left = [name for _, _, names in os.walk(store.root) for name in names]
    assert sorted(left) == ["index.json", "index.json.bak", "index.lock", "lock", "oci-layout"]


def test_gc_keeps_the_young_unless_forced(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    with Ingest(store.content, Cancel(), Digest.of(b"part"), 4) as ingest:
        ingest.write(b"pa")
    store.remove(Reference.parse(NAME))
    before = blobs(store)
    assert gc(store) == ([], 0) and blobs(store) == before
    assert len(os.listdir(store.content.scratch)) == 2
    age(store)
    assert [str(digest) for digest in gc(store).blobs] == before
    assert os.listdir(store.content.scratch) == [] and problems(store) == []


def test_a_cancelled_gc_removes_nothing(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    store.remove(Reference.parse(NAME))
    store.remove()
    before, cancel = blobs(store), Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        gc(store, 0, cancel=cancel)
    assert blobs(store) == before


def test_gc_marks_nested_indexes_and_attestations(store: Store, tmp_path: Path) -> None:
    layout, top, _ = multi(tmp_path / "multi", nested=True)
    keep_index(store, layout, top)
    assert gc(store, 0) == ([], 0)


def test_gc_marks_the_source_of_a_selected_platform(store: Store, tmp_path: Path) -> None:
    layout, top, made = multi(tmp_path / "multi")
    keep(store, layout, made["linux/amd64"], index=top)
    assert gc(store, 0) == ([], 0) and top.digest in blobs(store) and problems(store) == []


@pytest.mark.parametrize("damage", ["corrupt", "missing", "torn child", "unknown type", "bad source",
                                    "no descriptor", "torn index"])
def test_gc_removes_nothing_when_a_manifest_can_not_be_read(
        store: Store, tmp_path: Path, damage: str) -> None:
    layout, top, made = multi(tmp_path / "multi", nested=True)
    keep_index(store, layout, top)
    store.content.put(Digest.of(b"loose"), b"loose")
    path, index = Path(store.content.path(Digest(top.digest))), Path(store.references.path)
    if damage == "corrupt":
        path.write_bytes(path.read_bytes()[:-1] + b" ")
    elif damage == "missing":
        path.unlink()
    elif damage == "torn child":
        Path(store.content.path(Digest(made["linux/arm64"].digest))).write_bytes(b"")
    elif damage == "unknown type":
        index.write_bytes(index.read_bytes().replace(b'index.v1+json","digest"', b'indey.v1+json","digest"'))
    elif damage == "bad source":
        index.write_bytes(index.read_bytes().replace(b'source.digest":"sha256', b'source.digest":"sha25'))
    elif damage == "no descriptor":
        index.write_bytes(index.read_bytes().replace(b'"size"', b'"sise"'))
    else:
        index.write_bytes(index.read_bytes()[:50])
    before = blobs(store)
    with pytest.raises(StorageError):
        gc(Store(store.root), 0)
    assert blobs(store) == before and problems(store) != []


def test_gc_tolerates_children_that_were_never_there(store: Store, tmp_path: Path) -> None:
    layout, top, made = multi(tmp_path / "multi")
    keep_index(store, layout, top)
    os.unlink(store.content.path(Digest(made["linux/arm64"].digest)))
    gone = {made["linux/arm64"].config["digest"], made["linux/arm64"].layers[0].descriptor["digest"]}
    assert set(gc(store, 0).blobs) == gone


def test_gc_removes_records_that_are_torn_or_name_missing_blobs(store: Store, layout: Layout) -> None:
    one, two = layout.image([text_layer("one")]), layout.image([text_layer("two")])
    keep(store, layout, one, "one:1")
    keep(store, layout, two, "two:1")
    Path(store.layers.path(ChainID(Digest(one.diff_ids[0])))).write_bytes(b"")
    service = store.metadata
    Path(service.path(service.BY_DIFF_ID, one.diff_ids[0].replace(":", "/"))).write_bytes(b"[")
    os.unlink(store.content.path(Digest(two.layers[0].descriptor["digest"])))
    gc(store)
    assert {problem.kind for problem in problems(store)} == {"missing"}
    for folder in ("layers", "metadata/v2metadata-by-diffid"):
        assert os.listdir(os.path.join(store.root, folder, "sha256")) == []
    assert len(os.listdir(os.path.join(store.root, "metadata/diffid-by-digest/sha256"))) == 1


def test_gc_keeps_files_that_are_not_the_stores(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    strange = ["blobs/README", "blobs/sha256/notes", "blobs/md5/%s" % ("0" * 32), "ingest/folder/file"]
    for name in strange:
        path = Path(store.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    gc(store, 0)
    assert [name for name in strange if not Path(store.root, name).exists()] == []
    assert [problem.path for problem in problems(store)] == sorted(strange[:3])


def test_gc_leaves_a_directory_alone_that_is_no_store(tmp_path: Path) -> None:
    data = tmp_path / "ingest" / "data.csv"
    data.parent.mkdir()
    data.write_text("precious")
    os.utime(str(data), (1000, 1000))
    assert gc(Store(str(tmp_path))) == ([], 0) and os.listdir(str(tmp_path)) == ["ingest"]
    assert data.read_text() == "precious"


def test_a_name_is_durably_gone_before_its_blobs_are(
        store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """An rm may have been killed before it synced the root: a power cut would bring back a name without blobs."""
    keep(store, layout, layout.image([text_layer("one")]))
    store.remove(Reference.parse(NAME))
    calls, fsync, unlink = [], os.fsync, os.unlink

    def synced(fd: int) -> None:
        calls.append(os.readlink("/proc/self/fd/%d" % fd))
        fsync(fd)

    def removed(path: str, **options: Any) -> None:
        calls.append("unlink")
        unlink(path, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "unlink", removed)
    gc(store, 0)
    assert store.root in calls[:calls.index("unlink")]


@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("moving", [0, 1])
def test_a_partial_that_becomes_a_blob_meanwhile_hides_no_other(
        store: Store, monkeypatch: pytest.MonkeyPatch, when: int, moving: int) -> None:
    """A pull goes on while df counts, and gc --dry-run."""
    for text in (b"one", b"two"):
        with Ingest(store.content, Cancel(), Digest.of(text), 3) as ingest:
            ingest.write(text[:2])
    whole, stat = partials(store), os.lstat
    gone = sorted(whole)[moving]
    looks = []

    def vanishing(path: str, **options: Any) -> os.stat_result:
        looks.append(path)
        if path == gone and looks.count(path) == when:
            os.unlink(path)
            os.unlink(path + ".json")
        return stat(path, **options)

    monkeypatch.setattr(os, "lstat", vanishing)
    [collected] = collectable(store, 0)
    assert sum(whole.values()) - whole[gone] <= collected.size < sum(whole.values())
    assert list(partials(store)) == [path for path in whole if path != gone]


def test_gc_maps_system_errors_to_a_storage_error(store: Store, layout: Layout,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    store.remove(Reference.parse(NAME))

    def refused(path: str, **_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(StorageError, match="Read-only"):
        gc(store, 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("removed", [0, 1])
def test_twins_share_a_config_and_no_blob(store: Store, layout: Layout, order: Sequence[int],
                                          removed: int) -> None:
    twins = twin_images(layout)
    for position in order:
        keep(store, layout, twins[position], "twin:%d" % position)
        assert not any(True for _ in store.missing(descriptor(twins[position].descriptor)))
    assert problems(store) == []
    assert store.image("twin:0").id == store.image("twin:1").id
    chain = ChainID(Digest(twins[0].diff_ids[0]))
    layer = store.layers.get(chain)
    assert layer is not None and len(layer.blobs) == 2
    store.remove(Reference.parse("twin:%d" % removed))
    gc(store, 0)
    other = twins[1 - removed]
    expected = {other.digest, other.config["digest"]} | {one.descriptor["digest"] for one in other.layers}
    assert set(blobs(store)) == expected and problems(store) == []
    layer = store.layers.get(chain)
    assert layer is not None and [blob for blob, _ in layer.blobs] == [other.layers[0].descriptor["digest"]]
