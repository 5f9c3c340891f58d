"""Web pages and an API without tokens: a browser on this machine must not carry a stranger's page to it.

A token is shown by a program that has it, never by a browser by itself. Where none is wanted, whatever reaches the API
is let in. So a page's request is refused: it names another host than this machine (a name of the page's owner that
leads here, also by DNS rebinding), it comes from another origin, or it writes in a way that needs no preflight.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from services.api.door.errors import ApiError, permission_denied
from shared.runtime.settings import is_loopback

# A name or an address, and a port: nothing else may stand there (RFC 9110, 7.2).
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


def require_no_stranger(method: str, headers: Mapping[str, str], *, is_local: bool) -> None:
    """Let in who could be no page of another site.

    Args:
        method: of the request.
        headers: of the request, their names in lower case.
        is_local: whether the API listens on this machine alone. If not, it is asked by its address too, or by a name
            without a dot (of a container): such a name is nobody's in the public DNS.

    Raises:
        ApiError: 421 for another host, 403 for another origin, 415 for a write that is no JSON.

    """
    host = headers.get("host", "")
    if not _is_ours(host, is_local=is_local):
        raise ApiError(421, "misdirected", f"without tokens this API is asked as {_names(is_local=is_local)} only")
    origin = headers.get("origin")
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") or not _is_same(origin, host):
        raise permission_denied("pages of other sites may not ask where no tokens are wanted")
    if method not in _READS and not _is_json(headers.get("content-type"), is_page=origin is not None):
        raise ApiError(415, "unsupported_media_type", "a write should say content-type: application/json")


def _names(*, is_local: bool) -> str:
    return "localhost, 127.0.0.1 or [::1]" + ("" if is_local else ", by its address or by a name without a dot")


def _is_ours(host: str, *, is_local: bool) -> bool:
    name = _hostname(f"//{host}") if _HOST.fullmatch(host) else None
    if name is None:
        return False
    return is_loopback(name) or (not is_local and ("." not in name or _is_address(name)))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _hostname(url: str) -> str | None:
    """The name or address that a URL leads to; None: it leads nowhere."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # Raises where it is none.
    except ValueError:
        return None
    return parts.hostname


def _is_same(origin: str | None, host: str) -> bool:
    """Whether a page has the origin of this very API; a program has none. A proxy in front may add TLS."""
    if origin is None:
        return True
    scheme, _, authority = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(default) and authority.removesuffix(default) == host.lower().removesuffix(default)


def _is_json(content_type: str | None, *, is_page: bool) -> bool:
    """A program may leave the type out; a page that does could have sent the body without a preflight."""
    if content_type is None:
        return not is_page
    return content_type.partition(";")[0].strip().lower() == "application/json"
