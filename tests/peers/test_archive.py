# SPDX-License-Identifier: Apache-2.0
"""Archives go both ways: what save writes every tool loads, and load takes what they write."""
import json
import os
import platform
import sys
from pathlib import Path
from typing import Dict, Iterator, NamedTuple

import pytest

from tests.kit import images
from tests.kit.processes import Docker, DockerRegistry, Minipull, Tool, minipull_env, missing, peer, run
from tests.peers.test_serve import Containerd

#: The platform that daemons on this machine choose.
HERE = {"aarch64": "linux/arm64/v8"}.get(platform.machine(), "linux/amd64")


class Bundle(NamedTuple):
    """One archive of three images, one of them for many platforms, and what a loader must make of each."""

    path: Path
    root: Path  # the store that it was saved from
    made: Dict[str, images.Image]  # what each name stands for
    here: Dict[str, images.Image]  # on this platform


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    home, root, path = folder / "home", folder / "root", folder / "bundle.tar"
    home.mkdir()
    one = images.Layout(folder / "one")
    plain = one.image(images.specs(3, 40000), "x", HERE)
    other, awkward = images.awkward(folder / "two", "x")
    many, index, children = images.multi_platform(folder / "many", "x")
    made = {"docker.io/demo/one:1": plain, "r.example.com/two:2": awkward, "docker.io/library/many:3": index}
    for name, layout in zip(made, (one, other, many)):
        run([sys.executable, "-m", "minipull", "--root", root, "copy", "-q", "oci:%s:x" % layout.root,
             "store:" + name], minipull_env(home))
    run([sys.executable, "-m", "minipull", "--root", root, "save", "-q", "-o", path, *made], minipull_env(home))
    return Bundle(path, root, made, dict(made, **{"docker.io/library/many:3": children[HERE]}))


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    peer("containerd")
    if os.geteuid() != 0:
        missing("a private containerd needs root")
    daemon = Containerd(tmp_path_factory.mktemp("containerd"))
    yield daemon
    daemon.stop()


def held(registry: DockerRegistry, path: str, tag: str) -> str:
    """The digest of what a tag is at a registry."""
    status, headers, _ = registry.request(
        "HEAD", "/v2/%s/manifests/%s" % (path, tag), ", ".join(images.MANIFESTS))
    assert status == 200
    return headers["docker-content-digest"]


def familiar(name: str) -> str:
    return name.replace("docker.io/library/", "").replace("docker.io/", "")


def in_podman(name: str) -> str:
    """Of docker's names it takes those without a registry for its own."""
    return "localhost/" + familiar(name) if "docker.io" in name else name


# -- what save writes ----------------------------------------------------------


def test_docker_loads_it(bundle: Bundle, dockerd: Docker) -> None:
    out = dockerd("load", "-i", bundle.path).out
    for name, image in bundle.here.items():
        assert "Loaded image: %s\n" % familiar(name) in out
        [seen] = json.loads(dockerd("image", "inspect", name).out)
        assert (seen["Id"], seen["RootFS"]["Layers"]) == (image.config["digest"], image.diff_ids)
        dockerd("rmi", name)


def test_an_export_is_imported_as_an_image_of_one_layer(
        bundle: Bundle, dockerd: Docker, podman: Tool, tmp_path: Path, run_minipull: Minipull) -> None:
    """Both refuse a tar that names a path twice."""
    name, path = "r.example.com/two:2", tmp_path / "rootfs.tgz"
    assert run_minipull("--root", bundle.root, "export", "-o", path, name).code == 0
    digest = dockerd("import", path, "imported:1").out.strip()
    [seen] = json.loads(dockerd("image", "inspect", "imported:1").out)
    assert seen["Id"] == digest and len(seen["RootFS"]["Layers"]) == 1
    dockerd("rmi", "imported:1")
    assert podman("import", path, "imported:1").code == 0


def test_docker_and_podman_load_it_compressed(
        bundle: Bundle, dockerd: Docker, podman: Tool, tmp_path: Path, run_minipull: Minipull) -> None:
    name, path = "r.example.com/two:2", tmp_path / "saved.tar.gz"
    assert run_minipull("--root", bundle.root, "save", "-o", path, name).code == 0
    assert name in dockerd("load", "-i", path).out and name in podman("load", "-i", path).out
    dockerd("rmi", name)


def test_podman_loads_it(bundle: Bundle, podman: Tool) -> None:
    podman("load", "-i", bundle.path)
    for name, image in bundle.here.items():
        [seen] = json.loads(podman("image", "inspect", image.config["digest"][7:]).out)
        assert seen["RootFS"]["Layers"] == image.diff_ids
        assert seen["RepoTags"] == [in_podman(name)]


def test_containerd_loads_all_platforms_of_it(bundle: Bundle, containerd: Containerd) -> None:
    containerd("images", "import", "--all-platforms", "--snapshotter", "native", bundle.path)
    rows = [line.split() for line in containerd("images", "ls").out.splitlines()[1:]]
    assert {row[0]: row[2] for row in rows} == {name: image.digest for name, image in bundle.made.items()}
    ready = containerd("images", "check", "--quiet", "--snapshotter", "native").out.split()
    assert sorted(ready) == sorted(bundle.made)
    containerd("images", "rm", *bundle.made)


def test_skopeo_reads_it_as_either_kind(bundle: Bundle, skopeo: Tool, registry: DockerRegistry) -> None:
    for name, image in bundle.here.items():
        place = "docker-archive:%s:%s" % (bundle.path, name)
        seen = json.loads(skopeo("inspect", "--config", "--raw", place).out)
        assert seen["rootfs"]["diff_ids"] == image.diff_ids
    for number, (name, image) in enumerate(bundle.made.items()):
        target = "%s/archive/skopeo:%d" % (registry.host, number)
        skopeo("copy", "--all", "--preserve-digests", "--dest-tls-verify=false",
               "oci-archive:%s:%s" % (bundle.path, name), "docker://" + target)
        assert held(registry, "archive/skopeo", str(number)) == image.digest


def test_an_archive_for_one_platform_is_whole_to_everybody(
        bundle: Bundle, run_minipull: Minipull, containerd: Containerd, skopeo: Tool, podman: Tool,
        dockerd: Docker, tmp_path: Path) -> None:
    path, name = tmp_path / "one.tar", "docker.io/library/many:3"
    wanted = next(platform for platform in images.PLATFORMS if platform != HERE)
    done = run_minipull("--root", bundle.root, "save", "--platform", wanted, "-o", path, "many:3")
    assert done.code == 0, done
    containerd("images", "import", "--all-platforms", "--no-unpack", path)
    digest = containerd("images", "ls", "name==" + name).out.splitlines()[1].split()[2]
    containerd("images", "rm", name)
    skopeo("copy", "--all", "oci-archive:%s" % path, "oci:%s:x" % (tmp_path / "layout"))
    assert skopeo("manifest-digest", tmp_path / "layout" / "blobs" / "sha256" / digest[7:]).out.strip() == digest
    os_, architecture = wanted.split("/")[:2]
    podman("load", "-i", path)
    [seen] = json.loads(podman("image", "inspect", name).out)
    assert (seen["Os"], seen["Architecture"]) == (os_, architecture)
    dockerd("load", "-i", path)
    [seen] = json.loads(dockerd("image", "inspect", "many:3").out)
    assert (seen["Os"], seen["Architecture"]) == (os_, architecture)
    dockerd("rmi", "many:3")


# -- what others write ---------------------------------------------------------


class Loaded:
    """A fresh store, what load says, and what its images are once they are pushed."""

    def __init__(self, run_minipull: Minipull, root: Path, registry: DockerRegistry) -> None:
        self._run, self._root, self._registry = run_minipull, root, registry

    def __call__(self, path: Path, expected: Dict[str, images.Image], stdin: bool = False,
                 rewritten: bool = False) -> None:
        """Load, and compare what pushes with what was made: its configs, unless ``rewritten``, and DiffIDs."""
        store = ["--root", self._root]
        done = (self._run(*store, "load", stdin=path.read_bytes()) if stdin
                else self._run(*store, "load", "-i", path))
        assert done.code == 0, done
        assert sorted(done.out.splitlines()) == sorted("Loaded image: " + familiar(name) for name in expected)
        assert self._run(*store, "check").code == 0
        for number, (name, image) in enumerate(expected.items()):
            target = "%s/loaded/%s:%d" % (self._registry.host, self._root.parent.name.lower(), number)
            assert self._run(*store, "push", name, target).code == 0
            fresh = self._root.parent / "fresh"
            assert self._run("--root", fresh, "pull", target).code == 0
            [seen] = json.loads("[%s]" % self._run("--root", fresh, "inspect", target).out)
            assert seen["config"]["rootfs"]["diff_ids"] == image.diff_ids
            assert rewritten or seen["image_id"] == image.config["digest"]


@pytest.fixture
def loaded(run_minipull: Minipull, tmp_path: Path, registry: DockerRegistry) -> Loaded:
    return Loaded(run_minipull, tmp_path / "root", registry)


def test_docker_save(bundle: Bundle, dockerd: Docker, tmp_path: Path, loaded: Loaded) -> None:
    dockerd("load", "-i", bundle.path)
    dockerd("save", "-o", tmp_path / "saved.tar", *bundle.here)
    dockerd("rmi", *bundle.here)
    loaded(tmp_path / "saved.tar", bundle.here)
    loaded(tmp_path / "saved.tar", bundle.here, stdin=True)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_podman_save(bundle: Bundle, podman: Tool, tmp_path: Path, loaded: Loaded, kind: str) -> None:
    podman("load", "-i", bundle.path)
    name = "r.example.com/two:2"
    podman("save", "--format", kind, "-o", tmp_path / "saved.tar", name)
    loaded(tmp_path / "saved.tar", {name: bundle.here[name]}, rewritten=kind == "oci-archive")


def test_podman_saves_many(bundle: Bundle, podman: Tool, tmp_path: Path, loaded: Loaded) -> None:
    podman("load", "-i", bundle.path)
    expected = {in_podman(name): image for name, image in bundle.here.items()}
    podman("save", "--multi-image-archive", "-o", tmp_path / "saved.tar", *expected)
    loaded(tmp_path / "saved.tar", expected)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_skopeo(bundle: Bundle, skopeo: Tool, tmp_path: Path, loaded: Loaded, kind: str) -> None:
    for number, (name, image) in enumerate(bundle.here.items()):
        path = tmp_path / ("%d.tar" % number)
        skopeo("copy", "oci-archive:%s:%s" % (bundle.path, name), "%s:%s:%s" % (kind, path, familiar(name)))
        loaded(path, {name: image})


def test_containerd_exports(bundle: Bundle, containerd: Containerd, tmp_path: Path, loaded: Loaded) -> None:
    containerd("images", "import", "--all-platforms", "--snapshotter", "native", bundle.path)
    containerd("images", "export", "--platform", HERE, tmp_path / "saved.tar", *bundle.here)
    containerd("images", "rm", *bundle.here)
    loaded(tmp_path / "saved.tar", bundle.here)
