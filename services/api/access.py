"""Who may ask for what, and how often: tokens, roles, Business Centers and the rate."""

import math
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.api.errors import ApiError, permission_denied
from services.api.limits import RateLimit
from services.api.pages import require_no_stranger
from services.api.tokens import Caller, Verifier, unauthenticated
from shared.contracts.commands import Role
from shared.runtime.settings import Settings, is_loopback

PROBES = frozenset({"/healthz", "/readyz"})
ANYBODY = Caller("anybody", "admin", None)

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
        self._is_local = is_loopback(settings.http_host)

    async def identify(self, token: str | None, address: str) -> Caller:
        """Who asks. Raises ApiError: 401, 403, and 429 for who asks too often."""
        if self.verifier is None:
            self.count(f"address {address}")
            return ANYBODY
        try:
            if token is None:
                raise unauthenticated("send a token: Authorization: Bearer …", is_there=False)
            caller = await self.verifier.caller(token)
        except ApiError:
            self.count(f"address {address}")
            raise
        self.count(f"subject {caller.id}")
        return caller

    def refuse_strangers(self, request: Request) -> None:
        """Where no tokens are wanted: let no web page of somebody else in. Raises ApiError: 403, 415, 421."""
        if self.verifier is None:
            require_no_stranger(request.method, request.headers, is_local=self._is_local)

    def count(self, client: str) -> None:
        """Count a request of this client. Raises ApiError (429)."""
        wait_seconds = self._rate.take(client)
        if wait_seconds:
            headers = {"Retry-After": str(math.ceil(wait_seconds))}
            raise ApiError(429, "too_many_requests", "more requests than are taken: ask again a little later", headers)


def _access(request: Request) -> Access:
    access: Access = request.app.state.context.access
    return access


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


async def identify(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Caller:
    """Who asks: what every route that holds anybody's data depends on."""
    _access(request).refuse_strangers(request)
    token = None if credentials is None else credentials.credentials
    return await _access(request).identify(token, _address(request))


async def count_open(request: Request) -> None:
    """Count a request that needs no token. Probes are not: however busy an address is, they tell the truth."""
    if request.url.path not in PROBES:
        _access(request).refuse_strangers(request)
        _access(request).count(f"address {_address(request)}")


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
