# SPDX-License-Identifier: Apache-2.0
"""Real registries serve minipull, and real tools read its store as it lies."""
import base64
import io
import json
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Set

import pytest

from tests.kit import images
from tests.kit.processes import Docker, DockerRegistry, Minipull, Tool
from tests.kit.proxies import FaultProxy
from tests.kit.tokens import TokenAuth


def stored(root: Path) -> Set[str]:
    """The digests of all blobs of a store."""
    return {"sha256:" + path.name for path in (root / "blobs" / "sha256").iterdir()}


def of_manifest(raw: bytes) -> Set[str]:
    """The digests of an image's manifest and of all that it names."""
    manifest = json.loads(raw)
    return {images.digest_of(raw), *(blob["digest"] for blob in [manifest["config"], *manifest["layers"]])}


def manifest_of(registry: DockerRegistry, path: str, tag: str = "1") -> bytes:
    status, _, raw = registry.request("GET", "/v2/%s/manifests/%s" % (path, tag), ", ".join(images.MANIFESTS))
    assert status == 200
    return raw


# -- OCI images ----------------------------------------------------------------


class Stored(NamedTuple):
    """An image that skopeo pushed and minipull pulled."""

    name: str
    root: Path
    image: images.Image

    @property
    def place(self) -> str:
        return "%s:%s" % (self.root, self.name)


@pytest.fixture
def oci(registry: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> Stored:
    layout, image = images.awkward(tmp_path / "layout")
    name = registry.host + "/peers/oci:1"
    images.push_layout(layout, "awkward", name)
    root = tmp_path / "root"
    done = run_minipull("--root", root, "pull", name)
    assert (done.code, done.out.splitlines()) == (0, [
        "Digest: " + image.digest, "Status: Downloaded newer image for " + name, name])
    return Stored(name, root, image)


def test_the_store_holds_the_registrys_bytes_and_no_others(oci: Stored, registry: DockerRegistry) -> None:
    assert stored(oci.root) == of_manifest(manifest_of(registry, "peers/oci")) == of_manifest(oci.image.raw)


def test_skopeo_reads_the_store_with_the_registrys_digest(oci: Stored, skopeo: Tool) -> None:
    here = json.loads(skopeo("inspect", "oci:" + oci.place).out)
    there = json.loads(skopeo("inspect", "--tls-verify=false", "docker://" + oci.name).out)
    assert here["Digest"] == there["Digest"] == oci.image.digest
    assert here["Layers"] == there["Layers"]


def test_podman_pulls_from_the_store(oci: Stored, podman: Tool) -> None:
    image_id = podman("pull", "--quiet", "oci:" + oci.place).out.strip()
    assert "sha256:" + image_id == oci.image.config["digest"]
    assert json.loads(podman("image", "inspect", image_id).out)[0]["Digest"] == oci.image.digest


def test_umoci_unpacks_from_the_store(oci: Stored, umoci: Tool, tmp_path: Path) -> None:
    umoci("unpack", "--image", oci.place, tmp_path / "bundle")
    rootfs = tmp_path / "bundle" / "rootfs"
    assert (rootfs / "etc" / "motd").read_bytes() == b"old\n"  # the base lies on top once more
    assert sum(path.stat().st_size for path in rootfs.glob("srv/layer-7/000/file-*")) == 20000


def test_tools_read_an_index_and_its_chosen_platform(
        registry: DockerRegistry, tmp_path: Path, run_minipull: Minipull, skopeo: Tool) -> None:
    layout, index, children = images.multi_platform(tmp_path / "layout")
    name, root = registry.host + "/peers/index:1", tmp_path / "root"
    images.push_layout(layout, "latest", name)
    place = "oci:%s:%s" % (root, name)
    done = run_minipull("--root", root, "pull", "--platform", "linux/arm64", name)
    assert done.code == 0 and "Digest: " + index.digest in done.out
    assert json.loads(skopeo("inspect", place).out)["Digest"] == children["linux/arm64/v8"].digest
    assert run_minipull("--root", root, "pull", "--all-platforms", name).code == 0
    assert skopeo("inspect", "--raw", place).raw == index.raw
    skopeo("copy", "--all", "--preserve-digests", place, "oci:%s:copy" % (tmp_path / "copy"))
    assert json.loads((tmp_path / "copy" / "index.json").read_bytes())["manifests"][0]["digest"] == index.digest


def test_a_second_pull_is_up_to_date_and_costs_one_request(
        oci: Stored, registry: DockerRegistry, run_minipull: Minipull) -> None:
    with FaultProxy(registry.host) as proxy:
        name = proxy.host + "/peers/oci:1"
        assert run_minipull("--root", oci.root, "pull", name).code == 0
        before = len(proxy.seen())
        done = run_minipull("--root", oci.root, "pull", name)
        assert done.code == 0 and "Status: Image is up to date for " + name in done.out
        assert [request.method for request in proxy.seen()[before:]] == ["HEAD"]


# -- schema 2 images -----------------------------------------------------------


@pytest.fixture
def schema2(registry: DockerRegistry, dockerd: Docker, tmp_path: Path, run_minipull: Minipull) -> Stored:
    """An image that docker made and pushed."""
    tar = io.BytesIO()
    images.write_tar(images.Spec(50000, seed=21), tar)
    name = registry.host + "/peers/schema2:1"
    dockerd("import", "-", name, stdin=tar.getvalue())
    dockerd("push", name)
    root = tmp_path / "root"
    done = run_minipull("--root", root, "pull", name)
    assert done.code == 0 and done.out.startswith("Digest: sha256:")
    raw = manifest_of(registry, "peers/schema2")
    manifest = json.loads(raw)
    assert manifest["mediaType"] == images.DOCKER_MANIFEST
    return Stored(name, root, images.Image({"digest": images.digest_of(raw)}, manifest["config"], [], raw))


def test_a_schema_2_image_is_stored_as_received(
        schema2: Stored, dockerd: Docker, run_minipull: Minipull) -> None:
    assert stored(schema2.root) == of_manifest(schema2.image.raw)
    assert run_minipull("--root", schema2.root, "check").code == 0
    [row] = json.loads(run_minipull("--root", schema2.root, "images", "--format", "json").out)
    assert row["digest"] == schema2.image.digest
    assert row["image_id"] == dockerd("image", "inspect", "-f", "{{.Id}}", schema2.name).out.strip()


def test_tools_for_oci_read_a_schema_2_image_right_or_not_at_all(
        schema2: Stored, skopeo: Tool, podman: Tool, umoci: Tool, tmp_path: Path) -> None:
    """They match OCI media types only, skopeo until some version after 1.9; the store stays as it is."""
    before = {path: path.stat().st_mtime_ns for path in schema2.root.rglob("*")}
    inspected = skopeo("inspect", "oci:" + schema2.place, check=False)
    assert inspected.code or json.loads(inspected.out)["Digest"] == schema2.image.digest
    copied = skopeo("copy", "--preserve-digests", "oci:" + schema2.place, "dir:%s" % (tmp_path / "x"), check=False)
    assert copied.code or (tmp_path / "x" / "manifest.json").read_bytes() == schema2.image.raw
    assert (inspected.code == 0) == (copied.code == 0)
    podman("pull", "oci:" + schema2.place, check=False)
    umoci("unpack", "--image", schema2.place, tmp_path / "bundle", check=False)
    assert schema2.name in umoci("ls", "--layout", schema2.root).out
    assert {path: path.stat().st_mtime_ns for path in schema2.root.rglob("*")} == before


def test_tools_for_oci_read_what_lies_beside_a_schema_2_image(
        schema2: Stored, oci: Stored, skopeo: Tool, podman: Tool, umoci: Tool, tmp_path: Path) -> None:
    assert schema2.root == oci.root
    assert json.loads(skopeo("inspect", "oci:" + oci.place).out)["Digest"] == oci.image.digest
    podman("pull", "--quiet", "oci:" + oci.place)
    umoci("unpack", "--image", oci.place, tmp_path / "bundle")


# -- twins: one config, other layer blobs --------------------------------------


@pytest.fixture(scope="module")
def twins(registry: DockerRegistry, dockerd: Docker,
          tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[str, bytes]]:
    """Name to manifest: an image, and what docker made of it on its way to another registry."""
    layout, image = images.awkward(tmp_path_factory.mktemp("twins"))
    other = DockerRegistry(tmp_path_factory.mktemp("other"))
    try:
        first, second = registry.host + "/peers/twin:1", other.host + "/peers/twin:1"
        images.push_layout(layout, "awkward", first)
        dockerd("pull", first)
        dockerd("tag", first, second)
        dockerd("push", second)
        yield {first: image.raw, second: manifest_of(other, "peers/twin")}
    finally:
        other.stop()


@pytest.mark.parametrize("backwards", [False, True], ids=["original-first", "dockers-first"])
@pytest.mark.parametrize("doomed", [0, 1], ids=["original-removed", "dockers-removed"])
def test_a_twin_is_whole_when_the_other_is_gone(
        twins: Dict[str, bytes], backwards: bool, doomed: int, tmp_path: Path, run_minipull: Minipull) -> None:
    names = list(twins)
    one, two = (json.loads(twins[name]) for name in names)
    assert one["config"]["digest"] == two["config"]["digest"]
    assert not {layer["digest"] for layer in one["layers"]} & {layer["digest"] for layer in two["layers"]}
    root = tmp_path / "root"
    for name in reversed(names) if backwards else names:
        done = run_minipull("--root", root, "pull", name)
        assert done.code == 0 and "Downloaded newer image" in done.out, done
    assert stored(root) == of_manifest(twins[names[0]]) | of_manifest(twins[names[1]])
    kept = names[1 - doomed]
    assert run_minipull("--root", root, "rm", names[doomed]).code == 0
    assert run_minipull("--root", root, "gc", "--keep", "0").code == 0
    assert stored(root) == of_manifest(twins[kept])
    assert list((root / "ingest").iterdir()) == []
    checked = run_minipull("--root", root, "check", "--format", "json")
    assert json.loads(checked.out)["problems"] == []
    again = run_minipull("--root", root, "pull", kept)
    assert again.code == 0 and "Image is up to date" in again.out
    back = run_minipull("--root", root, "pull", names[doomed])
    assert back.code == 0 and "Downloaded newer image" in back.out
    assert run_minipull("--root", root, "check").code == 0


# -- tokens --------------------------------------------------------------------


@pytest.fixture
def guarded(registry: DockerRegistry, tmp_path: Path) -> str:
    """A repository (path and tag) with something in it."""
    layout, _ = images.single(tmp_path / "layout")
    images.push_layout(layout, "latest", registry.host + "/peers/guarded:1")
    return "/peers/guarded:1"


def test_an_anonymous_token_is_asked_for_once(
        registry: DockerRegistry, guarded: str, tmp_path: Path, run_minipull: Minipull) -> None:
    auth = TokenAuth({"ann": "secret"})
    with FaultProxy(registry.host, auth=auth) as proxy:
        done = run_minipull("--root", tmp_path / "root", "pull", proxy.host + guarded)
        assert done.code == 0, done
        assert auth.issued == 1
        assert not [value for _, value in auth.received if not value.startswith("Bearer ")]


def authfile(path: Path, host: str, login: str) -> Path:
    path.write_text(json.dumps({"auths": {
        host: {"auth": base64.b64encode(login.encode()).decode()},
        "127.0.0.2": {"auth": base64.b64encode(b"ann:for another host").decode()}}}))
    return path


@pytest.mark.parametrize("way", ["--creds", "--authfile", "docker-config"])
def test_credentials_open_a_private_repository_and_go_nowhere_else(
        way: str, registry: DockerRegistry, guarded: str, tmp_path: Path, home: Path,
        run_minipull: Minipull) -> None:
    auth = TokenAuth({"ann": "s3cret:with colon"}, anonymous=())
    with FaultProxy(registry.host, host="127.0.0.2") as store, \
            FaultProxy(registry.host, auth=auth, blobs=store) as proxy:
        flags: List[str] = []
        if way == "--creds":
            flags = [way, "ann:s3cret:with colon"]
        elif way == "--authfile":
            flags = [way, str(authfile(tmp_path / "auth.json", proxy.host, "ann:s3cret:with colon"))]
        else:
            (home / ".docker").mkdir()
            authfile(home / ".docker" / "config.json", proxy.host, "ann:s3cret:with colon")
        done = run_minipull("--root", tmp_path / "root", "pull", *flags, proxy.host + guarded)
        assert done.code == 0, done
        assert len(store.seen("GET", "/blobs/")) == 4
        store.assert_no_credentials()
        for request, value in auth.received:  # the password goes to the token server alone
            assert value.startswith("Basic ") == (request.path == "/token")
        assert "s3cret" not in done.out + done.err


@pytest.mark.parametrize("creds", ["", "ann:wrong", "eve:secret"])
def test_a_refused_login_is_one_line_and_exit_4(
        creds: str, registry: DockerRegistry, guarded: str, tmp_path: Path, run_minipull: Minipull) -> None:
    auth = TokenAuth({"ann": "secret"}, anonymous=())
    root = tmp_path / "root"
    with FaultProxy(registry.host, auth=auth) as proxy:
        flags = ["--creds", creds] if creds else []
        done = run_minipull("--root", root, "pull", "-q", *flags, proxy.host + guarded)
        assert (done.code, done.out) == (4, ""), done
        assert re.fullmatch(r"minipull: pull %s: .*\n" % re.escape(proxy.host + guarded), done.err), done
        assert not (root / "index.json").exists()
        assert proxy.seen("GET", "/blobs/") == []
