"""The headers of a record as the ledger keeps them: `[[name, base64 value or null], …]`."""

import json
from base64 import b64decode
from typing import Any


def read_headers(kept: str | None) -> list[tuple[str, bytes | None]]:
    """Return the headers of a forwarded record as they came. Raise ValueError if `kept` is not a list of headers."""
    try:
        headers = json.loads(kept) if kept is not None else []
    except RecursionError as error:
        raise ValueError("they are nested too deeply") from error
    if not isinstance(headers, list):
        raise ValueError("they are not a list")  # noqa: TRY004 - the content is wrong, not an argument's type
    return [_header(each) for each in headers]


def _header(kept: Any) -> tuple[str, bytes | None]:
    match kept:
        case [str(name), None]:
            return name, None
        case [str(name), str(value)]:
            return name, b64decode(value, validate=True)
    raise ValueError("a header is not a name with a value in base64")
