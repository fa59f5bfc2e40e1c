# SPDX-License-Identifier: Apache-2.0
"""A bundle is an archive to every engine, and all that a host without them needs."""
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Mapping, Tuple

import pytest

from tests.kit import images
from tests.kit.commands import is_sound
from tests.kit.processes import (
    Docker, DockerRegistry, Finished, Minipull, Tool, end, interpreters, minipull_env, run, wait_until)
from tests.peers.test_archive import Bundle, bundle, containerd, familiar, held, in_podman  # noqa: F401
from tests.peers.test_serve import Containerd

PYTHONS = [(version, path) for version, path in interpreters()
           if re.match(r"3\.(6|13)\.", version)] or interpreters()[-1:]


@pytest.fixture(scope="module")
def site(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A bundle of three images."""
    path = tmp_path_factory.mktemp("site") / "site.pyz"
    for out in (path, path.with_name("again")):
        run([sys.executable, "-m", "minipull", "--root", bundle.root, "save", "-q", "--bundle", "-o", out, *bundle.made],
            minipull_env(path.parent))
    assert path.read_bytes() == path.with_name("again").read_bytes()
    return path


class Host:
    """A host with an empty home, and a PATH that has nothing but python3."""

    def __init__(self, folder: Path, python: str, site: Path) -> None:
        (folder / "empty").mkdir()
        (folder / "bin").mkdir()
        (folder / "bin/python3").write_text('#!/bin/sh\nexec %s "$@"\n' % python)
        (folder / "bin/python3").chmod(0o755)
        self.home, self.site, self.name = folder / "empty", site, folder.name.lower()
        self.env: Mapping[str, str] = {"HOME": str(self.home), "PATH": str(folder / "bin")}
        self.python = [str(folder / "bin/python3"), "-I", "-S", str(site)]

    def __call__(self, *args: str) -> Finished:
        done = run([*self.python, *args], self.env, cwd=self.home, check=False)
        assert (done.code, "Traceback" in done.err) == (0, False), done
        return done

    def serve(self) -> Tuple["subprocess.Popen[bytes]", str]:
        out = self.home / "out"
        with out.open("wb") as stdout:
            process = subprocess.Popen([*self.python, "serve", "--listen", "127.0.0.1:0"], env=dict(self.env),
                                       cwd=str(self.home), stdout=stdout)
        wait_until(lambda: out.read_bytes().endswith(b"\n"), "serve", process)
        return process, out.read_text().strip().rpartition("/")[2]


@pytest.fixture(params=[path for _, path in PYTHONS], ids=[version for version, _ in PYTHONS])
def host(request: pytest.FixtureRequest, tmp_path: Path, site: Path) -> Host:
    return Host(tmp_path, request.param, site)


def test_docker_podman_and_tar_take_a_bundle_as_an_archive(
        bundle: Bundle, site: Path, dockerd: Docker, podman: Tool) -> None:  # noqa: F811
    loaded = dockerd("load", "-i", site).out
    podman("load", "-i", site)
    for name, image in bundle.here.items():
        assert "Loaded image: %s\n" % familiar(name) in loaded
        [seen] = json.loads(dockerd("image", "inspect", name).out)
        assert (seen["Id"], seen["RootFS"]["Layers"]) == (image.config["digest"], image.diff_ids)
        [seen] = json.loads(podman("image", "inspect", image.config["digest"][7:]).out)
        assert (seen["RootFS"]["Layers"], seen["RepoTags"]) == (image.diff_ids, [in_podman(name)])
    dockerd("rmi", *bundle.here)
    assert run(["tar", "tf", site]).out == run(["tar", "tf", bundle.path]).out
    with zipfile.ZipFile(str(site)) as packed:
        assert packed.testzip() is None


def test_containerd_and_skopeo_take_a_bundle_as_an_archive(
        bundle: Bundle, site: Path, containerd: Containerd, skopeo: Tool) -> None:  # noqa: F811
    containerd("images", "import", "--all-platforms", "--snapshotter", "native", site)
    rows = [line.split() for line in containerd("images", "ls").out.splitlines()[1:]]
    assert {row[0]: row[2] for row in rows} == {name: image.digest for name, image in bundle.made.items()}
    containerd("images", "rm", *bundle.made)
    for name, image in bundle.here.items():
        for place in ("docker-archive", "oci-archive"):
            seen = json.loads(skopeo("inspect", "--config", "--raw", "%s:%s:%s" % (place, site, name)).out)
            assert seen["rootfs"]["diff_ids"] == image.diff_ids


def test_a_host_with_nothing_but_python_lists_checks_and_unpacks_it(bundle: Bundle, host: Host) -> None:  # noqa: F811
    assert sorted(row["name"] for row in json.loads(host("images", "--format", "json").out)) == sorted(bundle.made)
    assert all(image.digest in host().out for image in bundle.made.values())
    assert is_sound(host("check").out, host.site)
    host("unpack", "-q", "demo/one:1", "tree")
    assert any(path.is_file() for path in (host.home / "tree").rglob("*"))
    host("save", "-q", "--bundle", "-o", "again", *bundle.made)
    assert (host.home / "again").read_bytes() == host.site.read_bytes()


def test_podman_and_skopeo_pull_from_a_bundle_that_serves(
        bundle: Bundle, host: Host, podman: Tool, skopeo: Tool) -> None:  # noqa: F811
    process, address = host.serve()
    try:
        catalog = json.loads(skopeo("list-tags", "--tls-verify=false", "docker://%s/demo/one" % address).out)
        assert catalog["Tags"] == ["1"]
        image = bundle.made["docker.io/demo/one:1"]
        podman("pull", "-q", "--tls-verify=false", address + "/demo/one:1")
        [seen] = json.loads(podman("image", "inspect", address + "/demo/one:1").out)
        assert seen["RootFS"]["Layers"] == image.diff_ids
        target = "oci:%s:x" % (host.home / "layout")
        skopeo("copy", "-q", "--all", "--src-tls-verify=false", "docker://%s/many:3" % address, target)
        assert skopeo("inspect", "--raw", target).raw == bundle.made["docker.io/library/many:3"].raw
    finally:
        end(process)


def test_a_bundle_is_copied_to_a_registry(bundle: Bundle, host: Host, registry: DockerRegistry) -> None:  # noqa: F811
    for number, (name, image) in enumerate(bundle.made.items()):
        host("copy", "--dest-tls-verify=false", "store:" + name,
             "docker://%s/site/%s:%d" % (registry.host, host.name, number))
        assert held(registry, "site/" + host.name, str(number)) == image.digest


def test_docker_refuses_a_delta_and_takes_what_its_reader_saves(
        bundle: Bundle, dockerd: Docker, run_minipull: Minipull, tmp_path: Path) -> None:  # noqa: F811
    base, delta, far = tmp_path / "base.tar", tmp_path / "delta.tar", ["--root", tmp_path / "far"]
    near = ["--root", bundle.root, "save", "-q"]
    assert run_minipull(*near, "-o", base, "demo/one").code == 0
    assert run_minipull(*near, "--base", base, "-o", delta, *bundle.made).code == 0
    refused = dockerd("load", "-i", delta, check=False)
    assert refused.code != 0 and dockerd("images", "-q").out == ""
    for archive in (base, delta):
        assert run_minipull(*far, "load", "-i", archive).code == 0
    assert run_minipull(*far, "save", "-q", "-o", tmp_path / "full.tar", *bundle.made).code == 0
    assert (tmp_path / "full.tar").read_bytes() == bundle.path.read_bytes()
    dockerd("load", "-i", tmp_path / "full.tar")
    dockerd("rmi", *bundle.here)
