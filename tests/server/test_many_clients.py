# SPDX-License-Identifier: Apache-2.0
"""Many clients at once: nothing fails, nothing is damaged, and memory stays small.

What is asserted never depends on how fast the machine is; speed is for scripts/bench.
"""
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Callable, Dict, Iterable, Tuple, Union

from tests.kit import images
from tests.kit.processes import Minipull, Serve

CLIENTS = 64
MEMORY = 64 * 10 ** 6  # bytes
HUGE = (2 << 30) + 4096  # bytes; more than a signed 32 bit number holds


def peak(pid: int) -> int:
    """The most memory that a process had so far, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/%d/status" % pid).read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


class Client:
    """A connection kept for many requests; an unexpected answer raises."""

    def __init__(self, server: Serve, repository: str) -> None:
        self._base = "/v2/%s/" % repository
        self.connection = http.client.HTTPConnection(server.host, timeout=60)

    def close(self) -> None:
        self.connection.close()

    def ask(self, method: str, url: str, expected: int, body: Union[bytes, Iterable[bytes]] = b"",
            **headers: str) -> Tuple[http.client.HTTPResponse, bytes]:
        self.connection.request(method, url, body, headers)
        response = self.connection.getresponse()
        data = response.read()
        assert response.status == expected, (method, url, response.status, data[:300])
        return response, data

    def blob(self, digest: str) -> bytes:
        _, data = self.ask("GET", self._base + "blobs/" + digest, 200)
        assert images.digest_of(data) == digest
        return data

    def pull(self, tag: str, digest: str) -> None:
        response, raw = self.ask("GET", self._base + "manifests/" + tag, 200)
        assert images.digest_of(raw) == response.getheader("Docker-Content-Digest") == digest
        document = json.loads(raw)
        for blob in [document["config"], *document["layers"]]:
            assert len(self.blob(blob["digest"])) == blob["size"]

    def stream(self, data: bytes) -> None:
        """Send a blob in chunks, by two requests, and read it again."""
        digest, half = images.digest_of(data), len(data) // 2
        url = self._place(self.ask("POST", self._base + "blobs/uploads/", 202)[0])
        for part in (data[:half], data[half:]):
            pieces = iter([part[:1000], part[1000:]])
            url = self._place(self.ask("PATCH", url, 202, pieces)[0])
        self.ask("PUT", "%s?digest=%s" % (url, digest), 201)
        assert self.blob(digest) == data

    @staticmethod
    def _place(response: http.client.HTTPResponse) -> str:
        return response.headers["Location"]


def all_at_once(work: Callable[[int], None]) -> None:
    """Run ``work`` for every client at the same time; raises what the first of them raised."""
    start = threading.Barrier(CLIENTS, timeout=60)

    def begin(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(begin, number) for number in range(CLIENTS)]:
            done.result()


def test_many_clients_push_and_pull_without_an_error_in_little_memory(
        tmp_path: Path, serve: Callable[..., Serve], run_minipull: Minipull) -> None:
    server = serve(tmp_path / "store", "--writable")
    layout = images.Layout(tmp_path / "layout")
    shared = images.Spec(size=50000, seed=1)
    made: Dict[str, images.Image] = {
        name: layout.image([shared, images.Spec(size=20000, seed=n + 10)], name)
        for n, name in enumerate(["base", *("c%d" % n for n in range(CLIENTS))])}
    images.push_layout_http(layout, "base", server.host + "/load/base:1")

    def work(number: int) -> None:
        name = "c%d" % number
        for turn in range(2):
            if (number + turn) % 2:  # half of them push while the others pull
                images.push_layout_http(layout, name, "%s/load/%s:%d" % (server.host, name, turn))
            else:
                with closing(Client(server, "load/base")) as client:
                    client.pull("1", made["base"].digest)
        with closing(Client(server, "load/" + name)) as client:
            client.stream(bytes([number]) * 100_000)
            client.pull("0" if number % 2 else "1", made[name].digest)

    all_at_once(work)
    assert peak(server.process.pid) <= MEMORY
    assert server.log.read_text() == ""

    for name, image in made.items():  # no name was lost between two writers
        with closing(Client(server, "load/" + name)) as client:
            tag = "1" if name == "base" or int(name[1:]) % 2 == 0 else "0"
            assert images.digest_of(client.ask("GET", "/v2/load/%s/manifests/%s" % (name, tag), 200)[1]) \
                == image.digest
    server.stop()
    assert not list((server.root / "ingest").glob("*"))
    checked = run_minipull("--root", server.root, "check")
    assert checked.code == 0, checked


def test_a_huge_blob_is_never_held_in_memory(tmp_path: Path, serve: Callable[..., Serve]) -> None:
    server = serve(tmp_path / "store", "--writable")
    digest = "sha256:" + 64 * "a"  # what leaves is not hashed
    folder = server.root / "blobs" / "sha256"
    folder.mkdir(parents=True)
    with (folder / digest.split(":")[1]).open("wb") as file:
        file.seek(HUGE - 4)
        file.write(b"end\n")  # the rest is a hole
    url = "/v2/load/huge/blobs/" + digest
    slow = [Client(server, "load/huge").connection for _ in range(4)]
    try:
        answers = []
        for connection in slow:  # four are given all of it, and are not done while the others work
            connection.request("GET", url)
            answers.append(connection.getresponse())
            assert answers[-1].getheader("Content-Length") == str(HUGE)

        def work(number: int) -> None:
            with closing(Client(server, "load/c%d" % number)) as client:
                client.stream(bytes([number]) * 500_000)
                response, data = client.ask("GET", url, 206, Range="bytes=%d-" % (HUGE - 10))
                assert data == b"\0" * 6 + b"end\n"
                assert response.getheader("Content-Range") == "bytes %d-%d/%d" % (HUGE - 10, HUGE - 1, HUGE)

        all_at_once(work)
        for answer in answers:
            for _ in range(64):
                assert len(answer.read(1 << 20)) == 1 << 20
    finally:
        for connection in slow:
            connection.close()
    assert peak(server.process.pid) <= MEMORY
    assert server.log.read_text() == ""
