# SPDX-License-Identifier: Apache-2.0
"""Schema 1 as docker-registry 2.8 has it: pulled, spoilt, pushed, and pulled again."""
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest

from tests.kit import images
from tests.kit.processes import Docker, DockerRegistry, Finished, Minipull, Tool, ask, interpreters
from tests.kit.images import Layout, Spec
from minipull.image.descriptor import SCHEMA1_SIGNED
from tests.kit.proxies import FaultProxy
from tests.kit.servers import Connection, content, error

Call = Callable[..., Finished]


@pytest.fixture
def minipull(run_minipull: Minipull, tmp_path: Path) -> Call:
    """A command on a store of the test's own; never raises for its exit code."""
    def call(*args: Any, root: str = "root", **options: Any) -> Finished:
        return run_minipull("--root", tmp_path / root, *args, **options)
    return call


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry that takes schema 1."""
    server = DockerRegistry(tmp_path_factory.mktemp("old"), "compatibility: {schema1: {enabled: true}}\n")
    yield server
    server.stop()


class Aged(FaultProxy):
    """Makes a registry one that knows schema 1 alone; ``spoil`` is what becomes of its manifests."""

    spoil: Tuple[bytes, bytes] = (b"", b"")

    def handle(self, connection: Connection) -> None:
        request = connection.request
        if "/manifests/" not in request.path:
            return super().handle(connection)
        if request.method == "PUT":
            if request.headers["content-type"] == SCHEMA1_SIGNED:
                return super().handle(connection)
            return error(400, "MANIFEST_INVALID")(connection)
        status, headers, raw = ask(self.target, "GET", request.path, headers={"Accept": SCHEMA1_SIGNED})
        if status != 200:
            return error(status, "MANIFEST_UNKNOWN")(connection)
        kept = {"Docker-Content-Digest": headers["docker-content-digest"]}
        assert self.spoil[0] in raw
        content(raw.replace(*self.spoil, 1), headers["content-type"], ranges=False, headers=kept)(connection)


@pytest.fixture
def aged(old: DockerRegistry) -> Iterator[Aged]:
    with Aged(old.host) as proxy:
        yield proxy


def sent(skopeo: Tool, root: Path, target: str) -> images.Image:
    """An image with an entry that has no layer, made schema 2 by skopeo on its way."""
    layout = Layout(root)
    history = [{"created": images.CREATED, "created_by": "base <&>"},
               {"created": images.CREATED, "created_by": "CMD", "empty_layer": True},
               {"created": images.CREATED, "created_by": "change"}]
    base = Spec(20000, seed=7, entries=[("etc", None), ("etc/motd", b"old\n"), ("etc/gone", b"x")])
    change = Spec(entries=[("etc", None), ("etc/motd", b"new\n"), ("etc/.wh.gone", b"")])
    made = layout.image([base, change], "made", config={"history": history})
    skopeo("copy", "--quiet", "--format", "v2s2", "--dest-tls-verify=false", "oci:%s:made" % root,
           "docker://" + target)
    return made


def tree(root: Path) -> Dict[str, Tuple[Any, ...]]:
    """What is in a directory, by path."""
    found: Dict[str, Tuple[Any, ...]] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        link = os.readlink(str(path)) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, link, data)
    return found


def done(finished: Finished) -> Finished:
    assert finished.code == 0, finished
    return finished


# -- pulls -----------------------------------------------------------------------------


def test_a_pull_of_schema_1_gives_the_tree_of_schema_2(
        old: DockerRegistry, aged: Aged, tmp_path: Path, minipull: Call, skopeo: Tool) -> None:
    made = sent(skopeo, tmp_path / "layout", old.host + "/peers/tree:1")
    pulled = done(minipull("pull", aged.host + "/peers/tree:1"))
    assert pulled.err.count("outdated schema 1 format, signed with key ") == 1
    _, headers, _ = old.request("GET", "/v2/peers/tree/manifests/1", SCHEMA1_SIGNED)
    assert "Digest: %s\n" % headers["docker-content-digest"] in pulled.out
    done(minipull("pull", old.host + "/peers/tree:1"))
    for name, host in (("one", aged.host), ("two", old.host)):
        done(minipull("unpack", host + "/peers/tree:1", tmp_path / name))
    one = tree(tmp_path / "one")
    assert one == tree(tmp_path / "two") and one["etc/motd"][-1] == b"new\n" and "etc/gone" not in one
    done(minipull("check"))
    shown = json.loads(done(minipull("inspect", aged.host + "/peers/tree:1")).out)
    assert shown["digest"] == headers["docker-content-digest"]
    assert [layer["diff_id"] for layer in shown["layers"]] == made.diff_ids


def test_a_second_pull_is_up_to_date(
        old: DockerRegistry, aged: Aged, tmp_path: Path, minipull: Call, skopeo: Tool) -> None:
    sent(skopeo, tmp_path / "layout", old.host + "/peers/again:1")
    name = aged.host + "/peers/again:1"
    first = done(minipull("pull", "-q", name)).out
    before = len(aged.seen())
    again = done(minipull("pull", name))
    assert "Image is up to date for" in again.out and first.strip().partition("@")[2] in again.out
    assert [request.method for request in aged.seen()[before:]] == ["HEAD"]
    done(minipull("gc", "--keep", "0"))
    done(minipull("check"))


def test_a_pulled_schema_1_image_can_be_pushed_copied_and_saved(
        old: DockerRegistry, registry: DockerRegistry, aged: Aged, tmp_path: Path, minipull: Call, skopeo: Tool,
        umoci: Tool) -> None:
    made = sent(skopeo, tmp_path / "layout", old.host + "/peers/onward:1")
    name, target = aged.host + "/peers/onward:1", registry.host + "/peers/onward:1"
    done(minipull("pull", name))
    done(minipull("push", name, target))
    found = json.loads(skopeo("inspect", "--tls-verify=false", "docker://" + target).out)
    assert found["Layers"] == [layer.descriptor["digest"] for layer in made.layers]
    done(minipull("copy", "--format", "oci", "store:" + name, "oci:%s:copy" % (tmp_path / "copy")))
    umoci("raw", "unpack", "--rootless", "--image", "%s:copy" % (tmp_path / "copy"), str(tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "etc" / "motd").read_bytes() == b"new\n"
    done(minipull("save", "-o", tmp_path / "saved.tar", name))
    config = json.loads(skopeo("inspect", "--config", "docker-archive:%s" % (tmp_path / "saved.tar")).out)
    assert config["rootfs"]["diff_ids"] == made.diff_ids


@pytest.mark.parametrize("old_text, new_text", [
    (b"base", b"bose"), (b"blobSum", b"blobSun"), (b'"signature": "', b'"signature": "_'),
    (b'"protected": "ey', b'"protected": "fy'), (b'"x": "', b'"x": "A'), (b'"kid": "', b'"kid": "A'),
    (b'"alg": "ES256"', b'"alg": "ES255"')])
def test_a_tampered_manifest_is_exit_6(
        old: DockerRegistry, aged: Aged, tmp_path: Path, minipull: Call, skopeo: Tool, old_text: bytes,
        new_text: bytes) -> None:
    sent(skopeo, tmp_path / "layout", old.host + "/peers/spoilt:1")
    done(minipull("pull", old.host + "/peers/spoilt:1"))
    pushed = done(minipull("push", "-q", "--legacy-schema1", old.host + "/peers/spoilt:1",
                           aged.host + "/peers/spoilt:old"))
    digest = pushed.out.strip().partition("@")[2]
    aged.spoil = old_text, new_text
    for name in ("peers/spoilt:1", "peers/spoilt:old", "peers/spoilt@" + digest):
        spoilt = minipull("pull", "-q", "%s/%s" % (aged.host, name), root="fresh")
        assert spoilt.code == 6 and len(spoilt.err.splitlines()) == 1, spoilt
    assert done(minipull("images", "--format", "json", root="fresh")).out == "[]\n"
    aged.spoil = b"", b""
    done(minipull("pull", "-q", "%s/peers/spoilt@%s" % (aged.host, digest), root="fresh"))


# -- pushes ----------------------------------------------------------------------------


def test_docker_registry_takes_schema_1_and_a_fresh_store_pulls_it(
        old: DockerRegistry, aged: Aged, tmp_path: Path, minipull: Call, skopeo: Tool, dockerd: Docker) -> None:
    made = sent(skopeo, tmp_path / "layout", old.host + "/peers/pushed:1")
    source, target = old.host + "/peers/pushed:1", aged.host + "/peers/legacy:1"
    done(minipull("pull", source))
    refused = minipull("push", "-q", source, target)
    assert refused.code == 5 and refused.err.count("\n") == 1 and "--legacy-schema1" in refused.err, refused
    pushed = done(minipull("push", source, target, env={"MINIPULL_LEGACY_SCHEMA1": "1"}))
    digest = pushed.out.split()[2]
    assert "WARNING: " in pushed.err and "the digest is now " + digest in pushed.err
    status, headers, raw = old.request("GET", "/v2/peers/legacy/manifests/" + digest, SCHEMA1_SIGNED)
    assert (status, headers["content-type"], headers["docker-content-digest"]) == (200, SCHEMA1_SIGNED, digest)
    pulled = done(minipull("pull", old.host + "/peers/legacy:1", root="fresh"))
    assert "Digest: %s\n" % digest in pulled.out
    shown = json.loads(done(minipull("inspect", old.host + "/peers/legacy:1", root="fresh")).out)
    assert [layer["diff_id"] for layer in shown["layers"]] == made.diff_ids
    done(minipull("check", root="fresh"))
    [again] = json.loads(done(minipull("push", "--format", "json", "--legacy-schema1", source, target)).out)
    assert again["digest"] == digest and {layer["result"] for layer in again["layers"]} == {"Layer already exists"}
    dockerd("pull", old.host + "/peers/legacy:1")
    wanted = dockerd("image", "inspect", "-f", "{{json .RootFS.Layers}}", old.host + "/peers/legacy:1").out
    assert json.loads(wanted) == made.diff_ids


@pytest.mark.parametrize("version, python", interpreters(), ids=lambda text: text[:4])
def test_a_v1_round_trip_works_from_python_3_6_up(
        old: DockerRegistry, aged: Aged, tmp_path: Path, minipull: Call, skopeo: Tool, version: str,
        python: str) -> None:
    sent(skopeo, tmp_path / "layout", old.host + "/peers/versions:1")
    done(minipull("pull", "-q", aged.host + "/peers/versions:1", python=python))
    done(minipull("push", "-q", "--legacy-schema1", aged.host + "/peers/versions:1",
                  aged.host + "/peers/versions:" + version, python=python))
    assert done(minipull("pull", "-q", aged.host + "/peers/versions:" + version, python=python, root="fresh")).out
