"""An expected error ends a command with one line that says what to do next."""

import os
import subprocess
import sys

import pytest

from tests.servers import free_ports


@pytest.mark.parametrize("command", [["list"], ["replay", "0-1"]], ids=" ".join)
def test_an_api_that_does_not_answer_is_named_with_its_address(command: list[str]) -> None:
    port = free_ports(1)
    ended = subprocess.run(
        [sys.executable, "-m", "drawdown", "quarantine", *command],
        env={**os.environ, "DRAWDOWN_HTTP_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert f"the API at http://127.0.0.1:{port} does not answer" in line
    assert "DRAWDOWN_HTTP_HOST and DRAWDOWN_HTTP_PORT" in line
