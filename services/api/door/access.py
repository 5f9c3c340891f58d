"""Decides which caller may use which route, and how often: by token, role, Business Centers and rate."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers

from services.api.door.browsers import require_no_stranger
from services.api.door.connections import CONNECTIONS_AT_MOST
from services.api.door.errors import ApiError, permission_denied, too_many_requests
from services.api.door.limits import RateLimit
from services.api.door.tokens import Caller, Verifier, unauthenticated
from services.api.door.turns import Turns
from shared.rules.vocabulary import ACTOR_ROLES
from shared.runtime.settings import Settings, is_loopback

ANYBODY = Caller("anybody", "admin", None)
# Requests a second of one address to paths that need no token or do not exist; and to all paths without authentication.
OPEN_A_SECOND: Final = 20
OPEN_A_SECOND_WITHOUT_TOKENS: Final = 200
# Errors a second that one client gets at once: for invalid tokens, unknown paths and methods. The answers to further
# ones are held.
IN_VAIN_A_SECOND: Final = 50
# A body counts as one more request for each this many bytes.
BYTES_OF_A_REQUEST: Final = 1_024
# The pool has eight connections to the database; two stay for commands and for the task that reads their outcomes.
READS_AT_ONCE: Final = 6
COMMANDS_AT_ONCE: Final = 256
BEGINNINGS_AT_ONCE: Final = 4
# Requests of one subject that may wait for their turn.
WAITING_AT_MOST: Final = 256
# The key of the request's scope under which the gate stores the caller.
CALLER: Final = "drawdown.caller"

_BEARER = HTTPBearer(
    bearerFormat="JWT",
    auto_error=False,
    scheme_name="token",
    description="A JSON Web Token with the claims `sub`, `role` and `business_centers`. Not needed if "
    "DRAWDOWN_API_AUTHENTICATION is off.",
)


class Access:
    """Lets requests in. Without authentication every caller is an administrator of all Business Centers."""

    def __init__(self, settings: Settings) -> None:
        """Raise BadSettingError if authentication is on and there are no keys to check tokens with."""
        self.verifier = Verifier(settings) if settings.api_wants_tokens else None
        self._rate = RateLimit(settings.http_rate)
        self._in_vain_rate = RateLimit(IN_VAIN_A_SECOND)
        self._open_rate = RateLimit(OPEN_A_SECOND if self.verifier else OPEN_A_SECOND_WITHOUT_TOKENS)
        self._is_local = is_loopback(settings.http_host)
        # A command mostly waits, a read is work. Without tokens there are no subjects to protect from each other.
        in_flight = settings.http_in_flight if self.verifier else COMMANDS_AT_ONCE
        waiting = WAITING_AT_MOST if self.verifier else CONNECTIONS_AT_MOST
        self.commands = Turns(COMMANDS_AT_ONCE, in_flight, in_flight, waiting)
        self._beginnings = Turns(BEGINNINGS_AT_ONCE, 1, 1, CONNECTIONS_AT_MOST)
        self.reads = Turns(READS_AT_ONCE, 1 if self.verifier else READS_AT_ONCE, in_flight, waiting)

    async def begin(self, headers: Headers, address: str) -> None:
        """Wait until a request may begin: in each pass of the event loop one request of a token or address begins.

        A request that is refused or answered at once costs little, but forty of them in each pass delay all others.

        Raises:
            ApiError: 429 when too many requests wait, or this one has waited too long.

        """
        async with self._beginnings.turn(headers.get("authorization", address)):
            await asyncio.sleep(0)

    async def identify(self, method: str, headers: Headers, address: str) -> tuple[Caller, str]:
        """Return the caller, and the client to which the request counts.

        Raises:
            ApiError: 401, 403, 415, 421 or 429.

        """
        client = f"address {address}"
        if self.verifier is None:
            self._refuse_strangers(method, headers, client)
            _count(self._rate, client)
            return ANYBODY, client
        try:
            caller = await self.verifier.caller(_token_of(headers))
        except ApiError:
            _count(self._rate, client)
            raise
        client = f"subject {caller.id}"
        _count(self._rate, client)
        return caller, client

    def has_sent(self, client: str, size: int) -> None:
        """Count a body of this many bytes as further requests, because reading it takes time."""
        self._rate.add(client, size // BYTES_OF_A_REQUEST)

    def asks_in_vain(self, client: str) -> bool:
        """Count a failed request, and return whether the client fails too often."""
        return self._in_vain_rate.take(client) > 0

    def admit(self, method: str, headers: Headers, address: str) -> None:
        """Let a request without a token in, to a path without customer data.

        Raises:
            ApiError: 403, 415, 421 or 429.

        """
        client = f"address {address}"
        if self.verifier is None:
            self._refuse_strangers(method, headers, client)
        _count(self._open_rate, client)

    def _refuse_strangers(self, method: str, headers: Headers, client: str) -> None:
        """Without authentication, refuse requests from web pages of other sites."""
        try:
            require_no_stranger(method, headers, is_local=self._is_local)
        except ApiError:
            _count(self._open_rate, f"a page at {client}")
            raise


def _count(rate: RateLimit, client: str) -> None:
    """Count a request of this client. Raises ApiError (429)."""
    wait_seconds = rate.take(client)
    if wait_seconds:
        raise too_many_requests(wait_seconds)


def _token_of(headers: Headers) -> str:
    """Return the bearer token (RFC 6750, section 2.1). Raises ApiError (401) if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated("send a token: Authorization: Bearer …", is_there=False)
    return token


def _identified(request: Request) -> Caller:
    """Return the caller, whom the gate has identified."""
    caller: Caller = request.scope[CALLER]
    return caller


async def identify(request: Request, _: Annotated[object, Security(_BEARER)]) -> Caller:
    """Return the caller. Every route with customer data depends on this, so OpenAPI shows that it needs a token."""
    return _identified(request)


AnyRole = Annotated[Caller, Depends(identify)]


def _in(roles: Iterable[str]) -> Callable[[Caller], Awaitable[Caller]]:
    async def require(caller: AnyRole) -> Caller:
        if caller.role not in roles:
            raise permission_denied(f"the role {caller.role} may not do this")
        return caller

    return require


# All roles may read delivery and budgets. The rules decide on commands, by the caller's role.
FinanceReader = Annotated[Caller, Depends(_in([role.name for role in ACTOR_ROLES if role.reads_finance]))]
FinanceWriter = Annotated[Caller, Depends(_in([role.name for role in ACTOR_ROLES if role.writes_finance]))]
