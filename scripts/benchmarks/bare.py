# SPDX-License-Identifier: Apache-2.0
"""The limit of a Python: the system calls, hashes and inflating that a copy, push or pull can't do without.

    bare.py copy|pull HOST REPOSITORY LAYOUT
    bare.py push HOST REPOSITORY LAYOUT

No errors are handled, nothing is checked before it is brought, no progress is told:
six threads over bare sockets, and no module but these.
"""
import hashlib
import json
import os
import queue
import socket
import sys
import threading
import zlib
from typing import Any, Callable, Dict, List

ACCEPT = "application/vnd.oci.image.manifest.v1+json"
BUFFER = 256 << 10


class Connection:
    def __init__(self, host: str) -> None:
        name, _, port = host.rpartition(":")
        self._host, self.socket = host, socket.create_connection((name, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(BUFFER))

    def ask(self, method: str, path: str, *headers: str) -> None:
        lines = ["%s %s HTTP/1.1" % (method, path), "Host: " + self._host, "Accept: " + ACCEPT, *headers]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def receive(self, start: int = 0) -> int:
        count = self.socket.recv_into(self._buffer[start:])
        if not count:
            raise RuntimeError("the answer is cut short, or its head is too long")
        return count

    def answer(self, take: Callable[[memoryview], object]) -> Dict[str, str]:
        """The headers of an answer, whose body ``take`` gets."""
        count, end = 0, -1
        while end < 0:
            count += self.receive(count)
            end = bytes(self._buffer[:count]).find(b"\r\n\r\n")
        head = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        if not head[0].startswith("HTTP/1.1 2"):
            raise RuntimeError(head[0])
        headers = dict(line.lower().split(": ", 1) for line in head[1:])
        headers["location"] = next((line[10:] for line in head if line.lower().startswith("location: ")), "")
        left = int(headers.get("content-length", "0")) - (count - end - 4)
        if count > end + 4:
            take(self._buffer[end + 4:count])
        while left > 0:
            count = self.receive()
            take(self._buffer[:count])
            left -= count
        return headers


def side_by_side(blobs: List[Any], host: str, work: Callable[[Connection, Any], None]) -> None:
    jobs: "queue.Queue[Any]" = queue.Queue()
    for blob in blobs:
        jobs.put(blob)
    failed: List[BaseException] = []

    def run() -> None:
        try:
            connection = Connection(host)
            while True:
                work(connection, jobs.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def store(path: str, pieces: Callable[[Callable[[Any], object]], object], digest: str) -> None:
    """Write and hash pieces, then sync and rename: what makes a blob durable."""
    fd, content = os.open(path + ".part", os.O_CREAT | os.O_WRONLY), hashlib.sha256()

    def take(piece: Any) -> None:
        content.update(piece)
        os.write(fd, piece)
    pieces(take)
    os.fsync(fd)
    os.close(fd)
    if "sha256:" + content.hexdigest() != digest:
        raise RuntimeError("%s is damaged" % digest)
    os.rename(path + ".part", path)


def bring(host: str, repository: str, layout: str, inflate: bool) -> None:
    folder = os.path.join(layout, "blobs", "sha256")
    os.makedirs(folder)
    raw = bytearray()
    connection = Connection(host)
    connection.ask("GET", "/v2/%s/manifests/1" % repository)
    connection.answer(raw.extend)
    manifest = json.loads(raw)
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    store(os.path.join(folder, digest[7:]), lambda take: take(raw), digest)

    def fetch(connection: Connection, blob: Dict[str, str]) -> None:
        content, stream = hashlib.sha256(), zlib.decompressobj(31)

        def pieces(take: Callable[[Any], object]) -> None:
            def both(piece: memoryview) -> None:
                take(piece)
                content.update(stream.decompress(piece))
            connection.ask("GET", "/v2/%s/blobs/%s" % (repository, blob["digest"]))
            connection.answer(both if inflate and blob is not manifest["config"] else take)
        store(os.path.join(folder, blob["digest"][7:]), pieces, blob["digest"])
    side_by_side([manifest["config"], *manifest["layers"]], host, fetch)
    entry = {"mediaType": manifest["mediaType"], "digest": digest, "size": len(raw)}
    with open(os.path.join(layout, "index.json"), "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [entry]}, file)


def push(host: str, repository: str, layout: str) -> None:
    def path_of(blob: Dict[str, str]) -> str:
        return os.path.join(layout, "blobs", "sha256", blob["digest"][7:])

    def send(connection: Connection, blob: Dict[str, Any]) -> None:
        connection.ask("POST", "/v2/%s/blobs/uploads/" % repository, "Content-Length: 0")
        place = connection.answer(len)["location"]
        connection.ask("PUT", "/%s&digest=%s" % (place.split("/", 3)[3], blob["digest"]),
                       "Content-Type: application/octet-stream", "Content-Length: %d" % blob["size"])
        with open(path_of(blob), "rb") as file:
            connection.socket.sendfile(file)
        connection.answer(len)
    with open(os.path.join(layout, "index.json")) as file:
        entry = json.load(file)["manifests"][0]
    with open(path_of(entry), "rb") as body:
        raw = body.read()
    manifest = json.loads(raw)
    side_by_side([manifest["config"], *manifest["layers"]], host, send)
    connection = Connection(host)
    connection.ask("PUT", "/v2/%s/manifests/1" % repository, "Content-Type: " + entry["mediaType"],
                   "Content-Length: %d" % len(raw))
    connection.socket.sendall(raw)
    connection.answer(len)


def main(command: str, host: str, repository: str, layout: str) -> None:
    if command == "push":
        push(host, repository, layout)
    else:
        bring(host, repository, layout, command == "pull")


if __name__ == "__main__":
    main(*sys.argv[1:])
