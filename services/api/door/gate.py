"""Checks every request before any route sees it: its path, its caller, its rate, and its turn.

The gate stands before the routes so that refusals are cheap, and so that unknown paths count too.
"""

import asyncio
import contextlib
import re
from typing import Any, Final, cast

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.door import errors
from services.api.door.access import BYTES_OF_A_REQUEST, CALLER, Access
from services.api.door.bodies import BODY, BODY_LIMIT_BYTES, receive_body
from services.api.door.connections import ASKING, Asking, Connections
from services.api.door.errors import ApiError

PROBES: Final = frozenset({"/healthz", "/readyz"})
COMMANDS: Final = "/v1/commands"
# Paths below it have customer data and need a token, unless authentication is off.
PROTECTED: Final = "/v1/"
# Set in the scope of a request that was answered here and reached no route.
REFUSED: Final = "drawdown.refused"
# For requests without a connection, as in tests.
_NOWHERE: Final = Asking(lambda: False, cast("Any", None), Connections(0))
# Refusals of requests whose caller or content is unknown.
_IN_VAIN: Final = frozenset({401, 413})
# How long a request with a body rests before its route runs, for each KiB of the body.
REST_SECONDS: Final = 0.00025
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Paths have no character that must be percent-encoded. Some clients encode ':', which is allowed.
_ENCODED: Final = re.compile(rb"%(?!3[Aa])")


class Gate:
    """Lets a request pass, or answers it with an error."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when it is its turn."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asking: Asking = scope.setdefault(ASKING, _NOWHERE)
        try:
            await self._pass(scope, receive, send)
        except ApiError as error:
            scope[REFUSED] = True
            if error.status == 429 or (error.status in _IN_VAIN and _is_much(scope, _address(scope))):
                await _hold(asking)
            await errors.answer(error)(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        access: Access = scope["app"].state.context.access
        headers, address = Headers(scope=scope), _address(scope)
        with scope[ASKING].resting():
            await access.begin(headers, address)
        is_plain = _ENCODED.search(scope.get("raw_path", b"")) is None
        if is_plain and scope["path"] in PROBES:
            if _is_much(scope, f"probes of {address}"):
                await _hold(scope[ASKING])
            await self.app(scope, receive, send)
        elif is_plain and scope["path"].startswith(PROTECTED):
            await self._pass_protected(access, headers, address, scope, receive, send)
        else:
            access.admit(scope["method"], headers, address)
            if not is_plain:
                raise errors.nothing_here()
            await self.app(scope, receive, send)

    async def _pass_protected(
        self, access: Access, headers: Headers, address: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        asking: Asking = scope[ASKING]
        scope[CALLER], client = await access.identify(scope["method"], headers, address)
        asking.belongs_to(client)
        if scope["method"] not in _WITHOUT_BODY:
            scope[BODY] = await _receive_body(access, client, headers, receive)
        turns = access.commands if scope["path"] == COMMANDS else access.reads
        async with contextlib.AsyncExitStack() as stack:
            with asking.resting():
                made = await stack.enter_async_context(turns.turn(client))
                # This yields to the event loop even without a body. So a client whose requests are answered at once
                # gets only one of them answered in each pass. Parsing a long body takes milliseconds, so other requests
                # are answered first.
                await asyncio.sleep(len(scope.get(BODY, b"")) // BYTES_OF_A_REQUEST * REST_SECONDS)
            if asking.has_gone():
                return  # The client has closed its connection.

            async def send_made(message: Message) -> None:
                made()
                if _is_stray(scope, message) and _is_much(scope, client):
                    await _hold(asking)
                await send(message)

            await self.app(scope, receive, send_made)


async def _receive_body(access: Access, client: str, headers: Headers, receive: Receive) -> bytes:
    """Receive a body and count its size for the client; a refused body counts as the longest.

    Raises:
        ApiError: 400, 408 or 413.

    """
    size = BODY_LIMIT_BYTES
    try:
        body = await receive_body(receive, int(headers.get("content-length", 0)))
        size = len(body)
        return body
    finally:
        access.has_sent(client, size)


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope["client"] else ""


def _is_stray(scope: Scope, message: Message) -> bool:
    """Return whether this message begins the answer to an unknown path or method."""
    status = message.get("status")
    return status == 405 or (status == 404 and "endpoint" not in scope)


def _is_much(scope: Scope, client: str) -> bool:
    """Count a failed request, and return whether the client fails too often."""
    access: Access = scope["app"].state.context.access
    return access.asks_in_vain(client)


async def _hold(asking: Asking) -> None:
    """Hold the refusal of a client that asks too often."""
    with asking.resting():
        await asyncio.sleep(asking.hold_seconds())
