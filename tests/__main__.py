"""`make test`: runs the suite on the embedded servers and, if a Docker daemon answers, in containers as well.

Both run at the same time. The tests that judge times run after them, because then nothing else needs the machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from typing import IO

from tests.containers import problem_of_docker


def run(arguments: list[str]) -> bool:
    """Run both suites, and print the second's output after the first's; return whether all tests passed."""
    problem = problem_of_docker()
    if problem is not None:
        passed = _pytest("embedded", arguments).wait() == 0
        print(f"drawdown: NOT tested on Apache Kafka and PostgreSQL: no Docker daemon answers: {problem}", flush=True)
        return passed and not _docker_is_expected()
    with tempfile.TemporaryFile() as output:
        together = ["--alone=without", *arguments]
        both = [_pytest("embedded", together), _pytest("containers", together, output)]
        codes = [each.wait() for each in both]
        output.seek(0)
        print("\nThe same in containers:", flush=True)
        shutil.copyfileobj(output, sys.stdout.buffer)
    print("\nThe tests that judge times:", flush=True)
    codes += [_pytest(servers, ["--alone=only", *arguments]).wait() for servers in ("embedded", "containers")]
    return not any(codes)


def _pytest(servers: str, arguments: list[str], output: IO[bytes] | None = None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pytest", f"--servers={servers}", *arguments]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT if output else None)


def _docker_is_expected() -> bool:
    """Return whether Docker must answer: in a CI that has it, silently skipped tests would be misleading."""
    return bool(os.environ.get("CI")) and shutil.which("docker") is not None


if __name__ == "__main__":
    sys.exit(0 if run(sys.argv[1:]) else 1)
