"""Finds heads of requests that a proxy in front and this process could read differently (request smuggling).

h11 accepts some of them, as RFC 9112 allows. Here they are refused, and their connection is closed.
"""

import re
from typing import Final

_END: Final = re.compile(rb"\r?\n\r?\n")
_BARE_LINE_END: Final = re.compile(rb"(?<!\r)\n")
_FOLDED: Final = re.compile(rb"\n[ \t]")
_REQUEST_LINE: Final = re.compile(rb"[^\r\n]* HTTP/1\.[01]")
_NAME: Final = re.compile(rb"\n([^\r\n:]*):", re.ASCII)
_LIST_OF_LENGTHS: Final = re.compile(rb"\ncontent-length[ \t]*:[^\r\n]*,", re.IGNORECASE)
# A request has at most one header of each of these names.
_ONCE: Final = (b"content-length", b"authorization")


def fault_of(received: bytes, seen: int = 0) -> str | None:
    """Return what is wrong with the head of a request; None if nothing is.

    Args:
        received: a whole head with what follows it, or the beginning of a head.
        seen: how many bytes an earlier call has checked already; they are not searched again.

    Sources: RFC 9112, sections 2.2 (line ends), 5.2 (folded lines), 6.1 (both lengths), 6.3 (one length); RFC 9110,
    section 11.6.2 (one `Authorization`).
    """
    end = _END.search(received, max(0, seen - 3))
    head = received[: end.end()] if end else received
    if _BARE_LINE_END.search(head, seen):
        return "The lines of a head should end with CR LF."
    if _FOLDED.search(head, max(0, seen - 1)):
        return "A header's value should be on one line."
    return _fault_of_whole(head) if end else None


def is_longer(received: bytes, most_bytes: int) -> bool:
    """Return whether the head that begins these bytes has more than this many, whole or not."""
    return len(received) > most_bytes and _END.search(received, 0, most_bytes) is None


def _fault_of_whole(head: bytes) -> str | None:
    line = head.partition(b"\r\n")[0]
    if not _REQUEST_LINE.fullmatch(line):
        return "The first line should end with HTTP/1.1 or HTTP/1.0."
    if _LIST_OF_LENGTHS.search(head):
        return "content-length should be one number."
    names = [name.strip().lower() for name in _NAME.findall(head)]
    for name in _ONCE:
        if names.count(name) > 1:
            return f"There should be one header {name.decode()}."
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return "There should be either content-length or transfer-encoding, not both."
    return "HTTP/1.0 has no transfer-encoding." if line.endswith(b"1.0") else None
