"""HTTP/1.1 as this process speaks it: bounded in connections, size and time, with errors like all others."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.api.heads import fault_of

# A process may usually open 1,024 files, and needs some for itself.
CONNECTIONS_AT_MOST = 900
# The first line and all headers of a request, a token among them; looked at whenever more of them is waited for.
HEAD_LIMIT_BYTES = 16_384
# For a whole request, from the connection or the answer before; and then for its answer, taken in full.
RECEIVE_SECONDS = 10.0
ANSWER_SECONDS = 60.0
# What a client still sends when it is refused is read for so long: otherwise it may meet a reset, and not the answer.
LINGER_SECONDS = 1.0


class BoundedProtocol(H11Protocol):
    """Refuses the connection that is one too many, and ends those whose client is too slow."""

    _deadline: asyncio.TimerHandle | None = None
    _receiving = True
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, unless there are too many who do."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_AT_MOST:
            self._refuse(503, "unavailable", "too many connections: ask again", {"Retry-After": "2"})
            self.transport.close()
        else:
            self._watch(anew=True)

    def data_received(self, data: bytes) -> None:
        """Take what has come; the first and the last byte of a request count, the ones between win no time."""
        if self._refused:
            return
        super().data_received(data)
        self._watch()

    def handle_events(self) -> None:
        """Go on with what has come, unless it is a head that others could read in another way."""
        fault = fault_of(self.conn.trailing_data[0]) if self.conn.their_state is h11.IDLE else None
        if fault is None:
            super().handle_events()
        else:
            self.send_400_response(fault)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, which may have come already."""
        super().on_response_complete()
        self._watch(anew=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is answered as every other error is."""
        self._refuse(400, "invalid", f"{msg} A head may have {HEAD_LIMIT_BYTES} bytes.")

    def _watch(self, *, anew: bool = False) -> None:
        """Set the deadline where what is waited for has changed, or begins anew."""
        receiving = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if self._refused or self.transport.is_closing() or (receiving is self._receiving and not anew):
            return
        self._receiving = receiving
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(RECEIVE_SECONDS if receiving else ANSWER_SECONDS, self._late)

    def _late(self) -> None:
        has_begun_a_request = bool(self.conn.trailing_data[0])
        if self.conn.our_state is h11.IDLE and has_begun_a_request:
            self._refuse(408, "timeout", f"a request should be here within {RECEIVE_SECONDS:.0f} seconds")
        else:
            self.transport.abort()

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, Any] | None = None) -> None:
        """Answer and close (RFC 9112, section 9.6: first for writing alone), unless another answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps({"code": code, "message": message}).encode()
        fields = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**fields, **(headers or {})}.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.write_eof()
        self._refused = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)
