# SPDX-License-Identifier: Apache-2.0
"""Little more than the system calls, hashes and inflating that a command consists of: a limit to compare with.

    bare.py copy|pull|push HOST REPOSITORY LAYOUT
    bare.py unpack LAYOUT DIRECTORY

Digests and DiffIDs are verified, and files made durable; no request is retried, no
layer is distrusted, no progress is told, and no blob may be listed twice.  Six threads
over bare sockets; for unpack, one inflates, one hashes and one writes.
"""
import contextlib
import hashlib
import json
import os
import queue
import socket
import sys
import threading
import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
BUFFER = 256 << 10
TAG = "1"


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


def thread(work: Callable[[], object]) -> threading.Thread:
    """Start work whose failure ends the process, since others may wait for it."""
    def run() -> None:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    started = threading.Thread(target=run)
    started.start()
    return started


def side_by_side(items: List[Any], host: str, work: Callable[[Connection, Any], object]) -> None:
    left = list(reversed(items))

    def run() -> None:
        connection = Connection(host)
        with contextlib.suppress(IndexError):
            while True:
                item = left.pop()
                work(connection, item)
    for started in [thread(run) for _ in range(min(6, len(items)))]:
        started.join()


def check(digest: str, content: Any) -> None:
    if "sha256:" + content.hexdigest() != digest:
        raise RuntimeError("%s is damaged" % digest)


def write(fd: int, piece: Any) -> None:
    if os.write(fd, piece) != len(piece):
        raise RuntimeError("the disk is full")


def store(path: str, pieces: Callable[[Callable[[Any], object]], object], digest: str = "") -> None:
    """Write pieces, verify their digest if they have one, sync and rename."""
    fd, content = os.open(path + ".part", os.O_CREAT | os.O_WRONLY), hashlib.sha256()

    def take(piece: Any) -> None:
        content.update(piece)
        write(fd, piece)
    pieces(take)
    if digest:
        check(digest, content)
    os.fsync(fd)
    os.close(fd)
    os.rename(path + ".part", path)


def store_json(path: str, document: Any) -> None:
    store(path, lambda take: take(json.dumps(document).encode()))


def sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def path_of(layout: str, blob: Dict[str, Any]) -> str:
    return os.path.join(layout, "blobs", "sha256", blob["digest"][7:])


def read_json(path: str) -> Any:
    with open(path, "rb") as file:
        return json.load(file)


def bring(verified: bool, host: str, repository: str, layout: str) -> None:
    """An image or an index with its images, ``verified`` to DiffIDs or as it is."""
    os.makedirs(os.path.join(layout, "blobs", "sha256"))
    url = "/v2/%s/" % repository
    images: List[Any] = []
    diff_ids: Dict[str, str] = {}

    def document(connection: Connection, name: str) -> Tuple[Dict[str, Any], Any]:
        """Store a manifest or index: its descriptor, and what it says."""
        raw = bytearray()
        connection.ask("GET", url + "manifests/" + name)
        connection.answer(raw.extend)
        content = hashlib.sha256(raw)
        digest = "sha256:" + content.hexdigest()
        if name != TAG:
            check(name, content)
        parsed = json.loads(raw)
        entry = {"mediaType": parsed["mediaType"], "digest": digest, "size": len(raw)}
        store(path_of(layout, entry), lambda take: take(raw), digest)
        if "layers" in parsed:
            images.append(parsed)
        return entry, parsed

    def fetch(connection: Connection, blob: Dict[str, str]) -> None:
        content, stream = hashlib.sha256(), zlib.decompressobj(31)
        layer = verified and blob["mediaType"].endswith("gzip")

        def pieces(take: Callable[[Any], object]) -> None:
            def both(piece: memoryview) -> None:
                take(piece)
                content.update(stream.decompress(piece))
            connection.ask("GET", url + "blobs/" + blob["digest"])
            connection.answer(both if layer else take)
        store(path_of(layout, blob), pieces, blob["digest"])
        if layer:
            whole(stream)
            diff_ids[blob["digest"]] = "sha256:" + content.hexdigest()
    entry, parsed = document(Connection(host), TAG)
    side_by_side([child["digest"] for child in parsed.get("manifests", [])], host, document)
    blobs = {blob["digest"]: blob for image in images for blob in [image["config"], *image["layers"]]}
    side_by_side([*blobs.values()], host, fetch)
    for image in images if verified else ():
        brought = [diff_ids[layer["digest"]] for layer in image["layers"]]
        if read_json(path_of(layout, image["config"]))["rootfs"]["diff_ids"] != brought:
            raise RuntimeError("the DiffIDs of %s are others" % image["config"]["digest"])
    sync(os.path.join(layout, "blobs", "sha256"))
    store_json(os.path.join(layout, "oci-layout"), {"imageLayoutVersion": "1.0.0"})
    store_json(os.path.join(layout, "index.json"), {"schemaVersion": 2, "manifests": [entry]})
    sync(layout)


def whole(stream: Any) -> None:
    if not stream.eof or stream.unused_data:
        raise RuntimeError("a layer is cut short, or more than one gzip stream")


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
    connection.ask("PUT", "/v2/%s/manifests/%s" % (repository, TAG), "Content-Type: " + entry["mediaType"],
                   "Content-Length: %d" % len(raw))
    connection.socket.sendall(raw)
    connection.answer(len)


def unpack(layout: str, folder: str) -> None:
    """Files, directories and links of short names, as the bench's images have them."""
    manifest = read_json(path_of(layout, read_json(os.path.join(layout, "index.json"))["manifests"][0]))
    diff_ids = read_json(path_of(layout, manifest["config"]))["rootfs"]["diff_ids"]
    if len(diff_ids) != len(manifest["layers"]):
        raise RuntimeError("the config has other layers than the manifest")
    # No piece is the end of a layer.
    pieces: "queue.Queue[Optional[bytes]]" = queue.Queue(16)
    hashed: "queue.Queue[Optional[bytes]]" = queue.Queue(16)

    def inflate() -> None:
        for layer in manifest["layers"]:
            stream = zlib.decompressobj(31)
            with open(path_of(layout, layer), "rb") as file:
                for raw in iter(lambda: file.read(BUFFER >> 1), b""):
                    piece = stream.decompress(raw)
                    hashed.put(piece)
                    pieces.put(piece)
            whole(stream)
            hashed.put(None)
            pieces.put(None)

    def verify() -> None:
        for diff_id in diff_ids:
            content = hashlib.sha256()
            for piece in iter(hashed.get, None):
                content.update(piece)
            check(diff_id, content)
    verifying, _ = thread(verify), thread(inflate)
    held = memoryview(b"")

    def take(count: int) -> Iterator[memoryview]:
        nonlocal held
        while count:
            if not held:
                piece = pieces.get()
                if piece is None:
                    raise RuntimeError("a layer is cut short")
                held = memoryview(piece)
                continue
            yield held[:count]
            count, held = count - len(held[:count]), held[count:]
    os.umask(0)
    os.mkdir(folder)
    folders = {}
    for _ in manifest["layers"]:
        while True:
            header = b"".join(take(512))
            if not header[0]:
                while pieces.get() is not None:
                    pass
                held = memoryview(b"")
                break
            path, kind = os.path.join(folder, header[:100].rstrip(b"\0").decode()), header[156:157]
            mode, size, mtime = int(header[100:107], 8), int(header[124:135], 8), int(header[136:147], 8)
            target = header[157:257].rstrip(b"\0").decode()
            if kind == b"5":
                if not os.path.isdir(path):
                    os.mkdir(path, mode)
                folders[path] = mtime
            elif kind == b"2":
                os.symlink(target, path)
                os.utime(path, (mtime, mtime), follow_symlinks=False)
            elif kind == b"1":
                os.link(os.path.join(folder, target), path)
            elif kind == b"0":
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                for piece in take(size):
                    write(fd, piece)
                os.utime(fd, (mtime, mtime))
                os.close(fd)
                for piece in take(-size % 512):
                    pass
            else:
                raise RuntimeError("%s is of type %s" % (path, ascii(kind)))
    for path, mtime in folders.items():
        os.utime(path, (mtime, mtime))
    verifying.join()


def main(command: str, *args: str) -> None:
    if command == "push":
        push(*args)
    elif command == "unpack":
        unpack(*args)
    else:
        bring(command == "pull", *args)


if __name__ == "__main__":
    thread(lambda: main(*sys.argv[1:]))
