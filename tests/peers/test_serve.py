# SPDX-License-Identifier: Apache-2.0
"""Real clients of ``minipull serve``: it is the mirror they pull from, and the registry they push to.

There is nothing but loopback to pull from, and where there is more, Docker
Hub's images have other digests than ours.
"""
import io
import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Tuple, Union

import pytest

from tests.kit import images
from tests.kit.commands import is_sound
from tests.kit.processes import (
    Docker, Finished, Minipull, Serve, Tool, clean_env, end, minipull_env, missing, peer, run, short_folder,
    wait_until)
from tests.kit.proxies import FaultProxy

#: The platform that daemons on this machine choose.
HERE = {"aarch64": "linux/arm64/v8"}.get(platform.machine(), "linux/amd64")

Start = Callable[..., Serve]


class Wanted(NamedTuple):
    """A name at Docker Hub, and what a client must make of it."""

    name: str
    digest: str
    config: str  # digest


class Site(NamedTuple):
    """A read-only server over a store that minipull pulled, as a mirror of Docker Hub and quay.io."""

    server: Serve
    alpine: images.Image
    quay: images.Image  # another one with the same path and tag
    busybox: images.Image  # an index with all its children
    wanted: List[Wanted]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    home, root = folder / "home", folder / "root"
    home.mkdir()
    one, old = images.Layout(folder / "one"), images.Layout(folder / "old", docker=True)
    alpine = one.image(images.specs(3, 40000), "alpine", HERE)
    legacy = old.image(images.specs(2, 40000, seed=50), "legacy", HERE)
    many, busybox, children = images.multi_platform(folder / "many", "busybox")
    some, debian, others = images.multi_platform(folder / "some", "debian", docker=True)
    settings = home / "config.json"

    def minipull(*args: str) -> None:
        run([sys.executable, "-m", "minipull", "--root", root, "--config", settings, *args],
            minipull_env(home), cwd=home)

    first = Serve(home, folder / "first", "--writable", "--as", "docker.io")
    try:
        for layout, name, tag in ((one, "alpine", "3.20"), (old, "legacy", "1"), (many, "busybox", "1.36"),
                                  (some, "debian", "12")):
            images.push_layout_http(layout, name, "%s/library/%s:%s" % (first.host, name, tag))
        settings.write_text(json.dumps({"registry-mirrors": [first.url]}))
        minipull("pull", "alpine:3.20", "legacy:1", "debian:12")
        minipull("pull", "--all-platforms", "busybox:1.36")
        minipull("tag", "legacy:1", "quay.io/library/alpine:3.20")
    finally:
        first.stop()
    server = Serve(home, root)
    child, other = children[HERE], others[HERE]
    yield Site(server, alpine, legacy, busybox, [
        Wanted("library/alpine:3.20", alpine.digest, alpine.config["digest"]),
        Wanted("library/alpine@" + alpine.digest, alpine.digest, alpine.config["digest"]),
        Wanted("library/legacy:1", legacy.digest, legacy.config["digest"]),
        Wanted("library/busybox:1.36", busybox.digest, child.config["digest"]),
        Wanted("library/busybox@" + busybox.digest, busybox.digest, child.config["digest"]),
        # Of this one the store has the index and one platform.
        Wanted("library/debian:12", other.digest, other.config["digest"]),
        Wanted("library/debian@" + debian.digest, debian.digest, other.config["digest"])])
    server.stop()


@pytest.fixture(scope="module")
def docker(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A daemon with the site for its mirror."""
    peer("docker")
    if os.geteuid() != 0:
        missing("a private dockerd needs root")
    daemon = Docker(tmp_path_factory.mktemp("docker"), "--registry-mirror", site.server.url)
    yield daemon
    daemon.stop()


class Containerd:
    """A private containerd; call it with the arguments of ``ctr``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._run = short_folder()
        config = root / "config.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        with (root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [peer("containerd"), "--config", str(config), "--root", str(root / "data"),
                 "--state", str(self._run / "state"), "--address", str(self._run / "sock")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=clean_env(root),
                start_new_session=True)
        try:
            wait_until(lambda: self("version", check=False).code == 0, "containerd", self._process)
        except RuntimeError as error:
            self.stop()
            raise RuntimeError("%s: %s" % (error, (root / "log").read_text()[-2000:])) from None

    def __call__(self, *args: Union[str, Path], check: bool = True) -> Finished:
        return run([peer("ctr"), "--address", self._run / "sock", *args], clean_env(self.root), check=check)

    def pull(self, name: str, domain: str, hosts: str) -> str:
        """Pull by a hosts.toml for ``domain``, all of it, and forget it; returns the digest."""
        folder = self.root / "hosts" / domain
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(hosts)
        try:
            self("images", "pull", "--hosts-dir", folder.parent, "--snapshotter", "native", name)
        finally:
            shutil.rmtree(folder)
        ready = self("images", "check", "--quiet", "--snapshotter", "native", "name==" + name).out
        row = self("images", "ls", "name==" + name).out.splitlines()[1].split()
        self("images", "rm", "--sync", name)
        assert ready.split() == [name] == row[:1]
        return row[2]

    def stop(self) -> None:
        end(self._process)


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    peer("containerd")
    if os.geteuid() != 0:
        missing("a private containerd needs root")
    daemon = Containerd(tmp_path_factory.mktemp("containerd"))
    yield daemon
    daemon.stop()


def configure(home: Path, text: str) -> None:
    """Write the registries.conf of podman and skopeo."""
    folder = home / ".config" / "containers"
    folder.mkdir(parents=True)
    (folder / "registries.conf").write_text(text)


def mirror_of(domain: str, location: str) -> str:
    return ('[[registry]]\nlocation = "%s"\n[[registry.mirror]]\nlocation = "%s"\ninsecure = true\n'
            % (domain, location))


# -- The mirror of a site ------------------------------------------------------


def test_docker_pulls_from_its_mirror_by_tag_and_by_digest(docker: Docker, site: Site) -> None:
    for name, digest, config in site.wanted:
        assert "Digest: %s\n" % digest in docker("pull", "docker.io/" + name).out
        assert docker("image", "inspect", "-f", "{{.Id}}", "docker.io/" + name).out.strip() == config, name
        docker("rmi", "--force", config)


def test_containerd_pulls_from_its_mirror_by_tag_and_by_digest(containerd: Containerd, site: Site) -> None:
    for name, digest, _ in site.wanted:
        hosts = '[host."%s"]\n' % site.server.url
        assert containerd.pull("docker.io/" + name, "docker.io", hosts) == digest, name


def test_containerd_pulls_by_the_hosts_file_that_k3s_writes(containerd: Containerd, site: Site) -> None:
    # What it makes of {"mirrors": {"docker.io": {"endpoint": [URL]}}} in its registries.yaml.
    hosts = ('server = "https://registry-1.docker.io/v2"\ncapabilities = ["pull", "resolve", "push"]\n\n'
             '[host."%s/v2"]\n  capabilities = ["pull", "resolve"]\n' % site.server.url)
    for name, digest, _ in site.wanted[:1] + site.wanted[-1:]:
        assert containerd.pull("docker.io/" + name, "docker.io", hosts) == digest, name


def test_one_hosts_file_of_containerd_is_enough_for_all_registries(
        containerd: Containerd, site: Site) -> None:
    hosts = '[host."%s"]\n' % site.server.url
    for domain, image in (("quay.io", site.quay), ("docker.io", site.alpine)):
        assert containerd.pull(domain + "/library/alpine:3.20", "_default", hosts) == image.digest


@pytest.mark.parametrize("text", [
    mirror_of("docker.io", "%s"),
    '[[registry]]\nprefix = "docker.io"\nlocation = "%s"\ninsecure = true\n',
], ids=["mirror", "location"])
def test_podman_pulls_from_its_mirror_by_tag_and_by_digest(
        podman: Tool, site: Site, home: Path, text: str) -> None:
    configure(home, text % site.server.host)
    for name, digest, config in site.wanted:
        image_id = podman("pull", "--quiet", "docker.io/" + name).out.strip()
        assert "sha256:" + image_id == config, name
        assert digest in podman("image", "inspect", "-f", "{{.RepoDigests}}", image_id).out, name
        podman("rmi", "--force", image_id)


def test_podman_finds_another_registry_below_its_domain(podman: Tool, site: Site, home: Path) -> None:
    configure(home, mirror_of("quay.io", site.server.host + "/quay.io"))
    image_id = podman("pull", "--quiet", "quay.io/library/alpine:3.20").out.strip()
    assert "sha256:" + image_id == site.quay.config["digest"]


def test_skopeo_copies_a_whole_index_from_the_mirror(
        skopeo: Tool, site: Site, home: Path, tmp_path: Path) -> None:
    configure(home, mirror_of("docker.io", site.server.host))
    skopeo("copy", "--all", "--preserve-digests", "docker://busybox:1.36", "oci:%s:x" % (tmp_path / "copy"))
    [entry] = json.loads((tmp_path / "copy" / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == site.busybox.digest


def test_minipull_asks_its_mirror_with_the_registrys_name(
        site: Site, home: Path, tmp_path: Path, run_minipull: Minipull) -> None:
    with FaultProxy(site.server.host) as proxy:
        settings = home / "config.json"
        mirrored = {"mirrors": [proxy.url], "fallback": False}
        settings.write_text(json.dumps({"hosts": {"docker.io": mirrored, "quay.io": mirrored}}))

        def ask(*args: str) -> str:
            done = run_minipull("--root", tmp_path / "root", "--config", settings, *args)
            assert done.code == 0, done
            return done.out

        assert ask("digest", "busybox:1.36") == site.busybox.digest + "\n"
        assert ask("manifest", "busybox:1.36").encode() == site.busybox.raw
        assert ask("tags", "busybox") == "1.36\n"
        assert {request.query["ns"] for request in proxy.seen()} == {"docker.io"}
        assert "Digest: %s\n" % site.quay.digest in ask("pull", "quay.io/library/alpine:3.20")
        ask("pull", "--all-platforms", "busybox:1.36")
        assert ": ok\nok: " in ask("check")


def test_a_client_asks_a_mirror_once_for_each_thing(containerd: Containerd, site: Site) -> None:
    with FaultProxy(site.server.host) as proxy:
        containerd.pull("docker.io/library/alpine:3.20", "docker.io", '[host."%s"]\n' % proxy.url)
        blobs = {blob["digest"] for blob in (site.alpine.config, *(x.descriptor for x in site.alpine.layers))}
        assert {key: hits for key, hits in proxy.hits.items() if hits != 1} == {}
        assert {path.rpartition("/")[2] for _, path in proxy.hits} == {"3.20", site.alpine.digest, *blobs}


def test_a_push_to_a_read_only_server_fails_without_a_retry(
        docker: Docker, site: Site, skopeo: Tool) -> None:
    with FaultProxy(site.server.host) as proxy:
        name = proxy.host + "/demo/denied:1"
        docker("import", "-", name, stdin=tar(60))
        done = docker("push", name, check=False)
        assert done.code == 1 and "unsupported: the registry is read-only" in done.err
        assert [request.method for request in proxy.seen("POST|PUT|PATCH")] == ["POST"]
    place = "docker://%s/library/alpine" % site.server.host
    done = skopeo("copy", "--src-tls-verify=false", "--dest-tls-verify=false", place + ":3.20", place + ":4",
                  check=False)
    assert done.code == 1 and "the registry is read-only" in done.err
    done = skopeo("delete", "--tls-verify=false", place + ":3.20", check=False)
    assert done.code == 1 and "the registry is read-only" in done.err
    assert held(site.server, "library/alpine", "3.20") == site.alpine.digest


# -- Pushing -------------------------------------------------------------------


def tar(seed: int) -> bytes:
    stream = io.BytesIO()
    images.write_tar(images.Spec(50000, seed=seed), stream)
    return stream.getvalue()


def held(server: Serve, path: str, reference: str) -> str:
    """The digest of a manifest, by its headers and by its bytes."""
    target = "/v2/%s/manifests/%s" % (path, reference)
    status, headers, raw = server.request("GET", target)
    assert (status, headers["docker-content-digest"]) == (200, images.digest_of(raw))
    status, headers, _ = server.request("HEAD", target)
    assert (status, headers["docker-content-digest"]) == (200, images.digest_of(raw))
    return images.digest_of(raw)


class Origin(NamedTuple):
    """A writable server, and what minipull makes of what is there."""

    server: Serve
    tmp_path: Path
    run_minipull: Minipull

    def name(self, path: str) -> str:
        return "%s/%s:1" % (self.server.host, path)

    def check(self, path: str, digest: str) -> None:
        """The client's digest is the server's, and minipull's when it pulls all of it."""
        assert held(self.server, path, "1") == held(self.server, path, digest) == digest
        root = self.tmp_path / "pulled"
        done = self.run_minipull("--root", root, "pull", "--all-platforms", self.name(path))
        assert done.code == 0 and "Digest: %s\n" % digest in done.out, done
        for each in (root, self.server.root):
            done = self.run_minipull("--root", each, "check")
            assert done.code == 0 and is_sound(done.out, each)


@pytest.fixture
def origin(serve: Start, tmp_path: Path, run_minipull: Minipull) -> Origin:
    return Origin(serve(tmp_path / "origin", "--writable"), tmp_path, run_minipull)


def test_docker_pushes_and_gets_its_digest_back(origin: Origin, docker: Docker) -> None:
    name = origin.name("demo/app")
    docker("import", "-", name, stdin=tar(61))
    last = docker("push", name).out.splitlines()[-1].split()
    digest = last[2]
    assert last[:2] == ["1:", "digest:"]
    assert name[:-2] + "@" + digest in docker("image", "inspect", "-f", "{{.RepoDigests}}", name).out
    origin.check("demo/app", digest)
    docker("rmi", "--force", name)
    assert "Digest: %s\n" % digest in docker("pull", name).out


def test_docker_does_not_upload_what_is_there(origin: Origin, docker: Docker) -> None:
    with FaultProxy(origin.server.host) as proxy:
        docker("import", "-", proxy.host + "/demo/app:1", stdin=tar(62))
        docker("push", proxy.host + "/demo/app:1")
        uploads = len(proxy.seen("POST", "/blobs/uploads/$"))
        assert uploads == len(proxy.seen("PATCH")) == 2  # a layer and a config
        docker("tag", proxy.host + "/demo/app:1", proxy.host + "/demo/again:2")
        done = docker("push", proxy.host + "/demo/again:2")
        assert ": Layer already exists" in done.out or ": Mounted from demo/app" in done.out
        assert len(proxy.seen("PATCH")) == uploads
    assert held(origin.server, "demo/again", "2") == held(origin.server, "demo/app", "1")


def test_podman_pushes_and_gets_its_digest_back(origin: Origin, podman: Tool, tmp_path: Path) -> None:
    layout, image = images.awkward(tmp_path / "layout")
    podman("pull", "--quiet", "oci:%s:awkward" % layout.root)
    podman("push", "--tls-verify=false", "--digestfile", tmp_path / "digest",
           image.config["digest"][7:], "docker://" + origin.name("demo/app"))
    origin.check("demo/app", (tmp_path / "digest").read_text())


@pytest.mark.parametrize("which", ["image", "index"])
def test_skopeo_pushes_the_same_bytes(
        origin: Origin, skopeo: Tool, tmp_path: Path, which: str) -> None:
    if which == "index":
        layout, image, _ = images.multi_platform(tmp_path / "layout", "x")
    else:
        layout, image = images.awkward(tmp_path / "layout", "x")
    skopeo("copy", "--all", "--preserve-digests", "--dest-tls-verify=false", "--digestfile",
           tmp_path / "digest", "oci:%s:x" % layout.root, "docker://" + origin.name("demo/app"))
    assert (tmp_path / "digest").read_text() == image.digest
    origin.check("demo/app", image.digest)


def test_an_image_pushed_as_docker_io_is_served_to_mirror_clients(
        serve: Start, tmp_path: Path, home: Path, run_minipull: Minipull, skopeo: Tool) -> None:
    server = serve(tmp_path / "origin", "--writable", "--as", "docker.io")
    layout, image = images.single(tmp_path / "layout")
    images.push_layout_http(layout, "latest", server.host + "/library/tool:1")
    configure(home, mirror_of("docker.io", server.host))
    assert skopeo("inspect", "--raw", "docker://docker.io/library/tool:1").raw == image.raw
    settings = home / "config.json"
    settings.write_text(json.dumps({"registry-mirrors": [server.url]}))
    done = run_minipull("--root", tmp_path / "root", "--config", settings, "pull", "tool:1")
    assert done.code == 0 and "Digest: %s\n" % image.digest in done.out, done


# -- Asking and deleting -------------------------------------------------------


def test_skopeo_lists_inspects_and_deletes(origin: Origin, skopeo: Tool, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "layout")
    host = origin.server.host
    for name in ("demo/app:1", "demo/app:2", "demo/kept:1"):
        images.push_layout_http(layout, "latest", "%s/%s" % (host, name))
    other = layout.image(images.specs(1, seed=70), "other")
    images.push_layout_http(layout, "other", host + "/demo/app:3")

    def tags(path: str) -> List[str]:
        place = "docker://%s/%s" % (host, path)
        return list(json.loads(skopeo("list-tags", "--tls-verify=false", place).out)["Tags"])

    place = "docker://%s/demo/app:" % host
    assert tags("demo/app") == ["1", "2", "3"]
    seen = json.loads(skopeo("inspect", "--tls-verify=false", place + "1").out)
    assert (seen["Digest"], seen["RepoTags"]) == (image.digest, ["1", "2", "3"])
    assert seen["Layers"] == [layer.descriptor["digest"] for layer in image.layers]
    assert skopeo("inspect", "--tls-verify=false", "--raw", place + "1").raw == image.raw
    skopeo("delete", "--tls-verify=false", place + "1")  # by digest, so both tags
    assert tags("demo/app") == ["3"] and tags("demo/kept") == ["1"]
    done = skopeo("inspect", "--tls-verify=false", place + "1", check=False)
    assert done.code == 1 and "manifest unknown" in done.err
    assert held(origin.server, "demo/app", "3") == other.digest
    assert held(origin.server, "demo/kept", "1") == image.digest
    origin.check("demo/kept", image.digest)


def test_minipull_asks_and_pulls_every_tag(origin: Origin, tmp_path: Path) -> None:
    layout, image = images.single(tmp_path / "one")
    many, index, _ = images.multi_platform(tmp_path / "many")
    repository = origin.server.host + "/demo/app"
    images.push_layout_http(layout, "latest", repository + ":1")
    images.push_layout_http(many, "latest", repository + ":2")
    asked: List[Tuple[List[str], bytes]] = [
        (["tags", repository], b"1\n2\n"), (["digest", repository + ":1"], image.digest.encode() + b"\n"),
        (["manifest", repository + ":2"], index.raw)]
    for args, expected in asked:
        done = origin.run_minipull(*args)
        assert (done.code, done.raw) == (0, expected), done
    done = origin.run_minipull("--root", tmp_path / "root", "pull", "--all-tags", "--quiet", repository)
    assert done.code == 0, done
    for digest in (image.digest, index.digest):
        assert "%s@%s" % (repository, digest) in done.out.splitlines()
    assert origin.run_minipull("--root", tmp_path / "root", "check").code == 0


def test_a_client_that_tries_tls_first_is_answered_at_once(site: Site) -> None:
    # podman, skopeo, docker and minipull do on loopback; they wait for 10 s or longer.
    hello = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with socket.create_connection(("127.0.0.1", site.server.port), timeout=60) as connection:
        connection.sendall(hello.read())
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")  # and not 408, out of patience
