"""Without tokens, a program on this machine is let in, and a page of another site is not."""

import pytest

from services.api.door.browsers import require_no_stranger
from services.api.door.errors import ApiError

PORT = ":8080"


def status(method: str = "POST", *, is_local: bool = True, **headers: str) -> int:
    """Return the status of the answer: 200 if the request is let in."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        require_no_stranger(method, {"host": "localhost:8080", **given}, is_local=is_local)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]", "127.0.0.1"])
def test_requests_under_the_names_of_this_machine_are_accepted(host: str) -> None:
    assert status(host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("rebind.evil.example:8080", "localhost.evil.example", "evil.example", "localhost.", "127.0.0.1.evil.example"),
        *(
            "localhost@evil.example",
            "localhost:80:80",
            "user@localhost",
            "user:word@127.0.0.1:8080",
            "localhost#.evil.example",
            "localhost/evil.example",
            "localhost?evil",
            "local host",
            "127.0.0.1:",
            "10.0.0.7:8080",
            "[fe80::1]",
            "api:8080",
            "",
            ":8080",
            "[",
            "[::1",
        ),
    ],
)
def test_a_request_for_another_host_is_misdirected(host: str) -> None:
    assert status("GET", host=host) == 421


@pytest.mark.parametrize(("host", "expected"), [("api:8080", 200), ("10.0.0.7", 200), ("[fd00::1]:80", 200)])
def test_an_api_that_others_can_reach_also_accepts_addresses_and_names_without_a_dot(host: str, expected: int) -> None:
    assert status(host=host, is_local=False) == expected
    assert status(host=host, is_local=True) == 421


@pytest.mark.parametrize("host", ["evil.example", "api.evil.example:8080", "evil.example.", "a.1x", ""])
def test_an_api_that_others_can_reach_refuses_a_name_that_somebody_may_own(host: str) -> None:
    assert status(host=host, is_local=False) == 421


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("localhost:8080", "http://localhost:8080", 200),
        ("localhost", "http://localhost:80", 200),
        ("localhost:8080", "https://localhost:8080", 200),
        ("[::1]:8080", "http://[::1]:8080", 200),
        ("localhost:8080", "http://localhost:3000", 403),
        ("localhost:8080", "http://127.0.0.1:8080", 403),
        ("localhost:8080", "http://evil.example", 403),
        ("localhost:8080", "http://localhost:8080.evil.example", 403),
        ("localhost:8080", "null", 403),
        ("localhost:8080", "", 403),
        ("localhost:8080", "file://localhost:8080", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_may_only_call_the_api_that_served_it(host: str, origin: str, expected: int, method: str) -> None:
    assert status(method, host=host, origin=origin, content_type="application/json") == expected


@pytest.mark.parametrize(
    ("site", "expected"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_the_sec_fetch_site_header_of_a_browser_is_checked(site: str, expected: int) -> None:
    assert status("GET", sec_fetch_site=site) == expected


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_write_that_needs_no_preflight_is_refused(kind: str) -> None:
    assert status("POST", content_type=kind) == status("PUT", content_type=kind) == 415
    assert status("GET", content_type=kind) == 200


def test_a_program_may_omit_the_content_type_and_a_page_may_not() -> None:
    assert status("POST") == 200
    assert status("POST", origin="http://localhost:8080") == 415
    assert status("POST", origin="http://localhost:8080", content_type="application/json; charset=utf-8") == 200
