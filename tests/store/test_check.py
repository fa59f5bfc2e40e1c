# SPDX-License-Identifier: Apache-2.0
"""check: one flipped byte anywhere is found; a sound store, or one that others wrote to, is sound."""
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Set

import pytest

from tests.kit import ROOT, images
from tests.kit.images import Layout, Spec
from minipull import files
from minipull.store.check import CACHE, HARMLESS, REBUILT, REPAIRED, UNVERIFIED, Problem, check
from minipull.store.gc import gc
from minipull.digest import ChainID, DiffID, Digest
from minipull.errors import Cancelled, StorageError
from minipull.store.ingest import Ingest
from minipull.store.layer import Diff
from minipull.store.metadata import V1_IDS
from minipull.store.repair import remedy, repair
from minipull.reference import Reference
from minipull.store.store import Store
from minipull.cancel import Cancel
from tests.kit.stores import (
    NAME, age, blobs, descriptor, failing, fetch, keep, keep_index, multi, problems, text_layer, twin_images)

KINDS = {
    "oci-layout": "oci-layout", "index": "index.json", "manifest": "", "source": "", "config": "",
    "layer": "", "plain layer": "", "record": "layers/", "associations": "metadata/v2metadata-by-diffid/",
    "diff id": "metadata/diffid-by-digest/", "v1 id": "metadata/v1id-mappings/"}
CACHES = {"record", "associations", "diff id", "v1 id"}


class Pulled:
    """A store as a pull of one platform leaves it, and where each kind of file is."""

    def __init__(self, root: Path) -> None:
        self.store = Store(str(root / "root"))
        layout = Layout(root / "layout")
        body = bytes(random.Random(1).getrandbits(8) for _ in range(300))
        made = layout.image([Spec(entries=[("a", body)]), text_layer("two", compression="")])
        top = layout.index([dict(made.descriptor, platform=images.parse_platform("linux/amd64")),
                            images.attestation(layout, made.digest)])
        keep(self.store, layout, made, index=top)
        self.store.metadata.set(V1_IDS, "localhost:5000," + "a" * 64, made.diff_ids[0].encode())
        files = [os.path.join(folder, name) for folder, _, names in os.walk(self.store.root) for name in names]
        self.files: Dict[str, List[str]] = {
            kind: [path for path in files if os.path.relpath(path, self.store.root).startswith(start)]
            for kind, start in KINDS.items() if start}
        path = self.store.content.path
        self.files.update({
            "manifest": [path(Digest(made.digest))], "source": [path(Digest(top.digest))],
            "config": [path(Digest(made.config["digest"]))],
            "layer": [path(Digest(made.layers[0].descriptor["digest"]))],
            "plain layer": [path(Digest(made.layers[1].descriptor["digest"]))]})
        others = {path for path in files if os.path.basename(path) in ("lock", "index.lock")}
        assert {path for paths in self.files.values() for path in paths} | others == set(files)


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    return Pulled(tmp_path_factory.mktemp("check"))


def kinds(found: Sequence[Problem]) -> Set[str]:
    return {problem.kind for problem in found}


# -- one flipped byte ----------------------------------------------------------


def masks(kind: str, offset: int) -> Sequence[int]:
    """The bits that are flipped of the byte at an offset: more where no digest watches."""
    if kind in CACHES | {"index", "oci-layout"}:
        return (0x01, 0x20, 0x80) if offset % 8 == 0 else (0x01, 0x20)  # 0x80 makes no ASCII
    return ((0x01, 0x20, 0x80)[offset % 3],)


def offsets(kind: str, size: int) -> Sequence[int]:
    if "layer" not in kind:
        return range(size)
    return sorted({*range(20), *range(20, size, 97), *range(size - 12, size)})  # gzip's header and trailer too


@pytest.mark.parametrize("kind", sorted(set(KINDS) - CACHES))
def test_one_flipped_byte_is_found(pulled: Pulled, kind: str) -> None:
    assert problems(pulled.store) == [] and pulled.files[kind]
    for first, path in zip([True] + [False] * 9, pulled.files[kind]):
        sound = Path(path).read_bytes()
        name = os.path.relpath(path, pulled.store.root)
        with open(path, "r+b", buffering=0) as file:
            for offset in offsets(kind, len(sound)):
                for mask in masks(kind if first else "", offset):
                    os.pwrite(file.fileno(), bytes([sound[offset] ^ mask]), offset)
                    found = problems(pulled.store)
                    # The index may be blamed by way of what it then names.
                    assert [problem for problem in found if problem.kind not in HARMLESS and (
                        problem.path == name or kind == "index")], (offset, mask, found)
                os.pwrite(file.fileno(), sound[offset:offset + 1], offset)
    assert problems(pulled.store) == []


@pytest.mark.parametrize("kind", sorted(CACHES))
def test_one_flipped_byte_of_a_cache_is_found_and_healed(pulled: Pulled, kind: str) -> None:
    path = Path(pulled.files[kind][0])
    sound, name = path.read_bytes(), os.path.relpath(str(path), pulled.store.root)
    for offset in range(len(sound)):
        for mask in masks(kind, offset):
            path.write_bytes(sound[:offset] + bytes([sound[offset] ^ mask]) + sound[offset + 1:])
            assert [(problem.path, problem.kind) for problem in problems(pulled.store)] == [(name, REBUILT)], offset
            assert path.read_bytes() == sound if kind in ("record", "diff id") else not path.exists()
    assert problems(pulled.store) == []
    path.write_bytes(sound)


def test_check_reads_the_index_anew_and_finds_a_flipped_byte(pulled: Pulled) -> None:
    store, path = Store(pulled.store.root), Path(pulled.store.references.path)
    assert check(store) == []
    sound, status = path.read_bytes(), os.stat(str(path))
    try:
        with path.open("r+b") as file:
            file.write(sound.replace(b"busybox", b"busybux", 1))
        os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))
        assert [problem.path for problem in check(store)] == ["index.json"]
    finally:
        path.write_bytes(sound)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - CACHES))
@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_torn_file_is_found(tmp_path: Path, kind: str, left: float) -> None:
    pulled = Pulled(tmp_path)
    path = pulled.files[kind][0]
    os.truncate(path, int(os.path.getsize(path) * left))
    assert os.path.relpath(path, pulled.store.root) in {problem.path for problem in problems(pulled.store)}


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_torn_caches_are_rebuilt_and_no_damage(tmp_path: Path, left: float) -> None:
    pulled = Pulled(tmp_path)
    paths = [path for kind in CACHES for path in pulled.files[kind]]
    sound = {path: Path(path).read_bytes() for path in paths}
    for path in paths:
        os.truncate(path, int(len(sound[path]) * left))
    assert [(problem.path, problem.kind) for problem in problems(pulled.store)] == sorted(
        (os.path.relpath(path, pulled.store.root), REBUILT) for path in paths)
    assert problems(pulled.store) == []
    for path in pulled.files["record"] + pulled.files["diff id"]:
        assert Path(path).read_bytes() == sound[path]
    for path in pulled.files["associations"] + pulled.files["v1 id"]:  # to be found out again
        assert not os.path.exists(path)


def test_a_torn_cache_that_can_not_be_written_is_no_damage(
        pulled: Pulled, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(pulled.files["record"][0])
    sound = path.read_bytes()
    path.write_bytes(b"")
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    found = problems(pulled.store)
    assert kinds(found) == {CACHE} and "not rebuilt: delete layers/" in found[0].detail
    assert remedy(found) == "ok" and path.read_bytes() == b""
    path.write_bytes(sound)


@pytest.mark.parametrize("kind", ["oci-layout", "manifest", "source", "config", "layer"])
def test_a_lost_file_is_found(tmp_path: Path, kind: str) -> None:
    pulled = Pulled(tmp_path)
    path = pulled.files[kind][0]
    os.unlink(path)
    found = problems(pulled.store)
    assert os.path.basename(path) in " ".join(problem.path + problem.detail for problem in found)


@pytest.mark.parametrize("kind", sorted(CACHES))
def test_a_lost_cache_is_no_damage(tmp_path: Path, kind: str) -> None:
    pulled = Pulled(tmp_path)
    for path in pulled.files[kind]:
        os.unlink(path)
    assert problems(pulled.store) == []


# -- what is no damage ---------------------------------------------------------


def test_an_empty_root_is_sound(store: Store) -> None:
    os.makedirs(store.root)
    assert problems(store) == []


def test_sound_stores_have_no_problem(tmp_path: Path) -> None:
    for number, nested in enumerate((False, True)):
        layout, top, made = multi(tmp_path / ("multi-%d" % number), nested)
        whole, one = Store(str(tmp_path / ("whole-%d" % number))), Store(str(tmp_path / ("one-%d" % number)))
        keep_index(whole, layout, top)
        keep(one, layout, made["linux/arm64"], index=top)
        keep(one, layout, made["linux/amd64"], "localhost:5000/a/b@" + top.digest, index=top)
        assert problems(whole) == problems(one) == []


def test_awkward_images_are_sound(store: Store, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "awkward")
    base, empty = text_layer("base"), Spec(raw=images.EMPTY_LAYER)
    keep(store, layout, layout.image([base, empty, text_layer("x", compression=""), base, empty]))
    docker = Layout(tmp_path / "docker", docker=True)
    keep(store, docker, docker.image([text_layer("one")]), "docker:1")
    keep(store, docker, docker.image([]), "none:1")
    for twin, made in enumerate(twin_images(layout)):
        keep(store, layout, made, "twin:%d" % twin)
    assert problems(store) == []


def test_entries_of_other_tools_are_no_damage(store: Store, layout: Layout) -> None:
    one, two = (layout.image([text_layer(text)]) for text in ("one", "two"))
    keep(store, layout, one)
    keep(store, layout, two, "two:1")
    index = json.loads(Path(store.references.path).read_text())
    notes = {"io.containerd.image.name": "docker.io/library/two:1", "org.opencontainers.image.ref.name": "1"}
    index["manifests"][1]["annotations"] = notes
    index["manifests"].append(dict(two.descriptor, future=[1]))
    index["manifests"].append(dict(two.descriptor, annotations={"org.opencontainers.image.ref.name": "x"}))
    index["annotations"] = {"a": "b"}
    del index["mediaType"]
    Path(store.references.path).write_text(json.dumps(index, indent=2))
    Path(store.root, "oci-layout").write_text('{ "imageLayoutVersion": "1.0.0" }\n')
    assert problems(store) == []


def test_partials_are_no_damage(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    with Ingest(store.content, Cancel(), Digest.of(b"part"), 4) as ingest:
        ingest.write(b"xx")
    assert problems(store) == []


def test_zstd_without_a_decoder_is_unverified_and_still_hashed(store: Store, layout: Layout) -> None:
    if any(path for path in ("compression.zstd",) if _importable(path)):
        pytest.skip("this interpreter decodes zstd")
    data = b"\x28\xb5\x2f\xfd" + b"no real frame"
    blob = layout.blob(data, images.OCI_LAYER + "+zstd")
    made = layout.image([], config={"rootfs": {"type": "layers", "diff_ids": [images.digest_of(b"tar")]}})
    document = json.loads(made.raw.decode())
    document["layers"] = [blob]
    raw = images.to_json(document)
    top = layout.blob(raw, images.OCI_MANIFEST)
    keep(store, layout, images.Image(top, made.config, [], raw))
    fetch(store, descriptor(blob), data)
    store.layers.register(None, Diff(DiffID(Digest.of(b"tar")), verified=False), descriptor(blob))
    assert kinds(problems(store)) == {UNVERIFIED}
    Path(store.content.path(Digest(blob["digest"]))).write_bytes(data[:-1] + b"x")
    assert kinds(problems(store)) == {UNVERIFIED, "blob"}


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


# -- what is -------------------------------------------------------------------


def test_an_image_whose_config_lies_is_found(store: Store, layout: Layout) -> None:
    lies: List[Dict[str, Any]] = [
        {"rootfs": {"type": "layers", "diff_ids": [images.digest_of(b"another")]}},
        {"rootfs": {"type": "layers", "diff_ids": []}, "history": []}, {"rootfs": None}]
    for number, lie in enumerate(lies):
        made = layout.image([text_layer("one")], config=lie)
        keep(store, layout, made, "lie:%d" % number)
    found = problems(store)
    assert len(found) == 3 and kinds(found) == {"config"}
    assert "is layer sha256:" in " ".join(problem.detail for problem in found)


def test_caches_that_contradict_the_blobs_are_found_and_corrected(store: Store, layout: Layout) -> None:
    made = layout.image([text_layer("one")])
    keep(store, layout, made)
    blob, other = descriptor(made.layers[0].descriptor), DiffID(Digest.of(b"other"))
    store.layers.register(None, Diff(other), blob)
    service = store.metadata
    for entry in service.get_metadata(DiffID(Digest(made.diff_ids[0]))):
        service.add(other, entry)
    wrong = [store.layers.path(ChainID(other)), service.path(service.BY_DIFF_ID, other.replace(":", "/")),
             service.path(service.BY_DIGEST, blob.digest.replace(":", "/"))]
    assert [tuple(problem[:2]) for problem in problems(store)] == sorted(
        (os.path.relpath(path, store.root), REBUILT) for path in wrong)
    assert problems(store) == [] and service.get_diff_id(blob.digest) == made.diff_ids[0]
    assert [os.path.exists(path) for path in wrong] == [False, False, True]


def test_the_wrong_file_under_a_digest_is_found(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    loose = Digest.of(b"loose")
    Path(store.content.path(loose)).write_bytes(b"other")
    link = Digest.of(b"link")
    os.symlink(store.references.path, store.content.path(link))
    assert [(problem.kind, os.path.basename(problem.path)) for problem in problems(store)] == sorted(
        ("blob", digest.encoded) for digest in (loose, link))


@pytest.mark.parametrize("entry", [
    {}, {"annotations": {"org.opencontainers.image.ref.name": NAME}},
    {"mediaType": "application/x", "digest": images.digest_of(b""), "size": 0}])
def test_check_finds_an_index_entry_that_is_no_descriptor(store: Store, entry: Any) -> None:
    store.content.put(Digest.of(b""), b"")
    store.references.set(Reference.parse(NAME), descriptor(dict(
        mediaType=images.OCI_MANIFEST, digest=images.digest_of(b""), size=0)), Digest.of(b""))
    index = Path(store.references.path)
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    assert [(problem.path, problem.kind) for problem in problems(store)] == [("index.json", "name")]


def test_a_problem_is_reported_on_one_line(store: Store) -> None:
    os.makedirs(store.root)
    Path(store.root, "index.json").write_bytes(b'{\n\n"a\n')
    found = problems(store)
    assert {problem.path for problem in found} == {"index.json", "oci-layout"}
    assert not [problem for problem in found if "\n" in problem.detail]


# -- repair --------------------------------------------------------------------


def in_its_place(make: Callable[[str], object]) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        path.unlink()
        make(str(path))
    return act


ROTTEN: Dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:9]),
    "empty": lambda path: path.write_bytes(b""),
    "link": lambda path: os.symlink(path.rename(str(path) + ".x") or str(path) + ".x", str(path)),
    "fifo": in_its_place(lambda path: os.mkfifo(path)),
    "directory": in_its_place(lambda path: os.makedirs(os.path.join(path, "x")))}


@pytest.mark.parametrize("how", sorted(ROTTEN))
@pytest.mark.parametrize("kind", ["manifest", "source", "config", "layer", "plain layer"])
def test_repair_moves_a_rotten_blob_and_nothing_else(tmp_path: Path, kind: str, how: str) -> None:
    pulled = Pulled(tmp_path)
    store, path = pulled.store, Path(pulled.files[kind][0])
    ROTTEN[how](path)
    before, index = blobs(store), Path(store.references.path).read_bytes()
    found = problems(store)
    assert "check --repair" in remedy(found)
    moves = repair(store, found)
    target = "ingest/rotten-sha256-" + path.name
    assert moves == [(os.path.relpath(str(path), store.root), REPAIRED, "moved to " + target)]
    assert remedy(found, moves) == "incomplete; pull the images again"
    assert set(before) - set(blobs(store)) == {"sha256:" + path.name} and os.path.lexists(os.path.join(store.root, target))
    assert Path(store.references.path).read_bytes() == index
    left = [problem for problem in problems(store) if not problem.path.endswith(".x")]
    assert {problem.path for problem in left} == {"blobs/sha256/" + path.name}
    assert remedy(left) == "incomplete; pull the images again"
    if kind != "manifest":  # without it gc can't tell what is needed
        gc(store, 0)
        assert not os.path.lexists(os.path.join(store.root, target))


def test_repair_moves_no_sound_blob(pulled: Pulled) -> None:
    store, path = pulled.store, Path(pulled.files["layer"][0])
    sound = path.read_bytes()
    path.write_bytes(b"?")
    found = problems(store)
    path.write_bytes(sound)  # by another process, before the lock was had
    assert repair(store, found) == [] and problems(store) == []


@pytest.mark.parametrize("code, moved", [(errno.EIO, True), (errno.EACCES, False), (errno.ENOMEM, False)])
def test_repair_moves_what_can_not_be_read_only_off_a_bad_sector(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, moved: bool) -> None:
    pulled = Pulled(tmp_path)
    Path(pulled.files["layer"][0]).write_bytes(b"?")
    found = problems(pulled.store)
    monkeypatch.setattr(files, "open_regular", failing(code, 1, files.open_regular))  # the first is the lock's
    assert bool(repair(pulled.store, found)) is moved


def test_repair_waits_for_all_others(tmp_path: Path) -> None:
    pulled = Pulled(tmp_path)
    Path(pulled.files["layer"][0]).write_bytes(b"?")
    before = blobs(pulled.store)
    with pulled.store.reading(), pytest.raises(StorageError, match="is locked by"):
        repair(Store(pulled.store.root, timeout=0), problems(pulled.store))
    assert blobs(pulled.store) == before


def test_two_repairs_at_once_move_a_blob_once(tmp_path: Path) -> None:
    pulled = Pulled(tmp_path)
    Path(pulled.files["layer"][0]).write_bytes(b"?")
    found = problems(pulled.store)
    with ThreadPoolExecutor(2) as pool:
        moves = list(pool.map(lambda root: repair(Store(root, timeout=10), found), [pulled.store.root] * 2))
    assert sorted(map(len, moves)) == [0, 1]


def test_a_rotten_manifest_of_an_index_is_found_by_name_and_hides_no_other(store: Store, tmp_path: Path) -> None:
    layout, top, made = multi(tmp_path / "multi", nested=True)
    keep_index(store, layout, top)
    paths = [Path(store.content.path(Digest(made[name].digest))) for name in ("linux/amd64", "linux/arm64")]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = check(store, names=[descriptor(top.descriptor)])
    assert {problem.path for problem in found if problem.kind == "blob"} == {
        os.path.relpath(str(path), store.root) for path in paths}
    assert len(repair(store, found)) == 2


def test_a_layer_that_came_broken_is_not_rotten(store: Store, layout: Layout) -> None:
    raw = b"\x1f\x8b no gzip"
    blob = layout.blob(raw, images.OCI_LAYER + "+gzip")
    made = layout.image([], config={"rootfs": {"type": "layers", "diff_ids": [images.digest_of(b"tar")]}})
    data = images.to_json(dict(json.loads(made.raw.decode()), layers=[blob]))
    keep(store, layout, images.Image(layout.blob(data, images.OCI_MANIFEST), made.config, [], data))
    store.content.put(Digest(blob["digest"]), raw)
    found = problems(store)
    assert kinds(found) == {"layer"} and "--repair" not in remedy(found) and repair(store, found) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("name, mode", [
    ("index.json", 0o000), ("layer", 0o000), ("config", 0o000), ("manifest", 0o000), ("blobs/sha256", 0o700),
    ("blobs/sha256", 0o744), ("blobs", 0o700), ("blobs", 0o744), ("", 0o700)])
def test_what_another_user_may_not_read_is_no_damage(name: str, mode: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        pulled = Pulled(Path(folder))
        for path, _, names in os.walk(str(folder)):
            os.chmod(path, 0o755)
            for item in names:
                os.chmod(os.path.join(path, item), 0o644)
        os.chmod(pulled.files[name][0] if name in pulled.files else os.path.join(pulled.store.root, name), mode)
        script = ("import os; from minipull.store.repair import *; from minipull.store.check import *\n"
                  "os.setuid(65534); store = Store(%r)\n"
                  "try: found = check(store)\n"
                  "except StorageError as exc: print(exc)\n"
                  "else: print({p.kind for p in found} - HARMLESS, remedy(found))" % pulled.store.root)
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=str(ROOT), check=True)
    text = done.stdout.decode()
    assert "run as its owner" in text and "damage" not in text and "missing" not in text
    assert "'permission'" in text or "Permission denied" in text


# -- scope ---------------------------------------------------------------------


def test_check_of_a_name_reads_only_its_blobs(store: Store, layout: Layout) -> None:
    one, two = (layout.image([text_layer(text)]) for text in ("one", "two"))
    keep(store, layout, one, "one:1")
    keep(store, layout, two, "two:1")
    Path(store.content.path(Digest(two.layers[0].descriptor["digest"]))).write_bytes(b"")
    assert check(store, names=[descriptor(one.descriptor)]) == []
    assert kinds(check(store, names=[descriptor(two.descriptor)])) == {"blob", "size"}
    Path(store.content.path(Digest(one.digest))).write_bytes(b"")
    assert kinds(check(store, names=[descriptor(one.descriptor)])) >= {"image"}


def test_what_names_share_is_read_once(store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for twin, made in enumerate(twin_images(layout)):
        for name in "abc":
            keep(store, layout, made, "%s:%d" % (name, twin))
    opened: List[str] = []
    real = files.open_regular

    def counted(path: str, flags: int = os.O_RDONLY) -> int:
        opened.append(path)
        return real(path, flags)

    monkeypatch.setattr(files, "open_regular", counted)
    assert problems(store) == []
    documents = {store.content.path(Digest(digest)) for made in twin_images(layout)
                 for digest in (made.digest, made.config["digest"])}
    for path in map(store.content.path, store.content.digests()):  # a document is parsed, and hashed as a blob
        assert opened.count(path) == (2 if path in documents else 1)


def test_checking_changes_nothing(tmp_path: Path) -> None:
    made = Pulled(tmp_path)
    root = made.store.root

    def state() -> Any:
        return sorted((folder, name, os.lstat(os.path.join(folder, name)).st_mtime_ns)
                      for folder, folders, names in os.walk(root) for name in names + folders)

    age(made.store)
    os.truncate(made.files["layer"][0], 5)
    before = state()
    assert problems(made.store) != [] and state() == before


def test_checking_can_be_cancelled(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        check(store, cancel=cancel)


def test_a_store_that_can_not_be_listed_is_an_error(
        store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    real: Callable[..., Any] = os.listdir

    def listdir(path: str) -> Any:
        if path.startswith(os.path.join(store.root, "blobs")):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(StorageError, match="list .*Permission denied"):
        check(store)


def test_a_copied_store_is_as_sound(pulled: Pulled, tmp_path: Path) -> None:
    shutil.copytree(pulled.store.root, str(tmp_path / "copy"))
    assert problems(Store(str(tmp_path / "copy"))) == []


@pytest.mark.parametrize("first, second", [("directory", "flipped"), ("flipped", "directory"), ("fifo", "directory")])
def test_what_was_moved_away_is_in_nobodys_way(tmp_path: Path, first: str, second: str) -> None:
    pulled = Pulled(tmp_path)
    store, path = pulled.store, Path(pulled.files["layer"][0])
    data = path.read_bytes()
    for how in (first, second):
        ROTTEN[how](path)
        assert len(repair(store, problems(store))) == 1
        path.write_bytes(data)  # as a pull would
        assert problems(store) == []
    gc(store, 0)
    assert not os.path.lexists(os.path.join(store.root, "ingest/rotten-sha256-" + path.name))


def test_a_lost_index_is_found(tmp_path: Path) -> None:
    store = Pulled(tmp_path).store
    Path(store.references.path).rename(store.references.path + ".bak")
    found = problems(store)
    assert [problem.kind for problem in found] == ["index"] and "put index.json.bak" in found[0].detail
    assert remedy(found) == "damaged; its index comes first"
