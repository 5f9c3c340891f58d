"""The way by which a command came: the check of its signature, what is kept of it, and what the topic may name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from drawdown.deployment.command_keys import with_command_keys
from services.allocation.records.record_decoding import Fault, Raw, decode_command
from services.allocation.service import read_command_keys, read_policy
from services.api.commands.signing import configured_signer
from shared.contracts.commands import SentCommand
from shared.contracts.signatures import SIGNATURE_HEADER, CommandKeys, CommandSigner, new_command_key
from shared.ledger.headers import read_headers
from shared.rules.command_types import COMMANDS, DepositCash
from shared.rules.policy import STANDARD, Policy, policy_of
from shared.rules.vocabulary import COMMAND_TYPES, ROLES, WAYS
from shared.rules.ways import API, TOPIC, TopicTerms, terms_of
from shared.runtime.settings import BadSettingError, Settings
from tests.unit.test_rules_tables import NOON, ONE, Book

CONTENT = {
    "command_id": "01936d3e-0000-7000-8000-000000000001",
    "type": "deposit_cash",
    "business_center_id": "bc-1",
    "amount": "100.00",
    "issued_at": "2026-11-21T12:00:00Z",
    "actor": {"id": "maria", "role": "finance_manager"},
}
VALUE = json.dumps(CONTENT).encode()
SECRET, PUBLIC = new_command_key()
OTHER_KIND = (
    generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)
SIGNER, KEYS = CommandSigner(SECRET), CommandKeys(PUBLIC)
SIGNED = SIGNER.header(VALUE)


def via(value: bytes, *headers: tuple[str, bytes | None], keys: CommandKeys = KEYS) -> str:
    """Return the way by which the record came, or why it is not a command."""
    found = decode_command(value, headers, keys)
    return found.via if isinstance(found, SentCommand) else f"{found.reason}: {found.detail}"


# ---- Signatures -----------------------------------------------------------------------------------------------------


def test_a_signed_command_came_by_the_api_and_an_unsigned_one_by_the_topic() -> None:
    assert via(VALUE, SIGNED) == via(VALUE, ("traceparent", b"00-1"), SIGNED) == API
    assert via(VALUE) == via(VALUE, ("traceparent", b"00-1")) == TOPIC


@given(at=st.integers(0, len(VALUE) - 1), of_the_signature=st.integers(0, len(SIGNED[1]) - 1), bit=st.integers(0, 7))
def test_no_bit_of_a_signed_command_or_its_signature_may_change(at: int, of_the_signature: int, bit: int) -> None:
    other = flipped(VALUE, at, bit)
    assert via(other, SIGNED) != API
    assert via(VALUE, (SIGNATURE_HEADER, flipped(SIGNED[1], of_the_signature, bit))).startswith(
        "invalid: the signature"
    )


def flipped(text: bytes, at: int, bit: int) -> bytes:
    return text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (CommandSigner(new_command_key()[0]).header(VALUE)[1], "made with an unknown key"),
        (SIGNER.header(VALUE + b" ")[1], "does not match"),
        (SIGNED[1].split()[0] + b" ", "does not match"),
        (SIGNED[1] + b"AAAA", "does not match"),
        (b"", "made with an unknown key"),
        (None, "made with an unknown key"),
    ],
    ids=["another key", "another value", "no signature", "a longer one", "empty", "null"],
)
def test_a_sender_that_falsely_claims_to_be_the_api_is_detected(claim: bytes | None, said: str) -> None:
    for headers in [((SIGNATURE_HEADER, claim),), (SIGNED, (SIGNATURE_HEADER, claim))]:
        found = via(VALUE, *headers)
        assert found.startswith("invalid: the signature")
        assert said in found


def test_a_record_that_is_not_a_command_is_refused_before_its_signature_is_checked() -> None:
    assert via(b"{", SIGNED).startswith("malformed: ")
    assert via(b"{}", SIGNED).startswith("invalid: Unable")


def test_the_old_and_the_new_key_are_both_valid_during_a_change() -> None:
    secret, public = new_command_key()
    both = CommandKeys(PUBLIC + public)
    assert via(VALUE, SIGNED, keys=both) == via(VALUE, CommandSigner(secret).header(VALUE), keys=both) == API


def test_a_signature_survives_forwarding_and_quarantine() -> None:
    """Both keep the headers of the record, which is decoded again from them."""
    raw = Raw("finance.commands", 0, 7, b"bc-1", VALUE, (SIGNED, ("other", None)))
    assert via(VALUE, *read_headers(json.dumps(raw.headers_json()))) == API


def test_every_command_counts_as_from_the_topic_without_keys() -> None:
    assert via(VALUE, SIGNED, keys=CommandKeys()) == TOPIC


@pytest.mark.parametrize(
    "pem", [b"", b"nothing", SECRET, PUBLIC + SECRET, PUBLIC.replace(b"MCow", b"MCox"), PUBLIC + OTHER_KIND]
)
def test_a_file_without_keys_is_refused_with_a_reason(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        CommandKeys(pem)


def test_a_file_without_a_signing_key_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"."):
        CommandSigner(PUBLIC)


# ---- The recorded way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rules", "kept"), [(1, None), (2, None), (3, "api")])
def test_the_first_entry_of_a_command_names_its_way_since_version_3(rules: int, kept: str | None) -> None:
    book = Book(replace(STANDARD, rules=rules))
    before = len(book.rules.entries)
    deposit = DepositCash(business_center_id="b", role="admin", amount=ONE)
    assert book.rules.command(deposit, uuid4().bytes, {"type": "deposit_cash"}, API) is None
    (first,) = [json.loads(entry[0].details or "{}") for entry in book.rules.entries[before:] if entry[4] == 0]
    assert first.get("via") == kept


# ---- Bounds of the topic --------------------------------------------------------------------------------------------


def told(
    topic: TopicTerms | None, way: str = TOPIC, rules: int = 3, type: str = "deposit_cash", **fields: Any
) -> tuple[str, str] | None:
    """Return how a command that came this way is refused under a policy with these terms."""
    book = Book(Policy("p", rules=rules))
    book.rules.begin(NOON, Policy("q", topic=topic, rules=rules))
    named = {"role": "system", **({"amount": 5 * ONE} if type == "deposit_cash" else {}), **fields}
    command = COMMANDS[type](**{"business_center_id": "b", **named})
    refused = book.rules.command(command, uuid4().bytes, {"type": type}, way)
    return None if refused is None else (refused.code, refused.message)


TERMS = TopicTerms(roles=("system",), types=("deposit_cash", "set_credit_line"), largest_amount_micros=5 * ONE)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ({}, None),
        ({"amount": 5 * ONE + 1}, "no amount above 5.000000"),
        ({"type": "set_credit_line", "limit": 5 * ONE}, None),
        ({"type": "set_credit_line", "limit": 5 * ONE + 1}, "no limit above 5.000000"),
        ({"role": "admin"}, "no command of the role admin"),
        ({"type": "enable_automatic_allocation"}, "no command of the type enable_automatic_allocation"),
    ],
)
def test_the_policy_limits_what_may_come_by_the_topic(command: dict[str, Any], said: str | None) -> None:
    refused = told(TERMS, **command)
    if said is None:
        assert refused is None
    else:
        assert refused == ("permission_denied", f"the policy lets {said} come by the topic")
    assert told(TERMS, API, **command) is None  # The terms are about the topic alone.
    assert told(None, **command) is told(TopicTerms(), **command) is None  # By default the topic may name everything.


@pytest.mark.parametrize("rules", [1, 2])
def test_earlier_rules_do_not_limit_the_topic(rules: int) -> None:
    assert told(TERMS, rules=rules, role="admin") is None


def test_a_refusal_of_the_topic_has_the_place_of_permission_in_the_order_of_codes() -> None:
    none = TopicTerms(roles=())
    assert told(none, amount=0) == ("invalid", "the amount must be above zero")
    assert told(none, business_center_id="x") == ("not_found", "there is no Business Center x")
    assert told(none, type="disable_automatic_allocation") == told(none, "topic", type="disable_automatic_allocation")
    assert (told(none, type="disable_automatic_allocation") or ("",))[0] == "permission_denied"


@given(
    roles=st.none() | st.lists(st.sampled_from(ROLES)),
    types=st.none() | st.lists(st.sampled_from(COMMAND_TYPES)),
    amount=st.none() | st.sampled_from(["0", "1.5", "999999999999.999999"]),
)
def test_a_written_policy_is_read_back_unchanged(roles: Any, types: Any, amount: str | None) -> None:
    named = {"roles": roles, "types": types, "largest_amount": amount}
    topic = {name: value for name, value in named.items() if value is not None}
    policy = policy_of({**STANDARD.content(), "topic": topic})
    assert policy_of(json.loads(json.dumps(policy.content()))) == policy
    assert policy.topic is not None
    assert policy.topic.content().keys() == topic.keys()


@pytest.mark.parametrize(
    "topic",
    [None, [], "all", {"role": ["admin"]}, {"roles": "admin"}, {"roles": ["root"]}, {"types": ["spend"]}]
    + [{"largest_amount": amount} for amount in (5, "-1", "1e3", "", "1.0000001", "٣", "1\n", None)]
    + [{"roles": None}, {"types": None}],
)
def test_a_policy_with_unknown_names_prevents_the_start(topic: Any) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        policy_of({**STANDARD.content(), "topic": topic})
    with pytest.raises(ValueError, match=r"must be"):
        terms_of(topic)


STANDARD_BUT = '{"version": "v", "ad_account": [], "business_center": [], '


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (STANDARD_BUT + '"topic": {"roles": []}, "topic": {}}', "a name occurs in it twice"),
        (STANDARD_BUT + '"topic": {"roles": [], "roles": ["admin"]}}', "a name occurs in it twice"),
        (STANDARD_BUT + '"version": "w"}', "a name occurs in it twice"),
        ('{"version": "\\u0000", "ad_account": [], "business_center": []}', "the version should be"),
        ('{"version": "\\ud800", "ad_account": [], "business_center": []}', "the version should be"),
        ('{"version": "' + 65 * "v" + '", "ad_account": [], "business_center": []}', "the version should be"),
        ("[" * 100_000, "holds no policy"),
        ("", "holds no policy"),
    ],
)
def test_an_ambiguous_file_or_one_without_a_version_is_not_a_policy(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(BadSettingError, match=said):
        read_policy(file)


def test_the_policy_in_the_documentation_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    policy = policy_of(json.loads(page.partition("```json\n")[2].partition("```")[0]))
    assert policy.topic == TopicTerms(("system",), ("deposit_cash", "repay_credit"), 50_000 * ONE)


def test_a_policy_without_terms_is_written_as_before() -> None:
    assert STANDARD.content().keys() == {"version", "ad_account", "business_center"}


def test_every_way_is_in_the_vocabulary() -> None:
    assert WAYS == (API, TOPIC)
    assert isinstance(decode_command(VALUE), SentCommand)
    assert not isinstance(decode_command(VALUE), Fault)


# ---- Files of keys --------------------------------------------------------------------------------------------------


def test_a_local_system_makes_its_own_keys_and_keeps_them(tmp_path: Path) -> None:
    first = with_command_keys(Settings(data_dir=tmp_path / "data"))
    assert with_command_keys(Settings(data_dir=tmp_path / "data")) == first
    signer = configured_signer(first)
    assert signer is not None
    assert read_command_keys(first.command_keys_file).have_signed(VALUE, [signer.header(VALUE)])
    assert first.command_signing_key_file is not None
    assert first.command_signing_key_file.stat().st_mode & 0o777 == 0o600


def test_configured_keys_are_used_unchanged(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(SECRET)
    named = Settings(data_dir=tmp_path / "data", command_signing_key_file=tmp_path / "key.pem")
    assert with_command_keys(named) == named
    assert not (tmp_path / "data").exists()


def test_both_services_log_at_their_start_that_they_have_no_keys() -> None:
    with capture_logs() as logs:
        assert configured_signer(Settings()) is None
        assert via(VALUE, SIGNED, keys=read_command_keys(None)) == TOPIC
    assert ["DRAWDOWN_COMMAND_" in line["event"] for line in logs] == [True, True]


def test_a_file_with_other_content_ends_the_start(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    for text in (b"", b"nothing", SECRET[:40]):
        wrong.write_bytes(text)
        with pytest.raises(BadSettingError, match="DRAWDOWN_COMMAND_SIGNING_KEY_FILE"):
            configured_signer(Settings(command_signing_key_file=wrong))
        with pytest.raises(BadSettingError, match="DRAWDOWN_COMMAND_KEYS_FILE"):
            read_command_keys(wrong)
