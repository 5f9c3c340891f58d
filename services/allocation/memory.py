"""How much memory the process has, and which share of it each shard's campaigns may take.

Records name campaigns, so their number is bounded by nobody but us: those that are idle rest in the database
(`shared.rules.resting`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from services.allocation import metrics
from shared.rules.resting import CampaignsInMemory

log = structlog.get_logger()

SHORT: Final = 0.9  # of the limit
_MIB: Final = 2**20
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_UNBOUNDED: Final = 2**60
_STATUS: Final = Path("/proc/self/status")


class CampaignMemory:
    """`most` campaigns for all shards of a process: what one does not need another may take."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shards: dict[int, CampaignsInMemory] = {}

    def hold(self, shard: int, campaigns: CampaignsInMemory) -> Callable[[], None]:
        """Count a shard's campaigns too. Answers what ends that."""
        self._shards[shard] = campaigns

        def let_go() -> None:
            if self._shards.get(shard) is campaigns:
                del self._shards[shard]
                metrics.CAMPAIGNS.remove(shard)

        return let_go

    def part(self, shards: int) -> int:
        """An equal part for each of so many shards, for one that is being loaded."""
        return self._most // max(1, shards)

    def share_out(self, shard: int) -> None:
        """Before a batch of the shard: it may have what the others leave, and no less than its equal part."""
        others = sum(campaigns.count for other, campaigns in self._shards.items() if other != shard)
        campaigns = self._shards[shard]
        campaigns.most = max(self._most - others, self._most // len(self._shards))
        metrics.CAMPAIGNS.labels(shard).set(campaigns.count)


class Watch:
    """Looks at what the process takes; says once in the log when that gets close to its limit."""

    def __init__(self) -> None:
        self._limit = memory_limit()
        self._was_short = False
        metrics.MEMORY_LIMIT.set(self._limit or 0)

    def look(self) -> str:
        """How much is taken, of how much, in words."""
        taken = resident_bytes()
        if self._limit is None:
            return f"{taken // _MIB} MiB of memory"
        is_short = taken > SHORT * self._limit
        if is_short and not self._was_short:
            log.warning(
                "memory is short: give the process more, or let it keep fewer campaigns (DRAWDOWN_CAMPAIGNS_IN_MEMORY)",
                taken_mib=taken // _MIB,
                limit_mib=self._limit // _MIB,
            )
        self._was_short = is_short
        return f"{taken // _MIB} of {self._limit // _MIB} MiB of memory{', which is short' if is_short else ''}"


def memory_limit() -> int | None:
    """The control group's limit in bytes; None where there is none."""
    for file in _LIMITS:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < _UNBOUNDED else None
    return None


def resident_bytes() -> int:
    """What the process has in memory now; 0 where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
