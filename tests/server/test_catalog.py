# SPDX-License-Identifier: Apache-2.0
"""Which repository a name in a URL means, where a push goes, and how both are listed."""
import json
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from minipull.server.catalog import Catalog, is_name, within
from minipull.image.descriptor import OCI_MANIFEST, Descriptor
from minipull.digest import Digest
from minipull.errors import InvalidReference
from minipull.reference import Reference
from minipull.store.references import Association, Names, ReferenceStore

DIGEST = Digest.of(b"a manifest")
MANIFEST = Descriptor(OCI_MANIFEST, DIGEST, 10)
STORED = (
    "docker.io/library/alpine:3.20", "docker.io/library/alpine:3.19", "docker.io/library/app:hub",
    "docker.io/team/tool:1", "quay.io/coreos/etcd:v3", "quay.io/two/places:1", "ghcr.io/two/places:1",
    "registry.lan:5000/team/app:1", "[::1]:5000/team/six:1", "CAMELS/app:1", "localhost/app:2",
    "localhost/quay.io/coreos/etcd:mine", "corp.example/app:3", "corp.example/only@" + DIGEST)


def named(root: Path, *names: str) -> ReferenceStore:
    references = ReferenceStore(str(root), str(root / "ingest"))
    for name in names:
        references.set(Reference.parse(name), MANIFEST, DIGEST)
    return references


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> ReferenceStore:
    return named(tmp_path_factory.mktemp("stored"), *STORED)


def meant(catalog: Catalog, name: str, ns: str = "") -> List[str]:
    return [next(iter(there.values())).name.name for there in catalog.find(name, ns)]


@pytest.mark.parametrize("name, ns, domain, repositories", [
    # What a mirror of Docker Hub is asked for, by docker, by containerd and in full.
    ("library/alpine", "", "localhost", ["docker.io/library/alpine"]),
    ("library/alpine", "docker.io", "localhost", ["docker.io/library/alpine"]),
    ("docker.io/library/alpine", "", "localhost", ["docker.io/library/alpine"]),
    ("alpine", "", "localhost", ["docker.io/library/alpine"]),
    ("alpine", "docker.io", "localhost", ["docker.io/library/alpine"]),
    ("docker.io/alpine", "", "localhost", ["docker.io/library/alpine"]),
    ("team/tool", "", "localhost", ["docker.io/team/tool"]),
    # ns= says it all.
    ("app", "localhost", "localhost", ["localhost/app"]),
    ("app", "docker.io", "localhost", ["docker.io/library/app"]),
    ("app", "corp.example", "localhost", ["corp.example/app"]),
    ("coreos/etcd", "quay.io", "localhost", ["quay.io/coreos/etcd"]),
    ("coreos/etcd", "ghcr.io", "localhost", []),
    ("team/app", "registry.lan:5000", "localhost", ["registry.lan:5000/team/app"]),
    ("quay.io/coreos/etcd", "localhost", "localhost", ["localhost/quay.io/coreos/etcd"]),
    ("quay.io/coreos/etcd", "quay.io", "localhost", []),
    # The first component as a domain, then ours, localhost's, Docker Hub's.
    ("quay.io/coreos/etcd", "", "localhost", ["quay.io/coreos/etcd", "localhost/quay.io/coreos/etcd"]),
    ("localhost/app", "", "corp.example", ["localhost/app"]),
    ("app", "", "localhost", ["localhost/app", "docker.io/library/app"]),
    ("app", "", "corp.example", ["corp.example/app", "localhost/app", "docker.io/library/app"]),
    ("app", "", "docker.io", ["docker.io/library/app", "localhost/app"]),
    # The one domain that has it.
    ("coreos/etcd", "", "localhost", ["quay.io/coreos/etcd"]),
    ("only", "", "localhost", ["corp.example/only"]),
    ("two/places", "", "localhost", []),
    ("two/places", "", "ghcr.io", ["ghcr.io/two/places"]),
    ("quay.io/two/places", "", "localhost", ["quay.io/two/places"]),
    # Domains with a port, in brackets, in upper case.
    ("registry.lan:5000/team/app", "", "localhost", ["registry.lan:5000/team/app"]),
    ("registry.lan/team/app", "", "localhost", []),
    ("[::1]:5000/team/six", "", "localhost", ["[::1]:5000/team/six"]),
    ("CAMELS/app", "", "localhost", ["CAMELS/app"]),
    ("camels/app", "", "localhost", []),
    # What nobody has, and an ns= that is no domain.
    ("nothing", "", "localhost", []),
    ("library", "", "localhost", []),
    ("alpine", "docker.io/library", "localhost", []),
    ("library/alpine", "docker", "localhost", []),
    ("library/alpine", "evil.example/../docker.io", "localhost", []),
    ("alpine", "docker.io/library/alpine:3.20@", "localhost", []),
    ("app", " ", "localhost", []),
])
def test_a_name_in_a_url_means(
        references: ReferenceStore, name: str, ns: str, domain: str, repositories: List[str]) -> None:
    assert meant(Catalog(references, domain), name, ns) == repositories


@pytest.mark.parametrize("name, ns, domain, repository", [
    ("new", "", "localhost", "localhost/new"),
    ("team/tool", "", "localhost", "localhost/team/tool"),
    ("app", "", "corp.example", "corp.example/app"),
    ("new", "", "docker.io", "docker.io/library/new"),
    ("new", "registry.lan:5000", "localhost", "registry.lan:5000/new"),
    ("library/alpine", "docker.io", "localhost", "docker.io/library/alpine"),
    ("unknown.example/app", "", "localhost", "localhost/unknown.example/app"),
    ("quay.io/coreos/etcd", "localhost", "localhost", "localhost/quay.io/coreos/etcd"),
    # It would be read from another place than it was pushed to.
    ("quay.io/coreos/etcd", "", "localhost", None),
    ("localhost/app", "", "localhost", None),
    # Names that no reference could have.
    ("new", "docker.io/library", "localhost", None),
    ("new", "-", "localhost", None),
    ("new", "corp.example:99999", "localhost", None),
    ("new", "corp.example:5000\n", "localhost", None),
    ("CAMELS/new", "", "localhost", None),
    ("registry.lan:5000/new", "", "localhost", None),
])
def test_a_push_goes_to(
        references: ReferenceStore, name: str, ns: str, domain: str, repository: Optional[str]) -> None:
    catalog = Catalog(references, domain)
    if repository is None:
        with pytest.raises(InvalidReference):
            catalog.target(name, ns)
        return
    target = catalog.target(name, ns)
    assert (target.name, target.tag, target.digest) == (repository, "", None)


@pytest.mark.parametrize("name, good", [
    ("a", True), ("library/alpine", True), ("a/b/c", True), ("a.b-c__d/e_f", True), ("a--b", True),
    ("localhost:5000/a", True), ("[::1]:5000/a", True), ("UP.example/a", True), ("a" * 255, True),
    ("", False), ("/", False), ("a/", False), ("/a", False), ("a//b", False), ("..", False), ("a/..", False),
    ("a/../b", False), (".a", False), ("a.", False), ("a..b", False), ("a___b", False), ("-a", False),
    ("A", False), ("a/B", False), ("a b", False), ("a\n", False), ("a\0", False), ("a\\b", False),
    ("a%2fb", False), ("a:tag", False), ("a@b", False), ("host:port/a", False), ("\u00e9/a", False),
    ("\uff41", False), ("\u0661", False), ("a" * 256, False), ("a/" * 127 + "ab", False), ("a-" * 127, False),
])
def test_a_repository_is_called(name: str, good: bool) -> None:
    assert is_name(name) == good


def test_a_repository_is_within_a_domain_or_there_is_none() -> None:
    assert within("docker.io", "alpine") == Reference("docker.io", "library/alpine")
    assert within("index.docker.io", "alpine") is None
    assert within("team", "app") is None
    assert within("localhost", "app:1") is None
    assert within("localhost", "a" * 256) is None


@pytest.mark.parametrize("domain", [
    "", "team", "docker.io/library", "a b", "x.example:99999", "\u00e9.example"])
def test_pushes_are_recorded_under_a_domain(references: ReferenceStore, domain: str) -> None:
    with pytest.raises(InvalidReference, match="not the domain of a registry"):
        Catalog(references, domain)


def test_everything_is_listed_once_as_it_is_asked_for(references: ReferenceStore) -> None:
    catalog = Catalog(references, "localhost")
    assert sorted(catalog.names("")) == [
        "app", "corp.example/app", "corp.example/only",
        "docker.io/library/alpine", "docker.io/library/app", "docker.io/team/tool", "ghcr.io/two/places",
        "quay.io/coreos/etcd", "quay.io/two/places", "team/app", "team/six"]
    assert sorted(catalog.names("docker.io")) == ["library/alpine", "library/app", "team/tool"]
    assert sorted(catalog.names("localhost")) == ["app", "quay.io/coreos/etcd"]
    assert catalog.names("nobody.example") == []
    assert {"app", "only", "localhost/app"} < set(Catalog(references, "corp.example").names(""))
    for name in catalog.names(""):
        assert meant(catalog, name), name


class Many(Names):
    """Repositories of one registry with a port, more than a store has room for."""
    _entries = [Association(Reference("registry.lan:5000", "r%d" % n, "1"), MANIFEST, DIGEST).to_json()
                for n in range(20000)]

    def descriptors(self) -> List[Dict[str, Any]]:
        return self._entries


def test_the_time_of_a_list_of_repositories_is_linear() -> None:
    catalog = Catalog(Many(), "localhost")
    assert meant(catalog, "r7") == ["registry.lan:5000/r7"]
    before = time.process_time()
    assert len(catalog.names("")) == 20000
    assert time.process_time() - before < 3


def test_a_repository_has_tags_and_digests(references: ReferenceStore) -> None:
    catalog = Catalog(references, "localhost")
    assert [sorted(there) for there in catalog.find("library/alpine", "")] == [["3.19", "3.20"]]
    assert [sorted(there) for there in catalog.find("only", "")] == [[str(DIGEST)]]


def test_entries_that_are_no_names_are_passed_over(tmp_path: Path) -> None:
    references = named(tmp_path, "localhost/app:1")
    index = json.loads((tmp_path / "index.json").read_bytes())
    sound = index["manifests"][0]
    notes = {"org.opencontainers.image.ref.name": "latest"}
    index["manifests"] += [
        {}, {"digest": 5}, {**sound, "annotations": notes}, {**sound, "annotations": []},
        {**sound, "digest": "sha256:short"}, {**sound, "annotations": {
            "io.containerd.image.name": "../../etc/passwd"}}]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert Catalog(references, "localhost").names("") == ["app"]


def test_writes_of_other_processes_are_seen_at_once(tmp_path: Path) -> None:
    references = named(tmp_path, "localhost/app:1")
    other, catalog = named(tmp_path), Catalog(references, "localhost")
    assert meant(catalog, "new") == []
    known = catalog.repositories()
    assert catalog.repositories() is known  # nothing is read twice
    other.set(Reference.parse("localhost/new:1"), MANIFEST, DIGEST)
    assert meant(catalog, "new") == ["localhost/new"]
    other.delete(Reference.parse("localhost/new:1"))
    assert meant(catalog, "new") == []


def test_readers_go_on_while_names_come_and_go(tmp_path: Path) -> None:
    references = named(tmp_path, "localhost/app:1")
    catalog, other, done, seen = Catalog(references, "localhost"), named(tmp_path), threading.Event(), []

    def read() -> None:
        while not done.is_set():
            seen.append(meant(catalog, "app") == ["localhost/app"] and "app" in catalog.names(""))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for n in range(20):
        other.set(Reference.parse("localhost/new%d:1" % n), MANIFEST, DIGEST)
    done.set()
    for reader in readers:
        reader.join()
    assert all(seen) and len(seen) > 4
    assert len(catalog.names("")) == 21
