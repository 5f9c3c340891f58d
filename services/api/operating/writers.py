"""Who writes the shards, as `/readyz` tells it: what their writers say of themselves, and who says nothing any more.

Looked at about once a second, beside the requests: `/readyz` answers with what was seen last. All times are compared by
the database's clock.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated, Any, Final

import asyncpg
from prometheus_client import Gauge
from pydantic import BaseModel, Field

from services.api.commands.waiting import ROLE
from services.api.models import Instant, time
from shared.contracts.known import known
from shared.runtime.health import NOT_READY
from shared.runtime.postgres import connect, is_unavailable
from shared.runtime.settings import Settings

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 5.0  # for the database
STALE_SECONDS = 15.0  # without a look that succeeded: what was seen says nothing of now
SILENT_SECONDS = 5.0  # without a word from a shard's writer
BEHIND_SECONDS = 10.0  # how long a record may wait
AHEAD_SECONDS = 60.0  # how far ledger time may be ahead of the clock: domain page, section 1

READY: Final = "ready"
DEGRADED: Final = "degraded"

UNWRITTEN: Final = "unwritten"
STOPPED: Final = "stopped"
# Its owner lives, and has said nothing of it yet: for no longer than it may be silent.
TAKEN: Final = "taken"
_BEHIND: Final = "behind"
_AHEAD: Final = "ahead"
_WELL: Final = frozenset({"writing", TAKEN})

SHARDS_UNWRITTEN = Gauge("drawdown_shards_unwritten", "Shards that nobody writes, or whose writer has stopped")

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
           s.ledger_time, w.state, w.detail, w.since, w.waiting_records, w.waiting_since
    FROM ledger.shards s LEFT JOIN ledger.shard_states w USING (shard)
        LEFT JOIN ledger.allocators a ON a.owner = s.owner
    ORDER BY s.shard
"""


class ShardReadiness(BaseModel):
    """Who writes a shard, and how it goes; `since` is of the state, `waiting_since` of the oldest record that waits."""

    shard: int
    state: Annotated[str, known("writing", "loading", "waiting", STOPPED, TAKEN, UNWRITTEN)]
    owner: str | None
    since: Instant | None
    waiting_records: int
    waiting_since: Instant | None
    detail: str


class Readiness(BaseModel):
    """Whether the process can serve, and whether the ledger is being written."""

    status: Annotated[str, known(READY, DEGRADED, NOT_READY)]
    detail: Annotated[str, Field(examples=["nobody writes shard 2 since 2026-11-21T12:00:00Z"])]
    shards: list[ShardReadiness]


@dataclass(eq=False, slots=True)
class Writers:
    """What was seen last of the shards' writers."""

    settings: Settings
    shards: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _taken: dict[int, tuple[str, float]] = field(default_factory=dict)
    _looked_at: float | None = None

    async def run(self) -> None:
        """Look again and again until cancelled; a database that is away is asked on."""
        while True:
            try:
                await self._look_until_lost()
            except Exception as error:
                if not is_unavailable(error):  # Of that its contact tells.
                    raise
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_until_lost(self) -> None:
        """Over a connection of its own, which is dropped and not closed: a database may answer nobody."""
        connection = await connect(self.settings, ROLE, "drawdown api shards")
        try:
            while True:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self.look(connection)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            connection.terminate()

    async def look(self, connection: asyncpg.Connection) -> None:
        """Look once."""
        offset = self.settings.clock_offset_seconds
        rows = await connection.fetch(_LOOK, SILENT_SECONDS, BEHIND_SECONDS, offset, AHEAD_SECONDS)
        self._note_the_taken(rows)
        self.shards = [_seen(row, is_mute=self._is_mute(row)) for row in rows]
        self.problems = _sentences(zip(self.shards, rows, strict=True))
        SHARDS_UNWRITTEN.set(sum(map(_is_unwritten, self.shards)))
        self._looked_at = monotonic()

    def _note_the_taken(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Remember since when an owner has said nothing of its shard."""
        now = monotonic()
        before, self._taken = self._taken, {}
        for row in rows:
            if row["owner"] is not None and not _is_told(row):
                known = before.get(row["shard"])
                self._taken[row["shard"]] = known if known and known[0] == row["owner"] else (row["owner"], now)

    def _is_mute(self, row: Mapping[str, Any]) -> bool:
        return row["shard"] in self._taken and monotonic() - self._taken[row["shard"]][1] > SILENT_SECONDS

    def readiness(self, is_ready: bool, detail: str) -> dict[str, Any]:
        """The answer of `/readyz`, where the process says of itself whether it is ready."""
        if not is_ready:
            return self._answer(NOT_READY, detail)
        if self._looked_at is None or monotonic() - self._looked_at > STALE_SECONDS:
            return self._answer(NOT_READY, "nobody has looked lately who writes the shards")
        if all(map(_is_unwritten, self.shards)):
            return self._answer(NOT_READY, "; ".join(self.problems) or "the ledger has no shards: drawdown migrate")
        if self.problems:
            return self._answer(DEGRADED, "; ".join(self.problems))
        return self._answer(READY, f"{detail}; every shard is written")

    def _answer(self, status: str, detail: str) -> dict[str, Any]:
        return {"status": status, "detail": detail, "shards": self.shards}


def _is_unwritten(shard: Mapping[str, Any]) -> bool:
    return shard["state"] in (UNWRITTEN, STOPPED)


def _is_told(row: Mapping[str, Any]) -> bool:
    """Whether the shard's owner has said how it stands."""
    return row["state"] is not None and row["is_reported"]


def _seen(row: Mapping[str, Any], *, is_mute: bool) -> dict[str, Any]:
    """A shard as it is answered. What a former owner said does not count, what waits now is not known then."""
    state, since, detail = _state(row, is_mute=is_mute)
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
    """The state, since when, and a sentence."""
    if row["owner"] is None:
        return UNWRITTEN, row["seen_at"], "no process has it"
    if not row["is_alive"]:
        return UNWRITTEN, row["seen_at"], f"its owner {row['owner']} is gone"
    if is_mute:
        return UNWRITTEN, row["seen_at"], f"its owner {row['owner']} lives and has never said how it stands"
    if not _is_told(row):
        return TAKEN, None, "its owner has said nothing of it yet"
    if row["is_silent"]:
        return UNWRITTEN, row["seen_at"], f"its owner {row['owner']} says nothing any more"
    return row["state"], row["since"], row["detail"]


def _trouble(shard: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a shard: the state, or that it is behind or ahead, and what its writer says of it."""
    if shard["state"] == UNWRITTEN:
        return UNWRITTEN, ""
    if shard["state"] not in _WELL:
        return shard["state"], shard["detail"]
    if row["is_behind"] and shard["waiting_since"]:
        return _BEHIND, ""
    return (_AHEAD, f"{time(row['ledger_time'])[:19]}Z") if row["is_ahead"] else None


def _sentences(seen: Iterable[tuple[dict[str, Any], Mapping[str, Any]]]) -> list[str]:
    """A sentence for each trouble, with all shards that have it."""
    groups: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for shard, row in seen:
        trouble = _trouble(shard, row)
        if trouble is not None:
            groups[trouble].append(shard)
    return [_sentence(*trouble, shards) for trouble, shards in groups.items()]


def _sentence(trouble: str, detail: str, shards: list[dict[str, Any]]) -> str:
    many = len(shards) > 1
    named = f"{'shards' if many else 'shard'} {', '.join(str(each['shard']) for each in shards)}"
    if trouble == UNWRITTEN:
        return f"nobody writes {named}{_since(shards, 'since')}"
    if trouble == _BEHIND:
        records = sum(each["waiting_records"] for each in shards)
        return f"{named} {'are' if many else 'is'} behind: {records:,} records wait{_since(shards, 'waiting_since')}"
    if trouble == _AHEAD:
        return f"{named} {'are' if many else 'is'} ahead of the clock: what is decided before {detail} is dated then"
    told = f": {detail}" if detail else ""
    return f"{named} {'are' if many else 'is'} {trouble}{_since(shards, 'since')}{told}"


def _since(shards: list[dict[str, Any]], name: str) -> str:
    """The earliest of these times, to the second."""
    times = [each[name] for each in shards if each[name] is not None]
    return f" since {min(times)[:19]}Z" if times else ""
