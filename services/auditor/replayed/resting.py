"""Compares the campaigns that the writer let rest with the entries, and lets them rest in the audit as well."""

import json
from collections import deque

import asyncpg

from services.auditor.baseline import Head
from services.auditor.difference import expect
from shared.contracts import strict_json
from shared.ledger.lookup import RestingRow, read_resting
from shared.rules.resting import dump_campaign, is_as_dumped
from shared.rules.shard import Shard

_READ_AT_ONCE = 200  # Rows of a mebibyte at most.
_MOST_SHOWN = 200


async def check_resting(connection: asyncpg.Connection, head: Head) -> int:
    """Return the number of resting campaigns of a shard. Their content is not compared: `RestingRows` does that.

    Raise DifferenceError if one rests where no batch ends, in an account of another shard, or cannot be read.
    """
    query = """
        SELECT r.ad_account_id, campaign_id, position, state::text, b.last_position, a.shard
        FROM ledger.resting_campaigns r
            LEFT JOIN ledger.batches b ON b.shard = r.shard AND b.last_position = r.position
            LEFT JOIN ledger.ad_accounts a ON a.ad_account_id = r.ad_account_id AND a.shard = r.shard
        WHERE r.shard = $1 AND position <= $2
    """
    count = 0
    async with connection.transaction():
        async for account, campaign, position, state, end, shard in connection.cursor(
            query, head.shard, head.position, prefetch=_READ_AT_ONCE
        ):
            where = f"shard {head.shard}, position {position}: the resting campaign {campaign} of {account}"
            expect(end is not None, f"{where} is kept where no batch ends")
            expect(shard is not None, f"{where} belongs to no ad account of this shard")
            expect(_can_be_read(state), f"{where} cannot be read: it was kept as {state[:_MOST_SHOWN]}")
            count += 1
    return count


def _can_be_read(state: str) -> bool:
    try:
        return is_as_dumped(strict_json.read(state.encode()))
    except ValueError:
        return False


class RestingRows:
    """The resting campaigns of a shard up to the position `last`, read in pages.

    `kept` are campaigns, by ad account and id, that stay in memory although they rest.
    """

    def __init__(self, connection: asyncpg.Connection, shard: int, last: int, kept: set[tuple[str, str]]) -> None:
        self.checked = 0
        self._connection = connection
        self._shard = shard
        self._last = last
        self._kept = kept
        self._rows: deque[RestingRow] = deque()
        self._behind = (0, "", "")
        self._is_over = False

    async def check(self, rules: Shard, position: int) -> None:
        """Compare the campaigns that rest from this position on with the rules' state, and take them out of memory.

        `position` is the end of a batch that was just decided. Raise DifferenceError if one differs.

        A row may repeat an earlier one: a shard that is loaded again lets campaigns rest at other positions.
        """
        at_rest: list[RestingRow] = []
        while (row := await self._next()) is not None and row.position <= position:
            account_id, campaign_id, at, state = self._rows.popleft()
            where = self._where(row)
            expect(at == position, f"{where} is kept where no batch ends")
            self.checked += 1
            account = rules.accounts.get(account_id)
            campaign = None if account is None else account.campaigns.get(campaign_id)
            if campaign is None:
                at_rest.append(row)
                if len(at_rest) == _READ_AT_ONCE:
                    await self._check_repeated(at_rest, position)
                    at_rest = []
                continue
            own = json.loads(json.dumps(dump_campaign(campaign)))
            expect(own == state, f"{where} was kept as {state}, but the entries give {own}")
            if (account_id, campaign_id) not in self._kept:
                rules.campaigns.take_out(campaign)
        await self._check_repeated(at_rest, position)

    async def _check_repeated(self, rows: list[RestingRow], position: int) -> None:
        """Compare rows at this position, whose campaigns are at rest already, with the newest row of each before it."""
        named = [(row.ad_account_id, row.campaign_id) for row in rows]
        found = await read_resting(self._connection, self._shard, named, before=position)
        for row in rows:
            before = found[row.ad_account_id][row.campaign_id]
            expect(before is not None, f"{self._where(row)} is not in memory according to the entries")
            told = f"{self._where(row)} was kept as {row.state}, but it has rested since as {before}"
            expect(row.state == before, told)

    def _where(self, row: RestingRow) -> str:
        named = f"{row.campaign_id} of {row.ad_account_id}"
        return f"shard {self._shard}, position {row.position}: the resting campaign {named}"

    async def _next(self) -> RestingRow | None:
        if not self._rows and not self._is_over:
            rows = await self._connection.fetch(
                "SELECT ad_account_id, campaign_id, position, state FROM ledger.resting_campaigns"
                " WHERE shard = $1 AND (position, ad_account_id, campaign_id) > ($2, $3, $4) AND position <= $6"
                " ORDER BY position, ad_account_id, campaign_id LIMIT $5",
                self._shard,
                *self._behind,
                _READ_AT_ONCE,
                self._last,
            )
            self._rows.extend(RestingRow(*row) for row in rows)
            self._is_over = len(rows) < _READ_AT_ONCE
            if rows:
                self._behind = (rows[-1]["position"], rows[-1]["ad_account_id"], rows[-1]["campaign_id"])
        return self._rows[0] if self._rows else None
