# SPDX-License-Identifier: Apache-2.0
"""What minipull pushes, real registries take and real clients read back, on a good day and on a bad one."""
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from tests.kit import images
from tests.kit.processes import (
    Docker, DockerRegistry, Finished, Minipull, Serve, Tool, driver_env, minipull_env, run, wait_until)
from tests.kit.images import Layout, Spec
from tests.kit.proxies import FaultProxy
from tests.kit.tokens import TokenAuth

MIB = 1 << 20


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry that has nothing yet."""
    server = DockerRegistry(tmp_path_factory.mktemp("other"))
    yield server
    server.stop()


def digest_at(registry: Any, name: str, tag: str = "1") -> str:
    """What a tag is at a registry, by its bytes."""
    kinds = ", ".join(images.MANIFESTS)
    if isinstance(registry, DockerRegistry):
        status, _, raw = registry.request("GET", "/v2/%s/manifests/%s" % (name, tag), kinds)
    else:
        status, _, raw = registry.request("GET", "/v2/%s/manifests/%s" % (name, tag), headers={"Accept": kinds})
    assert status == 200
    return images.digest_of(raw)


@pytest.fixture
def minipull(run_minipull: Minipull, tmp_path: Path) -> Callable[..., Finished]:
    """A command on a store of the test's own, which must succeed."""
    def call(*args: Any, root: str = "root") -> Finished:
        done = run_minipull("--root", tmp_path / root, *args)
        assert done.code == 0, done
        return done
    return call


Call = Callable[..., Finished]


# -- read back -----------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "schema2"])
def test_an_image_keeps_its_digest_from_registry_to_registry(
        docker: bool, registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, minipull: Call,
        skopeo: Tool) -> None:
    layout, made = images.awkward(tmp_path / "layout", docker=docker)
    kind = "schema2" if docker else "oci"
    source, target = "%s/peers/%s:1" % (registry.host, kind), "%s/pushed/%s:2" % (other.host, kind)
    images.push_layout_http(layout, "awkward", source)
    minipull("pull", source)
    done = minipull("push", source, target)
    assert done.out == "2: digest: %s size: %d\n" % (made.digest, len(made.raw))
    assert digest_at(other, "pushed/" + kind, "2") == made.digest
    found = json.loads(skopeo("inspect", "--tls-verify=false", "docker://" + target).out)
    assert found["Digest"] == made.digest
    assert found["Layers"] == [layer.descriptor["digest"] for layer in made.layers]
    skopeo("copy", "--src-tls-verify=false", "docker://" + target, "dir:%s" % (tmp_path / "copy"))
    minipull("pull", target, root="fresh")
    minipull("check", root="fresh")


def test_a_docker_daemon_pulls_what_was_pushed(
        registry: DockerRegistry, dockerd: Docker, tmp_path: Path, minipull: Call) -> None:
    layout, made = images.single(tmp_path / "layout", docker=True)
    images.push_layout_http(layout, "latest", registry.host + "/peers/for-docker:1")
    minipull("pull", registry.host + "/peers/for-docker:1")
    target = registry.host + "/pushed/for-docker:1"
    minipull("push", registry.host + "/peers/for-docker:1", target)
    assert "Digest: " + made.digest in dockerd("pull", target).out
    assert dockerd("image", "inspect", "-f", "{{.Id}}", target).out.strip() == made.config["digest"]


def test_an_index_keeps_its_digest_and_all_its_platforms(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, minipull: Call, skopeo: Tool) -> None:
    layout, index, children = images.multi_platform(tmp_path / "layout")
    source, target = registry.host + "/peers/platforms:1", other.host + "/pushed/platforms:1"
    images.push_layout(layout, "latest", source)
    minipull("pull", "--all-platforms", source)
    assert minipull("push", "-q", source, target).out == "%s/pushed/platforms@%s\n" % (other.host, index.digest)
    assert digest_at(other, "pushed/platforms") == index.digest
    for child in children.values():
        assert digest_at(other, "pushed/platforms", child.digest) == child.digest
    skopeo("copy", "--all", "--preserve-digests", "--src-tls-verify=false", "docker://" + target,
           "oci:%s:copy" % (tmp_path / "copy"))


def test_of_one_platform_only_its_image_is_pushed(
        registry: DockerRegistry, other: DockerRegistry, tmp_path: Path, minipull: Call) -> None:
    layout, index, children = images.multi_platform(tmp_path / "layout")
    source = registry.host + "/peers/platform:1"
    images.push_layout(layout, "latest", source)
    minipull("pull", "--platform", "linux/arm64", source)
    minipull("push", source, other.host + "/pushed/platform")
    assert digest_at(other, "pushed/platform") == children["linux/arm64/v8"].digest


def test_our_own_registry_takes_it_too(
        registry: DockerRegistry, serve: Callable[..., Serve], tmp_path: Path, minipull: Call) -> None:
    layout, index, _ = images.multi_platform(tmp_path / "layout", nested=True)
    large = layout.image([Spec(3 * MIB, text=0), *images.specs(3)], "large")
    name = registry.host + "/peers/large:1"
    images.push_layout(layout, "large", name)
    minipull("pull", name)
    server = serve(tmp_path / "served", "--writable")
    for flags in ((), ("--chunk-size", "1M")):
        minipull("push", name, server.host + "/r%d:1" % len(flags), *flags)
        assert digest_at(server, "r%d" % len(flags)) == large.digest
    minipull("check", root="served")


def test_a_plain_layer_is_read_as_what_it_was_compressed_to(
        other: DockerRegistry, dockerd: Docker, tmp_path: Path, minipull: Call, skopeo: Tool) -> None:
    layout = Layout(tmp_path / "root", docker=True)  # which no registry has
    target = other.host + "/pushed/plain:1"
    made = layout.image([Spec(200000, compression=""), Spec(3000, seed=1, compression="")], target)
    minipull("push", target)
    first = digest_at(other, "pushed/plain")
    assert first != made.digest
    found = json.loads(skopeo("inspect", "--tls-verify=false", "docker://" + target).out)
    assert found["Digest"] == first
    dockerd("pull", target)
    assert dockerd("image", "inspect", "-f", "{{.Id}}", target).out.strip() == made.config["digest"]
    minipull("pull", target, root="fresh")
    minipull("check", root="fresh")
    [again] = json.loads(minipull("push", "--format", "json", target).out)
    assert again["digest"] == first
    assert [layer["result"] for layer in again["layers"]] == ["Layer already exists"] * 2


# -- tokens --------------------------------------------------------------------------


def scopes_asked(proxy: FaultProxy) -> List[List[str]]:
    return [re.findall("scope=([^&]*)", request.target.replace("%3A", ":").replace("%2C", ",").replace("%2F", "/"))
            for request in proxy.seen("GET", "^/token$")]


def test_no_more_is_asked_for_than_a_push_needs(
        registry: DockerRegistry, tmp_path: Path, minipull: Call) -> None:
    layout, made = images.single(tmp_path / "layout", layers=2, size=400000)
    with FaultProxy(registry.host, auth=TokenAuth({"ann": "secret"}, anonymous=())) as proxy:
        creds = ("--creds", "ann:secret")
        images.push_layout_http(layout, "latest", registry.host + "/scopes/one:1")
        minipull("pull", *creds, proxy.host + "/scopes/one:1")
        before = len(scopes_asked(proxy))
        minipull("push", *creds, proxy.host + "/scopes/one:1")
        assert scopes_asked(proxy)[before:] == [["repository:scopes/one:pull,push"]]
        before = len(scopes_asked(proxy))
        done = minipull("push", *creds, proxy.host + "/scopes/one:1", proxy.host + "/scopes/two")
        assert done.err.count("Mounted from scopes/one") == 2
        assert scopes_asked(proxy)[before:] == [
            ["repository:scopes/two:pull,push"],
            ["repository:scopes/two:pull,push", "repository:scopes/one:pull"]]


def test_a_token_that_expires_on_the_way_is_renewed(
        registry: DockerRegistry, tmp_path: Path, minipull: Call) -> None:
    layout = Layout(tmp_path / "root")
    with FaultProxy(registry.host, auth=TokenAuth({"ann": "secret"}, lifetime=2, anonymous=()),
                    pace=0.004) as proxy:
        name = proxy.host + "/tokens/large:1"
        made = layout.image([Spec(50000000, text=0)], name)
        creds = ("--creds", "ann:secret")
        begun = time.monotonic()
        minipull("push", *creds, name)
        assert time.monotonic() - begun > 3
        assert digest_at(registry, "tokens/large") == made.digest
        assert proxy.auth is not None and proxy.auth.issued >= 2
        uploads = {key[0]: size for key, size in proxy.up.items() if "uploads" in key[1]}
        assert uploads["PATCH"] == made.layers[0].descriptor["size"]  # and not once more
        minipull("pull", *creds, name, root="fresh")
    minipull("check", root="fresh")


# -- a bad day -----------------------------------------------------------------------


def test_a_proxy_that_spoils_a_third_of_the_answers_stops_no_push(
        registry: DockerRegistry, tmp_path: Path, home: Path, minipull: Call) -> None:
    """Nor is anything but what was pushed at the registry afterwards."""
    layout = Layout(tmp_path / "root")
    specs = images.specs(18, 300000, seed=400, text=0) + images.specs(2, 2 * MIB, seed=450, text=0)
    made = layout.image(specs, "localhost/r:1")
    seeds = range(5)
    with ThreadPoolExecutor(len(seeds)) as pool:
        results = list(pool.map(lambda seed: faulty_push(registry, tmp_path / "root", home, seed), seeds))
    for seed, (done, seconds, faults) in zip(seeds, results):
        assert done.code == 0 and seconds < 60 and faults >= 5, (seed, seconds, faults, done)
        assert digest_at(registry, "faulty/r%d" % seed) == made.digest
        minipull("pull", "-q", "%s/faulty/r%d:1" % (registry.host, seed), root="fresh-%d" % seed)
        minipull("check", root="fresh-%d" % seed)


def faulty_push(registry: DockerRegistry, root: Path, home: Path, seed: int) -> Tuple[Finished, float, int]:
    """Through a proxy that spoils 30 %: the command, its seconds, faults met."""
    with FaultProxy(registry.host, seed=seed, rate=0.3) as proxy:
        begun = time.monotonic()
        done = run([sys.executable, "-m", "minipull", "--root", root, "push", "localhost/r:1",
                    "%s/faulty/r%d" % (proxy.host, seed)], minipull_env(home), 110, cwd=home, check=False)
        return done, time.monotonic() - begun, len(proxy.faults)


@pytest.mark.parametrize("kind", ["docker-registry", "minipull"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_push_that_was_killed_goes_on_or_says_that_the_registry_forgot(
        kind: str, number: signal.Signals, registry: DockerRegistry, serve: Callable[..., Serve], tmp_path: Path,
        home: Path, minipull: Call) -> None:
    """docker-registry 2.8 takes no Location from before the bytes that an interrupted request brought."""
    size = 16 * MIB
    layout = Layout(tmp_path / "layout")
    layout.image([Spec(size, text=0)], "1")
    peer: Any = registry if kind == "docker-registry" else serve(tmp_path / "served", "--writable")
    name = "%s/killed-%d:1" % (peer.host, number)
    minipull("copy", "oci:%s:1" % layout.root, "store:" + name)
    parts = "data/**/killed-%d/_uploads/*/data" % number if kind == "docker-registry" else "ingest/upload-*"

    def arrived() -> int:
        sizes = [0]
        for path in peer.root.glob(parts):
            with contextlib.suppress(FileNotFoundError):  # a note that is just replaced
                sizes.append(int(path.stat().st_size))
        return max(sizes)

    process = subprocess.Popen(
        [sys.executable, "-m", "minipull", "--root", str(tmp_path / "root"), "push", "--limit-rate", "8M", name],
        env=driver_env(home), cwd=home, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: arrived() > size // 2, "the push", process)
    finally:
        process.send_signal(number)
        _, err = process.communicate()
    assert number == signal.SIGKILL or b"interrupted; the same command goes on at" in err
    done = minipull("-v", "push", name)
    forgot = "%s forgot the interrupted upload; it begins anew" % peer.host in done.err
    [sent] = re.findall("([0-9]+) bytes out", done.err)
    assert forgot == (kind == "docker-registry") and (int(sent) > size) == forgot
    assert digest_at(peer, name.partition("/")[2][:-2]) == layout.resolve("1")["digest"]


# -- deleted again -------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_docker_registry_deletes_a_manifest_with_its_tags_or_nothing(
        enabled: bool, tmp_path: Path, run_minipull: Minipull) -> None:
    layout, made = images.single(tmp_path / "layout", "1")
    server = DockerRegistry(tmp_path / "server", extra_env={"REGISTRY_STORAGE_DELETE_ENABLED": str(enabled).lower()})
    try:
        for tag in ("2", "10", "1"):
            images.push_layout_http(layout, "1", "%s/app:%s" % (server.host, tag))
        place = "docker://%s/app:1" % server.host
        done = run_minipull("delete", place)
        assert done.code == 1 and done.err == (
            "minipull: delete {0}/app:1: {0} deletes no tag alone ({1}); --digest, if it deletes at all, takes the"
            " manifest {2}, and with it 1, 2, 10\n".format(
                server.host, "digest invalid" if enabled else "unsupported", made.digest))
        assert run_minipull("tags", server.host + "/app").out == "1\n2\n10\n"
        done = run_minipull("delete", "--digest", place)
        if enabled:
            assert (done.code, done.out) == (0, "Deleted: %s/app@%s\n" % (server.host, made.digest))
            assert run_minipull("delete", "%s@%s" % (place, made.digest)).code == 3
        else:
            assert done.code == 1 and "deletes no manifests (unsupported)\n" in done.err
        assert run_minipull("tags", server.host + "/app").out == ("" if enabled else "1\n2\n10\n")
    finally:
        server.stop()
