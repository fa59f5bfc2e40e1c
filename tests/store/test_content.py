# SPDX-License-Identifier: Apache-2.0
"""Content: blobs under their digests, read without following links."""
import errno
import hashlib
import os
from pathlib import Path

import pytest

from minipull.cancel import Cancel
from minipull.digest import Digest, Verifier
from minipull.errors import Cancelled, ContentMismatch, StorageError
from minipull.store.content import ContentStore, listing
from minipull.store.ingest import Ingest, copy_blob
from tests.kit.stores import failing

DATA = bytes(range(256)) * 40
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path / "root"), timeout=10)


# -- blobs ---------------------------------------------------------------------


def test_an_absent_root_has_no_blobs_and_stays_absent(store: ContentStore) -> None:
    assert (store.size(DIGEST), store.has(DIGEST, 1), store.digests()) == (None, False, [])
    with pytest.raises(StorageError, match="missing.*pull the image again"):
        store.read(DIGEST, 10)
    with pytest.raises(StorageError, match="open blob"):
        store.open(DIGEST)
    assert not os.path.exists(store.root)


def test_a_small_blob_is_put_once(store: ContentStore) -> None:
    store.put(DIGEST, DATA)
    before = os.stat(store.path(DIGEST))
    store.put(DIGEST, DATA)
    assert os.path.samestat(before, os.stat(store.path(DIGEST)))
    assert store.read(DIGEST, len(DATA)) == DATA and store.digests() == [DIGEST]
    assert store.has(DIGEST, len(DATA)) and not store.has(DIGEST, 1) and os.listdir(store.scratch) == []


@pytest.mark.parametrize("damaged", [b"", DATA[:-1], DATA[:-1] + b"x", DATA + b"x"])
def test_putting_a_blob_again_repairs_it(store: ContentStore, damaged: bytes) -> None:
    store.put(DIGEST, DATA)
    Path(store.path(DIGEST)).write_bytes(damaged)
    store.put(DIGEST, DATA)
    assert store.read(DIGEST, len(DATA)) == DATA


def test_put_refuses_bytes_of_another_digest(store: ContentStore) -> None:
    with pytest.raises(ContentMismatch):
        store.put(DIGEST, DATA[:-1] + b"x")
    assert store.digests() == []


def test_reading_a_blob_verifies_its_digest(store: ContentStore) -> None:
    store.put(DIGEST, DATA)
    Path(store.path(DIGEST)).write_bytes(DATA[:-1] + b"x")
    with pytest.raises(StorageError, match="corrupt; run minipull check"):
        store.read(DIGEST, len(DATA))
    verifier = Verifier()
    store.hash(DIGEST, verifier, Cancel())
    assert (verifier.size, verifier.digest == DIGEST) == (len(DATA), False)
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        store.hash(DIGEST, Verifier(), cancel)


def test_every_registered_algorithm_is_stored(store: ContentStore) -> None:
    for algorithm in ("sha256", "sha384", "sha512"):
        digest = Digest.parse("%s:%s" % (algorithm, hashlib.new(algorithm, DATA).hexdigest()))
        with Ingest(store, Cancel(), digest, len(DATA)) as ingest:
            ingest.write(DATA)
            ingest.commit()
        assert store.read(digest, len(DATA)) == DATA
    assert len(store.digests()) == 3


@pytest.mark.parametrize("plant", ["link", "folder", "fifo"])
def test_no_blob_is_read_through_a_link_folder_or_fifo(store: ContentStore, tmp_path: Path, plant: str) -> None:
    os.makedirs(os.path.dirname(store.path(DIGEST)))
    (tmp_path / "secret").write_bytes(DATA)
    {"link": lambda: os.symlink(str(tmp_path / "secret"), store.path(DIGEST)),
     "folder": lambda: os.mkdir(store.path(DIGEST)),
     "fifo": lambda: os.mkfifo(store.path(DIGEST))}[plant]()
    for read in (lambda: store.open(DIGEST), lambda: store.read(DIGEST, 1 << 20)):
        with pytest.raises(StorageError):
            read()


@pytest.mark.parametrize("way", ["put", "put again", "upload", "settle", "copy", "ingest"])
def test_a_partial_and_its_note_go_with_their_blob_however_that_comes(
        store: ContentStore, tmp_path: Path, way: str) -> None:
    other = Digest.of(b"other")
    if way in ("put again", "settle", "copy", "ingest"):
        store.put(DIGEST, DATA)
    for digest in (DIGEST, other):
        with Ingest(store, Cancel(), name=digest.replace(":", "-")) as partial:
            partial.write(b"half")
    note = Path(store.scratch, DIGEST.replace(":", "-") + ".json")
    assert note.exists()
    if way in ("put", "put again"):
        store.put(DIGEST, DATA)
    elif way == "upload":
        with Ingest(store, Cancel(), name="upload-1") as upload:
            upload.write(DATA)
            assert upload.commit() == DIGEST
    elif way == "settle":
        store.make_durable()
    elif way == "copy":
        copy_blob(store, store, DIGEST, len(DATA), Cancel())
    else:
        assert Ingest(store, Cancel(), DIGEST, len(DATA)).complete
    kept = other.replace(":", "-")
    assert sorted(os.listdir(store.scratch)) == [kept, kept + ".json"], "the other may be continued"
    assert store.read(DIGEST, len(DATA)) == DATA


def test_a_copy_takes_nothing_of_a_partial(store: ContentStore, tmp_path: Path) -> None:
    with Ingest(store, Cancel(), DIGEST, len(DATA)) as partial:
        partial.write(DATA[:2])
    source = ContentStore(str(tmp_path / "source"))
    source.put(DIGEST, DATA)
    copy_blob(store, source, DIGEST, len(DATA), Cancel())
    assert store.read(DIGEST, len(DATA)) == DATA


def test_settling_sweeps_what_nobody_will_continue_and_leaves_the_rest(store: ContentStore) -> None:
    store.put(DIGEST, DATA)
    debris = ["sha256-%s.json" % DIGEST.encoded, "upload-1.json", ".minipull-index.json-12345678"]
    rest = ["upload-2", "upload-2.json", "sha256-%s" % ("0" * 64), "sha256-%s.json" % ("0" * 64), "notes"]
    for name in debris + rest:
        Path(store.scratch, name).write_bytes(b"x")
    Path(store.scratch, "folder.json").mkdir()
    with Ingest(store, Cancel(), Digest.of(b"used"), 4) as used:
        used.write(b"us")
        store.make_durable()
        assert sorted(set(os.listdir(store.scratch)) - set(rest) - {"folder.json"}) == sorted(
            os.path.basename(used._path) + end for end in ("", ".json"))
    assert set(os.listdir(store.scratch)) >= set(rest)


def test_a_partial_that_is_owned_is_left_to_its_owner_at_once(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cancel, "pause", None)
    with Ingest(store, Cancel(), DIGEST, len(DATA)) as owner:
        owner.write(DATA)
        store.put(DIGEST, DATA)
        store.make_durable()
        owner.commit()
    assert os.listdir(store.scratch) == [] and store.read(DIGEST, len(DATA)) == DATA


def test_a_blob_that_may_not_be_looked_at_is_not_missing(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "lstat", failing(errno.EACCES))
    with pytest.raises(StorageError, match="examine blob .*Permission denied"):
        store.size(DIGEST)


def test_files_not_named_after_a_digest_are_no_blobs(store: ContentStore) -> None:
    store.put(DIGEST, DATA)
    for name in ("blobs/README", "blobs/sha256/%s" % ("G" * 64), "blobs/md5/%s" % ("0" * 32)):
        path = Path(store.root, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert listing(os.path.join(store.root, "blobs")) == [(DIGEST, store.path(DIGEST))]


def test_a_directory_that_can_not_be_listed_is_an_error(
        store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(DIGEST, DATA)
    monkeypatch.setattr(os, "listdir", failing(errno.EIO))
    with pytest.raises(StorageError, match="list .*Input/output"):
        store.digests()
