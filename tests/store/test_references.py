# SPDX-License-Identifier: Apache-2.0
"""index.json: whole names, nobody's entry lost, written last and under its lock."""
import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any, Dict, List

import pytest

from minipull.image import strictjson
from minipull.store import references
from minipull.image.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from minipull.image.platform import Platform
from minipull.digest import Digest
from minipull.errors import Cancelled, InvalidReference, PolicyError, StorageError
from minipull.reference import Reference
from minipull.store.references import Association, ReferenceStore, association, parse_index
from minipull.cancel import Cancel
from tests.kit.stores import failing
from tests.kit.stores import at_once

ONE, TWO, SOURCE = (Digest.of(text) for text in (b"one", b"two", b"source"))
NAME = Reference.parse("docker.io/library/busybox:latest")
OTHERS: List[Dict[str, Any]] = [
    {"mediaType": "application/x-strange", "digest": str(ONE), "size": 3, "new": {"member": [1]}},
    {"mediaType": OCI_MANIFEST, "digest": str(TWO), "size": 4,
     "annotations": {"org.opencontainers.image.ref.name": "latest"}},
]


@pytest.fixture
def store(tmp_path: Path) -> ReferenceStore:
    return make(tmp_path)


def make(root: Path) -> ReferenceStore:
    return ReferenceStore(str(root), str(root / "ingest"), timeout=10)


def manifest(digest: Digest = ONE) -> Descriptor:
    return Descriptor(OCI_MANIFEST, digest, 7)


def index(store: ReferenceStore) -> Any:
    return json.loads(Path(store.path).read_text())


def names(store: ReferenceStore) -> List[str]:
    return [str(item.name) for item in store.all()]


# -- names ---------------------------------------------------------------------


def test_a_name_is_stored_with_its_descriptor_and_source(store: ReferenceStore, tmp_path: Path) -> None:
    assert store.all() == [] and store.get(NAME) is None and os.listdir(str(tmp_path)) == []
    store.set(NAME, manifest(), SOURCE)
    for reader in (store, make(tmp_path)):
        assert reader.get(NAME) == Association(NAME, manifest(), SOURCE)
    assert index(store) == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": ONE, "size": 7, "annotations": {
            "org.opencontainers.image.ref.name": str(NAME), "io.containerd.image.name": str(NAME),
            "io.minipull.source.digest": SOURCE}}]}
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert b" " not in Path(store.path).read_bytes() + (tmp_path / "oci-layout").read_bytes()


def test_setting_a_tag_again_moves_it_alone(store: ReferenceStore) -> None:
    other = Reference.parse("localhost:5000/a/b@" + TWO)
    store.set(other, manifest(TWO), TWO)
    store.set(NAME, manifest(ONE), ONE)
    store.set(NAME, manifest(TWO), SOURCE)
    assert names(store) == [str(NAME), str(other)]
    assert store.get(NAME) == Association(NAME, manifest(TWO), SOURCE)


def test_names_are_listed_in_order(store: ReferenceStore) -> None:
    given = ["b:2", "a:2", "a@" + ONE, "b:1"]
    for text in given:
        store.set(Reference.parse(text), manifest(), ONE)
    assert names(store) == sorted(str(Reference.parse(text)) for text in given)


def test_setting_the_same_again_writes_nothing(store: ReferenceStore) -> None:
    for text in ("a:1", "b:1"):
        store.set(Reference.parse(text), manifest(), ONE)
    before = os.stat(store.path)
    store.set(Reference.parse("a:1"), manifest(), ONE)
    after = os.stat(store.path)
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_deleting_says_whether_it_was_there(store: ReferenceStore) -> None:
    assert not store.delete(NAME) and not os.path.exists(store.path)
    store.set(NAME, manifest(), ONE)
    assert store.delete(NAME) and not store.delete(NAME)
    assert index(store)["manifests"] == []


def test_many_names_go_in_one_step(store: ReferenceStore) -> None:
    given = [Reference.parse(text).docker_ref() for text in ("a:1", "b:1", "c:1")]
    for name in given:
        store.set(name, manifest(), ONE)
    assert store.delete(*given[1:])
    assert names(store) == [str(given[0])]
    assert len(json.loads(Path(store.path + ".bak").read_bytes())["manifests"]) == 3


class Counted(ReferenceStore):
    """A store that counts the entries that it has parsed."""
    parsed = 0

    def association(self, entry: Dict[str, Any]) -> Any:
        self.parsed += 1
        return super().association(entry)


def test_names_are_parsed_again_only_when_they_have_changed(store: ReferenceStore) -> None:
    counted = Counted(os.path.dirname(store.path), os.path.join(os.path.dirname(store.path), "ingest"))
    for number in range(1, 4):
        store.set(Reference.parse("a:%d" % number), manifest(), ONE)
        before = counted.parsed
        assert len(counted.all()) == number
        for item in counted.all() * 2:
            assert counted.get(item.name) == item
        assert counted.parsed == before + number


@pytest.mark.parametrize("text, why", [
    ("busybox", "neither tag nor digest"), ("sha256:latest", "ambiguous tag"), ("sha512:x", "ambiguous tag")])
def test_names_that_would_confuse_are_refused(store: ReferenceStore, text: str, why: str) -> None:
    with pytest.raises(InvalidReference, match=why):
        store.set(Reference.parse(text), manifest(), ONE)
    assert not os.path.exists(store.path)


def test_the_platform_of_an_entry_is_not_kept(store: ReferenceStore) -> None:
    store.set(NAME, manifest()._replace(platform=Platform("linux", "arm64")), SOURCE)
    assert store.get(NAME) == Association(NAME, manifest(), SOURCE)


# -- what others wrote ---------------------------------------------------------


def test_entries_of_other_tools_are_kept(store: ReferenceStore) -> None:
    Path(store.path).write_text(json.dumps(
        {"schemaVersion": 2, "manifests": OTHERS, "annotations": {"a": "b"}, "future": None}, indent=1))
    assert store.all() == [] and store.descriptors() == OTHERS
    store.set(NAME, manifest(), ONE)
    store.set(Reference.parse("a:1"), manifest(), ONE)
    assert store.delete(NAME)
    found = index(store)
    assert found["manifests"][:2] == OTHERS and len(found["manifests"]) == 3
    assert (found["annotations"], found["future"], found["mediaType"]) == ({"a": "b"}, None, OCI_INDEX)


@pytest.mark.parametrize("annotations, name", [
    ({"io.containerd.image.name": str(NAME)}, str(NAME)),
    ({"io.containerd.image.name": str(NAME), "org.opencontainers.image.ref.name": "latest"}, str(NAME)),
    ({"org.opencontainers.image.ref.name": str(NAME)}, str(NAME)),
    ({"org.opencontainers.image.ref.name": "latest"}, None),
    ({"org.opencontainers.image.ref.name": "busybox:latest"}, None),
    ({"org.opencontainers.image.ref.name": "docker.io/library/busybox"}, None),
    ({"org.opencontainers.image.ref.name": ""}, None),
    ({"org.opencontainers.image.ref.name": str(NAME), "io.minipull.source.digest": "sha256:0"}, None),
    ({"org.opencontainers.image.ref.name": 5}, None), ([str(NAME)], None), (None, None)])
def test_only_full_references_are_names(annotations: Any, name: Any) -> None:
    found = association(dict(manifest().to_json(), annotations=annotations))
    assert (found and str(found.name)) == name
    assert found is None or (found.descriptor, found.source) == (manifest(), ONE)


@pytest.mark.parametrize("member", ["mediaType", "digest", "size"])
def test_an_entry_that_is_no_descriptor_has_no_name(member: str) -> None:
    entry = Association(NAME, manifest(), ONE).to_json()
    assert association(entry) is not None
    del entry[member]
    assert association(entry) is None


# -- torn files ----------------------------------------------------------------


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"\0" * 50, b'{"schemaVersion":1,"manifests":[]}', b'{"schemaVersion":2}',
    b'{"schemaVersion":2,"manifests":{}}', b'{"schemaVersion":2,"manifests":[5]}',
    b'{"schemaVersion":2,"manifests":[],"manifests":[]}'])
def test_a_torn_index_is_named_and_left_alone(store: ReferenceStore, data: bytes) -> None:
    Path(store.path).write_bytes(data)
    for use in (store.all, lambda: store.set(NAME, manifest(), ONE), lambda: store.delete(NAME)):
        with pytest.raises(StorageError, match="index.json.*move it away and put index.json.bak"):
            use()
    assert Path(store.path).read_bytes() == data


def test_an_endless_index_is_not_read(store: ReferenceStore) -> None:
    with open(store.path, "wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(StorageError, match="index.json is larger"):
        store.all()


def test_an_index_that_could_not_be_read_again_is_not_written(
        store: ReferenceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strictjson, "MAX_MEMORY", 40000)
    count = 0
    with pytest.raises(PolicyError, match="index.json with [0-9]+ entries: its JSON would take"):
        for count in range(1000):
            store.set(Reference.parse("busybox:%d" % count), manifest(), ONE)
    assert 3 < count < 30 and len(names(store)) == len(names(make(tmp_path))) == count
    assert store.delete(Reference.parse("busybox:0").docker_ref())
    Path(store.path).write_bytes(b'{"schemaVersion":2,"manifests":[%s{}]}' % (b"{}," * 1000))
    with pytest.raises(StorageError, match="its JSON would take.*move it away"):
        store.all()


def test_no_index_is_read_or_locked_through_a_link(store: ReferenceStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b'{"schemaVersion":2,"manifests":[]}')
    os.symlink("secret", store.path)
    with pytest.raises(StorageError, match="symbolic link"):
        store.all()
    os.unlink(store.path)
    os.symlink("secret", str(tmp_path / "index.lock"))
    with pytest.raises(StorageError, match="symbolic link"):
        store.set(NAME, manifest(), ONE)


def test_parse_index_gives_the_entries() -> None:
    assert parse_index(json.dumps({"schemaVersion": 2, "manifests": OTHERS}).encode(), "x")["manifests"] == OTHERS


# -- several writers -----------------------------------------------------------


def test_a_reader_sees_the_changes_of_another_process(store: ReferenceStore, tmp_path: Path) -> None:
    other = make(tmp_path)
    for number in range(5):
        other.set(Reference.parse("a:%d" % number), manifest(), ONE)
        assert len(store.all()) == number + 1
        store.set(Reference.parse("b:%d" % number), manifest(), ONE)
        store.delete(Reference.parse("b:%d" % number))
    assert len(other.all()) == 5


def test_what_this_process_wrote_is_not_parsed_again(store: ReferenceStore, texts: List[str]) -> None:
    tags = [NAME.with_tag("v%d" % number) for number in range(20)]
    for tag in tags:
        store.set(tag, manifest(), SOURCE)
        assert store.get(tag) == Association(tag, manifest(), SOURCE)
    assert len(texts) == 1, "only the text of an empty index"
    assert store.delete(tags[0]) and store.get(tags[0]) is None and len(texts) == 1
    assert make(Path(store.path).parent).all() == store.all() and len(texts) == 2


def test_a_name_is_parsed_once_while_others_change(tmp_path: Path) -> None:
    counted = Counted(str(tmp_path), str(tmp_path / "ingest"))
    for number in range(1, 31):
        counted.set(NAME.with_tag("v%d" % number), manifest(), ONE)
        assert len(counted.all()) == number == counted.parsed
    for number in range(1, 200):  # entries go, and others come in their place
        name = NAME.with_tag("v%d" % (number * 7 % 30 + 1))
        assert counted.delete(name) and counted.get(name) is None
        counted.set(name.with_tag("w%d" % number), manifest(TWO), ONE)
        counted.delete(name.with_tag("w%d" % number))
        counted.set(name, manifest([ONE, TWO][number % 2]), ONE)
        assert counted.all() == make(tmp_path).all()


def test_a_thread_that_finds_the_index_being_parsed_waits_for_that(
        store: ReferenceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path).set(NAME, manifest(), SOURCE)
    real, threads, lists = json.loads, [], []

    def loads(text: str, **options: Any) -> Any:
        threads.append(threading.Thread(target=lambda: lists.append(store.all())))
        if len(threads) < 5:
            threads[-1].start()
            threads[-1].join(0.2)  # in vain, if it waits for us
        return real(text, **options)

    monkeypatch.setattr(json, "loads", loads)
    assert names(store) == [str(NAME)]
    threads[0].join(10)
    assert lists == [store.all()] and len(threads) == 1


def test_a_writer_reads_the_index_anew_under_the_lock(store: ReferenceStore, tmp_path: Path) -> None:
    store.set(Reference.parse("a:1"), manifest(), ONE)
    assert len(store.all()) == 1
    before = os.stat(store.path)
    data = Path(store.path).read_bytes()
    with open(store.path, "r+b") as file:  # the same inode, size and time
        file.write(data.replace(b"/a:1", b"/b:1"))
    os.utime(store.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.set(NAME, manifest(), ONE)
    assert names(store) == ["docker.io/library/b:1", str(NAME)]


WRITER = """
import sys
from minipull.image.descriptor import Descriptor
from minipull.digest import Digest
from minipull.reference import Reference
from minipull.store.references import ReferenceStore
store = ReferenceStore(sys.argv[1], sys.argv[1] + "/ingest")
print("ready", flush=True)
sys.stdin.readline()
digest = Digest.of(b"")
for number in range(15):
    name = Reference.parse("%s:%d" % (sys.argv[2], number))
    store.set(name, Descriptor("application/x", digest, 0), digest)
    store.all()
    if number % 3 == 0:
        store.delete(name)
"""


def test_of_several_processes_no_name_is_lost(store: ReferenceStore, tmp_path: Path) -> None:
    with at_once(WRITER, [[str(tmp_path), word] for word in "abcd"]) as writers:
        for writer in writers:
            writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0] * 4
    assert len(names(store)) == 40 and os.listdir(str(tmp_path / "ingest")) == []


def test_the_lock_is_waited_for_and_the_wait_can_end(store: ReferenceStore, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, real = threading.Event(), fcntl.flock

    def flock(fd: int, operation: int) -> None:
        try:
            real(fd, operation)
        except OSError:
            waiting.set()
            raise

    monkeypatch.setattr(fcntl, "flock", flock)
    fd = os.open(str(tmp_path / "index.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    real(fd, fcntl.LOCK_EX)
    cancel, raised = Cancel(), []

    def write() -> None:
        try:
            store.set(NAME, manifest(), ONE, cancel.pause)
        except Cancelled as exc:
            raised.append(exc)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert waiting.wait(30)
    cancel.cancel()
    thread.join(30)
    assert len(raised) == 1 and not os.path.exists(store.path)
    impatient = ReferenceStore(str(tmp_path), str(tmp_path / "ingest"), timeout=0.05)
    with pytest.raises(StorageError, match="index.lock is locked by"):
        impatient.delete(NAME)
    os.close(fd)
    store.set(NAME, manifest(), ONE)


def test_without_locks_nothing_is_written(store: ReferenceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set(NAME, manifest(), ONE)
    before = Path(store.path).read_bytes()
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(StorageError, match="--root"):
        store.delete(NAME)
    assert names(store) == [str(NAME)] and Path(store.path).read_bytes() == before


# -- the index before ----------------------------------------------------------


def test_the_index_before_the_last_change_is_kept_and_brings_back_what_it_named(
        store: ReferenceStore, tmp_path: Path) -> None:
    backup = Path(store.path + ".bak")
    store.set(NAME, manifest(), ONE)
    assert not backup.exists(), "there was no name before"
    for digest in (TWO, ONE):
        before = Path(store.path).read_bytes()
        store.set(NAME, manifest(digest), digest)
        assert backup.read_bytes() == before != Path(store.path).read_bytes()
    store.set(NAME, manifest(), ONE)
    assert backup.read_bytes() == before, "nothing has changed"
    Path(store.path).write_bytes(b"{")
    with pytest.raises(StorageError, match="index.json"):
        store.delete(NAME)
    os.replace(str(backup), store.path)
    assert make(tmp_path).get(NAME) == Association(NAME, manifest(TWO), TWO)


def test_an_index_that_can_not_be_kept_does_not_stop_a_change(store: ReferenceStore) -> None:
    store.set(NAME, manifest(), ONE)
    os.mkdir(store.path + ".bak")
    store.set(NAME, manifest(TWO), TWO)
    assert store.get(NAME) == Association(NAME, manifest(TWO), TWO)


# -- a disk that fails ---------------------------------------------------------


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_the_old_index(store: ReferenceStore, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    store.set(NAME, manifest(), ONE)
    monkeypatch.setattr(os, name, failing(code))
    with pytest.raises(StorageError, match="^write %s" % tmp_path):
        store.set(NAME, manifest(TWO), TWO)
    monkeypatch.undo()
    assert store.get(NAME) == Association(NAME, manifest(), ONE)
    assert os.listdir(str(tmp_path / "ingest")) == []


def test_a_read_error_is_a_storage_error(store: ReferenceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "stat", failing(errno.EIO))
    with pytest.raises(StorageError, match="read .*index.json"):
        store.descriptors()


@pytest.mark.parametrize("change, last", [
    ("first", ["file", "oci-layout", "root", "file", "index.json", "root"]),
    ("other", ["file", "index.json.bak", "root", "file", "index.json", "root"]),
    ("same", [])])
def test_all_that_the_index_names_is_durable_before_it_is_replaced(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, last: List[str]) -> None:
    """Also if another run, killed before it synced a directory, has put it there; and if nothing changes."""
    calls: List[str] = []
    fsync, replace, root = os.fsync, os.replace, tmp_path / "root"
    for folder in ("ingest", "blobs/sha256", "blobs/sha512"):
        (root / folder).mkdir(parents=True)
    store = make(root)
    if change != "first":
        store.set(NAME, manifest(), ONE)

    def synced(fd: int) -> None:
        path = os.readlink("/proc/self/fd/%d" % fd)
        calls.append(os.path.basename(path) if os.path.isdir(path) else "file")
        fsync(fd)

    def replaced(old: str, new: str) -> None:
        calls.append(os.path.basename(new))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    store.set(NAME, manifest(TWO) if change == "other" else manifest(), TWO if change == "other" else ONE)
    assert calls == ["sha256", "sha512", "blobs", "root", tmp_path.name] + last
    assert references.LAYOUT == (root / "oci-layout").read_bytes()


def test_an_index_that_is_gone_while_the_one_before_is_there_is_no_empty_store(store: ReferenceStore, tmp_path: Path) -> None:
    for name in ("a.example/x:1", "a.example/x:2"):
        store.set(Reference.parse(name), manifest(), ONE)
    os.rename(store.path, store.path + ".bad")
    for act in (store.all, lambda: store.set(Reference.parse("a.example/x:3"), manifest(), ONE)):
        with pytest.raises(StorageError, match="is missing; put index.json.bak, the one before its last change"):
            act()
    os.rename(store.path + ".bak", store.path)
    assert [str(image.name) for image in store.all()] == ["a.example/x:1"]
