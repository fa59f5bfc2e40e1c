# SPDX-License-Identifier: Apache-2.0
"""Metadata: a cache that may be torn, stale or gone, and is never wrong."""
import errno
import json
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.kit import DATA
from minipull.digest import DiffID, Digest
from minipull.errors import InvalidDocument, StorageError
from minipull.distribution.pull_v1 import V1IDService
from minipull.store.metadata import (
    MetadataStore, V2Metadata, V2MetadataService, check_hmac, compute_hmac, hmac_key,
    parse_metadata)
from tests.kit.stores import failing

TABLES = json.loads((DATA / "tables.json").read_text("utf-8"))
DIFF = [DiffID(Digest.of(b"diff %d" % n)) for n in range(4)]
BLOB = [Digest.of(b"blob %d" % n) for n in range(100)]
REPOSITORY = "docker.io/library/busybox"


@pytest.fixture
def store(tmp_path: Path) -> MetadataStore:
    return MetadataStore(str(tmp_path / "metadata"), str(tmp_path / "ingest"))


@pytest.fixture
def service(store: MetadataStore) -> V2MetadataService:
    return V2MetadataService(store.root, str(Path(store.root).parent / "ingest"))


def list_file(service: V2MetadataService, diff_id: DiffID) -> Path:
    return Path(service.path(service.BY_DIFF_ID, diff_id.replace(":", "/")))


# -- the store of files --------------------------------------------------------


def test_a_value_is_what_was_set_last(store: MetadataStore) -> None:
    assert store.get("space", "key") is None and not os.path.exists(store.root)
    for value in (b"one", b"", b"three"):
        store.set("space", "key", value)
        assert store.get("space", "key") == value
    assert store.get("other", "key") is None


def test_a_key_may_have_slashes(store: MetadataStore) -> None:
    store.set("space", "a/b/c", b"x")
    assert Path(store.root, "space", "a", "b", "c").read_bytes() == b"x"
    assert store.get("space", "a/b/c") == b"x"


def test_deleting_twice_is_deleting(store: MetadataStore) -> None:
    store.set("space", "key", b"x")
    for _ in range(2):
        store.delete("space", "key")
        assert store.get("space", "key") is None


def test_system_errors_are_storage_errors(
        store: MetadataStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set("space", "key", b"x")
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    with pytest.raises(StorageError, match="delete .*Read-only.*--root"):
        store.delete("space", "key")
    monkeypatch.undo()
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space"):
        store.set("space", "key", b"y")
    monkeypatch.undo()
    assert store.get("space", "key") == b"x"


# -- associations --------------------------------------------------------------


def test_an_unknown_layer_or_blob_is_found_out_again(service: V2MetadataService) -> None:
    assert service.get_metadata(DIFF[0]) == [] and service.get_diff_id(BLOB[0]) is None


def test_associations_come_in_order_and_lead_back(service: V2MetadataService) -> None:
    for count, diff_id in enumerate(DIFF):
        entries = [V2Metadata(BLOB[count * 10 + n], REPOSITORY, "%d" % n) for n in range(count)]
        for entry in entries:
            service.add(diff_id, entry)
        assert service.get_metadata(diff_id) == entries
        assert [service.get_diff_id(entry.digest) for entry in entries] == [diff_id] * count


def test_the_files_are_as_the_engine_lays_them_out(service: V2MetadataService) -> None:
    service.add(DIFF[0], V2Metadata(BLOB[0], REPOSITORY))
    found = json.loads(list_file(service, DIFF[0]).read_text())
    del found[0]["Sum"]
    assert found == [{"Digest": BLOB[0], "SourceRepository": REPOSITORY, "HMAC": ""}]
    back = Path(service.root, "diffid-by-digest", "sha256", BLOB[0].encoded)
    assert back.read_bytes() == DIFF[0].encode()
    assert b" " not in list_file(service, DIFF[0]).read_bytes()


def test_the_newest_fifty_are_kept(service: V2MetadataService) -> None:
    entries = [V2Metadata(blob, REPOSITORY) for blob in BLOB]
    for entry in entries:
        service.add(DIFF[0], entry)
    assert service.get_metadata(DIFF[0]) == entries[-50:]


def test_adding_again_makes_an_association_the_newest(service: V2MetadataService) -> None:
    one, two = (V2Metadata(blob, REPOSITORY) for blob in BLOB[:2])
    for entry in (one, two, one):
        service.add(DIFF[0], entry)
    assert service.get_metadata(DIFF[0]) == [two, one]
    marked = one._replace(hmac="ab")
    service.add(DIFF[0], marked)
    assert service.get_metadata(DIFF[0]) == [two, one, marked]


def test_adding_the_newest_association_again_writes_nothing(service: V2MetadataService) -> None:
    entry = V2Metadata(BLOB[0], REPOSITORY)
    service.add(DIFF[0], entry)
    before = os.stat(str(list_file(service, DIFF[0])))
    service.add(DIFF[0], entry)
    assert os.path.samestat(before, os.stat(str(list_file(service, DIFF[0]))))


def test_the_last_diff_id_of_a_blob_counts(service: V2MetadataService) -> None:
    for diff_id in DIFF[:2]:
        service.add(diff_id, V2Metadata(BLOB[0], REPOSITORY))
    assert service.get_diff_id(BLOB[0]) == DIFF[1]
    assert len(service.get_metadata(DIFF[0])) == 1


def test_a_forgotten_blob_is_found_out_again(service: V2MetadataService) -> None:
    service.add(DIFF[0], V2Metadata(BLOB[0], REPOSITORY))
    service.forget(BLOB[0])
    assert service.get_diff_id(BLOB[0]) is None
    service.add(DIFF[0], V2Metadata(BLOB[0], REPOSITORY))
    assert service.get_diff_id(BLOB[0]) == DIFF[0]


def test_only_wanted_blobs_are_retained(service: V2MetadataService) -> None:
    for blob in BLOB[:3]:
        service.add(DIFF[0], V2Metadata(blob, REPOSITORY))
    before = os.stat(str(list_file(service, DIFF[0])))
    service.retain(DIFF[0], lambda entry: True)
    assert os.path.samestat(before, os.stat(str(list_file(service, DIFF[0]))))
    service.retain(DIFF[0], lambda entry: entry.digest != BLOB[1])
    assert [entry.digest for entry in service.get_metadata(DIFF[0])] == [BLOB[0], BLOB[2]]
    service.retain(DIFF[0], lambda entry: False)
    assert not list_file(service, DIFF[0]).exists()


def test_one_association_is_removed_and_with_the_last_the_file(service: V2MetadataService) -> None:
    one, two = (V2Metadata(blob, REPOSITORY) for blob in BLOB[:2])
    for entry in (one, two):
        service.add(DIFF[0], entry)
    service.remove(one._replace(hmac="ab"))
    service.remove(V2Metadata(BLOB[2], REPOSITORY))
    assert service.get_metadata(DIFF[0]) == [one, two]
    service.remove(one)
    assert service.get_metadata(DIFF[0]) == [two]
    service.remove(two)
    assert not list_file(service, DIFF[0]).exists()
    assert service.get_diff_id(BLOB[1]) == DIFF[0]  # which is still true


# -- the mark of credentials -----------------------------------------------------


@pytest.mark.parametrize("case", TABLES["metadata_hmac"])
def test_the_hmac_of_credentials_is_the_engines(service: V2MetadataService, case: Dict[str, Any]) -> None:
    key = hmac_key(case["credential"])
    assert key.decode() == case["key"] == Digest.of(case["json"].encode())
    entry = V2Metadata(Digest(case["digest"]), case["source"])
    marked = entry._replace(hmac=case["hmac"])
    assert compute_hmac(key, entry) == case["hmac"]
    service.tag_and_add(DIFF[0], key, entry)
    assert service.get_metadata(DIFF[0]) == [marked]
    assert check_hmac(key, marked) and not check_hmac(key, entry)
    assert not check_hmac(key, marked._replace(source_repository="docker.io/library/other"))
    assert not check_hmac(key, marked._replace(hmac="\u00e9"))


def test_without_credentials_the_hmac_is_empty() -> None:
    entry = V2Metadata(BLOB[0], REPOSITORY)
    assert (hmac_key(None), compute_hmac(b"", entry)) == (b"", "")
    assert check_hmac(b"", entry) and not check_hmac(b"", entry._replace(hmac="0" * 64))


def test_unknown_members_of_a_credential_do_not_change_the_key() -> None:
    known = {"username": "u", "password": "p"}
    assert hmac_key({"password": "p", "serveraddress": "r.com", "email": "a@b", "username": "u",
                     "identitytoken": ""}) == hmac_key(known)


def test_a_password_may_be_any_bytes() -> None:
    keys = {hmac_key({"password": text}) for text in ("\udcff", "\u2028", "\u00e9", "<")}
    assert len(keys) == 4
    assert hmac_key({"password": "\u2028"}) == Digest.of(b'{"password":"\\u2028"}').encode()
    assert hmac_key({"password": "\u00e9"}) == Digest.of('{"password":"\u00e9"}'.encode()).encode()


# -- torn files ----------------------------------------------------------------

SOUND = {"Digest": BLOB[0], "SourceRepository": REPOSITORY, "HMAC": "",
         "Sum": V2Metadata(BLOB[0], REPOSITORY).checksum}
TORN: List[bytes] = [
    b"", b"[", b"{}x", b"5", b'["a"]', b"[5]", b"[[]]", b'{"a":1}', b"\xff", b"[" * 100000,
    json.dumps([dict(SOUND, Digest="sha256:0")]).encode(), json.dumps([dict(SOUND, HMAC="a")]).encode(),
    json.dumps([dict(SOUND, more=1)]).encode(), json.dumps([dict(SOUND, Sum="0")]).encode(),
    json.dumps([{key: SOUND[key] for key in SOUND if key != "HMAC"}]).encode(),
    json.dumps([{key: SOUND[key] for key in SOUND if key != "Sum"}]).encode()]


def test_sound_associations_parse() -> None:
    assert parse_metadata(json.dumps([SOUND]).encode()) == [V2Metadata(BLOB[0], REPOSITORY)]


@pytest.mark.parametrize("data", TORN, ids=range(len(TORN)))
def test_a_torn_list_is_no_list_and_is_replaced(service: V2MetadataService, data: bytes) -> None:
    with pytest.raises(InvalidDocument):
        parse_metadata(data)
    entry = V2Metadata(BLOB[0], REPOSITORY)
    service.add(DIFF[0], entry)
    list_file(service, DIFF[0]).write_bytes(data)
    assert service.get_metadata(DIFF[0]) == []
    service.add(DIFF[0], entry)
    assert service.get_metadata(DIFF[0]) == [entry]
    list_file(service, DIFF[0]).write_bytes(data)
    service.retain(DIFF[0], lambda entry: True)
    assert not list_file(service, DIFF[0]).exists()


@pytest.mark.parametrize("data", [b"", b"sha256:0", DIFF[0].encode() + b"\n", b"\xff", b"x" * (2 << 20)],
                         ids=["empty", "short", "longer", "binary", "endless"])
def test_a_torn_diff_id_is_none(service: V2MetadataService, data: bytes) -> None:
    service.set(service.BY_DIGEST, BLOB[0].replace(":", "/"), data)
    assert service.get_diff_id(BLOB[0]) is None


# -- v1 ids ----------------------------------------------------------------------


def test_v1_ids_belong_to_a_registry(store: MetadataStore) -> None:
    service = V1IDService(store)
    pairs = [("registry%d" % r, "%064x" % n, DiffID(Digest.of(b"%d %d" % (r, n)))) for r in (1, 2) for n in range(3)]
    for registry, v1_id, diff_id in pairs:
        service.set(v1_id, registry, diff_id)
    for registry, v1_id, diff_id in pairs:
        assert service.get(v1_id, registry) == diff_id
    assert service.get("%064x" % 9, "registry1") is None
    assert service.get("%064x" % 1, "registry3") is None
    service.set(pairs[0][1], "registry1", pairs[5][2])
    assert service.get(pairs[0][1], "registry1") == pairs[5][2]
    assert store.path("v1id-mappings", "registry1,%064x" % 0).endswith("metadata/v1id-mappings/registry1,%064x" % 0)


@pytest.mark.parametrize("v1_id", ["", "a" * 63, "A" * 64, "../../etc", "a" * 64 + "\n"])
def test_an_invalid_v1_id_names_no_file(store: MetadataStore, v1_id: str) -> None:
    service = V1IDService(store)
    with pytest.raises(InvalidDocument, match="image ID .* is invalid"):
        service.get(v1_id, "r.com")
    with pytest.raises(InvalidDocument, match="image ID .* is invalid"):
        service.set(v1_id, "r.com", DiffID(Digest.of(b"")))


@pytest.mark.parametrize("torn", [b"", b"sha256:", b"\xff", b"sha256:" + b"g" * 64])
def test_a_torn_mapping_is_none(store: MetadataStore, torn: bytes) -> None:
    store.set("v1id-mappings", "r.com," + "a" * 64, torn)
    assert V1IDService(store).get("a" * 64, "r.com") is None
