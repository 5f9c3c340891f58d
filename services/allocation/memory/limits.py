"""The memory of the process, and the share of it that the campaigns of each shard may take.

Records name campaigns, so only this bounds their number: idle campaigns rest in the database (`shared.rules.resting`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from services.allocation import metrics
from shared.rules.resting import CampaignsInMemory

log = structlog.get_logger()

SHORT: Final = 0.9  # memory is short above this part of the limit
_MIB: Final = 2**20
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_UNBOUNDED: Final = 2**60
_STATUS: Final = Path("/proc/self/status")


class CampaignMemory:
    """Room for `most` campaigns, shared by all shards of a process: one may take what the others do not need."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shards: dict[int, CampaignsInMemory] = {}

    def hold(self, shard: int, campaigns: CampaignsInMemory) -> Callable[[], None]:
        """Count the campaigns of a shard too. Returns a function that ends this."""
        self._shards[shard] = campaigns

        def let_go() -> None:
            if self._shards.get(shard) is campaigns:
                del self._shards[shard]
                metrics.CAMPAIGNS.remove(shard)

        return let_go

    def part(self, shards: int) -> int:
        """Return how many campaigns a shard may have while it is being loaded: an equal part of all."""
        return self._most // max(1, shards)

    def share_out(self, shard: int) -> None:
        """Set the bound of a shard before a batch: what the others leave, but at least its equal part."""
        others = sum(campaigns.count for other, campaigns in self._shards.items() if other != shard)
        campaigns = self._shards[shard]
        campaigns.most = max(self._most - others, self._most // len(self._shards))
        metrics.CAMPAIGNS.labels(shard).set(campaigns.count)


class MemoryWatch:
    """Measures the memory of the process, and logs once when it comes close to the limit."""

    def __init__(self) -> None:
        self._limit = memory_limit()
        self._was_short = False
        metrics.MEMORY_LIMIT.set(self._limit or 0)

    def look(self) -> str:
        """Return in words how much of the memory is used."""
        taken = resident_bytes()
        if self._limit is None:
            return f"{taken // _MIB} MiB of memory"
        is_short = taken > SHORT * self._limit
        if is_short and not self._was_short:
            log.warning(
                "memory is short: give the process more, or lower DRAWDOWN_CAMPAIGNS_IN_MEMORY",
                taken_mib=taken // _MIB,
                limit_mib=self._limit // _MIB,
            )
        self._was_short = is_short
        return f"{taken // _MIB} of {self._limit // _MIB} MiB of memory{', which is short' if is_short else ''}"


def memory_limit() -> int | None:
    """Return the memory limit of the control group in bytes; None if there is no limit."""
    for file in _LIMITS:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < _UNBOUNDED else None
    return None


def resident_bytes() -> int:
    """Return the resident bytes of the process now; 0 if the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
