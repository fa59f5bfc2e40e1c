# SPDX-License-Identifier: Apache-2.0
"""The store: images by name, presence, locks between processes, gc, and kill -9 at every point."""
import contextlib
import errno
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import pytest

from tests.kit import images
from tests.kit import ROOT
from tests.kit.processes import run, short_folder
from tests.kit.images import Layout, Spec
from minipull.store.check import Problem, check
from minipull.store.gc import gc
from minipull.image.descriptor import Descriptor
from minipull.digest import ChainID, Digest
from minipull.errors import Cancelled, InvalidReference, NotFound, PolicyError, StorageError
from minipull.image.config import Image
from minipull.store.metadata import V2Metadata
from minipull.reference import Reference
from minipull.store.store import Store
from minipull.cancel import Cancel

NAME = "docker.io/library/busybox:latest"
REPOSITORY = "docker.io/library/busybox"
ENV = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}

# -- stores as pulls leave them ------------------------------------------------


def text_layer(text: str, **fields: Any) -> Spec:
    return Spec(entries=[("etc", None), ("etc/motd", text.encode())], **fields)


def descriptor(obj: Any) -> Descriptor:
    return Descriptor.from_json(obj, "test")


def fetch(store: Store, blob: Descriptor, data: bytes) -> None:
    with store.content.ingest(blob.digest, blob.size, Cancel()) as ingest:
        if not ingest.complete:
            ingest.write(data[ingest.offset:])
            ingest.verify("blob")
            ingest.commit()


def keep(store: Store, layout: Layout, made: images.Image, name: str = NAME,
         index: Optional[images.Image] = None) -> None:
    """Leave in ``store`` what a pull of one platform leaves there."""
    with store.using(writing=True):
        fetch(store, descriptor(made.config), layout.read(made.config["digest"]))
        parent: Optional[ChainID] = None
        for layer in made.layers:
            blob = descriptor(layer.descriptor)
            fetch(store, blob, layout.read(blob.digest))
            diff = store.layers.diff(blob.digest, Cancel())
            parent = store.layers.register(parent, diff, blob).chain_id
            store.metadata.add(diff.diff_id, V2Metadata(blob.digest, REPOSITORY))
        for document in [made] + ([index] if index else []):
            store.content.put(Digest(document.digest), document.raw)
        store.references.set(Reference.parse(name), descriptor(made.descriptor),
                             Digest((index or made).digest))


def keep_index(store: Store, layout: Layout, top: images.Image, name: str = NAME) -> None:
    """Leave in ``store`` what a pull of all platforms leaves there."""
    for item in sorted((layout.root / "blobs" / "sha256").iterdir()):
        store.content.put(Digest("sha256:" + item.name), item.read_bytes())
    store.references.set(Reference.parse(name), descriptor(top.descriptor), Digest(top.digest))


def problems(store: Store) -> List[Problem]:
    """What a process that comes later finds."""
    return check(Store(store.root))


def blobs(store: Store) -> List[str]:
    return [str(digest) for digest in store.content.digests()]


def age(store: Store, days: float = 3) -> None:
    """Let every file be days old."""
    for folder, _, names in os.walk(store.root):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            times = (status.st_atime - days * 86400, status.st_mtime - days * 86400)
            os.utime(os.path.join(folder, name), times)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"), timeout=10)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


# -- images --------------------------------------------------------------------


def test_reading_an_absent_store_creates_nothing(store: Store) -> None:
    with store.using():
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
    with pytest.raises(NotFound, match="ambiguous"):
        store.image(one.config["digest"][7:13])


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


def multi(root: Path, nested: bool = False) -> Any:
    """An index with two platforms and an attestation; the second may be in an index of its own."""
    layout = Layout(root)
    made = {platform: layout.image([text_layer(platform)], platform=platform)
            for platform in ("linux/amd64", "linux/arm64")}
    children = [{**image.descriptor, "platform": images.parse_platform(platform)}
                for platform, image in made.items()]
    if nested:
        children[1:] = [layout.index(children[1:]).descriptor]
    children.append(images.attestation(layout, children[0]["digest"]))
    return layout, layout.index(children), made


def test_walk_meets_everything_once_parents_first(store: Store, tmp_path: Path) -> None:
    layout, top, made = multi(tmp_path / "multi", nested=True)
    keep_index(store, layout, top)
    met = [item.digest for item, _ in store.walk(descriptor(top.descriptor))]
    assert len(met) == len(set(met)) and sorted(met) == blobs(store)
    for image in made.values():
        places = [met.index(Digest(d)) for d in (image.digest, image.config["digest"])]
        assert places == sorted(places)
    assert store.size(descriptor(top.descriptor)) == sum(
        path.stat().st_size for path in (layout.root / "blobs" / "sha256").iterdir())


def test_walk_meets_a_child_that_is_listed_twice_once(store: Store, layout: Layout) -> None:
    made = layout.image([])
    top = layout.index([made.descriptor, made.descriptor])
    keep_index(store, layout, top)
    met = [item.digest for item, _ in store.walk(descriptor(top.descriptor))]
    assert met == [top.digest, made.digest, made.config["digest"]]


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


def test_presence_is_of_the_very_blob(store: Store, layout: Layout) -> None:
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


# -- gc ------------------------------------------------------------------------


def test_gc_takes_what_no_name_needs(store: Store, layout: Layout) -> None:
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
    assert sorted(left) == ["index.json", "index.lock", "lock", "oci-layout"]


def test_gc_keeps_the_young_unless_forced(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    with store.content.ingest(Digest.of(b"part"), 4, Cancel()) as ingest:
        ingest.write(b"pa")
    store.remove(Reference.parse(NAME))
    before = blobs(store)
    assert gc(store) == ([], 0) and blobs(store) == before
    assert len(os.listdir(store.content.scratch)) == 2
    age(store)
    assert [str(digest) for digest in gc(store).blobs] == before
    assert os.listdir(store.content.scratch) == [] and problems(store) == []


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
def test_gc_deletes_nothing_when_what_a_name_needs_is_not_known(
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


def test_gc_leaves_no_record_of_what_is_gone_or_torn(store: Store, layout: Layout) -> None:
    one, two = layout.image([text_layer("one")]), layout.image([text_layer("two")])
    keep(store, layout, one, "one:1")
    keep(store, layout, two, "two:1")
    Path(store.layers.path(ChainID(Digest(one.diff_ids[0])))).write_bytes(b"")
    service = store.metadata
    Path(service.store.path(service.BY_DIFF_ID, one.diff_ids[0].replace(":", "/"))).write_bytes(b"[")
    os.unlink(store.content.path(Digest(two.layers[0].descriptor["digest"])))
    assert {problem.kind for problem in problems(store)} == {"record", "metadata", "missing"}
    gc(store)
    assert {problem.kind for problem in problems(store)} == {"missing"}
    for folder in ("layers", "metadata/v2metadata-by-diffid"):
        assert os.listdir(os.path.join(store.root, folder, "sha256")) == []
    assert len(os.listdir(os.path.join(store.root, "metadata/diffid-by-digest/sha256"))) == 1


def test_gc_does_not_touch_what_is_not_the_stores(store: Store, layout: Layout) -> None:
    keep(store, layout, layout.image([text_layer("one")]))
    strange = ["blobs/README", "blobs/sha256/notes", "blobs/md5/%s" % ("0" * 32), "ingest/folder/file"]
    for name in strange:
        path = Path(store.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    gc(store, 0)
    assert [name for name in strange if not Path(store.root, name).exists()] == []
    assert [problem.path for problem in problems(store)] == sorted(strange[:3])


def test_gc_maps_what_the_system_refuses(store: Store, layout: Layout,
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


def twin_images(layout: Layout) -> List[images.Image]:
    """One config, two manifests: the layers of the second are the same, not compressed."""
    packed = layout.image([text_layer("one"), text_layer("two")])
    plain = layout.image([text_layer("one", compression=""), text_layer("two", compression="")])
    assert packed.config == plain.config and packed.digest != plain.digest
    return [packed, plain]


# -- sharing -------------------------------------------------------------------

@contextlib.contextmanager
def at_once(code: str, argvs: Sequence[Sequence[str]]) -> Iterator[List["subprocess.Popen[bytes]"]]:
    """Processes that print "ready" and begin with a line of stdin, begun together."""
    started = [subprocess.Popen([sys.executable, "-c", code, *argv], env=ENV, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE) for argv in argvs]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            with process:  # closes its pipes
                pass


HOLD = """
import sys
from minipull.store.gc import gc
from minipull.store.store import Store
from minipull.cancel import Cancel
store = Store(sys.argv[1])
with store.using(Cancel(), True, sys.argv[2] == "exclusive"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holding(store: Store, kind: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the store's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.root, kind], env=ENV,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdin is not None
        assert select.select([process.stdout], [], [], 60)[0] and process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        with process:  # closes its pipes
            pass


def test_users_share_and_gc_does_not(store: Store) -> None:
    store.timeout = 0.2
    with holding(store, "shared"):
        with store.using(writing=True), store.using():
            pass
        with pytest.raises(StorageError, match="locked"):
            gc(store, 0)
    gc(store, 0)


def test_a_lock_not_had_says_who_holds_it(store: Store) -> None:
    store.timeout = 0.2
    with holding(store, "exclusive") as process:
        for writing in (False, True):
            with pytest.raises(StorageError) as info, store.using(writing=writing):
                pass
            assert str(process.pid) in str(info.value) and "--timeout" in str(info.value)
            assert info.value.exit_code == 7


def test_kill_9_frees_the_lock(store: Store) -> None:
    with holding(store, "exclusive") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        with store.using(writing=True):
            pass


def test_waiting_for_a_lock_can_be_cancelled(store: Store) -> None:
    cancel = Cancel()
    with holding(store, "exclusive"):
        cancel.cancel()
        with pytest.raises(Cancelled), store.using(cancel):
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_readers_go_on_and_writers_stop(
        store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    made = layout.image([text_layer("one")])
    keep(store, layout, made)

    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with store.using():
        assert [image.id for image in store.images()] == [made.config["digest"]]
    assert problems(store) == []
    writes: List[Callable[[], object]] = [
        lambda: gc(store, 0), lambda: store.remove(Reference.parse(NAME)),
        lambda: store.tag("other", store.image("busybox")), lambda: keep(store, layout, made, "more:1"),
        lambda: store.content.ingest(Digest.of(b"new"), 3, Cancel())]
    for write in writes:
        with pytest.raises(StorageError, match="--root"):
            write()
    assert [str(item.name) for item in store.references.all()] == [NAME]


READ = """
import os, sys
from minipull.store.check import check
from minipull.store.gc import gc
from minipull.store.store import Store
check(Store("/nonexistent"))  # loads what is loaded late
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
store = Store(sys.argv[1])
print([str(image.name) for image in store.images()], check(store))
try:
    gc(store, 0)
except Exception as exc:
    print(type(exc).__name__, exc)
"""


def test_a_read_only_root_can_be_listed_and_checked(layout: Layout) -> None:
    folder = short_folder()  # pytest's are closed to other users
    try:
        folder.chmod(0o755)
        store = Store(str(folder / "root"))
        keep(store, layout, layout.image([text_layer("one")]))
        for where, _, names in os.walk(store.root):
            for name in names:
                os.chmod(os.path.join(where, name), 0o400 if name == "lock" else 0o444)
            os.chmod(where, 0o555)
        done = run([sys.executable, "-c", READ, store.root], ENV)
        listed, refused = done.out.splitlines()
        assert listed == "[%r] []" % NAME
        assert refused.startswith("StorageError open ") and "--root" in refused
    finally:
        for where, _, _ in os.walk(store.root):
            os.chmod(where, 0o755)
        shutil.rmtree(str(folder))


# -- kill -9 -------------------------------------------------------------------

CALLS = ("write", "fsync", "rename", "replace", "unlink", "open", "ftruncate", "mkdir")


def killed_at(k: int, work: Callable[[], None]) -> bool:
    """Fork, and in there ``work`` until SIGKILL at the k-th call that changes files.

    A write that is killed has written half.  False if the work had ended by then.
    """
    pid = os.fork()
    if pid == 0:
        left = [k]

        def counted(name: str) -> Callable[..., Any]:
            call: Callable[..., Any] = getattr(os, name)

            def wrapper(*args: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    if name == "write":
                        call(args[0], args[1][:len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)
            return wrapper

        for name in CALLS:
            setattr(os, name, counted(name))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def crash_keep(root: str) -> None:
    """Runs in a process of its own, which may fork."""
    layout = Layout(Path(root, "layout"))
    made = layout.image([text_layer("one"), text_layer("two", compression="")])
    index = layout.index([made.descriptor])
    k = 1
    while True:
        store = Store(os.path.join(root, "store-%d" % k), timeout=1)
        killed = killed_at(k, lambda: keep(store, layout, made, index=index))
        assert problems(store) == [], (k, problems(store))
        named = store.references.all()
        assert not named or not any(True for _ in store.missing(named[0].descriptor)), k
        for path in Path(store.root, "blobs").glob("*/*"):
            assert images.digest_of(path.read_bytes())[7:] == path.name, (k, path)
        keep(Store(store.root, timeout=1), layout, made, index=index)
        assert problems(store) == [] and [str(item.name) for item in store.references.all()] == [NAME], k
        assert len(blobs(store)) == 5, k
        gc(store, 0)
        assert os.listdir(store.content.scratch) == [] and len(blobs(store)) == 5, k
        if not killed:
            break
        k += 1
    print(k)


def crash_gc(root: str) -> None:
    layout = Layout(Path(root, "layout"))
    shared = text_layer("shared")
    one, two = (layout.image([shared, text_layer(text)]) for text in ("one", "two"))
    twin = layout.image([text_layer("shared", compression=""), text_layer("one")])
    k = 1
    while True:
        store = Store(os.path.join(root, "store-%d" % k), timeout=1)
        for name, made in (("one:1", one), ("two:1", two), ("twin:1", twin)):
            keep(store, layout, made, name)
        with store.content.ingest(Digest.of(b"part"), 4, Cancel()) as ingest:
            ingest.write(b"pa")
        for name in ("one:1", "twin:1"):
            store.remove(Reference.parse(name))
        killed = killed_at(k, lambda: gc(store, 0) and None)
        assert problems(store) == [], (k, problems(store))
        assert store.image("two:1").id == two.config["digest"], k
        keep(store, layout, one, "one:1")
        assert problems(store) == [], k
        gc(store, 0)
        assert problems(store) == [] and len(blobs(store)) == 7, k
        assert os.listdir(store.content.scratch) == [], k
        if not killed:
            break
        k += 1
    print(k)


@pytest.mark.parametrize("work, at_least", [("crash_keep", 80), ("crash_gc", 10)])
def test_kill_9_at_any_call_leaves_a_sound_store(tmp_path: Path, work: str, at_least: int) -> None:
    code = "import sys; from tests.store import test_store; test_store.%s(sys.argv[1])" % work
    done = run([sys.executable, "-c", code, str(tmp_path)], dict(os.environ, **ENV), timeout=240)
    assert int(done.out) > at_least


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
