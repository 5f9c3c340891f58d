"""A request head that two parsers could read differently is refused. Every other head goes on to h11."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.heads import fault_of, is_longer

GOOD = b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "head",
    [
        GOOD,
        GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nAccept: b\r\nAccept: c\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\n\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\n\nGET / HTTP/1.2\n Content-Length: 5\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Content-Length: 1\r\nContent-Length: 0\r\nNote: content-length: 3\r\n\r\n",
    ],
)
def test_a_plain_request_head_has_no_fault(head: bytes) -> None:
    assert fault_of(head) is None


@pytest.mark.parametrize(
    ("changed", "to", "said"),
    [
        (b"Content-Length: 2", b"Content-Length: 2\r\nTransfer-Encoding: chunked", "not both"),
        (b"Content-Length: 2", b"TRANSFER-ENCODING : chunked\r\ncontent-length:2", "not both"),
        (b"Content-Length: 2", b"Content-Length: 2\r\nContent-Length: 2", "one header content-length"),
        (b"Content-Length: 2", b"Content-Length: 2\r\ncontent-length: 3", "one header content-length"),
        (b"Content-Length: 2", b"Content-Length: 2, 2", "one number"),
        (b"Content-Length: 2", b"content-LENGTH:2 ,2", "one number"),
        (b"Host: localhost", b"Authorization: Bearer a\r\nauthorization: Bearer a", "one header authorization"),
        (b"Host: localhost", b"Host: localhost\r\n there", "on one line"),
        (b"Host: localhost", b"Host: localhost\r\n\tthere", "on one line"),
        (b"Host: localhost\r\n", b"Host: localhost\n", "CR LF"),
        (b"\r\n\r\n", b"\n\n", "CR LF"),
        (b"\r\n\r\n", b"\r\n\n", "CR LF"),
        (b"\r\n\r\n", b"\n\r\n", "CR LF"),
        (b"\r\n", b"\n", "CR LF"),
        (b"HTTP/1.1", b"HTTP/1.2", "HTTP/1.1 or HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/2.0", "HTTP/1.1 or HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/1.10", "HTTP/1.1 or HTTP/1.0"),
        (b" HTTP/1.1", b"", "HTTP/1.1 or HTTP/1.0"),
        (
            b"HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2",
            b"HTTP/1.0\r\nTransfer-Encoding: chunked",
            "HTTP/1.0 has",
        ),
    ],
)
def test_a_head_that_can_be_read_in_two_ways_has_a_fault(changed: bytes, to: bytes, said: str) -> None:
    assert changed in GOOD
    fault = fault_of(GOOD.replace(changed, to))
    assert fault is not None
    assert said in fault


@given(st.integers(0, len(GOOD)), st.binary(max_size=8))
def test_any_bytes_can_be_checked_and_an_incomplete_head_has_no_fault(length: int, rest: bytes) -> None:
    fault_of(GOOD[:length] + rest)
    assert fault_of(GOOD[:length]) is None


LINES = st.tuples(
    st.sampled_from((b"a: b", b" folded", b"Transfer-Encoding: chunked", b"Content-Length: 2")),
    st.sampled_from((b"\r\n", b"\r\n", b"\r\n", b"\n")),
).map(b"".join)


@given(st.lists(LINES, max_size=3).map(b"".join))
def test_a_head_in_two_pieces_is_read_like_one_in_one_piece(lines: bytes) -> None:
    head = b"GET / HTTP/1.1\r\n" + lines + b"\r\n"
    is_good = fault_of(head) is None
    for cut in range(len(head)):
        fault = fault_of(head[:cut]) or fault_of(head, cut)
        assert (fault is None) is is_good


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("excess_bytes", "longer"), [(-1, False), (0, False), (1, True), (3, True)])
def test_a_head_is_too_long_whether_complete_or_not(excess_bytes: int, longer: bool, whole: bool) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    head += b"x" * (1_000 + excess_bytes - len(head) - len(b"\r\n\r\n"))
    assert is_longer(head + b"\r\n\r\n" if whole else head + b"xxxx", 1_000) is longer


def test_bytes_after_a_head_do_not_count_as_part_of_it() -> None:
    assert not is_longer(GOOD + b"x" * 2_000, len(GOOD))
