"""HTTP/1.1 with bounds on connections, size and time, and with errors in the API's own form."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from time import perf_counter, thread_time
from typing import Any, cast

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from services.api.door.connections import ASKING, UNKNOWN_ADDRESS, Asking, Connections
from services.api.door.headers import SAFE_HEADERS
from shared.runtime.heads import fault_of

# For the request line and all headers, including a token. Checked whenever an incomplete head is waited for.
HEAD_LIMIT_BYTES = 16_384
# For a whole request, counted from its head or the answer before; then for its answer, until the client has read it.
RECEIVE_SECONDS = 10.0
ANSWER_SECONDS = 60.0
# What a refused client still sends is read for this long and this much. Otherwise the client may see a reset instead of
# the answer.
LINGER_SECONDS = 1.0
LINGER_BYTES = 1_048_576
# An answer is sent in pieces of this size, each when the client has nearly read the one before.
PIECE_BYTES = 65_536
# Received bytes are parsed in pieces of this size, and for this long before others have their turn. Chunks of one byte
# take the longest to parse.
READ_BYTES = 512
READ_CHUNKED_BYTES = 256
READ_SECONDS = 0.0005
# After parsing, a client rests this many times as long.
RESTS = 9
# This much of a head is parsed however long it takes, so that clients with usual heads do not wait for others.
USUAL_HEAD_BYTES = 2_048
# How many bytes the framing of chunks may have, beyond a quarter of their content.
FRAMING_LIMIT_BYTES = 1_024


class Readers:
    """Connections with more bytes to parse: one continues in each pass of the event loop, the clients in turn.

    A client rests after each turn, however many connections it has, so that parsing takes at most a tenth of the time
    of this process.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Callable[[], None]]] = {}  # of clients that read or rest; a queue may be empty
        self._next: deque[str] = deque()

    def wait(self, client: str, read: Callable[[], None]) -> None:
        """Call `read` when it is the client's turn."""
        if client in self._waiting:
            self._waiting[client].append(read)
        else:
            self._waiting[client] = deque([read])
            self._stand_last(client)

    def _stand_last(self, client: str) -> None:
        self._next.append(client)
        if len(self._next) == 1:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        client = self._next[0]  # It stays in front while it reads, so that `wait` does not schedule this again.
        began = thread_time()  # A reading that the machine interrupted has not taken longer.
        try:
            self._waiting[client].popleft()()
        finally:
            self._next.popleft()
            loop = asyncio.get_running_loop()
            loop.call_later(RESTS * (thread_time() - began), self._has_rested, client)
            if self._next:
                loop.call_soon(self._go_on)

    def _has_rested(self, client: str) -> None:
        if self._waiting[client]:
            self._stand_last(client)
        else:
            del self._waiting[client]


@dataclass(frozen=True, slots=True)
class SharedByConnections:
    """What all connections of a process share: their register, and the seconds until the first head must be there.

    `asks_in_vain` counts a refusal for a client and returns whether the client gets too many.
    """

    connections: Connections
    head_seconds: float
    asks_in_vain: Callable[[str], bool]
    readers: Readers = field(default_factory=Readers)


class _ClosedWithCare:
    """A transport whose `close` calls the protocol, because uvicorn closes as soon as an answer is written."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(H11Protocol):
    """Refuses connections beyond the bound, and closes those whose client is too slow."""

    _deadline: asyncio.TimerHandle | None = None
    _receiving = True
    _refused = False
    _seconds = 0.0
    _excess_bytes = 0
    _thrown_away_bytes = 0
    _seen_bytes = 0  # of the head that has begun
    _is_held = False
    _wanted: RequestResponseCycle | None = None  # whose body is asked for
    _address = UNKNOWN_ADDRESS

    def __init__(self, shared: SharedByConnections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._shared = shared
        self._unread = bytearray()
        self._app = cast("ASGIApp", self.app)
        self.app = cast("Any", self._answer)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; refuse the connection if there are too many."""
        super().connection_made(cast("asyncio.Transport", _ClosedWithCare(transport, self._close)))
        self._close_at_once = transport.close
        self._address = self.client[0] if self.client else UNKNOWN_ADDRESS
        if self._shared.connections.open(self, self._address):
            self._watch(restart=True, seconds=self._shared.head_seconds)
        else:
            self._refuse(503, "unavailable", "too many connections: try again", {"Retry-After": "2"})
            self._close_at_once()

    def data_received(self, data: bytes) -> None:
        """Take received bytes. The deadline depends on the first and last byte of a request, not on those between.

        A body may arrive in tens of thousands of chunks at once. It is parsed for half a millisecond, then it waits.
        """
        if self._refused:
            self._throw_away(len(data))
            return
        had_read_all = not self._unread
        self._unread += data
        if had_read_all:
            self._read()

    def _throw_away(self, size: int) -> None:
        self._thrown_away_bytes += size
        if self._thrown_away_bytes > LINGER_BYTES:
            self.transport.pause_reading()

    def _read(self) -> None:
        """Parse some of the received bytes; no more are received until all are parsed."""
        until, read_bytes = perf_counter() + READ_SECONDS, 0
        while self._unread and not self._refused and not self.transport.is_closing():
            if self._is_unwanted():
                break
            size = READ_CHUNKED_BYTES if self._excess_bytes else READ_BYTES
            piece = bytes(self._unread[:size])
            del self._unread[:size]
            awaits_a_head = self.cycle is None
            self._parse(piece)
            self._watch(restart=awaits_a_head and self.cycle is not None)
            read_bytes += len(piece)
            is_usual_head = self.conn.their_state is h11.IDLE and read_bytes < USUAL_HEAD_BYTES
            if perf_counter() > until and not is_usual_head:
                break
        if self._refused or self.transport.is_closing():
            self._unread.clear()  # Bytes after a refusal are thrown away.
        elif self._unread:
            self.transport.pause_reading()
            self._is_held = self._is_unwanted()
            if not self._is_held:
                self._wait_to_read()
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def _wait_to_read(self) -> None:
        self._shared.readers.wait(self._shared.connections.client(self), self._read)

    def _is_unwanted(self) -> bool:
        """Return whether the next bytes are a body that nobody has asked for yet: its head alone may be refused."""
        return self.conn.their_state is h11.SEND_BODY and self._wanted is not self.cycle

    def _read_on(self) -> None:
        """Go on with a body that was held back."""
        if self._is_held:
            self._is_held = False
            self._wait_to_read()

    def _parse(self, piece: bytes) -> None:
        """Hand a piece to the parser, and count how many of its bytes are only framing of a body."""
        cycle = self.cycle if self.conn.their_state is h11.SEND_BODY else None
        had = len(cycle.body) if cycle else 0
        super().data_received(piece)
        if cycle is None or self.cycle is not cycle or self.conn.their_state is not h11.SEND_BODY:
            self._excess_bytes = 0
            return
        self._excess_bytes = max(0, self._excess_bytes + len(piece) - 5 * (len(cycle.body) - had) // 4)
        if self._excess_bytes > FRAMING_LIMIT_BYTES:
            self._refuse_bytes("a body should come in larger chunks")

    def handle_events(self) -> None:
        """Handle what was parsed, unless it is a head that a proxy could read differently."""
        head = self.conn.trailing_data[0] if self.conn.their_state is h11.IDLE else b""
        fault = fault_of(head, self._seen_bytes)
        if fault is None:
            super().handle_events()
            self._seen_bytes = len(head) if self.conn.their_state is h11.IDLE else 0
        else:
            self.send_400_response(fault)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, which may have arrived already."""
        super().on_response_complete()
        self._watch(restart=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its deadline."""
        self._refused = True
        self._shared.connections.close(self)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the form of every other error."""
        self._refuse_bytes(f"{msg} A head may have at most {HEAD_LIMIT_BYTES} bytes.")

    def _refuse_bytes(self, message: str) -> None:
        """Refuse received bytes; late, if the address sends too many of that kind."""
        self._ignore_the_rest()
        refuse = partial(self._refuse, 400, "invalid", message)
        if self._shared.asks_in_vain(f"bytes of {self._address}"):
            self._shared.connections.rests(self)
            self._deadline = self.loop.call_later(self._shared.connections.hold_seconds(self), refuse)
        else:
            refuse()

    def give_way(self, after_seconds: float = 0.0) -> None:
        """Close after this many seconds and do nothing more, because others need the place or the memory."""
        if not after_seconds:
            self.transport.abort()
            return
        self._ignore_the_rest()
        self.transport.pause_reading()
        self._deadline = self.loop.call_later(after_seconds, self.transport.abort)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, and send its answer no faster than the client reads it."""

        async def send_in_pieces(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(self._said_to_close(message))
                return
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                await send(message)
                return
            for begin in range(0, len(body), PIECE_BYTES):
                self._shared.connections.untaken(self, len(body) - begin)
                end = begin + PIECE_BYTES
                more = end < len(body) or message.get("more_body", False)
                await send({"type": message["type"], "body": body[begin:end], "more_body": more})

        cycle = self.cycle

        async def receive_wanted() -> Message:
            if cycle.disconnected:
                return {"type": "http.disconnect"}
            if self._wanted is not cycle:
                self._wanted = cycle
                self._watch(restart=True)
                self._read_on()
            return await receive()

        scope[ASKING] = Asking(lambda: cycle.disconnected, self, self._shared.connections)
        try:
            await self._app(scope, receive_wanted, send_in_pieces)
        finally:
            self._shared.connections.taken(self)

    def _said_to_close(self, start: Message) -> Message:
        """Return the start of an answer, with `Connection: close` if it is the last one (RFC 9112, section 9.6).

        After an incomplete body nothing more is read. Without the header, the client would send its next request there.
        """
        if self.conn.their_state is not h11.SEND_BODY:
            return start
        return {**start, "headers": [*start["headers"], (b"connection", b"close")]}

    def _watch(self, *, restart: bool = False, seconds: float | None = None) -> None:
        """Set a new deadline if the state has changed between receiving and answering, or if `restart`."""
        if self._refused or self.transport.is_closing():
            return
        self._note_whether_it_waits()
        receiving = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if receiving is self._receiving and not restart:
            return
        self._receiving = receiving
        if self._deadline is not None:
            self._deadline.cancel()
        self._seconds = (seconds or RECEIVE_SECONDS) if receiving else ANSWER_SECONDS
        self._deadline = self.loop.call_later(self._seconds, self._late)

    def _note_whether_it_waits(self) -> None:
        is_whole = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        if not is_whole and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._shared.connections.waits(self)
        else:
            self._shared.connections.works(self)

    def _late(self) -> None:
        has_begun_a_request = bool(self.conn.trailing_data[0])
        if self.conn.our_state is h11.IDLE and has_begun_a_request:
            self._refuse(408, "timeout", f"a request should arrive within {self._seconds:g} seconds")
        else:
            self.transport.abort()

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, Any] | None = None) -> None:
        """Answer and close, unless another answer has begun. Writing ends first (RFC 9112, section 9.6)."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._write(status, code, message, headers or {})
        self._end()

    def _end(self) -> None:
        """Stop writing, and discard for a while what the client still sends."""
        self._ignore_the_rest()
        self._unread.clear()
        self._shared.connections.rests(self)
        self._deadline = self.loop.call_later(LINGER_SECONDS, self._close_at_once)
        self.transport.resume_reading()
        try:
            self.transport.write_eof()
        except OSError:  # The client has reset the connection while nothing was read.
            self.transport.abort()

    def _close(self) -> None:
        """Close the connection. Wait while more of a body is being sent, because a reset could overtake the answer."""
        if self.conn.their_state is h11.SEND_BODY and not self._refused:
            self._end()
        else:
            self._close_at_once()

    def _write(self, status: int, code: str, message: str, headers: dict[str, Any]) -> None:
        body = json.dumps({"code": code, "message": message}).encode()
        fields = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**fields, **SAFE_HEADERS, **headers}.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)

    def _ignore_the_rest(self) -> None:
        """Ignore further bytes, and keep the application from answering."""
        self._refused = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
