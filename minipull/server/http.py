# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 server for untrusted clients.

Each connection has a thread, up to MAX_CONNECTIONS, or waits with others in one;
every wait has a deadline; a connection is closed where a body was not read to its
end.  Requests are answered by the application.
"""
import contextlib
import errno
import os
import select
import socket
import threading
import time
from typing import Callable, Dict, Optional, Set

from ..cancel import Cancel
from ..errors import NetworkError, shown
from ..sendfile import send
from .message import Application, Refusal, Request, Response, format_head, parse_request

MAX_CONNECTIONS = 256
MAX_HEAD = 64 << 10  # bytes of request line and headers
BUFFER = 64 << 10  # bytes, for each connection
STALLED = 1024  # bytes that must arrive within a timeout
HEAD_SECONDS = 20.0  # from the first byte of a head to its last
IDLE_SECONDS = 60.0  # between two requests
TICK = 0.2  # seconds until a stop is noticed
GRACE = 1.2  # seconds for answers under way after a stop
_GONE = (ConnectionError, TimeoutError, socket.timeout)


class Server:
    """A server that listens from the start; :meth:`run` serves.

    ``timeout`` (seconds) limits how long a client may send nothing within a
    request.  ``log`` is called with the status and a line for each answer, and with
    a status from 500 up for other failures.  Raises NetworkError if it can't listen.
    """

    def __init__(self, host: str, port: int, application: Application, timeout: float = 60.0,
                 log: Callable[[int, str], None] = lambda status, text: None) -> None:
        self.application = application
        self.timeout = timeout
        self.log = log
        self.leaving = False  # idle connections are to close
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._connections: Set["_Connection"] = set()
        self.waiting = _Waiting(self)
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            with contextlib.ExitStack() as stack:
                self._socket = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                if os.name == "posix":  # on Windows it would let other programs take the port
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._socket.bind((address[0], port, *address[2:]))
                self._socket.listen(128)
                stack.pop_all()
        except (OSError, UnicodeError, OverflowError) as exc:
            text = getattr(exc, "strerror", None) or exc
            raise NetworkError("listen on %s:%d: %s" % (host, port, text)) from exc
        name, number = self._socket.getsockname()[:2]
        self.address = "%s:%d" % ("[%s]" % name if ":" in name else name, number)

    def run(self, cancel: Cancel) -> None:
        """Serve until cancelled; answers under way then have GRACE seconds to end."""
        try:
            with self._socket, contextlib.closing(self.waiting):
                self._socket.settimeout(TICK)
                while not cancel.cancelled:
                    self.leaving = not self._slots.acquire(blocking=False)
                    if not self.leaving or self._slots.acquire(timeout=TICK):
                        self._accept()
        finally:
            self.leaving = True
            self._settle(GRACE)
            for connection in list(self._connections):
                connection.cut()
            self._settle(TICK)

    def _accept(self) -> None:
        """Wait up to TICK seconds for a client, which gets a thread and the slot that the caller holds."""
        held = contextlib.ExitStack()
        held.callback(self._slots.release)
        try:
            client = held.enter_context(self._socket.accept()[0])
            connection = _Connection(client, self, held)
            self._connections.add(connection)
            held.callback(self._connections.discard, connection)
            connection.start()
            return
        except socket.timeout:
            pass
        except (MemoryError, OSError, RuntimeError) as exc:  # no memory, descriptor or thread left
            if getattr(exc, "errno", None) != errno.ECONNABORTED:
                self.log(503, "accept: %s" % exc)
                time.sleep(TICK)
        held.close()

    def _settle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._connections and time.monotonic() < end:
            time.sleep(0.01)


class _Waiting:
    """Connections between two requests, in one thread, which gives the answers that need no wait.

    Any other request goes to a thread of its own, which keeps the connection until an
    answer needs no wait.  Where there is no epoll(7), all have threads.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.connections: Dict[int, "_Connection"] = {}
        self._lock = threading.Lock()  # held to add one, and to end
        self._open = hasattr(select, "epoll")
        self._thread: Optional[threading.Thread] = None

    def close(self) -> None:
        with self._lock:
            self._open = False
        if self._thread is not None:
            self._thread.join(GRACE)  # its log may block

    def add(self, connection: "_Connection") -> bool:
        """Take over a connection; False if that is not possible."""
        with self._lock, contextlib.suppress(MemoryError, OSError, RuntimeError):
            if self._open and self._thread is None:
                self._poll = select.epoll()
                thread = threading.Thread(target=self._run, daemon=True)
                thread.start()
                self._thread = thread
            if self._open:
                connection.since = time.monotonic()
                self._poll.register(connection.fileno(), select.EPOLLIN)  # the system may have no room for it
                self.connections[connection.fileno()] = connection
                return True
        return False

    def _run(self) -> None:
        checked = time.monotonic()
        while self._open:
            ready = dict(self._poll.poll(TICK))
            if time.monotonic() - checked >= TICK:
                checked = time.monotonic()
                patience = TICK if self._server.leaving else IDLE_SECONDS
                for fd, connection in list(self.connections.items()):
                    if fd not in ready and checked - connection.since > patience:
                        self._let_go(connection).close()
            for fd in filter(self.connections.get, ready):  # one that is being added is not among them yet
                self._serve(self.connections[fd])
        for connection in list(self.connections.values()):
            self._let_go(connection).close()
        self._poll.close()

    def _serve(self, connection: "_Connection") -> None:
        try:
            if not connection.answer_at_once():
                self._let_go(connection).start()
        except Exception as exc:  # the client has gone; no memory or thread left
            with contextlib.suppress(Exception):  # whatever befalls one, the others wait on
                self._let_go(connection).close()
                if not isinstance(exc, _GONE):
                    self._server.log(503, "request: %s" % exc)

    def _let_go(self, connection: "_Connection") -> "_Connection":
        if self.connections.pop(connection.fileno(), None):
            self._poll.unregister(connection.fileno())
        return connection


class _Connection:
    """A connection, whose requests are answered one after the other; ``held`` is released at its end."""

    def __init__(self, client: socket.socket, server: Server, held: contextlib.ExitStack) -> None:
        self._socket = client
        self._server = server
        self._held = held
        self.since = 0.0  # when it began to wait
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = self._end = 0  # of the bytes in the buffer that are not consumed
        self._waited, self._moved = 0.0, 0  # seconds of waiting for that many bytes of a body
        self._unsent = b""  # of the last answer

    def fileno(self) -> int:
        return self._socket.fileno()

    def start(self) -> None:
        """Answer in a thread, as long as requests come; raises RuntimeError, MemoryError for none."""
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._held.close()

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            try:
                with contextlib.suppress(OSError):  # the client has closed it
                    self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                unsent, self._unsent = self._unsent, b""
                self._send(unsent)
                while self._exchange():
                    if self._at_once and self._start == self._end and self._server.waiting.add(self):
                        stack.pop_all()
                        return
            except _GONE:  # no client is left to answer
                pass
            except Exception as exc:
                self._server.log(500, "internal error: %s: %s" % (type(exc).__name__, exc))

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def answer_at_once(self) -> bool:
        """Answer a request that has arrived whole; False leaves it, or the rest of the answer, to a thread."""
        self._socket.settimeout(0)
        self._start, self._end = 0, self._socket.recv_into(self._buffer)
        if not self._end:
            raise ConnectionAbortedError("the client has gone")
        head = bytes(self._buffer[:self._end])
        if self._server.leaving or head.find(b"\r\n\r\n") != len(head) - 4:
            return False
        try:
            request = parse_request(head[:-4], self._receive, self._proceed)
            response = None if request.last else self._server.application.at_once(request)
        except Exception:
            response = None  # the thread will say so
        if response is None:
            return False
        data = self._message(request, response, True)
        self._start, self.since, sent = self._end, time.monotonic(), 0
        with contextlib.suppress(BlockingIOError):
            sent = self._socket.send(data)
        self._unsent = data[sent:]
        return not self._unsent

    def _exchange(self) -> bool:
        """Answer one request; return whether another may follow."""
        request, keep, note, self._at_once = None, False, "", False  # whether the answer needs no wait
        try:
            head = self._receive_head()
            if head is None:
                return False
            request = parse_request(head, self._receive, self._proceed)
            self._waited, self._moved = 0.0, 0
            at_once = self._server.application.at_once(request)
            response = at_once or self._server.application(request)
            keep, self._at_once = not request.last, at_once is not None
        except Refusal as exc:
            response = exc.response
            keep = request is not None and not request.last
            if response.status >= 500 and exc.__cause__ is not None:
                note = ": %s" % exc.__cause__
        except _GONE:
            raise
        except Exception as exc:
            note = ": internal error: %s: %s" % (type(exc).__name__, exc)
            response = Refusal(500, "UNKNOWN", "internal error").response
        with response.file or contextlib.ExitStack():
            keep = keep and request is not None and request.body.drain() and not self._server.leaving
            self._answer(request, response, keep, note)
        if not keep and (request is None or not request.body.finished or self._start < self._end):
            self._linger()
        return keep

    def _receive_head(self) -> Optional[bytes]:
        """Return the head of the next request, or None at the end of the connection."""
        head, since = bytearray(), time.monotonic()
        while True:
            if self._start < self._end:
                if not head:
                    since = time.monotonic()
                seen = max(0, len(head) - 3)
                head += self._buffer[self._start:self._end]
                if not head[:1].isalpha():  # most likely TLS, whose client waits for an answer
                    raise Refusal(400, "UNSUPPORTED", "malformed request line")
                end = head.find(b"\r\n\r\n", seen)
                if max(end, len(head) if end < 0 else 0) > MAX_HEAD:
                    raise Refusal(431, "UNSUPPORTED", "the head is larger than %d bytes" % MAX_HEAD)
                if end >= 0:
                    self._start = self._end - (len(head) - end - 4)
                    return bytes(head[:end])
            if head and time.monotonic() - since > HEAD_SECONDS:
                raise Refusal(408, "UNSUPPORTED", "the head took too long")
            self._start = self._end = 0
            try:
                self._socket.settimeout(TICK)
                self._end = self._socket.recv_into(self._buffer)
                if not self._end:
                    return None
            except socket.timeout:  # closed only here, where no request has arrived
                if not head and (self._server.leaving or time.monotonic() - since > IDLE_SECONDS):
                    return None

    def _receive(self, limit: int) -> memoryview:
        """Return up to ``limit`` bytes of a body, valid until the next call."""
        if self._start == self._end:
            self._socket.settimeout(self._server.timeout)
            before = time.monotonic()
            self._start, self._end = 0, self._socket.recv_into(self._buffer)
            if not self._end:
                raise ConnectionAbortedError("the client has gone")
            self._waited += time.monotonic() - before
            self._moved += self._end
            if self._waited > self._server.timeout:
                if self._moved < STALLED:
                    raise ConnectionAbortedError("the client is too slow")
                self._waited, self._moved = 0.0, 0
        piece = self._buffer[self._start:min(self._end, self._start + limit)]
        self._start += len(piece)
        return piece

    def _proceed(self) -> None:
        self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._server.timeout)
        self._socket.sendall(data)

    def _answer(self, request: Optional[Request], response: Response, keep: bool, note: str) -> None:
        self._send(self._message(request, response, keep, note))
        if request is not None and request.method == "HEAD":
            return
        if response.file is not None and response.length:  # sendfile(2) refuses a count of 0
            if sum(send(self._socket, response.file, response.offset, response.length)) != response.length:
                raise ConnectionAbortedError("the file is shorter than it was")
        if response.pieces is not None:
            for piece in response.pieces:
                self._send(b"%x\r\n%s\r\n" % (len(piece), piece) if keep else piece)
            self._send(b"0\r\n\r\n" if keep else b"")  # else the end of the connection is its end

    def _message(self, request: Optional[Request], response: Response, keep: bool, note: str = "") -> bytes:
        """Log an answer; return its head, and the body if that is in memory and asked for."""
        head = format_head(response, keep)
        line = "%s %s" % (request.method, shown(request.path)) if request else "malformed request"
        self._server.log(response.status, "%s %d%s" % (line, response.status, note))
        return head if request is not None and request.method == "HEAD" else head + response.body

    def _linger(self) -> None:
        """Discard what the client still sends: closing now would reset the connection and lose the answer."""
        end = time.monotonic() + GRACE
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(GRACE)
            while time.monotonic() < end and self._socket.recv_into(self._buffer):
                pass
