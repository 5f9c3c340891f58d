"""The part of the platform that a scenario needs: the front door, and nothing behind it."""

from typing import Any, Protocol

Record = dict[str, Any]


class Platform(Protocol):
    """Drawdown as its customers see it. `LivePlatform` is the running system, `ModelPlatform` the second model."""

    async def reach(self, moment_us: int) -> None:
        """Return when the platform's clock shows this moment or a later one."""

    async def now_us(self) -> int:
        """Return what the platform's clock shows, in µs since the Unix epoch."""

    async def command(self, command: Record) -> tuple[str, str | None]:
        """Send a finance command, and return its status and code."""

    async def publish(self, event: Record) -> str:
        """Publish a spend or reversal. Return `recorded` or `quarantined:<reason>`."""

    async def business_center(self, business_center_id: str) -> Record:
        """Return the answer for a Business Center."""

    async def ad_account(self, ad_account_id: str) -> Record:
        """Return the answer for an ad account."""

    async def campaign(self, ad_account_id: str, campaign_id: str) -> Record:
        """Return the answer for a campaign."""

    async def entries(self, source_event_id: str) -> list[Record]:
        """Return the ledger's entries with one source."""

    async def ledger(self, business_center_id: str) -> list[Record]:
        """Return all entries of a Business Center."""

    async def signals(self, ad_account_id: str, campaign_id: str | None) -> list[Record]:
        """Return the signals of one entity, in order."""

    async def follow_cash_spend(self, ad_account_id: str, currency: str) -> None:
        """Register a deal that covers the account."""

    async def cash_spend(self, ad_account_id: str) -> str:
        """Return the cash spend that this deal counts."""
