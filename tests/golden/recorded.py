"""The file of the golden ledger: one JSON object per line, in the order of writing."""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.ledger.decoding import split_rows
from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER
from shared.rules.calendar import Zones
from shared.rules.policy import Policy, policy_of

FILE = Path(__file__).parent / "ledger.jsonl"
SHARD = 3
# The content of a refused command is packed, like rows, if it is longer than this.
LONG = 10_000


@dataclass(frozen=True, slots=True)
class GoldenBatch:
    """A batch: its time in µs, what it names, the canonical bytes of its entries, and the root after it.

    `refusals` has the commands that it refused: the shard's last position by then, the content, and the code.
    """

    recorded_at: int
    policy: str
    rules: int
    zones: str
    rows: list[bytes]
    root: bytes
    refusals: list[tuple[int, dict[str, Any], str]]


@dataclass(slots=True)
class GoldenLedger:
    """Everything that the file holds."""

    chapters: list[str] = field(default_factory=list)
    policies: dict[str, Policy] = field(default_factory=dict)
    zones: dict[str, Zones] = field(default_factory=dict)
    batches: list[GoldenBatch] = field(default_factory=list)

    def tail(self) -> bytes:
        """Return the last rows, as many as fit into a dictionary."""
        rows: list[bytes] = []
        for batch in reversed(self.batches):
            rows[:0] = batch.rows
            if sum(map(len, rows)) > 32_000:
                break
        return b"".join(rows)[-32_000:]

    def terms(self, batch: GoldenBatch) -> tuple[Policy, Zones]:
        """Return the policy (with the version of the rules) and the time zones that a batch names."""
        return replace(self.policies[batch.policy], rules=batch.rules), self.zones[batch.zones]


def read(file: Path = FILE) -> GoldenLedger:
    """Return the recorded ledger, or an empty one if there is no file."""
    ledger = GoldenLedger()
    for line in file.read_text("ascii").splitlines() if file.exists() else ():
        _add(ledger, json.loads(line))
    return ledger


def _add(ledger: GoldenLedger, item: dict[str, Any]) -> None:
    if "chapter" in item:
        ledger.chapters.append(item["chapter"])
    elif "policy_content" in item:
        policy = policy_of(item["policy_content"])
        ledger.policies[policy.version] = policy
    elif "zone" in item:
        table = {**(ledger.zones[item["release"]].table if item["release"] in ledger.zones else {})}
        table[item["zone"]] = b64decode(item["data"])
        ledger.zones[item["release"]] = Zones(item["release"], table)
    else:
        unpacked = zlib.decompressobj(zdict=ledger.tail()).decompress(b64decode(item["rows"]))
        rows = split_rows(COPY_HEADER + unpacked + COPY_TRAILER)
        refusals = [(position, _unpacked(content), code) for position, content, code in item["refusals"]]
        kept = {**item, "rows": rows, "root": bytes.fromhex(item["root"]), "refusals": refusals}
        ledger.batches.append(GoldenBatch(**kept))


def chapter_line(title: str) -> str:
    """Return the line with which a chapter begins."""
    return _line({"chapter": title})


def policy_line(policy: Policy) -> str:
    """Return the line of a policy that batches name."""
    return _line({"policy_content": policy.content()})


def zone_lines(release: str, used: dict[str, bytes]) -> Iterator[str]:
    """Yield the lines of the time zones that a batch uses."""
    for name, data in sorted(used.items()):
        yield _line({"release": release, "zone": name, "data": b64encode(data).decode()})


def batch_line(batch: GoldenBatch, tail: bytes) -> str:
    """Return the line of a batch. Its rows are compressed with earlier rows as a dictionary, because much repeats."""
    packer = zlib.compressobj(9, zdict=tail)
    rows = b64encode(packer.compress(b"".join(batch.rows)) + packer.flush()).decode()
    names = {"recorded_at": batch.recorded_at, "policy": batch.policy, "rules": batch.rules, "zones": batch.zones}
    refusals = [(position, _packed(content), code) for position, content, code in batch.refusals]
    return _line({**names, "rows": rows, "root": batch.root.hex(), "refusals": refusals})


def _packed(content: dict[str, Any]) -> dict[str, Any] | str:
    text = json.dumps(content, sort_keys=True).encode()
    return content if len(text) <= LONG else b64encode(zlib.compress(text, 9)).decode()


def _unpacked(content: dict[str, Any] | str) -> dict[str, Any]:
    unpacked: dict[str, Any] = json.loads(zlib.decompress(b64decode(content))) if isinstance(content, str) else content
    return unpacked


def _line(item: dict[str, Any]) -> str:
    return json.dumps(item, sort_keys=True, separators=(",", ":")) + "\n"
