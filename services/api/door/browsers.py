"""Protects an API without tokens from web pages of other sites in a browser on this machine.

A browser never sends a bearer token by itself. Without authentication every request that reaches the API is let in, so
requests that a page of another site may have caused are refused: those that name another host than this machine
(including by DNS rebinding), those from another origin, and writes that a browser would send without a preflight.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from services.api.door.errors import ApiError, permission_denied
from shared.runtime.settings import is_loopback

# A name or an address, and optionally a port (RFC 9110, section 7.2).
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


def require_no_stranger(method: str, headers: Mapping[str, str], *, is_local: bool) -> None:
    """Refuse a request that a page of another site may have caused.

    Args:
        method: the method of the request.
        headers: the headers of the request, with names in lower case.
        is_local: whether the API listens on this machine only. If not, requests may also name its address, or a name
            without a dot (of a container), because the public DNS has no such names.

    Raises:
        ApiError: 421 for another host, 403 for another origin, 415 for a write that does not declare JSON.

    """
    host = headers.get("host", "")
    if not _is_ours(host, is_local=is_local):
        raise ApiError(421, "misdirected", f"without tokens this API answers only as {_names(is_local=is_local)}")
    origin = headers.get("origin")
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") or not _is_same(origin, host):
        raise permission_denied("pages of other sites may not call an API without authentication")
    if method not in _READS and not _is_json(headers.get("content-type"), is_page=origin is not None):
        raise ApiError(415, "unsupported_media_type", "a write should have the header content-type: application/json")


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
    """Return the host of a URL; None if the URL is malformed."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # Raises ValueError for a malformed port.
    except ValueError:
        return None
    return parts.hostname


def _is_same(origin: str | None, host: str) -> bool:
    """Return whether the request has no origin, as from a program, or this API's own. A proxy in front may add TLS."""
    if origin is None:
        return True
    scheme, _, authority = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(default) and authority.removesuffix(default) == host.lower().removesuffix(default)


def _is_json(content_type: str | None, *, is_page: bool) -> bool:
    """Return whether the body is declared as JSON. A program may omit the type; a page that does avoids a preflight."""
    if content_type is None:
        return not is_page
    return content_type.partition(";")[0].strip().lower() == "application/json"
