"""The terminal's display: a live picture, or a line every five seconds if the output is not a terminal."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from drawdown.api_client import ApiClient, Figures
from drawdown.local.subscriber import Subscriber

_REFRESH_SECONDS = 0.5
_LINE_SECONDS = 5.0
_SIGNALS_SHOWN = 8
_MESSAGES_SHOWN = 6
_CENTERS_SHOWN = 8
_RATE_WINDOW_SECONDS = 10.0
_OUTCOMES = ("charged", "duplicate", "quarantined")


@dataclass
class Picture:
    """The figures of one moment. All of them come from the API and the metrics."""

    spends: dict[str, int] = field(default_factory=dict)
    spends_per_second: float = 0.0
    backlog: tuple[int, int] | None = None
    trouble: str | None = None
    centers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Observer:
    """Collects the figures from the API, the metrics and `delivery.signals`."""

    def __init__(self, client: ApiClient, subscriber: Subscriber) -> None:
        self._client = client
        self._subscriber = subscriber
        self._samples: deque[tuple[float, int]] = deque()
        self.centers: list[str] = []

    async def observe(self) -> Picture:
        """Return the present figures."""
        for signal in self._subscriber.latest:
            if signal["business_center_id"] not in self.centers:
                self.centers.append(signal["business_center_id"])
        shown = self.centers[:_CENTERS_SHOWN]
        figures, backlog, (status, detail), *models = await asyncio.gather(
            self._client.figures("allocation"),
            self._client.backlog(),
            self._client.readiness(),
            *(self._client.read(f"/v1/business-centers/{center}") for center in shown),
        )
        picture = Picture(backlog=backlog, trouble=None if status == "ready" else f"{status}: {detail}")
        picture.centers = [(center, model) for center, model in zip(shown, models, strict=True) if model]
        if figures is not None:
            self._count(picture, figures)
        return picture

    def _count(self, picture: Picture, figures: Figures) -> None:
        sums = figures.sums_by("drawdown_spends_total", "outcome")
        picture.spends = {outcome: round(sums.get(outcome, 0)) for outcome in _OUTCOMES}
        total, now = sum(picture.spends.values()), time.monotonic()
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()  # The service was restarted, so its counters begin at 0 again.
        self._samples.append((now, total))
        while now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()
        since, then = self._samples[0]
        if now > since:
            picture.spends_per_second = (total - then) / (now - since)


class _Terminal(Console):
    """Raises if the reader of our output has closed it, instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Screen:
    """Shows the picture, the latest signals and the messages."""

    def __init__(self, subscriber: Subscriber, on_gone: Callable[[], None]) -> None:
        """Prepare a screen that shows nothing yet.

        Args:
            subscriber: the source of the signals.
            on_gone: called when the terminal, or the reader of our output, has gone.

        """
        self.where: list[str] = []  # Lines with the addresses of everything.
        self._console = _Terminal()
        self._on_gone = on_gone
        self._subscriber = subscriber
        self._messages: deque[str] = deque(maxlen=_MESSAGES_SHOWN)
        self._live: Live | None = None
        self._began = time.monotonic()
        self._first_pause_said = False

    def say(self, text: str) -> None:
        """Show a message, within the picture if there is one, otherwise as a line."""
        self._messages.append(f"{time.strftime('%H:%M:%S')} {text}")
        if self._live is None:
            self._print(self._messages[-1])

    async def show(self, observer: Observer) -> None:
        """Show the observer's figures until cancelled."""
        for line in self.where:
            self._print(line)
        if self._console.is_terminal:
            await self._show_live(observer)
        else:
            await self._show_lines(observer)

    def _print(self, line: str) -> None:
        try:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        except OSError:
            self._on_gone()

    async def _show_live(self, observer: Observer) -> None:
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                while self._console.is_terminal:
                    live.update(self._picture(await observer.observe()), refresh=True)
                    self._say_first_pause()
                    await asyncio.sleep(_REFRESH_SECONDS)
            finally:
                self._live = None
        self._on_gone()

    async def _show_lines(self, observer: Observer) -> None:
        line_at = 0.0
        while True:
            self._say_first_pause()
            if time.monotonic() >= line_at:
                self.say(_line(await observer.observe(), self._subscriber))
                line_at = time.monotonic() + _LINE_SECONDS
            await asyncio.sleep(_REFRESH_SECONDS)

    def _say_first_pause(self) -> None:
        first = self._subscriber.first_pause
        if first is not None and not self._first_pause_said:
            self._first_pause_said = True
            self.say(f"the first pause, {time.monotonic() - self._began:.0f} s after the start: {_told(first)}")

    def _picture(self, picture: Picture) -> RenderableType:
        head = Text()
        head.append(f"{picture.spends_per_second:,.0f} spends/s", style="bold green")
        head.append(f"   {_counts(picture)}   {_lag(picture)}\n")
        head.append(f"{self._subscriber.paused} paused now, {self._subscriber.pauses} pauses, ")
        head.append(f"{self._subscriber.resumes} resumes so far")
        if picture.trouble is not None:
            head.append(f"\n{picture.trouble}", style="bold red")
        where, messages = (Text("\n".join(lines), style="dim") for lines in (self.where, self._messages))
        return Group(where, head, _centers_table(picture), self._signals_table(), messages)

    def _signals_table(self) -> Table:
        table = Table("when", "what", "who", "cause", title="latest pauses and resumes", title_justify="left", box=None)
        for signal in list(self._subscriber.latest)[: -_SIGNALS_SHOWN - 1 : -1]:
            style = {"paused": "red", "resumed": "green"}.get(signal["change"], "yellow")
            table.add_row(_time(signal), Text(signal["change"], style=style), _who(signal), signal["cause"])
        return table


def _centers_table(picture: Picture) -> Table:
    table = Table(title="Business Centers", title_justify="left", box=None)
    table.add_column("")
    for name in ("available", "cash", "voucher", "credit line", "billed", "overdelivered"):
        table.add_column(name, justify="right")
    table.add_column("allocation")
    for name, center in picture.centers:
        balance, spend = center["balance"], center["spend"]
        amounts = (balance["available"], balance["cash"], balance["voucher"], balance["credit_line"]["available"])
        figures = (*amounts, spend["billed"], spend["overdelivered"])
        how = "automatic" if center["automatic_allocation"]["enabled"] else "by hand"
        table.add_row(f"{name} ({center['currency']})", *(_money(figure) for figure in figures), how)
    return table


def _line(picture: Picture, subscriber: Subscriber) -> str:
    balances = ", ".join(
        f"{name} {_money(center['balance']['available'])} {center['currency']}" for name, center in picture.centers
    )
    latest = f"; last: {_told(subscriber.latest[-1])}" if subscriber.latest else ""
    trouble = "" if picture.trouble is None else f"{picture.trouble}; "
    return (
        f"{trouble}{picture.spends_per_second:,.0f} spends/s, {_counts(picture)}, {_lag(picture)}, "
        f"{subscriber.paused} paused{latest}; available: {balances or 'nothing yet'}"
    )


def _counts(picture: Picture) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in picture.spends.items()) or "nothing decided yet"


def _lag(picture: Picture) -> str:
    if picture.backlog is None:
        return "lag unknown"
    records, entries = picture.backlog
    return f"lag {records:,} records, followers {entries:,} entries"


def _told(signal: dict[str, Any]) -> str:
    return f"{_time(signal)} {_who(signal)} {signal['change']}, {signal['cause']}"


def _who(signal: dict[str, Any]) -> str:
    campaign = f"/{signal['campaign_id']}" if signal["entity"] == "campaign" else ""
    return f"{signal['ad_account_id']}{campaign}"


def _time(signal: dict[str, Any]) -> str:
    return str(signal["recorded_at"])[11:19]


def _money(text: str) -> str:
    return f"{Decimal(text):,.2f}"
