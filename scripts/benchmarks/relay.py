# SPDX-License-Identifier: Apache-2.0
"""A long wire on loopback: relay.py PORT HOST:PORT ROUND_TRIP_SECONDS BYTES_A_SECOND

All connections share one link in each direction.  It takes pieces from those
that have some, in turn, as fast as its rate lets it (0: any), and hands each on
half a round trip later; a connection's first piece waits a whole round trip more,
as for TCP's handshake.  Delay is by queue: nothing blocks.  Bytes are read when
the link has room for them, so no answer queues behind those of other connections,
and a client that reads slowly stops its own connection only.  A process of its
own, so that it takes no time from who measures.
"""
import collections
import contextlib
import select
import socket
import sys
import time
from typing import Callable, Deque, Dict, List, Tuple

PIECE = 32 << 10
WINDOW = 4 << 20  # bytes of a connection that may be under way or unread
CREDIT = 0.005  # seconds that a link may make up for after a late wake-up


class Flow:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.behind = 0  # bytes that were read and not passed on
        self.unsent = bytearray()  # those of them that have arrived
        self.ended = self.closed = False  # read to the end; passed on to the end
        self.other = self  # the opposite direction


class Link:
    """One direction of the wire: its pieces under way, and the flows that have more."""

    def __init__(self, rate: float, delay: float) -> None:
        self._rate, self._delay = rate, delay
        self._free = 0.0  # when the link has sent what it took
        self.ready: Deque[Flow] = collections.deque()
        self.under_way: Deque[Tuple[float, Flow, bytes]] = collections.deque()

    def take(self, now: float, idle: Callable[[Flow], None]) -> None:
        """Put on the wire as much as there is time for; ``idle`` is told of flows that have no more."""
        while self.ready and self._free <= now:
            flow = self.ready.popleft()
            try:
                piece = flow.source.recv(PIECE)
            except BlockingIOError:
                idle(flow)
                continue
            except OSError:
                piece = b""
            if self._rate:
                self._free = max(self._free, now - CREDIT) + len(piece) / self._rate
            self.under_way.append((max(now, self._free) + self._delay, flow, piece))
            flow.behind += len(piece)
            flow.ended = not piece
            if piece and flow.behind <= WINDOW:
                self.ready.append(flow)

    def next_time(self) -> float:
        times = [self._free] if self.ready else []
        return min(times + [self.under_way[0][0]] if self.under_way else times, default=float("inf"))


class Relay:
    def __init__(self, port: int, target: Tuple[str, int], round_trip: float, rate: float) -> None:
        self._target, self._round_trip = target, round_trip
        self._links = {name: Link(rate, round_trip / 2) for name in ("up", "down")}
        self._readers: Dict[int, Tuple[Flow, Link]] = {}  # by the source's file number
        self._writers: Dict[int, Flow] = {}  # by the sink's
        self._handshakes: Deque[Tuple[float, Flow]] = collections.deque()
        self._interest: Dict[int, int] = {}
        self._poll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)

    def run(self) -> None:
        while True:
            now = time.monotonic()
            self._advance(now)
            wake = min([link.next_time() for link in self._links.values()]
                       + [at for at, _ in list(self._handshakes)[:1]])
            # select: epoll's own timeout is in whole milliseconds
            wait = None if wake == float("inf") else max(0.0, wake - time.monotonic())
            if select.select([self._poll], [], [], wait)[0]:
                for number, _ in self._poll.poll(0):
                    self._event(number)

    def _event(self, number: int) -> None:
        if number == self._listener.fileno():
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._accept(self._listener.accept()[0])
        if number in self._writers:
            self._send(self._writers[number])
        if number in self._readers and self._interest.get(number, 0) & select.EPOLLIN:
            flow, link = self._readers[number]
            self._set_interest(flow.source, select.EPOLLIN, False)
            link.ready.append(flow)

    def _accept(self, client: socket.socket) -> None:
        server = socket.create_connection(self._target)
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up, down = Flow(client, server), Flow(server, client)
        up.other, down.other = down, up
        for flow, link in ((up, self._links["up"]), (down, self._links["down"])):
            self._readers[flow.source.fileno()] = flow, link
            self._writers[flow.sink.fileno()] = flow
        self._handshakes.append((time.monotonic() + self._round_trip, up))
        self._idle(down)

    def _advance(self, now: float) -> None:
        while self._handshakes and self._handshakes[0][0] <= now:
            self._idle(self._handshakes.popleft()[1])
        for link in self._links.values():
            link.take(now, self._idle)
            while link.under_way and link.under_way[0][0] <= now:
                _, flow, piece = link.under_way.popleft()
                flow.unsent += piece
                flow.closed = flow.closed or not piece
                self._send(flow)

    def _idle(self, flow: Flow) -> None:
        """Wait until the source has something."""
        if not flow.ended and not flow.closed:
            self._set_interest(flow.source, select.EPOLLIN, True)

    def _send(self, flow: Flow) -> None:
        waits = flow.behind > WINDOW
        try:
            while flow.unsent:
                sent = flow.sink.send(flow.unsent)
                del flow.unsent[:sent]
                flow.behind -= sent
            if flow.closed:
                flow.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:  # the reader is gone: what it would have got is dropped
            flow.unsent.clear()
            flow.closed = True
        self._set_interest(flow.sink, select.EPOLLOUT, bool(flow.unsent))
        if waits and flow.behind <= WINDOW:
            self._idle(flow)
        if flow.closed and flow.other.closed and not flow.unsent and not flow.other.unsent:
            for end in (flow.source, flow.sink):
                for event in (select.EPOLLIN, select.EPOLLOUT):
                    self._set_interest(end, event, False)
                self._readers.pop(end.fileno(), None)
                self._writers.pop(end.fileno(), None)
                end.close()

    def _set_interest(self, end: socket.socket, event: int, wanted: bool) -> None:
        number = end.fileno()
        before = self._interest.pop(number, 0)
        after = before | event if wanted else before & ~event
        if after and number >= 0:
            self._interest[number] = after
            if before:
                self._poll.modify(number, after)
            else:
                self._poll.register(number, after)
        elif before:  # unregistered: epoll tells of a hang-up even where nothing is asked
            self._poll.unregister(number)


def main(arguments: List[str]) -> None:
    port, target, round_trip, rate = arguments
    host, _, number = target.rpartition(":")
    Relay(int(port), (host, int(number)), float(round_trip), float(rate)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
