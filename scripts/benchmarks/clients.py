# SPDX-License-Identifier: Apache-2.0
"""Clients of a registry: some that only ask, at little cost, and many that push and pull."""
import contextlib
import http.client
import json
import multiprocessing
import random
import selectors
import socket
import threading
import time
from typing import Dict, List, Tuple, Union
from urllib.parse import urlsplit

from tests.kit import images

CROWD = 64  # clients, in four processes


class _Asker:
    """One kept connection that sends the same request again and again."""

    def __init__(self, host: str, request: bytes, body: bytes) -> None:
        name, _, port = host.rpartition(":")
        self.socket = socket.create_connection((name, int(port)), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request, self._body, self._answer = request, body, b""

    def send(self) -> None:
        self._answer = b""
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Whether the answer is whole; raises unless it is the manifest."""
        piece = self.socket.recv(1 << 16)
        self._answer += piece
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not piece or not self._answer.startswith(b"HTTP/1.1 200"[:len(self._answer)]):
            raise RuntimeError("no manifest: %r" % self._answer[:200])
        if not end or len(body) < len(self._body):
            return False
        if body != self._body:
            raise RuntimeError("another manifest: %r" % body[:200])
        return True


def ask_again(host: str, method: str, path: str, body: bytes, requests: int, connections: int) -> float:
    """Seconds of so many requests over kept connections, each sent when the answer before has come whole.

    One loop over bare sockets, so that the server is measured and not its client.
    """
    request = ("%s %s HTTP/1.1\r\nHost: %s\r\nAccept: %s\r\n\r\n"
               % (method, path, host, images.OCI_MANIFEST)).encode()
    left = requests
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        askers = [_Asker(host, request, body) for _ in range(connections)]
        for asker in askers:
            stack.enter_context(asker.socket)
            selector.register(asker.socket, selectors.EVENT_READ, asker)
        start = time.monotonic()
        for asker in askers:
            asker.send()
        sent = len(askers)
        while left:
            ready = selector.select(60)
            if not ready:
                raise RuntimeError("%s does not answer" % host)
            for key, _ in ready:
                if key.data.receive():
                    left -= 1
                    if sent < requests:
                        sent += 1
                        key.data.send()
        return time.monotonic() - start


def ask(connection: http.client.HTTPConnection, method: str, url: str, expected: int,
        body: bytes = b"", kind: str = "application/octet-stream"
        ) -> Tuple[http.client.HTTPResponse, bytes]:
    connection.request(method, url, body, {"Content-Type": kind, "Accept": images.OCI_MANIFEST})
    response = connection.getresponse()
    data = response.read()
    if response.status != expected:
        raise RuntimeError("%s %s: %d %r" % (method, url, response.status, data[:200]))
    return response, data


def session(connection: http.client.HTTPConnection, repository: str) -> Tuple[str, str]:
    """Path and query of a new upload."""
    response, _ = ask(connection, "POST", "/v2/%s/blobs/uploads/" % repository, 202)
    place = urlsplit(response.headers["Location"])
    return place.path, place.query + "&" if place.query else ""


class _Client:
    """One that pushes small images and pulls them."""

    def __init__(self, connection: http.client.HTTPConnection, number: int) -> None:
        self._connection, self._rng, self._repository = connection, random.Random(number), "load/c%d" % number
        self._tags: List[Tuple[str, str]] = []  # with digests

    def act(self) -> int:
        """Push or pull an image; the number of requests."""
        if len(self._tags) < 2 or self._rng.random() < 0.3:
            return self._push()
        return self._pull()

    def _push(self) -> int:
        blobs = [self._rng.randbytes(size) for size in (300, 20000, 60000)]
        for blob in blobs:
            path, query = session(self._connection, self._repository)
            ask(self._connection, "PUT", "%s?%sdigest=%s" % (path, query, images.digest_of(blob)), 201, blob)
        config, *layers = [{"mediaType": kind, "digest": images.digest_of(blob), "size": len(blob)}
                           for kind, blob in zip([images.OCI_CONFIG] + 2 * [images.OCI_LAYER], blobs)]
        raw = images.to_json({"schemaVersion": 2, "mediaType": images.OCI_MANIFEST,
                              "config": config, "layers": layers})
        tag = "t%d" % len(self._tags)
        ask(self._connection, "PUT", "/v2/%s/manifests/%s" % (self._repository, tag), 201, raw,
            images.OCI_MANIFEST)
        self._tags.append((tag, images.digest_of(raw)))
        return 7

    def _pull(self) -> int:
        tag, digest = self._rng.choice(self._tags)
        _, raw = ask(self._connection, "GET", "/v2/%s/manifests/%s" % (self._repository, tag), 200)
        document = json.loads(raw)
        for item in [document["config"], *document["layers"]]:
            _, data = ask(self._connection, "GET", "/v2/%s/blobs/%s" % (self._repository, item["digest"]), 200)
            if images.digest_of(data) != item["digest"] or images.digest_of(raw) != digest:
                raise RuntimeError("%s: other bytes than were pushed" % item["digest"])
        return 4


def _quarter(host: str, first: int, until: float, results: "multiprocessing.Queue[Union[int, str]]") -> None:
    """A quarter of the crowd, in a process of its own; the result is a count or an error."""
    counts: Dict[int, int] = {}
    errors: List[str] = []

    def run(number: int) -> None:
        try:
            with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as connection:
                client = _Client(connection, number)
                while time.monotonic() < until:
                    counts[number] = counts.get(number, 0) + client.act()
        except Exception as error:
            errors.append(repr(error))
    threads = [threading.Thread(target=run, args=(first + n,)) for n in range(CROWD // 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(errors[0] if errors else sum(counts.values()))


def crowd(host: str, seconds: float) -> float:
    """Seconds of 1,000 requests, while all of the crowd push and pull for so long."""
    context = multiprocessing.get_context("fork")
    results: "multiprocessing.Queue[Union[int, str]]" = context.Queue()
    start = time.monotonic()
    processes = [context.Process(target=_quarter, args=(host, n * CROWD // 4, start + seconds, results))
                 for n in range(4)]
    for process in processes:
        process.start()
    counts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    taken = time.monotonic() - start
    for count in counts:
        if isinstance(count, str):
            raise RuntimeError(count)
    return taken * 1000 / sum(int(count) for count in counts)
