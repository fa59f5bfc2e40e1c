# SPDX-License-Identifier: Apache-2.0
"""The limit of a Python: the system calls, hashes and inflating that a command can't do without.

    bare.py copy|pull|push HOST REPOSITORY LAYOUT
    bare.py unpack LAYOUT DIRECTORY

No errors are handled, nothing is checked before it is brought, no progress is told:
six threads over bare sockets (for unpack, one inflates, one hashes and one writes), and no
module but these.
"""
import hashlib
import json
import os
import queue
import socket
import sys
import threading
import zlib
from typing import Any, Callable, Dict, Iterator, List

ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
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


def side_by_side(blobs: List[Any], host: str, work: Callable[[Connection, Any], object]) -> None:
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


def path_of(layout: str, blob: Dict[str, Any]) -> str:
    return os.path.join(layout, "blobs", "sha256", blob["digest"][7:])


def bring(inflate: bool, host: str, repository: str, layout: str) -> None:
    """An image or an index with its images; ``inflate`` hashes the content of layers, too."""
    os.makedirs(os.path.join(layout, "blobs", "sha256"))
    url = "/v2/%s/%%s/%%s" % repository
    documents: List[Any] = []

    def document(connection: Connection, name: str) -> Dict[str, Any]:
        raw = bytearray()
        connection.ask("GET", url % ("manifests", name))
        connection.answer(raw.extend)
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        entry = {"digest": digest, "size": len(raw)}
        store(path_of(layout, entry), lambda take: take(raw), digest)
        documents.append(json.loads(raw))
        return entry

    def fetch(connection: Connection, blob: Dict[str, str]) -> None:
        content, stream = hashlib.sha256(), zlib.decompressobj(31)

        def pieces(take: Callable[[Any], object]) -> None:
            def both(piece: memoryview) -> None:
                take(piece)
                content.update(stream.decompress(piece))
            connection.ask("GET", url % ("blobs", blob["digest"]))
            connection.answer(both if inflate and blob["mediaType"].endswith("gzip") else take)
        store(path_of(layout, blob), pieces, blob["digest"])
    entry = document(Connection(host), "1")
    entry["mediaType"] = documents[0]["mediaType"]
    children = documents[0].get("manifests", [])
    side_by_side([child["digest"] for child in children], host, document)
    images = documents[1:] if children else documents
    blobs = {blob["digest"]: blob for image in images for blob in [image["config"], *image["layers"]]}
    side_by_side([*blobs.values()], host, fetch)
    with open(os.path.join(layout, "index.json"), "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [entry]}, file)


def read_json(path: str) -> Any:
    with open(path, "rb") as file:
        return json.load(file)


def push(host: str, repository: str, layout: str) -> None:
    def send(connection: Connection, blob: Dict[str, Any]) -> None:
        connection.ask("POST", "/v2/%s/blobs/uploads/" % repository, "Content-Length: 0")
        place = connection.answer(len)["location"]
        connection.ask("PUT", "/%s&digest=%s" % (place.split("/", 3)[3], blob["digest"]),
                       "Content-Type: application/octet-stream", "Content-Length: %d" % blob["size"])
        with open(path_of(layout, blob), "rb") as file:
            connection.socket.sendfile(file)
        connection.answer(len)
    entry = read_json(os.path.join(layout, "index.json"))["manifests"][0]
    with open(path_of(layout, entry), "rb") as body:
        raw = body.read()
    manifest = json.loads(raw)
    side_by_side([manifest["config"], *manifest["layers"]], host, send)
    connection = Connection(host)
    connection.ask("PUT", "/v2/%s/manifests/1" % repository, "Content-Type: " + entry["mediaType"],
                   "Content-Length: %d" % len(raw))
    connection.socket.sendall(raw)
    connection.answer(len)


def unpack(layout: str, folder: str) -> None:
    """Files, directories and links of short names, as the bench's images have them."""
    manifest = read_json(path_of(layout, read_json(os.path.join(layout, "index.json"))["manifests"][0]))
    diff_ids = read_json(path_of(layout, manifest["config"]))["rootfs"]["diff_ids"]
    pieces: "queue.Queue[bytes]" = queue.Queue(16)
    hashed: "queue.Queue[bytes]" = queue.Queue(16)

    def inflate() -> None:
        for layer in manifest["layers"]:
            stream = zlib.decompressobj(31)
            with open(path_of(layout, layer), "rb") as file:
                for raw in iter(lambda: file.read(BUFFER >> 1), b""):
                    piece = stream.decompress(raw)
                    for one in (hashed, pieces) if piece else ():
                        one.put(piece)
            hashed.put(b"")
            pieces.put(b"")

    def verify() -> None:
        for diff_id in diff_ids:
            content = hashlib.sha256()
            for piece in iter(hashed.get, b""):
                content.update(piece)
            if "sha256:" + content.hexdigest() != diff_id:
                os._exit(1)
    verifying = threading.Thread(target=verify, daemon=True)
    verifying.start()
    threading.Thread(target=inflate, daemon=True).start()
    held = memoryview(b"")

    def take(count: int) -> Iterator[memoryview]:
        nonlocal held
        while count:
            held = held or memoryview(pieces.get())
            if not held:
                raise RuntimeError("a layer is cut short")
            yield held[:count]
            count, held = count - len(held[:count]), held[count:]
    os.mkdir(folder)
    for _ in manifest["layers"]:
        while True:
            header = b"".join(take(512))
            if not header[0]:
                while pieces.get():
                    pass
                held = memoryview(b"")
                break
            path, kind = os.path.join(folder, header[:100].rstrip(b"\0").decode()), header[156:157]
            size, mtime = int(header[124:135], 8), int(header[136:147], 8)
            target = header[157:257].rstrip(b"\0").decode()
            if kind == b"5":
                if not os.path.isdir(path):
                    os.mkdir(path)
            elif kind == b"2":
                os.symlink(target, path)
            elif kind == b"1":
                os.link(os.path.join(folder, target), path)
            else:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, int(header[100:107], 8))
                for piece in take(size):
                    os.write(fd, piece)
                os.utime(fd, (mtime, mtime))
                os.close(fd)
                for piece in take(-size % 512):
                    pass
    verifying.join()


def main(command: str, *args: str) -> None:
    if command == "push":
        push(*args)
    elif command == "unpack":
        unpack(*args)
    else:
        bring(command == "pull", *args)


if __name__ == "__main__":
    main(*sys.argv[1:])
