"""The waterfall as data: which pockets pay, in which order (domain page, section 2.3).

The ledger names a policy by its version. Batches of one ledger may name different versions.
"""

from dataclasses import dataclass
from typing import Any

from shared.rules.versions import CURRENT
from shared.rules.vocabulary import AD_ACCOUNT_WATERFALL, BUSINESS_CENTER_WATERFALL
from shared.rules.ways import TopicTerms, terms_of


@dataclass(frozen=True, slots=True)
class Policy:
    """The pockets that pay, in order, and what else a batch is decided under.

    The pockets of `ad_account` pay first. Those of `business_center` follow if the account allocates automatically.
    `rules` is the version of the rules, which the ledger names next to the policy (`versions`). `topic` says what
    commands that came by the topic may name; None means anything.
    """

    version: str
    ad_account: tuple[str, ...] = AD_ACCOUNT_WATERFALL
    business_center: tuple[str, ...] = BUSINESS_CENTER_WATERFALL
    rules: int = CURRENT
    topic: TopicTerms | None = None

    def content(self) -> dict[str, Any]:
        """Return the JSON that `policy_of` reads. It does not hold the version of the rules."""
        content: dict[str, Any] = {
            "version": self.version,
            "ad_account": list(self.ad_account),
            "business_center": list(self.business_center),
        }
        return content if self.topic is None else {**content, "topic": self.topic.content()}


STANDARD = Policy("standard-1")


def policy_of(content: Any) -> Policy:
    """Return the policy of `{"version", "ad_account": [pocket], "business_center": [pocket]}`, with the current rules.

    The JSON object may also have `topic`, which `ways.terms_of` reads. Raise ValueError if it names an unknown pocket,
    a pocket twice, or an unknown field, because a misspelt `topic` would allow everything.
    """
    if not isinstance(content, dict) or not isinstance(content.get("version"), str) or not content["version"]:
        raise ValueError('a policy is an object with a "version"')
    unknown = content.keys() - {"version", "ad_account", "business_center", "topic"}
    if unknown:
        raise ValueError(f"a policy has version, ad_account, business_center and topic, and not {min(unknown)!r}")
    return Policy(
        content["version"],
        _pockets(content, "ad_account", AD_ACCOUNT_WATERFALL),
        _pockets(content, "business_center", BUSINESS_CENTER_WATERFALL),
        topic=terms_of(content["topic"]) if "topic" in content else None,
    )


def _pockets(content: dict[str, Any], holder: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    pockets = content.get(holder)
    if not isinstance(pockets, list) or not all(pocket in allowed for pocket in pockets):
        raise ValueError(f'"{holder}" must be a list of some of {", ".join(allowed)}')
    if len(set(pockets)) != len(pockets):
        raise ValueError(f'"{holder}" names a pocket twice')
    return tuple(pockets)
