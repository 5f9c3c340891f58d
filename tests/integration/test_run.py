"""`drawdown run` shows a pause soon, ends in order however it is ended, and leaves nothing behind."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from drawdown.local.system import environment_of
from shared.runtime.settings import Settings
from tests.servers import LIMITS, embedded_settings

# The tests start what `make run` starts.
pytestmark = pytest.mark.embedded

ROOT = Path(__file__).parents[2]
FIRST_PAUSE_SECONDS = 90
END_SECONDS = 40


@dataclass
class Run:
    """A `drawdown run` whose output goes to a file."""

    settings: Settings
    output: Path
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[bytes]":
        # Only addresses that differ from the defaults, because the embedded servers are wanted.
        places = {"data_dir", "http_port", "kafka_port", "postgres_port"}
        chosen = {
            name: value
            for name, value in environment_of(self.settings).items()
            if name.removeprefix("DRAWDOWN_").lower() in places
        }
        with self.output.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "drawdown", "run", *arguments],
                env={**os.environ, **chosen, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, pattern: str, seconds: float = FIRST_PAUSE_SECONDS) -> "re.Match[str]":
        give_up_at = time.monotonic() + seconds
        while (match := re.search(pattern, self.said())) is None:
            assert time.monotonic() < give_up_at, f"{pattern!r} is not in:\n{self.said()}"
            assert self.processes[-1].poll() is None, f"ended with:\n{self.said()}"
            time.sleep(0.1)
        return match

    def family(self) -> set[int]:
        """Return the processes that the last run started, directly or indirectly."""
        return descendants(self.processes[-1].pid)


def descendants(pid: int) -> set[int]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    pairs = [(int(child), int(parent)) for child, parent in (line.split() for line in listing.splitlines())]
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in pairs if parent in new} - found
        found |= new
    return found


def running(pids: set[int]) -> list[str]:
    """Return the processes that exist and are not zombies, which their new parent reaps."""
    ids = ",".join(map(str, pids))
    listing = subprocess.run(["ps", "-o", "stat=,args=", "-p", ids], check=False, capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if not line.startswith("Z")]


def wait_until_gone(pids: set[int], seconds: float = END_SECONDS) -> None:
    give_up_at = time.monotonic() + seconds
    while left := running(pids):
        assert time.monotonic() < give_up_at, f"left behind: {left}"
        time.sleep(0.1)


@pytest.fixture
def run() -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="drawdown-run-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        started = Run(embedded_settings(Path(directory)), Path(directory) / "output")
        yield started
        for process in started.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_a_pause_appears_soon_and_ctrl_c_ends_everything_in_order(run: Run) -> None:
    process = run.start()
    run.wait_for(r"the first pause, \d+ s after the start: .* paused, \w+")
    family = run.family()
    assert len(family) >= 7  # two servers and five services
    process.send_signal(signal.SIGINT)
    assert process.wait(END_SECONDS) == 0
    assert "draining" in run.said()
    assert run.said().rstrip().endswith(f"the ledger stays in {run.settings.data_dir}")
    wait_until_gone(family, seconds=1)


def test_the_subscriber_in_the_readme_receives_pauses(run: Run, tmp_path: Path) -> None:
    run.start()
    run.wait_for("the first pause")
    section = (ROOT / "README.md").read_text("utf-8").partition("## A subscriber")[2]
    text = section.partition("```python\n")[2].partition("```")[0]
    program = tmp_path / "subscriber.py"
    program.write_text(text.replace("localhost:9092", f"localhost:{run.settings.kafka_port}"))
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.kill()
    assert re.fullmatch(r"(ad_account|campaign)/\S+ (delivers|pauses)\n", said)


def gross_spend(run: Run) -> float:
    with httpx.Client(base_url=f"http://127.0.0.1:{run.settings.http_port}", trust_env=False, limits=LIMITS) as client:
        return float(client.get("/v1/business-centers/outback-gear").json()["spend"]["gross"])


def test_a_second_run_continues_the_same_ledger(run: Run) -> None:
    process = run.start()
    run.wait_for("the first pause")
    seen = gross_spend(run)
    assert seen > 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(END_SECONDS) == 0

    again = run.start("--traffic", "off")
    run.wait_for("no traffic, as asked")
    assert gross_spend(run) >= seen
    again.send_signal(signal.SIGTERM)
    assert again.wait(END_SECONDS) == 0


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()


def hang_up(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGHUP)


def interrupt_twice(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(("end", "codes"), [(kill, {-9}), (hang_up, {0}), (interrupt_twice, {0, 130})])
def test_a_run_leaves_no_process_behind_however_it_ends_and_the_next_run_starts(
    end: Callable[["subprocess.Popen[bytes]"], None], codes: set[int], run: Run
) -> None:
    process = run.start()
    run.wait_for("spends a second from the traffic generator")
    family = run.family()
    end(process)
    assert process.wait(END_SECONDS) in codes
    again = run.start("--traffic", "off")
    run.wait_for("no traffic, as asked")
    wait_until_gone(family, seconds=1)
    again.send_signal(signal.SIGINT)
    assert again.wait(END_SECONDS) == 0


def test_closing_the_terminal_ends_the_run_even_without_a_signal(run: Run) -> None:
    main_end, terminal = pty.openpty()
    with os.fdopen(main_end, "rb", buffering=0) as screen:
        places = {f"DRAWDOWN_{name.upper()}": str(getattr(run.settings, name)) for name in
                  ("data_dir", "http_port", "kafka_port", "postgres_port")}  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "drawdown", "run"],
            env={**os.environ, **places, "TERM": "xterm-256color"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,  # It is not the controlling terminal, so no SIGHUP comes.
        )
        run.processes.append(process)
        os.close(terminal)
        seen = b""
        while b"spends/s" not in seen:
            seen += screen.read(65536)
        family = run.family()
    assert process.wait(END_SECONDS) == 0
    wait_until_gone(family, seconds=1)


def test_two_runs_cannot_share_a_data_directory(run: Run) -> None:
    process = run.start("--traffic", "off")
    run.wait_for("no traffic, as asked")
    first = run.output
    run.output = first.with_name("second")
    assert run.start().wait(END_SECONDS) == 1
    assert run.said() == (
        f"drawdown: another run uses {run.settings.data_dir} (process {process.pid}): "
        "a second run needs its own DRAWDOWN_DATA_DIR and ports\n"
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(END_SECONDS) == 0


async def test_a_port_in_use_ends_the_start_with_the_setting_to_change(run: Run) -> None:
    async with await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", run.settings.postgres_port):
        process = run.start()
        assert await asyncio.to_thread(process.wait, END_SECONDS) == 1
    expected = f"drawdown: port {run.settings.postgres_port} is taken: set DRAWDOWN_POSTGRES_PORT to a free one"
    assert run.said().splitlines()[-1] == expected


def test_a_bad_setting_ends_the_start_with_one_line(run: Run) -> None:
    assert run.start(DRAWDOWN_SHARDS="none").wait(END_SECONDS) == 2
    assert run.said().startswith("drawdown: DRAWDOWN_SHARDS: ")
    assert run.said().count("\n") == 1


def test_a_killed_service_is_restarted(run: Run) -> None:
    run.start("--traffic", "off")
    run.wait_for("no traffic, as asked")
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], check=True, capture_output=True, text=True).stdout
    (pid,) = (
        int(line.split()[0])
        for line in listing.splitlines()
        if int(line.split()[1]) == run.processes[-1].pid and line.endswith("drawdown balance")
    )
    os.kill(pid, signal.SIGKILL)
    run.wait_for(r"balance ended \(SIGKILL\); restarting in")
    url = f"http://127.0.0.1:{run.settings.http_port + 2}/readyz"
    give_up_at = time.monotonic() + 30
    while True:
        try:
            if httpx.get(url, trust_env=False).status_code == httpx.codes.OK:
                break
        except httpx.HTTPError:
            assert time.monotonic() < give_up_at
            time.sleep(0.1)


def test_a_file_of_spend_is_sent_and_its_outcome_reported(run: Run, tmp_path: Path) -> None:
    def event(number: int, **changes: str) -> dict[str, str]:
        return {
            "type": "spend",
            "event_id": str(uuid.UUID(int=number)),
            "business_center_id": "acme",
            "ad_account_id": "acme-us",
            "campaign_id": "brand",
            "amount": "0.25",
            "currency": "USD",
            "occurred_at": f"2013-10-21T12:00:{number % 60:02d}Z",
            **changes,
        }

    events = [event(number) for number in range(40)]
    events += [event(3), event(4, amount="0.26"), event(99, currency="EUR")]
    path = tmp_path / "spend.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in events) + "broken\n")

    process = run.start("--spend", str(path))
    run.wait_for(r"44 sent, 40 charged, 1 duplicate, 3 quarantined")
    run.wait_for(r"acme: gross 10\.000000, billed 10\.000000, overdelivered 0\.000000 USD")
    for reason in ("content_conflict", "currency_mismatch", "malformed"):
        assert f"quarantined, {reason}: 1" in run.said()
    process.send_signal(signal.SIGINT)
    assert process.wait(END_SECONDS) == 0
