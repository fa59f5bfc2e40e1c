# SPDX-License-Identifier: Apache-2.0
"""Nothing that can happen to a pull leaves a wrong byte, a lost name or work done twice.

Processes are killed, disks are full, proxies spoil the answers; afterwards the
store is sound and the next pull goes on from there.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple

import pytest

from tests.kit import images
import minipull
from tests.kit.processes import DockerRegistry, Minipull, minipull_env, missing, peer, run, wait_until
from tests.kit.certificates import Certificates
from tests.kit.proxies import FaultProxy

MIB = 1 << 20


class Published(NamedTuple):
    """An image in the registry."""

    path: str  # with the slash before, so that it follows a host
    layout: images.Layout
    image: images.Image

    @property
    def size(self) -> int:
        return sum(int(blob["size"]) for blob in self.blobs)

    @property
    def blobs(self) -> List[images.Descriptor]:
        layers = [layer.descriptor for layer in self.image.layers]
        return [self.image.descriptor, self.image.config, *layers]


def publish(registry: DockerRegistry, root: Path, path: str, specs: Sequence[images.Spec]) -> Published:
    layout = images.Layout(root)
    image = layout.image(specs, "it")
    images.push_layout_http(layout, "it", registry.host + path)
    return Published(path, layout, image)


def served(*proxies: FaultProxy) -> int:
    """Bytes of all bodies that were sent down."""
    count = 0
    for proxy in proxies:
        with proxy.lock:
            count += sum(proxy.down.values())
    return count


def held(root: Path) -> int:
    """Bytes of blobs and of partials."""
    paths = [*root.glob("blobs/sha256/*"), *root.glob("ingest/sha256-*")]
    return sum(path.stat().st_size for path in paths if path.suffix != ".json")


def start(home: Path, *args: object) -> "subprocess.Popen[bytes]":
    """A pull in the background, its output in files: nobody reads it meanwhile."""
    with (home / "out").open("ab") as out, (home / "err").open("ab") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "minipull", *map(str, args)], env=minipull_env(home), cwd=home,
            stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def assert_sound(run_minipull: Minipull, root: Path) -> None:
    """What is stored is what its names say, and no final name is a lie."""
    checked = run_minipull("--root", root, "check", "--format", "json")
    assert json.loads(checked.out)["problems"] == [], checked


def assert_whole(run_minipull: Minipull, root: Path, published: Published) -> None:
    assert_sound(run_minipull, root)
    for blob in published.blobs:
        path = root.joinpath("blobs", *blob["digest"].split(":"))
        assert path.read_bytes() == published.layout.read(blob["digest"])
    assert [path for path in (root / "ingest").iterdir()] == []


# -- side by side --------------------------------------------------------------


def test_eight_processes_download_each_blob_once_and_lose_no_name(
        registry: DockerRegistry, tmp_path: Path, home: Path, run_minipull: Minipull) -> None:
    layout = images.Layout(tmp_path / "layout")
    shared = images.specs(3, 2 * MIB, seed=300)
    expected: Dict[str, str] = {}
    for number in range(8):
        # Every image shares layers with all others, and two are the same one.
        own = images.specs(1, 500000, seed=310 + number % 7)
        layers = shared + own if number % 2 else shared[:2] + own + shared[2:]
        image = layout.image(layers, "it")
        path = "/resilience/eight-%d:%d" % (number % 3, number)
        images.push_layout_http(layout, "it", registry.host + path)
        expected[path] = image.digest
    root = tmp_path / "root"
    with FaultProxy(registry.host, pace=0.002) as proxy:
        started = [start(home, "--root", root, "pull", proxy.host + path) for path in expected]
        try:
            assert [process.wait(120) for process in started] == [0] * 8, (home / "err").read_text()
        finally:
            for process in started:
                process.kill()
                process.wait()
        asked = [request.path.rpartition("/")[2] for request in proxy.seen("GET", "/blobs/")]
        stored = {"sha256:" + path.name for path in (root / "blobs" / "sha256").iterdir()}
        assert sorted(asked) == sorted(stored - set(expected.values()))
        rows = json.loads(run_minipull("--root", root, "images", "--format", "json").out)
        assert {row["name"]: row["digest"] for row in rows} == {
            proxy.host + path: digest for path, digest in expected.items()}
    assert_sound(run_minipull, root)


# -- killed and resumed --------------------------------------------------------


#: What one kill may cost: bytes under way, on each of six connections.
LOST = 4 * MIB
KILLS = 10


def kill_and_finish(registry: DockerRegistry, published: Published, root: Path, home: Path,
                    redirected: bool, pace: float) -> int:
    """Pull with ten kill -9 on the way; returns how many bytes were served."""
    with FaultProxy(registry.host, host="127.0.0.2", pace=pace) as store, \
            FaultProxy(registry.host, pace=pace, blobs=store if redirected else None) as proxy:
        kills = 0
        for number in range(1, KILLS + 1):
            before = served(store, proxy)
            process = start(home, "--root", root, "pull", "-q", proxy.host + published.path)
            try:
                wait_until(lambda: process.poll() is not None
                           or served(store, proxy) - before > published.size // (KILLS + 2),
                           "minipull pull", None, 60)
            finally:
                process.kill()
                kills += process.wait() == -signal.SIGKILL
        assert kills == KILLS
        process = start(home, "--root", root, "pull", "-q", proxy.host + published.path)
        try:
            assert process.wait(120) == 0, (home / "err").read_text()
        finally:
            process.kill()
            process.wait()
        if redirected:
            assert store.seen("GET", "/blobs/") and served(proxy) < MIB
        return served(store, proxy)


@pytest.fixture(scope="module")
def large(registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """64 MB that no compression makes smaller, in four layers."""
    specs = [images.Spec(size * 1000000, seed=320 + size, text=0, compression=kind)
             for size, kind in ((40, ""), (12, "gzip"), (8, ""), (4, ""))]
    return publish(registry, tmp_path_factory.mktemp("large"), "/resilience/large:1", specs)


@pytest.mark.parametrize("redirected", [False, True], ids=["direct", "redirected"])
def test_after_each_kill_9_a_pull_goes_on_where_it_was(
        redirected: bool, registry: DockerRegistry, large: Published, tmp_path: Path, home: Path,
        run_minipull: Minipull) -> None:
    root = tmp_path / "root"
    bytes_served = kill_and_finish(registry, large, root, home, redirected, pace=0.002)
    assert bytes_served <= 1.1 * large.size + LOST * KILLS
    assert_whole(run_minipull, root, large)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_pull_with_its_code_and_a_sound_store(
        number: signal.Signals, registry: DockerRegistry, large: Published, tmp_path: Path, home: Path,
        run_minipull: Minipull) -> None:
    root = tmp_path / "root"
    with FaultProxy(registry.host, pace=0.005) as proxy:
        process = start(home, "--root", root, "pull", proxy.host + large.path)
        try:
            wait_until(lambda: served(proxy) > 2 * MIB, "minipull pull", process)
            process.send_signal(number)
            sent = time.monotonic()
            assert process.wait(20) == 128 + number
            assert time.monotonic() - sent < 4
        finally:
            process.kill()
            process.wait()
        assert (home / "out").read_text() == "" and "Traceback" not in (home / "err").read_text()
        assert run_minipull("--root", root, "images", "--format", "json").out.strip() == "[]"
        assert_sound(run_minipull, root)
        assert list((root / "ingest").iterdir()) != []
        proxy.pace = 0
        done = run_minipull("--root", root, "pull", "-q", proxy.host + large.path)
        assert done.code == 0, done
        assert served(proxy) <= 1.1 * large.size + LOST
    assert_whole(run_minipull, root, large)


# -- cancelled -----------------------------------------------------------------


class Trigger(FaultProxy):
    """Cancels a pull when so many bytes were sent, while its reader is reading."""

    left = 0
    cancel = minipull.Cancel()

    def _count(self, counter: Dict[Tuple[str, str], int], key: Tuple[str, str], size: int) -> None:
        super()._count(counter, key, size)
        if counter is self.down and "/blobs/" in key[1]:
            with self.lock:
                self.left -= size
                due = self.left <= 0
            if due:
                self.cancel.cancel()


def transfers_are_over() -> bool:
    """A pull that was given up does not wait for its transfers: a sync may take long."""
    return not [thread for thread in threading.enumerate() if thread.name.startswith("transfer")]


def test_200_cancels_over_tls_leave_no_wrong_byte_in_any_partial(
        registry: DockerRegistry, certificates: Certificates, tmp_path: Path,
        run_minipull: Minipull, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were the system's, of which there are many: they take longer to load than to pull.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    specs = [images.Spec(size, seed=340 + n, text=0) for n, size in enumerate((3 * MIB, 2 * MIB, MIB))]
    published = publish(registry, tmp_path / "layout", "/resilience/cancelled:1", specs)
    truth = {blob["digest"].replace(":", "-"): published.layout.read(blob["digest"])
             for blob in published.blobs}
    rng = random.Random(34)
    service = minipull.RegistryService()
    root, cancels, seen = tmp_path / "root", 0, 0
    with Trigger(registry.host, tls=certificates.context()) as proxy:
        while cancels < 200:
            proxy.cancel = minipull.Cancel()
            proxy.left = rng.choice((1, rng.randrange(200000), rng.randrange(900000)))
            store = minipull.Store(str(root))
            try:
                minipull.pull(proxy.host + published.path, store, service=service, cancel=proxy.cancel)
            except minipull.Cancelled:
                cancels += 1
            else:  # all of it was there before the switch
                shutil.rmtree(root)
                continue
            wait_until(transfers_are_over, "cancelled transfers")
            for partial in (root / "ingest").glob("sha256-*"):
                if partial.suffix != ".json":
                    held = partial.read_bytes()
                    seen += bool(held)
                    assert truth[partial.name].startswith(held), (cancels, partial)
            for blob in (root / "blobs" / "sha256").glob("*"):  # not there if it ended early
                assert blob.read_bytes() == truth["sha256-" + blob.name]
            assert not (root / "index.json").exists()
        assert seen > 100
        proxy.left = 1 << 40
        minipull.pull(proxy.host + published.path, minipull.Store(str(root)), service=service)
    assert_whole(run_minipull, root, published)


# -- a bad day -----------------------------------------------------------------


def faulty_pull(registry: DockerRegistry, published: Published, root: Path, home: Path,
                seed: int) -> Tuple[int, float, int, str]:
    """Through a proxy that spoils 30 %: exit code, seconds, faults met, stderr."""
    with FaultProxy(registry.host, seed=seed, rate=0.3) as proxy:
        begun = time.monotonic()
        done = run([sys.executable, "-m", "minipull", "--root", root, "pull", proxy.host + published.path],
                   minipull_env(home), 110, cwd=home, check=False)
        return done.code, time.monotonic() - begun, len(proxy.faults), done.err


def twenty_layers(registry: DockerRegistry, root: Path) -> Published:
    return publish(registry, root, "/resilience/twenty:1", images.specs(20, 300000, seed=360, text=0))


def test_a_proxy_that_spoils_a_third_of_the_answers_stops_no_pull(
        registry: DockerRegistry, tmp_path: Path, home: Path, run_minipull: Minipull) -> None:
    published = twenty_layers(registry, tmp_path / "layout")
    seeds = range(4)
    with ThreadPoolExecutor(len(seeds)) as pool:
        results = list(pool.map(lambda seed: faulty_pull(
            registry, published, tmp_path / ("root-%d" % seed), home, seed), seeds))
    for seed, (code, seconds, faults, err) in zip(seeds, results):
        assert code == 0 and seconds < 60 and faults >= 3, (seed, code, seconds, faults, err)
        assert_whole(run_minipull, tmp_path / ("root-%d" % seed), published)


# -- durable -------------------------------------------------------------------


def system_calls(trace: str) -> Iterator[Tuple[str, str]]:
    """Name and arguments of every call that succeeded, in order of completion."""
    halves: Dict[str, str] = {}
    for line in trace.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", rest)
        if rest.endswith("<unfinished ...>"):
            halves[pid] = rest[:-len("<unfinished ...>")]
            continue
        if resumed:
            rest = halves.pop(pid) + resumed.group(1)
        call = re.fullmatch(r"(\w+)\((.*)\)\s+= \d+.*", rest)
        if call:
            yield call.group(1), call.group(2)


def test_every_blob_is_synced_before_it_has_its_name_and_all_before_the_index(
        registry: DockerRegistry, tmp_path: Path, home: Path) -> None:
    published = publish(registry, tmp_path / "layout", "/resilience/durable:1",
                        images.specs(4, 100000, seed=380))
    root, trace = tmp_path / "root", tmp_path / "trace"
    done = run([peer("strace"), "-f", "-y", "-s", "4096", "-o", trace, "-e",
                "trace=fsync,fdatasync,rename,renameat,renameat2,pwrite64,write,ftruncate",
                sys.executable, "-m", "minipull", "--root", root, "pull", "-q",
                registry.host + published.path], minipull_env(home), check=False)
    if "ptrace" in done.err and done.code != 0:
        missing("strace may not trace here")
    assert done.code == 0, done
    synced: Set[str] = set()  # files whose every byte so far is on the disk, and directories
    named: List[str] = []
    for call, arguments in system_calls(trace.read_text(errors="replace")):
        path = re.search(r"^\d+<(.*?)>", arguments)
        if call in ("fsync", "fdatasync") and path:
            synced.add(path.group(1))
        elif call in ("write", "pwrite64", "ftruncate") and path:
            synced.discard(path.group(1))
        elif call.startswith("rename"):
            old, new = re.findall(r'"([^"]*)"', arguments)
            if new.startswith(str(root / "blobs")):
                assert old in synced, "%s was renamed before it was synced" % old
                named.append("sha256:" + os.path.basename(new))
            elif new == str(root / "index.json"):
                assert old in synced
                assert set(named) == {blob["digest"] for blob in published.blobs}
                assert str(root / "blobs" / "sha256") in synced
                named.append("index.json")
            if new.startswith(str(root / "blobs")):
                synced.discard(os.path.dirname(new))
    assert named[-1] == "index.json" and str(root) in synced
    assert len(named) == len(published.blobs) + 1


# -- a full disk ---------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    if os.geteuid() != 0:
        missing("a file system of its own needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=False)
    if mounted.code != 0:
        missing("mount: " + mounted.err.strip())
    try:
        yield folder
    finally:
        run(["umount", folder])


def test_a_full_disk_is_one_line_and_exit_7_and_space_is_all_that_it_needs(
        small_disk: Path, registry: DockerRegistry, tmp_path: Path, run_minipull: Minipull) -> None:
    published = publish(registry, tmp_path / "layout", "/resilience/full:1",
                        images.specs(3, 3 * MIB, seed=390, text=0))
    (small_disk / "ballast").write_bytes(bytes(7 * MIB))
    root = small_disk / "root"
    with FaultProxy(registry.host) as proxy:
        name = proxy.host + published.path
        done = run_minipull("--root", root, "pull", "-q", name)
        assert (done.code, done.out) == (7, ""), done
        assert re.fullmatch(r"minipull: pull %s: .*No space left on device.*\n" % re.escape(name), done.err)
        assert not (root / "index.json").exists()
        (small_disk / "ballast").unlink()
        assert_sound(run_minipull, root)
        kept, before = held(root), served(proxy)
        assert kept > MIB
        done = run_minipull("--root", root, "pull", "-q", name)
        assert done.code == 0, done
        assert served(proxy) - before <= published.size - kept + 10000
    assert_whole(run_minipull, root, published)
