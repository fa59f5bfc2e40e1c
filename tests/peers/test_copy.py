# SPDX-License-Identifier: Apache-2.0
"""Copies between real registries, and what real tools make of them."""
import base64
import json
import sys
import urllib.request
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Set

import pytest

from tests.kit import images
import minipull
from tests.kit.commands import is_sound
from tests.kit.processes import Docker, DockerRegistry, Minipull, Tool, minipull_env
from tests.kit.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor, Layout
from minipull.distribution import blobs as blobs_module
from minipull.registry import transport
from minipull.xfer.upload import LayerUploadManager
from tests.kit.proxies import FaultProxy
from tests.kit.tokens import TokenAuth

MIB = 1 << 20
ANY = ", ".join(images.MANIFESTS)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Another registry."""
    server = DockerRegistry(tmp_path_factory.mktemp("other"))
    yield server
    server.stop()


def manifest_at(registry: DockerRegistry, repository: str, reference: str) -> bytes:
    status, headers, raw = registry.request("GET", "/v2/%s/manifests/%s" % (repository, reference), ANY)
    assert status == 200, (repository, reference, raw)
    assert headers["docker-content-digest"] == images.digest_of(raw)
    return raw


def assert_whole(registry: DockerRegistry, repository: str, layout: Layout, digest: str) -> None:
    """The registry has all that is below a manifest, byte for byte."""
    assert manifest_at(registry, repository, digest) == layout.read(digest)
    document = json.loads(layout.read(digest))
    for child in document.get("manifests", []):
        assert_whole(registry, repository, layout, child["digest"])
    for blob in [document["config"], *document["layers"]] if "config" in document else []:
        status, _, data = registry.request("GET", "/v2/%s/blobs/%s" % (repository, blob["digest"]))
        assert (status, data) == (200, layout.read(blob["digest"]))


def artifact(layout: Layout, payload: bytes = b"", name: str = "", **members: Any) -> Descriptor:
    """Not an image; without ``payload`` it has no layers."""
    layers = [layout.blob(payload, "application/spdx+json")] if payload else []
    config = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    descriptor = layout.blob(images.to_json({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.test",
        "config": config, "layers": layers, **members}), OCI_MANIFEST)
    if name:
        layout.name(descriptor, name)
    return descriptor


def oci_image(root: Path) -> Layout:
    return images.awkward(root, "1")[0]


def schema2_image(root: Path) -> Layout:
    return images.awkward(root, "1", docker=True)[0]


def index(root: Path) -> Layout:
    """With an attestation in it."""
    return images.multi_platform(root, "1")[0]


def nested_index(root: Path) -> Layout:
    return images.multi_platform(root, "1", nested=True)[0]


def manifest_list(root: Path) -> Layout:
    return images.multi_platform(root, "1", docker=True)[0]


def only_an_artifact(root: Path) -> Layout:
    layout = Layout(root)
    artifact(layout, name="1")
    return layout


MAKERS = [oci_image, schema2_image, index, nested_index, manifest_list, only_an_artifact]


class Published(NamedTuple):
    """An image at a registry."""
    layout: Layout
    digest: str
    path: str

    @property
    def raw(self) -> bytes:
        return self.layout.read(self.digest)


def publish(registry: DockerRegistry, layout: Layout, repository: str) -> Published:
    path = "%s:1" % repository
    images.push_layout_http(layout, "1", "%s/%s" % (registry.host, path))
    return Published(layout, str(layout.resolve("1")["digest"]), path)


def sent(proxy: FaultProxy) -> int:
    """Bytes of blobs that were taken up."""
    return sum(size for (_, path), size in proxy.up.items() if "/manifests/" not in path)


# -- from registry to registry -----------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_changes_on_the_way_and_nothing_is_written(
        make: Callable[[Path], Layout], registry: DockerRegistry, other: DockerRegistry, tmp_path: Path,
        home: Path, run_minipull: Minipull, skopeo: Tool) -> None:
    published = publish(registry, make(tmp_path / "layout"), "copy/" + make.__name__)
    before = {path.name for path in home.iterdir()}
    source, target = ("docker://%s/%s" % (server.host, published.path) for server in (registry, other))
    done = run_minipull("copy", source, target)
    assert (done.code, done.out) == (
        0, "%s@%s\nStatus: Copied %s to %s\n" % (target[9:], published.digest, source, target)), done
    assert {path.name for path in home.iterdir()} == before
    assert_whole(other, "copy/" + make.__name__, published.layout, published.digest)
    assert manifest_at(other, *published.path.split(":")) == published.raw
    assert skopeo("inspect", "--raw", "--tls-verify=false", target).raw == published.raw
    if make in (oci_image, schema2_image, index, manifest_list):
        skopeo("copy", "--all", "--src-tls-verify=false", target, "dir:%s" % (tmp_path / "read"))


def test_within_one_registry_no_byte_of_a_blob_is_moved(
        registry: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> None:
    published = publish(registry, index(tmp_path / "layout"), "copy/here")
    with FaultProxy(registry.host) as proxy:
        source, target = "docker://%s/copy/here:1" % proxy.host, "docker://%s/copy/there:2" % proxy.host
        done = run_minipull("copy", source, target)
        assert done.code == 0 and "Mounted from copy/here" in done.err, done
        assert sent(proxy) == 0 and not proxy.seen("GET", "/blobs/") and not proxy.seen("PATCH|PUT", "/blobs/")
        assert_whole(registry, "copy/there", published.layout, published.digest)
        # Another tag of the same repository costs one manifest.
        done = run_minipull("copy", target, "docker://%s/copy/there:3" % proxy.host)
        assert done.code == 0 and "Mounted" not in done.err
        assert manifest_at(registry, "copy/there", "3") == published.raw


@pytest.mark.parametrize("chunk_size", [[], ["--chunk-size", "1M"]])
def test_each_blob_is_asked_for_once_and_sent_once(
        chunk_size: List[str], registry: DockerRegistry, other: DockerRegistry, tmp_path: Path,
        run_minipull: Minipull) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image([*images.specs(3, seed=60), images.Spec(
        3 * MIB, text=0, seed=61 + len(chunk_size))], "1")
    repository = "copy/once-%d" % len(chunk_size)
    publish(registry, layout, repository)
    blobs = [layer.descriptor["digest"] for layer in image.layers] + [image.config["digest"]]
    with FaultProxy(registry.host) as source, FaultProxy(other.host) as target:
        places = ["docker://%s/%s:1" % (server.host, repository) for server in (source, target)]
        assert run_minipull("copy", *chunk_size, *places).code == 0
        assert sorted(request.path.rpartition("/")[2] for request in source.seen("GET", "/blobs/")) == sorted(blobs)
        assert sent(target) == sum(len(layout.read(digest)) for digest in blobs)
        assert len(target.seen("PATCH")) == (4 if chunk_size else 1)
        # And what is there is not sent at all.
        asked, opened = len(source.seen("GET", "/blobs/")), len(target.seen("POST"))
        done = run_minipull("copy", *chunk_size, *places)
        assert done.code == 0 and done.err.count("Layer already exists") == len(blobs)
        assert (len(source.seen("GET", "/blobs/")), len(target.seen("POST"))) == (asked, opened)
    assert_whole(other, repository, layout, image.digest)


class Cutting(FaultProxy):
    """Breaks off the first answers, or the first uploads, of any length."""

    def __init__(self, target: str, fault: str, times: int) -> None:
        self._fault, self._times = fault, times
        super().__init__(target)

    def _choose(self, key: Any, hit: int) -> str:
        method = {"cut": "GET", "cut-upload": "PATCH"}[self._fault]
        spoiled = key[0] == method and "/blobs/" in key[1] and self._times > 0
        self._times -= spoiled
        return self._fault if spoiled else ""


@pytest.mark.parametrize("fault", ["cut", "cut-upload"])
def test_an_upload_that_breaks_off_is_continued(
        fault: str, registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image([images.Spec(6 * MIB, text=0, seed=70 + len(fault))], "1")
    repository = "copy/" + fault
    publish(registry, layout, repository)
    digest = image.layers[0].descriptor["digest"]
    with Cutting(registry.host, "cut", 3 if fault == "cut" else 0) as source, \
            Cutting(other.host, "cut-upload", 2 if fault == "cut-upload" else 0) as target:
        done = run_minipull("copy", "docker://%s/%s:1" % (source.host, repository),
                            "docker://%s/%s:1" % (target.host, repository))
        assert done.code == 0 and "Retrying" not in done.err, done
        if fault == "cut":
            assert [request for request in source.seen("GET", digest) if "range" in request.headers]
            assert len(target.seen("PATCH")) == 1, "who is sent to notices nothing"
            done = run_minipull(
                "copy", "docker://%s/%s:1" % (source.host, repository), "oci:%s" % (tmp_path / "new"))
            assert done.code == 0 and (tmp_path / "new" / "blobs").is_dir()
        assert sent(target) < 2.5 * len(layout.read(digest))
    assert_whole(other, repository, layout, image.digest)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_through_bad_proxies_at_both_ends_it_comes_out_right(
        seed: int, registry: DockerRegistry, other: DockerRegistry, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "DOCUMENT_DELAYS", (0.001,) * 9)
    monkeypatch.setattr(transport, "RETRY_DELAYS", (0.001,) * 3)
    layout = Layout(tmp_path / "layout")
    specs = [images.Spec(2 * MIB, text=0, seed=80), *images.specs(5, 30000, seed=81)]
    layout.index([{**layout.image(specs[n:n + 4]).descriptor, "platform": {"os": "linux", "architecture": "a%d" % n}}
                  for n in range(3)], "1")
    repository = "copy/bad-%d" % seed
    published = publish(registry, layout, repository)
    with FaultProxy(registry.host, seed, 0.15) as source, FaultProxy(other.host, seed + 10, 0.15) as target:
        minipull.copy("docker://%s/%s:1" % (source.host, repository), "docker://%s/%s:1" % (target.host, repository),
                      uploads=LayerUploadManager(attempts=10, tick=0.001),
                      service=minipull.RegistryService(plain_http=True))
        assert source.faults and target.faults
    assert_whole(other, repository, layout, published.digest)


# -- layouts and the store ---------------------------------------------------------


def test_a_layout_comes_out_as_it_went_in_and_skopeo_reads_it(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull,
        skopeo: Tool) -> None:
    published = publish(registry, index(tmp_path / "layout"), "copy/layout")
    skopeo("copy", "oci:%s:1" % oci_image(tmp_path / "image").root, "oci:new:theirs")  # below home
    theirs = json.loads(skopeo("inspect", "oci:new:theirs").out)["Digest"]
    assert run_minipull("copy", "docker://%s/copy/layout:1" % registry.host, "oci:new:ours").code == 0
    assert skopeo("inspect", "--raw", "oci:new:ours").raw == published.raw
    assert json.loads(skopeo("inspect", "oci:new:theirs").out)["Digest"] == theirs
    assert run_minipull("copy", "oci:new:ours", "oci:second").code == 0
    assert run_minipull("copy", "oci:second", "docker://%s/copy/layout:2" % other.host).code == 0
    assert_whole(other, "copy/layout", published.layout, published.digest)
    done = run_minipull("copy", "oci:new", "oci:third")
    assert (done.code, done.out) == (3, "") and done.err.endswith("there is ours, theirs\n")
    skopeo("copy", "--all", "oci:second", "oci:fourth:x")
    # skopeo writes to a layout of ours without losing what it says.
    skopeo("copy", "oci:new:theirs", "oci:second:theirs")
    assert run_minipull("copy", "-q", "oci:second:theirs", "oci:fifth").out.strip() == theirs


def test_an_image_copied_into_the_store_can_be_used_like_a_pulled_one(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> None:
    root = tmp_path / "root"

    def call(*args: str) -> str:
        done = run_minipull("--root", root, *args)
        assert done.code == 0, done
        return done.out
    published = publish(registry, index(tmp_path / "layout"), "copy/store")
    name = "%s/copy/store:1" % registry.host
    call("copy", "docker://" + name, "store:" + name)
    [row] = json.loads(call("images", "--format", "json"))
    assert (row["name"], row["digest"]) == (name, published.digest)
    call("gc", "--keep", "0")
    assert is_sound(call("check"), root)
    assert "Image is up to date" in call("pull", "--all-platforms", name)
    assert "Downloaded newer image" in call("pull", "--platform", "linux/arm64", name)
    call("copy", "docker://" + name, "store:" + name)
    call("push", name, "%s/copy/store:pushed" % other.host)
    assert manifest_at(other, "copy/store", "pushed") == published.raw
    call("copy", "store:" + name, "docker://%s/copy/store:copied" % other.host)
    assert manifest_at(other, "copy/store", "copied") == published.raw
    assert run_minipull("--root", tmp_path / "again", "copy", "docker://%s/copy/store@%s" % (
        other.host, published.digest), "store:it").code == 0


def test_an_image_that_was_pulled_is_copied_from_the_store(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull,
        skopeo: Tool) -> None:
    publish(registry, index(tmp_path / "layout"), "copy/pulled")
    name = "%s/copy/pulled:1" % registry.host
    assert run_minipull("pull", "--platform", "linux/arm64", name).code == 0
    done = run_minipull("copy", "-q", "store:" + name, "docker://%s/copy/pulled:1" % other.host)
    assert done.code == 0
    raw = manifest_at(other, "copy/pulled", "1")
    assert done.out.strip() == images.digest_of(raw) and json.loads(raw)["mediaType"] == OCI_MANIFEST


def test_processes_that_copy_into_one_layout_lose_no_name(
        registry: DockerRegistry, tmp_path: Path, home: Path, run_minipull: Minipull) -> None:
    publish(registry, index(tmp_path / "layout"), "copy/many")
    source = "docker://%s/copy/many:1" % registry.host
    started = [
        Popen([sys.executable, "-m", "minipull", "copy", "-q", source, "oci:%s:%d" % (tmp_path / "new", number)],
              env=minipull_env(home), cwd=home, stdout=PIPE, stderr=PIPE) for number in range(4)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, outputs
    entries = json.loads((tmp_path / "new" / "index.json").read_text())["manifests"]
    assert sorted(entry["annotations"][images.NAME] for entry in entries) == ["0", "1", "2", "3"]
    assert list((tmp_path / "new" / "ingest").iterdir()) == []


def test_sha512_goes_where_it_is_known(tmp_path: Path, run_minipull: Minipull, serve: Any) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image(images.specs(1))
    (layout.root / "blobs" / "sha512").mkdir()

    def again(data: bytes) -> str:
        digest = str(minipull.Digest.of(data, "sha512"))
        layout.path(digest).write_bytes(data)
        return digest
    document = json.loads(image.raw)
    for blob in [document["config"], *document["layers"]]:
        blob["digest"] = again(layout.read(blob["digest"]))
    raw = images.to_json(document)
    layout.index([{"mediaType": OCI_MANIFEST, "digest": again(raw), "size": len(raw)}], "1")
    first = serve(tmp_path / "first", "--writable")
    second = serve(tmp_path / "second", "--writable")
    places = ["oci:%s" % layout.root, *("docker://%s/r:1" % server.host for server in (first, second)), "oci:new"]
    for source, target in zip(places, places[1:]):
        done = run_minipull("copy", source, target)
        assert done.code == 0, done
    for root in (tmp_path / "second", tmp_path / "home" / "new"):
        names = {path.name for path in (root / "blobs" / "sha512").iterdir()}
        assert names == {path.name for path in (layout.root / "blobs" / "sha512").iterdir()}
        assert {path.name for path in (root / "blobs" / "sha256").iterdir()} == {
            layout.resolve("1")["digest"][len("sha256:"):]}


# -- platforms and formats -----------------------------------------------------------


def test_a_smaller_index_is_one_that_skopeo_reads(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull,
        skopeo: Tool) -> None:
    layout, whole, made = images.multi_platform(tmp_path / "layout", "1")
    publish(registry, layout, "copy/smaller")
    source, target = ("docker://%s/copy/smaller:1" % server.host for server in (registry, other))
    done = run_minipull("copy", "--platform", "linux/amd64", "--platform", "linux/arm64", source, target)
    assert done.code == 0 and "the index is rewritten, with 3 of its 5 manifests\n" in done.err
    raw = skopeo("inspect", "--raw", "--tls-verify=false", target).raw
    assert "@%s\n" % images.digest_of(raw) in done.out
    assert [child["platform"]["architecture"] for child in json.loads(raw)["manifests"]] == [
        "amd64", "arm64", "unknown"]
    skopeo("copy", "--all", "--preserve-digests", "--src-tls-verify=false", target, "oci:%s:x" % (tmp_path / "read"))
    # One platform is its own image, with its own digest.
    done = run_minipull("copy", "-q", "--platform", "linux/arm/v6", source, target)
    assert done.out.strip() == made["linux/arm/v6"].digest
    done = run_minipull("copy", "--platform", "linux/s390x", source, target)
    assert (done.code, done.out) == (3, "") and done.err.endswith(
        ": no linux/s390x in the index; there is linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8\n")


@pytest.mark.parametrize("make", [oci_image, index])
def test_docker_and_skopeo_take_what_was_converted(
        make: Callable[[Path], Layout], registry: DockerRegistry, other: DockerRegistry, tmp_path: Path,
        run_minipull: Minipull, skopeo: Tool, dockerd: Docker) -> None:
    repository = "copy/format-" + make.__name__
    published = publish(registry, make(tmp_path / "layout"), repository)
    source, target = ("docker://%s/%s:1" % (server.host, repository) for server in (registry, other))
    done = run_minipull("copy", "--format", "docker", source, target)
    assert done.code == 0, done
    assert ("left out: 1 that are no images\n" in done.err) == (make is index)
    raw = manifest_at(other, repository, "1")
    assert done.out.startswith("%s@%s\n" % (target[9:], images.digest_of(raw)))
    assert json.loads(raw)["mediaType"] == (DOCKER_LIST if make is index else DOCKER_MANIFEST)
    assert json.loads(skopeo("inspect", "--tls-verify=false", target).out)["Layers"]
    name = target[len("docker://"):]
    dockerd("pull", name)
    image_id = dockerd("image", "inspect", "-f", "{{.Id}}", name).out.strip()
    document = json.loads(published.raw)
    if make is index:
        document = json.loads(published.layout.read(document["manifests"][0]["digest"]))
    assert image_id == document["config"]["digest"]
    # And back again, to where OCI's tools read it.
    done = run_minipull("copy", "--format", "oci", target, "oci:%s:back" % (tmp_path / "back"))
    assert done.code == 0
    kind = json.loads(skopeo("inspect", "--raw", "oci:%s:back" % (tmp_path / "back")).out)["mediaType"]
    assert kind == (OCI_INDEX if make is index else OCI_MANIFEST)
    skopeo("copy", "oci:%s:back" % (tmp_path / "back"), "dir:%s" % (tmp_path / "read"))


def test_a_schema_2_image_of_the_store_becomes_one_for_oci_tools(
        registry: DockerRegistry, tmp_path: Path, run_minipull: Minipull, skopeo: Tool, podman: Tool) -> None:
    published = publish(registry, schema2_image(tmp_path / "layout"), "copy/schema2")
    name = "%s/copy/schema2:1" % registry.host
    assert run_minipull("pull", name).code == 0
    done = run_minipull("copy", "--format", "oci", "store:" + name, "oci:%s:it" % (tmp_path / "new"))
    assert done.code == 0
    digest = json.loads(skopeo("inspect", "oci:%s:it" % (tmp_path / "new")).out)["Digest"]
    assert done.out.startswith("it@%s\n" % digest) and digest != published.digest
    image_id = podman("pull", "--quiet", "oci:%s:it" % (tmp_path / "new")).out.strip()
    assert "sha256:" + image_id == json.loads(published.raw)["config"]["digest"]


def test_zstd_is_refused_before_anything_is_sent(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> None:
    layout = Layout(tmp_path / "layout")
    layout.image([images.Spec(5000, compression="zstd")], "1")
    publish(registry, layout, "copy/zstd")
    with FaultProxy(other.host) as target:
        places = ["docker://%s/copy/zstd:1" % server.host for server in (registry, target)]
        done = run_minipull("copy", "--format", "docker", *places)
        assert (done.code, done.out) == (1, "") and done.err.count("\n") == 1
        assert done.err.endswith(
            "'application/vnd.oci.image.layer.v1.tar+zstd' has no equivalent in the other format\n")
        assert target.requests == []
        assert run_minipull("copy", "--format", "oci", *places).code == 0


# -- what refers to an image -----------------------------------------------------------


def referrers(host: str, repository: str, digest: str) -> Any:
    with urllib.request.urlopen("http://%s/v2/%s/referrers/%s" % (host, repository, digest), timeout=20) as answer:
        return json.loads(answer.read())["manifests"]


class Signed(NamedTuple):
    """An image, its signature, the signature of that, and a tag of cosign's."""
    layout: Layout
    image: Descriptor
    signature: Descriptor
    again: Descriptor
    tag: str

    @property
    def found(self) -> Dict[str, Set[str]]:
        """What refers to what."""
        return {self.image["digest"]: {self.signature["digest"]}, self.signature["digest"]: {self.again["digest"]},
                self.again["digest"]: set()}


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    layout, image = images.single(tmp_path / "signed", "1")
    signature = artifact(layout, b"signature", "signature", subject=image.descriptor)
    again = artifact(layout, b"again", "again", subject=signature)
    tag = image.digest.replace(":", "-") + ".sig"
    artifact(layout, b"cosign", tag)
    return Signed(layout, image.descriptor, signature, again, tag)


def test_referrers_go_from_a_registry_with_a_list_to_one_without_and_back(
        signed: Signed, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull, serve: Any) -> None:
    first, second = (serve(tmp_path / name, "--writable") for name in ("first", "second"))
    for name in ("1", "signature", "again", signed.tag):
        images.push_layout_http(signed.layout, name, "%s/copy/signed:%s" % (first.host, name))
    # One that is there already.
    lists = {subject: subject.replace(":", "-") for subject in signed.found}
    old = artifact(signed.layout, b"old", "old", subject=signed.image)
    signed.layout.index([old], lists[signed.image["digest"]])
    images.push_layout_http(signed.layout, lists[signed.image["digest"]], "%s/copy/signed:%s" % (
        other.host, lists[signed.image["digest"]]))
    places = ["docker://%s/copy/signed:1" % server.host for server in (first, other, second)]
    for source, target in zip(places, [*places[1:], "oci:%s:1" % (tmp_path / "new")]):
        done = run_minipull("copy", "--referrers", source, target)
        assert done.code == 0, done
    for subject, found in signed.found.items():
        if found:
            document = json.loads(manifest_at(other, "copy/signed", lists[subject]))
            wanted = found | ({old["digest"]} if subject == signed.image["digest"] else set())
            assert {entry["digest"] for entry in document["manifests"]} == wanted
            assert document["manifests"][-1]["artifactType"] == "application/vnd.test"
        there = {entry["digest"] for entry in referrers(second.host, "copy/signed", subject)}
        assert there == found | ({old["digest"]} if subject == signed.image["digest"] else set())
    for digest in (signed.signature["digest"], signed.again["digest"], old["digest"]):
        assert_whole(other, "copy/signed", signed.layout, digest)
    status, _, raw = second.request("GET", "/v2/copy/signed/manifests/" + signed.tag)
    assert status == 200 and images.digest_of(raw) == signed.layout.resolve(signed.tag)["digest"]
    status, _, raw = second.request("GET", "/v2/copy/signed/tags/list")
    assert set(json.loads(raw)["tags"]) == {"1", signed.tag}, "who keeps a list needs no tag for it"
    names = {entry["annotations"][images.NAME]: entry["digest"]
             for entry in json.loads((tmp_path / "new" / "index.json").read_text())["manifests"]}
    assert set(names) == {"1", signed.tag, *(lists[subject] for subject, found in signed.found.items() if found)}
    # From the layout all of it comes back, and from the store of one who serves it too.
    root = tmp_path / "third"
    for place in ("oci:%s:1" % (tmp_path / "new"), "store:localhost/copy/signed:1"):
        kind, between = place.partition(":")[0], "oci:%s" % (tmp_path / ("from-" + place[:3]))
        done = run_minipull("--root", tmp_path / "second", "copy", "--referrers", place, between)
        assert done.code == 0, done
        done = run_minipull("--root", root, "copy", "--referrers", between, "store:r.com/%s:1" % kind)
        assert done.code == 0, done
    third = serve(root, "--as", "r.com")
    for name in ("oci", "store"):
        for subject in signed.found:
            assert {entry["digest"] for entry in referrers(third.host, name, subject)} == {
                entry["digest"] for entry in referrers(second.host, "copy/signed", subject)}
    assert run_minipull("--root", root, "gc", "--keep", "0").code == 0
    assert run_minipull("--root", root, "check").code == 0


# -- credentials -------------------------------------------------------------------------


class Guarded(NamedTuple):
    """Two registries, each with a token server and a user of its own."""
    source: FaultProxy
    target: FaultProxy

    def place(self, server: FaultProxy, path: str = "copy/guarded:1") -> str:
        return "docker://%s/%s" % (server.host, path)

    def assert_told_apart(self) -> None:
        for server, own, foreign in ((self.source, "ann", "bob"), (self.target, "bob", "ann")):
            assert server.auth and server.auth.received
            for request in server.seen():
                text = request.target + " " + request.headers.get("authorization", "")
                assert "of-" + foreign not in text and "account=" + foreign not in text
            kinds = {value.partition(" ")[0] for _, value in server.auth.received}
            assert kinds <= {"Basic", "Bearer"}
            for request, value in server.auth.received:
                assert value.startswith("Basic ") == (request.path == "/token")
                assert request.path == "/token" or value.endswith("-of-" + own)


@pytest.fixture
def guarded(registry: DockerRegistry, other: DockerRegistry, tmp_path: Path) -> Iterator[Guarded]:
    publish(registry, index(tmp_path / "layout"), "copy/guarded")
    with FaultProxy(registry.host, auth=TokenAuth({"ann": "4pple"}, ())) as source, \
            FaultProxy(other.host, host="127.0.0.2", auth=TokenAuth({"bob": "b4nana"}, ())) as target:
        yield Guarded(source, target)


def test_no_end_sees_the_others_password_or_token(guarded: Guarded, run_minipull: Minipull) -> None:
    flags = ["--src-creds", "ann:4pple", "--dest-creds", "bob:b4nana"]
    done = run_minipull("copy", *flags, guarded.place(guarded.source), guarded.place(guarded.target))
    assert done.code == 0, done
    guarded.assert_told_apart()
    done = run_minipull("copy", "--src-creds", "ann:4pple", guarded.place(guarded.source), guarded.place(
        guarded.target, "copy/guarded:2"))
    assert done.code == 4 and guarded.target.host in done.err


def test_a_token_is_given_as_it_is_to_its_end_alone(guarded: Guarded, run_minipull: Minipull) -> None:
    tokens: Dict[FaultProxy, str] = {}
    for server, login in ((guarded.source, "ann:4pple"), (guarded.target, "bob:b4nana")):
        request = urllib.request.Request(
            server.url + "/token?scope=repository:copy/guarded:pull,push",
            headers={"Authorization": "Basic " + base64.b64encode(login.encode()).decode()})
        with urllib.request.urlopen(request, timeout=20) as answer:
            tokens[server] = json.loads(answer.read())["token"]
    done = run_minipull("copy", "--src-registry-token", tokens[guarded.source], guarded.place(guarded.source),
                        guarded.place(guarded.target), env={"MINIPULL_DEST_REGISTRY_TOKEN": tokens[guarded.target]})
    assert done.code == 0, done
    guarded.assert_told_apart()


def test_a_mount_needs_a_token_of_the_target(
        registry: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> None:
    publish(registry, index(tmp_path / "layout"), "copy/private")
    with FaultProxy(registry.host, auth=TokenAuth({"ann": "4pple", "bob": "b4nana"}, ())) as proxy:
        places = ["docker://%s/copy/%s:1" % (proxy.host, name) for name in ("private", "public")]
        done = run_minipull("copy", "--src-creds", "ann:4pple", "--dest-creds", "bob:b4nana", *places)
        assert done.code == 0 and "Mounted from copy/private" in done.err and sent(proxy) == 0, done
        for request in proxy.seen("POST", "/uploads/"):
            assert not request.headers.get("authorization", "-of-bob").endswith("-of-ann")
        for request in proxy.seen("GET", "/v2/copy/private/"):
            assert not request.headers.get("authorization", "-of-ann").endswith("-of-bob")


def test_many_images_of_a_list_are_copied_as_planned_each_blob_once(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> None:
    layout, shared = Layout(tmp_path / "layout"), images.specs(2, 20000)
    digests = [layout.image([*shared, images.Spec(2000, seed=50 + number)], "a%d:1" % number).digest
               for number in range(6)]
    assert run_minipull("copy", "-q", "oci:%s" % layout.root, "docker://%s/copy/many/" % registry.host).code == 0
    names = "".join("%s/copy/many/library/a%d:1\n" % (registry.host, number) for number in [*range(6), 99])
    with FaultProxy(other.host) as proxy:
        args = "copy", "-k", "--format", "json", "@-", "docker://%s/x/" % proxy.host
        planned = run_minipull(*args, "--dry-run", stdin=names.encode())
        assert planned.code == 3 and proxy.up == {} and {method for method, _ in proxy.hits} <= {"GET", "HEAD"}
        done = run_minipull(*args, stdin=names.encode())
        total = json.loads(planned.out)["total"]
        assert done.code == 3 and (sent(proxy), total["blobs"], total["mounted_blobs"]) == (total["bytes"], 14, 10)
        for row, plan in zip(json.loads(done.out), json.loads(planned.out)["images"]):
            assert dict(row, result="") == dict(plan, result="")
        proxy.up.clear()
        again = run_minipull(*args, "--no-clobber", stdin=names.encode())
        assert again.code == 3 and proxy.up == {}
        assert [row["result"] for row in json.loads(again.out)] == ["there"] * 6 + ["failed"]
    for number, digest in enumerate(digests):
        assert_whole(other, "x/copy/many/library/a%d" % number, layout, digest)
