# SPDX-License-Identifier: Apache-2.0
"""Rows of serve beside docker-registry: the same requests to each in turn.

The time is a client's; processor time and peak memory are the server's.
"""
import contextlib
import hashlib
import http.client
import os
import random
import shutil
import time
from pathlib import Path
from typing import Callable, Iterator, Tuple
from urllib.parse import urlsplit

from tests.kit import images

from . import clients
from .bench import Bench
from .contest import Contestants, Prepare, Prepared
from .processes import Measured, answers, cpu_seconds, free_port, peak_memory, started


@contextlib.contextmanager
def _servers(bench: Bench, run: Callable[[str], float], root: Path) -> Iterator[Contestants]:
    """minipull over an empty store and the registry; ``run`` is given a host, and tells seconds."""
    host = "127.0.0.1:%d" % free_port()
    serve = bench.minipull("serve", "--writable", "--listen", host, root=root)
    with started(serve, bench.env, bench.work / "serve.log", lambda: answers(host)) as pid:
        def contend(host: str, pid: int) -> Measured:
            os.sync()
            before = cpu_seconds(pid)
            seconds = run(host)
            return Measured(seconds, cpu_seconds(pid) - before, peak_memory(pid))
        yield {"minipull": lambda: contend(host, pid), "docker-registry": lambda: contend(*bench.registry())}
    shutil.rmtree(root)


def _noise(bench: Bench, size: int) -> Tuple[Path, str]:
    """A file of noise and its digest."""
    path, content = bench.work / "noise", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // 10 ** 6):
            piece = random.randbytes(10 ** 6)
            content.update(piece)
            file.write(piece)
    return path, "sha256:" + content.hexdigest()


@contextlib.contextmanager
def blob(bench: Bench) -> Prepared:
    """One large blob, linked into both stores."""
    size, root = bench.sizes.blob, bench.work / "served"
    path, digest = _noise(bench, size)
    encoded = digest.split(":")[1]
    bench.registry()
    top = bench.work / "registry" / "docker" / "registry" / "v2"
    link = top / "repositories" / "bench" / "blob" / "_layers" / "sha256" / encoded / "link"

    def run(host: str) -> float:
        cost = bench.measure(["curl", "-sf", "-o", "/dev/null", "-w", "%{size_download}",
                              "http://%s/v2/bench/blob/blobs/%s" % (host, digest)])
        if bench.log.read_text() != str(size):
            raise RuntimeError("curl: %s of %d bytes" % (bench.log.read_text(), size))
        return cost.seconds
    with _servers(bench, run, root) as contestants:
        for place in (root / "blobs" / "sha256" / encoded,
                      top / "blobs" / "sha256" / encoded[:2] / encoded / "data"):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
        path.unlink()
        link.parent.mkdir(parents=True)
        link.write_text(digest)
        yield "%.1f GB to curl" % (size / 1e9), contestants
        place.unlink()


@contextlib.contextmanager
def patch(bench: Bench) -> Prepared:
    """A blob pushed by one PATCH: other bytes each time, so that none of it is there."""
    def run(host: str) -> float:
        path, digest = _noise(bench, bench.sizes.patch)
        with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            place, query = clients.session(connection, "bench/blob")
            sent = bench.measure([
                "curl", "-sf", "-X", "PATCH", "-T", str(path), "-H", "Expect:", "-D", "-", "-o", "/dev/null",
                "-H", "Content-Type: application/octet-stream", "http://%s%s?%s" % (host, place, query)])
            lines = bench.log.read_text().splitlines()
            query = next(urlsplit(line[10:]).query for line in lines if line.lower().startswith("location: "))
            words = ([query] if query else []) + ["digest=" + digest]
            start = time.monotonic()
            clients.ask(connection, "PUT", place + "?" + "&".join(words), 201)
            return sent.seconds + time.monotonic() - start
    with _servers(bench, run, bench.work / "served") as contestants:
        yield "%.0f MB" % (bench.sizes.patch / 1e6), contestants


@contextlib.contextmanager
def pushes(bench: Bench) -> Prepared:
    """80 tiny layers by skopeo, others each time."""
    number = 0

    def run(host: str) -> float:
        nonlocal number
        number += 1
        layout = images.Layout(bench.work / "pushed")
        layout.image(images.specs(80, seed=5000 + 100 * number), "tiny")
        cost = bench.measure(bench.skopeo("--dest-tls-verify=false", "oci:%s:tiny" % layout.root,
                                          "docker://%s/bench/pushed:%d" % (host, number)))
        shutil.rmtree(layout.root)
        return cost.seconds
    with _servers(bench, run, bench.work / "served") as contestants:
        yield "80 layers", contestants


def manifests(method: str, connections: int) -> Prepare:
    @contextlib.contextmanager
    def prepare(bench: Bench) -> Prepared:
        layout = images.Layout(bench.work / "asked-for")
        image = layout.image(images.specs(3), "small")
        body = image.raw if method == "GET" else b""

        def run(host: str) -> float:
            images.push_layout_http(layout, "small", host + "/bench/asked-for:1")
            return clients.ask_again(host, method, "/v2/bench/asked-for/manifests/1", body,
                                     bench.sizes.requests, connections)
        with _servers(bench, run, bench.work / "served") as contestants:
            yield "%d requests, %d connections" % (bench.sizes.requests, connections), contestants
        shutil.rmtree(layout.root)
    return prepare


@contextlib.contextmanager
def crowd(bench: Bench) -> Prepared:
    with _servers(bench, lambda host: clients.crowd(host, bench.sizes.crowd_seconds),
                  bench.work / "served") as contestants:
        yield "%d clients for %g s" % (clients.CROWD, bench.sizes.crowd_seconds), contestants
