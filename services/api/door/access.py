"""Who may ask for what, and how often: tokens, roles, Business Centers and the rate."""

import asyncio
from collections.abc import Awaitable, Callable
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
from shared.contracts.commands import Role
from shared.runtime.settings import Settings, is_loopback

ANYBODY = Caller("anybody", "admin", None)
# How often a second an address may ask for what needs no token, or is not there; and where no tokens are wanted.
OPEN_A_SECOND: Final = 20
OPEN_A_SECOND_WITHOUT_TOKENS: Final = 200
# How often a second a client is told at once that its token is no good, or that there is no such path or method.
IN_VAIN_A_SECOND: Final = 50
# A longer body counts as one more request for each as many bytes.
BYTES_OF_A_REQUEST: Final = 1_024
# The pool has eight connections to the database; some are for commands, and for who looks for their outcomes.
READS_AT_ONCE: Final = 6
COMMANDS_AT_ONCE: Final = 256
BEGINNINGS_AT_ONCE: Final = 4
# Requests of one subject that may wait for their turn.
WAITING_AT_MOST: Final = 256
# Where the gate puts who asks.
CALLER: Final = "drawdown.caller"

_BEARER = HTTPBearer(
    bearerFormat="JWT",
    auto_error=False,
    scheme_name="token",
    description="A JSON Web Token with the claims `sub`, `role` and `business_centers`. Not asked for where "
    "DRAWDOWN_API_AUTHENTICATION is off.",
)


class Access:
    """What lets requests in. Without tokens everybody is an administrator of everything."""

    def __init__(self, settings: Settings) -> None:
        """Raises BadSettingError when tokens are wanted and there are no keys to check them with."""
        self.verifier = Verifier(settings) if settings.api_wants_tokens else None
        self._rate = RateLimit(settings.http_rate)
        self._in_vain_rate = RateLimit(IN_VAIN_A_SECOND)
        self._open_rate = RateLimit(OPEN_A_SECOND if self.verifier else OPEN_A_SECOND_WITHOUT_TOKENS)
        self._is_local = is_loopback(settings.http_host)
        # A command mostly waits, a read is work. Without tokens there is nobody to protect from another.
        in_flight = settings.http_in_flight if self.verifier else COMMANDS_AT_ONCE
        waiting = WAITING_AT_MOST if self.verifier else CONNECTIONS_AT_MOST
        self.commands = Turns(COMMANDS_AT_ONCE, in_flight, in_flight, waiting)
        self._beginnings = Turns(BEGINNINGS_AT_ONCE, 1, 1, CONNECTIONS_AT_MOST)
        self.reads = Turns(READS_AT_ONCE, 1 if self.verifier else READS_AT_ONCE, in_flight, waiting)

    async def begin(self, headers: Headers, address: str) -> None:
        """Wait until a request may begin: of one token, or of one address without, one in each pass of the loop.

        What is refused, or answered at once, costs little, but forty of them in each pass make everybody wait. Raises
        ApiError (429).
        """
        async with self._beginnings.turn(headers.get("authorization", address)):
            await asyncio.sleep(0)

    async def identify(self, method: str, headers: Headers, address: str) -> tuple[Caller, str]:
        """Who asks, and as which client that counts. Raises ApiError: 401, 403, 415, 421, and 429."""
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
        """Count a body of so many bytes: it takes time to read."""
        self._rate.add(client, size // BYTES_OF_A_REQUEST)

    def asks_in_vain(self, client: str) -> bool:
        """Count what was asked in vain; True: too often."""
        return self._in_vain_rate.take(client) > 0

    def admit(self, method: str, headers: Headers, address: str) -> None:
        """Let anybody in to what holds nobody's data. Raises ApiError: 403, 415, 421, and 429."""
        client = f"address {address}"
        if self.verifier is None:
            self._refuse_strangers(method, headers, client)
        _count(self._open_rate, client)

    def _refuse_strangers(self, method: str, headers: Headers, client: str) -> None:
        """Where no tokens are wanted: let no web page of somebody else in."""
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
    """The bearer token (RFC 6750, section 2.1). Raises ApiError (401): there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated("send a token: Authorization: Bearer …", is_there=False)
    return token


def _identified(request: Request) -> Caller:
    """Who asks: the gate has seen to it."""
    caller: Caller = request.scope[CALLER]
    return caller


async def identify(request: Request, _: Annotated[object, Security(_BEARER)]) -> Caller:
    """Who asks: what every route that holds anybody's data depends on."""
    return _identified(request)


AnyRole = Annotated[Caller, Depends(identify)]


def _in(*roles: Role) -> Callable[[Caller], Awaitable[Caller]]:
    async def require(caller: AnyRole) -> Caller:
        if caller.role not in roles:
            raise permission_denied(f"the role {caller.role} may not do this")
        return caller

    return require


# Delivery and budgets are everybody's to read. Commands are decided by the rules, with the caller's role.
FinanceReader = Annotated[Caller, Depends(_in("admin", "finance_manager", "finance_analyst", "system"))]
FinanceWriter = Annotated[Caller, Depends(_in("admin", "finance_manager", "system"))]
