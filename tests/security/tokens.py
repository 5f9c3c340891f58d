"""The door of tokens: forged tokens, other tenants' ids, and roles."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.integration.tokens import Issuer
from tests.security.check import Check, require
from tests.security.target import Target
from tests.security.tenants import Tenant, a_command, an_account, give, is_charged, open_tenant, publish

_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_DAY_SECONDS = 86_400
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _by_hand(header: object, claims: object, sign: Callable[[bytes], bytes]) -> str:
    """Return a token as no library would make it."""
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, claims)]
    text = ".".join(map(_base64url, parts))
    return f"{text}.{_base64url(sign(text.encode()))}"


def _signature(issuer: Issuer, text: bytes) -> tuple[int, int]:
    return decode_dss_signature(issuer.key.sign(text, ec.ECDSA(hashes.SHA256())))


def _as_jose(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _headers(issuer: Issuer) -> dict[str, str]:
    """Return tokens whose heads name another key. The signature is valid unless the attack needs another key."""
    stranger = ec.generate_private_key(ec.SECP256R1())
    own = {
        name: str(value)
        for name, value in jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key(), as_dict=True).items()
    }

    def signed(header: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
        def sign(text: bytes) -> bytes:
            return _as_jose(*decode_dss_signature(key.sign(text, ec.ECDSA(hashes.SHA256()))))

        return _by_hand({"alg": "ES256", "typ": "JWT", **header}, issuer.claims(), sign)

    ids: dict[str, object] = {
        "a path": "../../../../dev/null",
        "SQL": "' OR '1'='1",
        "a list": [issuer.key_id],
        "null": None,
        "a number": 1,
        "in another case": issuer.key_id.swapcase(),
    }
    kid = {"kid": issuer.key_id}
    return {
        **{f"kid is {what}": signed({"kid": value}, stranger) for what, value in ids.items()},
        "jwk in the head": signed({**kid, "jwk": own}, stranger),
        "jku in the head": signed({**kid, "jku": "http://127.0.0.1:1/keys.json"}, stranger),
        "x5u in the head": signed({**kid, "x5u": "http://127.0.0.1:1/x.pem"}, stranger),
        "b64 is false": signed({**kid, "b64": False, "crit": ["b64"]}, issuer.key),
        "an unknown crit": signed({**kid, "crit": ["drawdown"], "drawdown": 1}, issuer.key),
    }


def _algorithms(issuer: Issuer) -> dict[str, str]:
    """Return tokens without a signature, or signed with a public value as the key."""
    public = issuer.key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    file = issuer.keys_file.read_bytes()
    jwk = json.dumps(json.loads(file)["keys"][0], separators=(",", ":")).encode()
    secrets = {"the PEM": pem, "the DER": der, "the key set": file, "the JWK": jwk, "nothing": b""}
    claims = issuer.claims()

    def head(algorithm: object) -> dict[str, object]:
        return {"alg": algorithm, "kid": issuer.key_id}

    def keyed(secret: bytes) -> Callable[[bytes], bytes]:
        return lambda text: hmac.digest(secret, text, hashlib.sha256)

    def good(text: bytes) -> bytes:
        return _as_jose(*_signature(issuer, text))

    spellings = ("none", "None", "NONE", "nOnE", "", None, ["ES256"], 256)
    return {
        **{f"alg {each!r}, unsigned": _by_hand(head(each), claims, lambda _: b"") for each in spellings},
        **{f"HS256 with {what}": _by_hand(head("HS256"), claims, keyed(secret)) for what, secret in secrets.items()},
        **{
            f"{each} over an ES256 signature": _by_hand(head(each), claims, good)
            for each in ("ES384", "RS256", "EdDSA")
        },
        "r = s = 0": _by_hand(head("ES256"), claims, lambda _: _as_jose(0, 0)),
        "r = s = n": _by_hand(head("ES256"), claims, lambda _: _as_jose(_ORDER, _ORDER)),
        "a signature that is short": _by_hand(head("ES256"), claims, lambda text: good(text)[:-1]),
        "a signature in DER": _by_hand(
            head("ES256"), claims, lambda text: issuer.key.sign(text, ec.ECDSA(hashes.SHA256()))
        ),
    }


def _claims(issuer: Issuer) -> dict[str, str]:
    """Return tokens with a valid signature and wrong claims."""
    now = int(time.time())
    odd: dict[str, dict[str, Any]] = {
        "aud is a number": {"aud": 1},
        "aud in another case": {"aud": "Drawdown"},
        "exp past the leeway": {"exp": now - 31},
        "nbf ahead of it": {"nbf": now + 40},
        "iat ahead of it": {"iat": now + 40},
        "sub is no id": {"sub": "an n"},
        "sub is too long": {"sub": "a" * 65},
        "role is unknown": {"role": "root"},
        "role is a list": {"role": ["admin"]},
        "business_centers is ['*']": {"business_centers": ["*"]},
        "business_centers is '**'": {"business_centers": "**"},
        "business_centers is true": {"business_centers": True},
        "business_centers is missing": {"business_centers": None},
    }
    raw = {
        "exp is NaN": b'"exp":NaN',
        "exp is 1e400": b'"exp":1e400',
        "exp is null": b'"exp":null',
        "exp has 6,000 digits": b'"exp":' + b"9" * 6_000,
        "not UTF-8": b'"exp":9999999999,"x":"\xff"',
        "nested ten thousand deep": b'"exp":9999999999,"x":' + b"[" * 1_000 + b"]" * 1_000,
    }

    def signed(end: bytes) -> str:
        text = b'{"sub":"ann","role":"admin","business_centers":"*","aud":"drawdown",' + end + b"}"
        return _by_hand({"alg": "ES256", "kid": issuer.key_id}, text, lambda each: _as_jose(*_signature(issuer, each)))

    return {
        **{what: issuer.token(**changes) for what, changes in odd.items()},
        **{what: signed(end) for what, end in raw.items()},
    }


def _shapes(issuer: Issuer) -> dict[str, str]:
    good = issuer.token()
    head, payload, signature = good.split(".")
    return {
        "two parts": f"{head}.{payload}",
        "five parts": f"{good}.{head}.{payload}",
        "an empty head": f".{payload}.{signature}",
        "padded": f"{head}.{payload}.{signature}==",
        "with a blank": f"{head}. {payload}.{signature}",
    }


async def forged(target: Target) -> str:
    """Send every forged token to the API."""
    issuer = target.issuer
    every = {
        **issuer.bad_tokens(),
        **_algorithms(issuer),
        **_headers(issuer),
        **_claims(issuer),
        **_shapes(issuer),
    }
    let_in = []
    for what, token in every.items():
        answer = await target.ask("GET", "/v1/business-centers", token)
        if answer.status_code not in _REFUSED:
            let_in.append(f"{what}: {answer.status_code}")
    require(not let_in, let_in)
    return f"{len(every)} tokens, all 401 or 403"


async def huge(target: Target) -> str:
    """Send a token of 70 KB, and send none."""
    answer = await target.ask("GET", "/v1/business-centers", "x" * 70_000)
    require(400 <= answer.status_code < 500, answer.status_code)
    nobody = await target.ask("GET", "/v1/business-centers")
    require(nobody.status_code == httpx.codes.UNAUTHORIZED, nobody.status_code)
    return f"70 KB: {answer.status_code}, none: {nobody.status_code}"


async def traffic_token(target: Target) -> str:
    """Check the rights of the traffic generator's token."""
    path = target.secrets / "api" / "traffic-token"
    if not path.exists():
        return "there is none"
    claims = jwt.decode(path.read_text().strip(), options={"verify_signature": False})
    lasts = claims["exp"] - claims["iat"]
    require(
        claims["business_centers"] != "*", f"it is good for all Business Centers, for {lasts / _DAY_SECONDS:.0f} days"
    )
    require(lasts <= _DAY_SECONDS, f"it is good for {lasts / _DAY_SECONDS:.0f} days")
    return f"{claims['role']} of {len(claims['business_centers'])} Business Centers, for {lasts / 3600:.0f} h"


_READS = (
    "/v1/business-centers/{bc}",
    "/v1/business-centers/{bc}?at={at}",
    "/v1/business-centers/{bc}/ad-accounts",
    "/v1/business-centers/{bc}/series",
    "/v1/ad-accounts/{account}",
    "/v1/ad-accounts/{account}?at={at}",
    "/v1/ad-accounts/{account}/series",
    "/v1/ad-accounts/{account}/campaigns/brand",
    "/v1/ad-accounts/{account}/campaigns/brand?at={at}",
    "/v1/ledger?business_center_id={bc}",
    "/v1/ledger?ad_account_id={account}",
    "/v1/ledger?source_event_id={event}",
    "/v1/ledger?business_center_id={bc}&after=1-1",
)
_WRITES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "/v1/events/lookup", {"event_ids": ["{event}"]}),
    ("POST", "/v1/quarantine/replay", {"ids": ["{record}"]}),
    ("POST", "/v1/commands", {"type": "deposit_cash", "business_center_id": "{bc}", "amount": "1"}),
)


async def ids_of_other_tenants(target: Target) -> str:
    """As one tenant, read another tenant's ids, and ids that do not exist."""
    mine, other = await open_tenant(target), await open_tenant(target)
    spend = other.spend("1")
    await _spend_and_wait(target, other, spend)
    token = target.token("finance_manager", [mine.id])
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    theirs = {"bc": other.id, "account": other.account, "event": spend["event_id"], "record": "0-1", "at": at}
    unknown = {
        "bc": "x" * len(other.id), "account": "y" * len(other.account), "event": str(uuid.uuid4()),
        "record": "0-999999999", "at": at,
    }  # fmt: skip
    told = [
        path
        for method, path, body in [*(("GET", path, None) for path in _READS), *_WRITES]
        if await _said(target, token, method, path, body, theirs)
        != await _said(target, token, method, path, body, unknown)
    ]
    require(not told, f"another's is told from what is not there by {told}")
    return f"{len(_READS) + len(_WRITES)} comparisons, the same status and the same words"


async def _spend_and_wait(target: Target, tenant: Tenant, spend: dict[str, Any]) -> None:
    await publish(target, tenant, [spend])
    require(await is_charged(target, spend["event_id"]), "a good spend is not charged")


async def _said(
    target: Target, token: str, method: str, path: str, body: dict[str, Any] | None, ids: dict[str, str]
) -> tuple[int, str]:
    """Return status and body, with placeholders instead of ids."""
    options: dict[str, Any] = {}
    if body is not None:
        text = json.dumps({"command_id": str(uuid.uuid4()), "issued_at": ids["at"], **body})
        for name, value in ids.items():
            text = text.replace("{" + name + "}", value)
        options = {"content": text, "headers": {"Content-Type": "application/json"}}
    answer = await target.ask(method, path.format(**ids), token, **options)
    said = answer.text
    for name, value in ids.items():
        said = said.replace(value, name)
    return answer.status_code, said


async def roles(target: Target) -> str:
    """Send commands that the role forbids, and check that nothing of them is stored."""
    tenant = await open_tenant(target)
    forbidden = [
        a_command(tenant.id, "deposit_cash", amount="1"),
        a_command(tenant.id, "set_credit_line", limit="1"),
        a_command(tenant.id, "grant_voucher", voucher_id="v", amount="1", ad_account_id=tenant.account,
                  campaign_ids=[f"c{n}" * 10 for n in range(900)]),
        a_command(tenant.id, "open_ad_account", **an_account(f"{tenant.id}-2")),
    ]  # fmt: skip
    for role in ("finance_analyst", "standard"):
        token = target.token(role, [tenant.id])
        answers = await asyncio.gather(
            *(give(target, token, {**each, "command_id": str(uuid.uuid4())}) for each in forbidden)
        )
        for answer in answers:
            code = answer.json().get("code")
            require((answer.status_code, code) == (422, "permission_denied"), f"{role}: {answer.text[:200]}")
    (kept,) = await target.rows(
        f"SELECT count(*), coalesce(sum(octet_length(content::text)), 0) FROM ledger.outcomes "
        f"WHERE business_center_id = '{tenant.id}' AND status = 'rejected'"
    )
    require(int(kept[0]) == 0, f"all were refused, and {kept[0]} of them are kept with {kept[1]} bytes")
    return f"{2 * len(forbidden)} refused, nothing kept"


async def long_refusals(target: Target) -> str:
    """As an admin, send long commands that the ledger must refuse."""
    tenant = await open_tenant(target)
    command = a_command(tenant.id, "grant_voucher", voucher_id="v", amount="1", ad_account_id="nobody",
                        campaign_ids=[f"c{n}" * 10 for n in range(900)])  # fmt: skip
    answer = await give(target, target.token(centers=[tenant.id]), command)
    require(answer.status_code == 422, f"{answer.status_code} {answer.text[:200]}")
    again = await give(target, target.token(centers=[tenant.id]), command)
    (kept,) = await target.rows(
        f"SELECT max(octet_length(content::text)) FROM ledger.outcomes WHERE business_center_id = '{tenant.id}'"
        " AND status = 'rejected'"
    )
    require(int(kept[0]) <= 1_100, f"{len(json.dumps(command))} bytes were refused, and {kept[0]} are kept")
    return f"of {len(json.dumps(command))} bytes {kept[0]} are kept; again: {again.json().get('code')}"


CHECKS = (
    Check("tokens", "forged", "algorithms, keys, heads, claims and shapes that prove nothing", forged),
    Check("tokens", "huge", "a token of 70 KB, and none", huge),
    Check("tokens", "traffic", "what the token of the traffic generator is good for", traffic_token),
    Check("tokens", "others", "another tenant's ids against ids that nobody has", ids_of_other_tenants),
    Check("tokens", "roles", "commands that an analyst and a standard user may not give", roles),
    Check("tokens", "refusals", "long commands that are refused", long_refusals),
)
