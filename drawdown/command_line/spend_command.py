"""`drawdown spend send`: sends a file to a running system, shows progress, and reports the outcome."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from drawdown.api_client import ApiClient, ApiToken
from drawdown.local.spend_sending import File, prepare, send_and_report
from shared.runtime.settings import Settings


async def send_file(settings: Settings, path: Path, *, keep_times: bool) -> int:
    """Send a file and report the outcome of its rows; return the exit code.

    Args:
        settings: the addresses of Kafka and the API.
        path: JSON lines, CSV, or an iPinYou log.
        keep_times: do not shift the times.

    Raises:
        UnreadableFileError: the file contains no spend.

    """
    file = prepare(settings, path, keep_times=keep_times, say=print)
    api = f"http://{settings.http_client_host}:{settings.http_port}"
    async with ApiClient({"api": api}, ApiToken(settings)) as client:
        terminal = Console(stderr=True)
        if not terminal.is_terminal:
            return await send_and_report(settings, client, file, print)
        return await _with_bar(settings, client, file, terminal)


async def _with_bar(settings: Settings, client: ApiClient, file: File, terminal: Console) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task("sending", total=file.summary.rows)

        def progress(sent: int, decided: int) -> None:
            bar.update(task, completed=decided, description=f"sent {sent:,}, decided {decided:,}")

        return await send_and_report(settings, client, file, print, progress)
