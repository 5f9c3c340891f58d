"""Watches the writers of the shards for `/readyz`: the state that each reports, and which ones no longer report.

The state is read about once a second, apart from requests; `/readyz` answers with what was read last. All times are
compared by the database's clock.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Annotated, Any, Final

import asyncpg
from prometheus_client import Gauge
from pydantic import BaseModel, Field

from services.api.answers.models import Instant, time
from services.api.watching.looking import keep_looking
from shared.contracts.known import known
from shared.runtime.health import NOT_READY
from shared.runtime.settings import Settings

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 5.0  # for the database
STALE_SECONDS = 15.0  # without a successful look, what was seen is too old
SILENT_SECONDS = 5.0  # without a report from a shard's writer
BEHIND_SECONDS = 10.0  # how long a record may wait
AHEAD_SECONDS = 60.0  # how far ledger time may be ahead of the clock: domain page, section 1

READY: Final = "ready"
DEGRADED: Final = "degraded"

UNWRITTEN: Final = "unwritten"
WRITING: Final = "writing"
STOPPED: Final = "stopped"
# It was written until now, and its new owner has not reported yet, for no longer than a writer may be silent.
TAKEN: Final = "taken"
_BEHIND: Final = "behind"
_AHEAD: Final = "ahead"
_WELL: Final = frozenset({WRITING, TAKEN})

SHARDS_UNWRITTEN = Gauge("drawdown_shards_unwritten", "Shards that no process writes, or whose writer has stopped")

_LOOK = """
    SELECT s.shard, s.owner,
           EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'drawdown allocation %'
                   AND right(application_name, 8) = right(s.owner, 8)) AS is_alive,
           CASE WHEN s.owner IS NULL THEN coalesce(s.released_at, w.reported_at)
                ELSE greatest(a.renewed_at, w.reported_at) END AS seen_at,
           w.owner IS NOT DISTINCT FROM s.owner AS is_reported,
           w.reported_at < clock_timestamp() - make_interval(secs => $1) AS is_silent,
           w.waiting_since < clock_timestamp() - make_interval(secs => $2) AS is_behind,
           s.ledger_time > clock_timestamp() + make_interval(secs => $3) + make_interval(secs => $4) AS is_ahead,
           s.ledger_time, w.state, w.detail, w.since, w.waiting_records, w.waiting_since, w.reported_at
    FROM ledger.shards s LEFT JOIN ledger.shard_states w USING (shard)
        LEFT JOIN ledger.allocators a ON a.owner = s.owner
    ORDER BY s.shard
"""


class ShardReadiness(BaseModel):
    """The writer of a shard and its state. `since` is of the state, `waiting_since` of the oldest waiting record."""

    shard: int
    state: Annotated[str, known(WRITING, "loading", "waiting", STOPPED, TAKEN, UNWRITTEN)]
    owner: str | None
    since: Instant | None
    waiting_records: int
    waiting_since: Instant | None
    detail: str


class Readiness(BaseModel):
    """Whether the process can serve, and whether the ledger is being written."""

    status: Annotated[str, known(READY, DEGRADED, NOT_READY)]
    detail: Annotated[str, Field(examples=["nobody has written shard 2 since 2026-11-21T12:00:00Z"])]
    shards: list[ShardReadiness]


@dataclass(eq=False, slots=True)
class Writers:
    """The last seen states of the shards' writers."""

    settings: Settings
    shards: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _written: dict[int, datetime] = field(default_factory=dict)
    _unreported: dict[int, float] = field(default_factory=dict)
    _unwritten: set[int] = field(default_factory=set)
    _looked_at: float | None = None

    async def run(self) -> None:
        """Look once a second until cancelled; while the database is unavailable, which health reports, try again."""
        await keep_looking(self.settings, "drawdown api shards", self.look, LOOK_SECONDS, ANSWER_SECONDS)

    async def look(self, connection: asyncpg.Connection) -> None:
        """Look once."""
        offset = self.settings.clock_offset_seconds
        rows = await connection.fetch(_LOOK, SILENT_SECONDS, BEHIND_SECONDS, offset, AHEAD_SECONDS)
        self._note_reports(rows)
        self.shards = [
            _seen(row, is_mute=self._is_mute(row), written_at=self._written.get(row["shard"])) for row in rows
        ]
        self._unwritten = {shard["shard"] for shard in self.shards if shard["state"] == UNWRITTEN}
        self.problems = _sentences(zip(self.shards, rows, strict=True))
        SHARDS_UNWRITTEN.set(sum(map(_is_unwritten, self.shards)))
        self._looked_at = monotonic()

    def _note_reports(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Remember when each shard was last reported to be written, and since when its owner has not reported."""
        for row in rows:
            shard = row["shard"]
            if row["state"] == WRITING:
                self._written[shard] = max(row["reported_at"], self._written.get(shard, row["reported_at"]))
            if _is_told(row):
                self._unreported.pop(shard, None)
            else:
                self._unreported.setdefault(shard, monotonic())

    def _is_mute(self, row: Mapping[str, Any]) -> bool:
        """Return whether a shard counts as unwritten, because its owner has not reported.

        An owner that follows another at once has some seconds. After a crash it counts from its first report on:
        otherwise a writer that ends each time that it takes the shard would count at each try.
        """
        if _is_told(row):
            return False
        is_late = monotonic() - self._unreported[row["shard"]] > SILENT_SECONDS
        return row["shard"] in self._unwritten or bool(row["is_silent"]) or is_late

    def readiness(self, is_ready: bool, detail: str) -> dict[str, Any]:
        """Return the answer of `/readyz`.

        Args:
            is_ready: whether the process itself can serve.
            detail: a sentence about the process itself.

        """
        if not is_ready:
            return self._answer(NOT_READY, detail)
        if self._looked_at is None or monotonic() - self._looked_at > STALE_SECONDS:
            return self._answer(NOT_READY, "the writers of the shards have not been checked lately")
        if all(map(_is_unwritten, self.shards)):
            return self._answer(NOT_READY, "; ".join(self.problems) or "the ledger has no shards: run drawdown migrate")
        if self.problems:
            return self._answer(DEGRADED, "; ".join(self.problems))
        return self._answer(READY, f"{detail}; every shard is written")

    def _answer(self, status: str, detail: str) -> dict[str, Any]:
        return {"status": status, "detail": detail, "shards": self.shards}


def _is_unwritten(shard: Mapping[str, Any]) -> bool:
    return shard["state"] in (UNWRITTEN, STOPPED)


def _is_told(row: Mapping[str, Any]) -> bool:
    """Return whether the shard's present owner has reported its state."""
    return row["state"] is not None and row["is_reported"]


def _seen(row: Mapping[str, Any], *, is_mute: bool, written_at: datetime | None) -> dict[str, Any]:
    """Return the answer of a shard. A former owner's report does not count, so its waiting records are unknown."""
    state, since, detail = _state(row, is_mute=is_mute)
    if state == UNWRITTEN and row["owner"] is not None:
        since = written_at or row["reported_at"] or since
    waits = _is_told(row)
    return {
        "shard": row["shard"],
        "state": state,
        "owner": row["owner"],
        "since": None if since is None else time(since),
        "waiting_records": row["waiting_records"] if waits else 0,
        "waiting_since": time(row["waiting_since"]) if waits and row["waiting_since"] is not None else None,
        "detail": detail,
    }


def _state(row: Mapping[str, Any], *, is_mute: bool) -> tuple[str, Any, str]:
    """Return the state, since when it holds, and a sentence about it."""
    if row["owner"] is None:
        return UNWRITTEN, row["seen_at"], "no process owns it"
    if not row["is_alive"]:
        return UNWRITTEN, row["seen_at"], f"its owner {row['owner']} is gone"
    if is_mute:
        return UNWRITTEN, row["seen_at"], f"its owner {row['owner']} is alive and has not reported its state yet"
    if not _is_told(row):
        return TAKEN, None, "its owner has not reported its state yet"
    if row["is_silent"]:
        return UNWRITTEN, row["seen_at"], f"its owner {row['owner']} no longer reports its state"
    return row["state"], row["since"], row["detail"]


def _trouble(shard: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what is wrong with a shard (its state, or that it is behind or ahead) and its writer's detail."""
    if shard["state"] == UNWRITTEN:
        return UNWRITTEN, ""
    if shard["state"] not in _WELL:
        return shard["state"], shard["detail"]
    if row["is_behind"] and shard["waiting_since"]:
        return _BEHIND, ""
    return (_AHEAD, f"{time(row['ledger_time'])[:19]}Z") if row["is_ahead"] else None


def _sentences(seen: Iterable[tuple[dict[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Return one sentence for each trouble, with all shards that have it."""
    groups: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for shard, row in seen:
        trouble = _trouble(shard, row)
        if trouble is not None:
            groups[trouble].append(shard)
    return [_sentence(*trouble, shards) for trouble, shards in groups.items()]


def _sentence(trouble: str, detail: str, shards: list[dict[str, Any]]) -> str:
    noun, are, have = ("shards", "are", "have") if len(shards) > 1 else ("shard", "is", "has")
    named = f"{noun} {', '.join(str(each['shard']) for each in shards)}"
    since = _since(shards, "since")
    if trouble == UNWRITTEN:
        return f"nobody has written {named}{since}" if since else f"nobody writes {named}"
    if trouble == _BEHIND:
        records, oldest = sum(each["waiting_records"] for each in shards), _since(shards, "waiting_since")
        return f"{named} {are} behind: {records:,} records wait, the oldest{oldest}"
    if trouble == _AHEAD:
        return f"{named} {are} ahead of the clock: every decision before {detail} gets that time"
    state = f"{have} been {trouble}{since}" if since else f"{are} {trouble}"
    return f"{named} {state}: {detail}" if detail else f"{named} {state}"


def _since(shards: list[dict[str, Any]], name: str) -> str:
    """Return " since" and the earliest of these times, to the second; empty if there is none."""
    times = [each[name] for each in shards if each[name] is not None]
    return f" since {min(times)[:19]}Z" if times else ""
