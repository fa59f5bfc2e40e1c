# SPDX-License-Identifier: Apache-2.0
"""A listener in this process, with an application that a test steers, and raw clients."""
import contextlib
import select
import socket
import threading
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from minipull.cancel import Cancel
from minipull.errors import Error, StorageError
from minipull.server import http as httpd, message
from minipull.server.message import Refusal, Request, Response, json_response

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: r\r\n\r\n"
LARGE = 4 << 20  # bytes; more than fits into both ends' buffers


class Application(message.Application):
    """An application whose answer is chosen by the path, and that remembers the requests."""

    def __init__(self, root: Path) -> None:
        self.asked: List[str] = []
        self.inside: List[str] = []  # requests under way
        self.most = 0  # of them at a time
        self.files: List[BinaryIO] = []
        self.received = bytearray()  # by /keep
        self.ended: List[str] = []  # how bodies of /keep ended
        self.go_on = threading.Event()
        self.paused: Callable[[], object] = lambda: None  # after each piece of /keep
        self.content = root / "content"
        self.content.write_bytes(bytes(range(256)) * 64)

    def __call__(self, request: Request) -> Response:
        self.asked.append("%s %s" % (request.method, request.path))
        self.inside.append(request.path)
        self.most = max(self.most, len(self.inside))
        try:
            handler = getattr(self, "_" + request.path.strip("/").partition("/")[0], None)
            answer = handler(request) if handler else Response(200, [("X-Path", "none")], b"hello")
            assert isinstance(answer, Response)
            return answer
        finally:
            self.inside.remove(request.path)

    def at_once(self, request: Request) -> Optional[Response]:
        """Answer /quick with as many bytes as its query asks for, and fail at /slip."""
        if request.path == "/slip":
            raise KeyError("slip")
        if request.path != "/quick" or not request.body.finished:
            return None
        return Response(200, (), bytes(int(request.parameter("size") or 5)))

    def _echo(self, request: Request) -> Response:
        return Response(200, (), request.body.read(1 << 20))

    def _refuse(self, request: Request) -> Response:
        raise Refusal(404, "NAME_UNKNOWN", "no")

    def _wait(self, request: Request) -> Response:
        assert self.go_on.wait(30)
        return Response(200, (), b"waited")

    def _keep(self, request: Request) -> Response:
        try:
            for piece in request.body:
                self.received += piece
                self.paused()
        except Error as exc:  # as the registry does with all of ours
            raise Refusal(500, "UNKNOWN", str(exc)) from exc
        except BaseException as exc:
            self.ended.append(type(exc).__name__)
            raise
        self.ended.append("")
        return Response(201)

    def _status(self, request: Request) -> Response:
        return json_response(int(request.parameter("is")), {"text": "html <b>"})

    def _nothing(self, request: Request) -> Response:
        return Response(int(request.parameter("is")), [("ETag", '"x"')])

    def _file(self, request: Request) -> Response:
        path = Path(request.parameter("path") or self.content)
        file = path.open("rb")
        self.files.append(file)
        first, count = (int(request.parameter(name)) for name in ("offset", "length"))
        return Response(206, (), b"", file, first, count)

    def _vast(self, request: Request) -> Response:
        return Response(200, (), bytes(LARGE * 2))

    def _boom(self, request: Request) -> Response:
        raise KeyError("two\nlines")

    def _trouble(self, request: Request) -> Response:
        status = int(request.parameter("is"))
        raise Refusal(status, "UNKNOWN", "no") from StorageError("the disk is full")

    def _split(self, request: Request) -> Response:
        return Response(200, [("Location", request.parameter("to"))], b"hello")


class Listener:
    """A server that runs, and what it said."""

    def __init__(self, root: Path, timeout: float, host: str = "127.0.0.1") -> None:
        self.application = Application(root)
        self.log: List[Tuple[int, str]] = []
        self.cancel = Cancel()
        self.server = httpd.Server(host, 0, self.application, timeout,
                                   lambda status, text: self.log.append((status, text)))
        self.host, self.port = host, int(self.server.address.rpartition(":")[2])
        self._thread = threading.Thread(target=self.server.run, args=(self.cancel,), name="listener")
        self._thread.start()

    def stop(self) -> None:
        self.cancel.cancel()
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def trouble(self) -> List[Tuple[int, str]]:
        return [line for line in self.log if line[0] >= 500]


Listen = Callable[..., Listener]


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]
    body: bytes


class Client:
    """A connection, as rude as the test needs."""

    def __init__(self, listener: Listener, *data: bytes) -> None:
        self.socket = socket.create_connection((listener.host, listener.port), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")
        for piece in data:
            self.send(piece)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drips(self, data: bytes) -> None:
        """Send a little again and again, until there is something to read, or the end."""
        for _ in range(1000):
            if select.select([self.socket], [], [], 0.01)[0]:
                return
            self.send(data)
        raise AssertionError("the server goes on listening")

    def rest(self) -> bytes:
        return self._file.read()

    def line(self) -> str:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), line
        return line[:-2].decode("ascii")

    def answer(self, method: str = "GET") -> Answer:
        """Read an answer strictly; its body must be as long as its head says."""
        version, status, phrase = self.line().split(" ", 2)
        assert (version, len(status), bool(phrase)) == ("HTTP/1.1", 3, True)
        headers: Dict[str, str] = {}
        for text in iter(self.line, ""):
            name, _, value = text.partition(": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        length = int(headers.get("content-length", "0"))
        body = b"" if method == "HEAD" else self._file.read(length)
        assert len(body) == (0 if method == "HEAD" else length)
        return Answer(int(status), headers, body)

    def ended(self) -> bool:
        """Whether the server closed the connection after what was read, and properly."""
        return self._file.read(1) == b""

    def ask(self, method: str, target: str, *fields: str, body: bytes = b"", version: str = "1.1") -> Answer:
        self.send(request(method, target, *fields, body=body, version=version))
        return self.answer(method)


def request(method: str, target: str, *fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    lines = ["%s %s HTTP/%s" % (method, target, version), "Host: r", *fields]
    if body and not any(field.lower().startswith(("content-l", "transfer-e")) for field in fields):
        lines.append("Content-Length: %d" % len(body))
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def clients(*opened: Client) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for client in opened:
            stack.enter_context(client)
        yield
