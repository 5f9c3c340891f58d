"""Bearer tokens (RFC 6750): checks JSON Web Tokens (RFC 8725), and reads from them who the caller is."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jwt
from jwt.utils import base64url_decode, base64url_encode
from pydantic import BaseModel, ValidationError

from services.api.door.errors import ApiError, permission_denied
from services.api.door.keys import Keys, configured_keys
from services.api.door.withdrawn import Withdrawn
from shared.contracts.commands import Role
from shared.contracts.fields import Identifier
from shared.runtime.kafka import murmur2_partition
from shared.runtime.settings import Settings

# Clocks differ. Tokens are checked by the true time: their issuer knows nothing of DRAWDOWN_CLOCK_OFFSET_SECONDS.
LEEWAY_SECONDS = 30
_TIMES = ("exp", "nbf", "iat")
EVERYBODYS: Literal["*"] = "*"

_FORMS = {
    "sub": "an id: 1 to 64 of A-Z a-z 0-9 _ . : -",
    "role": f"one of {', '.join(get_args(Role))}",
    "business_centers": 'a list of ids, or "*" for all',
}
_SENTENCES = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience: see its aud",
    jwt.InvalidIssuerError: "the token is from another issuer: see its iss",
}


class _Claims(BaseModel):
    sub: Identifier
    role: Role
    business_centers: Literal["*"] | list[Identifier]


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request: id, role, and the Business Centers they may see (None means all)."""

    id: str
    role: Role
    business_centers: frozenset[str] | None

    def sees(self, business_center_id: str | None) -> bool:
        """Return whether the caller may see this Business Center; None stands for an unknown one."""
        return self.business_centers is None or business_center_id in self.business_centers

    @property
    def scope(self) -> list[str] | None:
        """Return the caller's Business Centers as a query parameter; None means all."""
        return None if self.business_centers is None else sorted(self.business_centers)

    def shards(self, count: int) -> list[int] | None:
        """Return the shards, of `count`, that hold the caller's Business Centers; None means all."""
        if self.business_centers is None:
            return None
        return sorted({murmur2_partition(each.encode(), count) for each in self.business_centers})

    def actor(self) -> dict[str, str]:
        """Return the caller as the actor of a command."""
        return {"id": self.id, "role": self.role}


class Verifier:
    """Checks tokens with the keys, the audience and the issuer from the settings."""

    def __init__(self, settings: Settings) -> None:
        """Raise BadSettingError if the settings name no usable keys."""
        self._keys: Keys = configured_keys(settings)
        self._audience = settings.api_audience
        self._issuer = settings.api_issuer
        self._withdrawn = Withdrawn(settings.api_withdrawn_file)

    async def caller(self, token: str) -> Caller:
        """Return the caller that a token names.

        Raises:
            ApiError: 401 for a token that is not valid, 403 for one whose claims are not usable, 503 without keys.

        """
        try:
            return _caller(await self._claims(token))
        except jwt.PyJWTError as error:
            raise unauthenticated(_sentence(error)) from None

    async def _claims(self, token: str) -> dict[str, Any]:
        if not _is_canonical(token):
            raise unauthenticated("the token is not in the form of RFC 7515: base64url without padding")
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        key = await self._keys.find(header.get("kid"), algorithm) if isinstance(algorithm, str) else None
        if key is None:
            raise unauthenticated("the token is signed with a key or an algorithm that is not accepted here")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"], "enforce_minimum_key_length": True},
        )
        for name in _TIMES:
            if type(claims.get(name, 0)) not in (int, float):
                raise unauthenticated(f"the token's {name} should be a number (RFC 7519, section 2)")
        if self._withdrawn.has(claims.get("jti")):
            raise unauthenticated("the token was withdrawn: request a new one")
        return claims


def unauthenticated(message: str, *, is_there: bool = True) -> ApiError:
    """Return a 401; `is_there` says that a token was sent, and is not valid."""
    problem = f', error="invalid_token", error_description="{message}"' if is_there else ""
    return ApiError(401, "unauthenticated", message, {"WWW-Authenticate": f'Bearer realm="drawdown"{problem}'})


def _is_canonical(token: str) -> bool:
    """Return whether each part is written in the only form that decodes to its bytes (RFC 7515, section 2)."""
    try:
        return all(base64url_encode(base64url_decode(part)).decode() == part for part in token.split("."))
    except ValueError:  # Not base64, or not ASCII.
        return False


def _sentence(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token lacks the claim {error.claim}"
    return next((text for kind, text in _SENTENCES.items() if isinstance(error, kind)), "the token is not valid")


def _caller(claims: dict[str, Any]) -> Caller:
    try:
        said = _Claims.model_validate(claims, strict=True)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise permission_denied(f"the token's {name} should be {_FORMS[name]}") from None
    centers = said.business_centers
    return Caller(said.sub, said.role, None if centers == EVERYBODYS else frozenset(centers))
