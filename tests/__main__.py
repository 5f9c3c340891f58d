"""`make test`: runs the suite on the embedded servers and, if a Docker daemon answers, in containers as well.

Two processes run tests at the same time. One runs the slow tests on the embedded servers, the other those in
containers and then the quick ones on the embedded servers. The tests that judge times run after them, because then
nothing else needs the machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from typing import IO

from tests.containers import problem_of_docker


def run(arguments: list[str]) -> bool:
    """Run everything, and print what ran beside the slow tests after them; return whether all tests passed."""
    problem = problem_of_docker()
    if problem is not None:
        passed = _pytest("embedded", "all", arguments).wait() == 0
        print(f"drawdown: NOT tested on Apache Kafka and PostgreSQL: no Docker daemon answers: {problem}", flush=True)
        return passed and not _docker_is_expected()
    with tempfile.TemporaryFile() as output:
        slow = _pytest("embedded", "slow", arguments)
        beside = [_pytest("containers", "together", arguments, output).wait()]
        beside.append(_pytest("embedded", "quick", arguments, output).wait())
        codes = [slow.wait(), *beside]
        output.seek(0)
        print("\nIn containers, and then the quick tests on the embedded servers:", flush=True)
        shutil.copyfileobj(output, sys.stdout.buffer)
    print("\nThe tests that judge times:", flush=True)
    codes += [_pytest(servers, "alone", arguments).wait() for servers in ("embedded", "containers")]
    return not any(codes)


def _pytest(
    servers: str, part: str, arguments: list[str], output: IO[bytes] | None = None
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pytest", f"--servers={servers}", f"--part={part}", *arguments]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT if output else None)


def _docker_is_expected() -> bool:
    """Return whether Docker must answer: in a CI that has it, silently skipped tests would be misleading."""
    return bool(os.environ.get("CI")) and shutil.which("docker") is not None


if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1:]) else 1)
