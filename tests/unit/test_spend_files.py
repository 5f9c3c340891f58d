"""Files of spend: the forms that are recognised, the records for Kafka, and how times are shifted."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import cramjam
import pytest

from drawdown.local.spend_files import Row, UnreadableFileError, read, shifted, summarise
from drawdown.local.spend_sending import prepare
from shared.runtime.settings import Settings

SPEND = {
    "type": "spend",
    "event_id": "0193f5a0-0000-7000-8000-000000000001",
    "business_center_id": "bc-1",
    "ad_account_id": "acct-1",
    "campaign_id": "cmp-1",
    "amount": "0.012345",
    "currency": "USD",
    "occurred_at": "2026-11-21T12:00:00.123Z",
}
LATER = {**SPEND, "event_id": "0193f5a0-0000-7000-8000-000000000002", "occurred_at": "2026-11-21T13:00:00+01:00"}
IPINYOU_HEADER = (
    "bid_id\ttimestamp\tadvertiser_id\tcreative_id\tad_exchange\tregion\tslot\tslot_width\tslot_height\t"
    "slot_visibility\tfloor_price\tbidding_price\tpaying_price"
)


def events_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(row.raw) for row in read(path)]


def json_lines(*events: dict[str, str]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def ipinyou_row(bid: str = "a" * 32, time: str = "20131021182902623", price: str = "123") -> str:
    return f"{bid}\t{time}\t2821\t10722\t1\t80\tslot0001\t300\t250\t1\t5\t277\t{price}"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("held", [b"[" * 100_000, b"9" * 5000, b'"\\ud800"', b"NaN", b'"\xff"'])
def test_a_line_that_is_not_an_event_is_sent_unchanged(held: bytes, tmp_path: Path) -> None:
    line = json.dumps(SPEND).encode().replace(b'"bc-1"', held)
    rows = list(read(written(tmp_path / "spend", json_lines(SPEND) + line + b"\n" + json_lines(LATER))))
    assert [row.raw for row in rows] == [json.dumps(SPEND).encode(), line, json.dumps(LATER).encode()]
    assert rows[1].key in (None, b"?")


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, bz2.compress, lzma.compress, lambda content: bytes(cramjam.zstd.compress(content))],
    ids=["plain", "gz", "bz2", "xz", "zst"],
)
def test_json_lines_are_read_under_every_compression(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = written(tmp_path / "spend", pack(json_lines(SPEND, LATER)))
    assert events_of(path) == [SPEND, LATER]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_has_the_field_names_of_the_contract(delimiter: str, tmp_path: Path) -> None:
    names = [name for name in SPEND if name != "type"]
    rows = [names, [SPEND[name] for name in names], [LATER[name] for name in names]]
    content = "\r\n".join(delimiter.join(row) for row in rows)
    assert events_of(written(tmp_path / "spend.csv", content.encode("utf-8-sig"))) == [SPEND, LATER]


def test_an_empty_cell_is_an_absent_field(tmp_path: Path) -> None:
    path = written(tmp_path / "spend.csv", b"event_id,business_center_id,campaign_id,amount\n1,bc-1,,2\n")
    assert events_of(path) == [{"type": "spend", "event_id": "1", "business_center_id": "bc-1", "amount": "2"}]


def test_a_quoted_cell_may_hold_the_delimiter_and_a_line_break(tmp_path: Path) -> None:
    path = written(tmp_path / "spend.csv", b'event_id,business_center_id,reason\n1,bc-1,"a, b\nc"\n')
    assert events_of(path)[0]["reason"] == "a, b\nc"


def test_a_broken_line_is_sent_unchanged_without_a_key(tmp_path: Path) -> None:
    path = written(tmp_path / "spend", json_lines(SPEND) + b'{"type": "spe\xff\n[1]\n')
    rows = list(read(path))
    assert [row.raw for row in rows[1:]] == [b'{"type": "spe\xff', b"[1]"]
    assert [row.key for row in rows] == [b"bc-1", None, None]


def test_an_ipinyou_impression_becomes_a_spend(tmp_path: Path) -> None:
    path = written(tmp_path / "imp.tsv", f"{IPINYOU_HEADER}\n{ipinyou_row()}\n".encode())
    (event,) = events_of(path)
    assert event["business_center_id"] == "ipinyou"
    assert event["ad_account_id"] == "advertiser-2821"
    assert event["campaign_id"] == "creative-10722"
    assert event["currency"] == "CNY"
    assert event["amount"] == "0.00123"
    assert event["occurred_at"] == "2013-10-21T18:29:02.623+08:00"


def test_the_published_log_without_a_header_is_read(tmp_path: Path) -> None:
    cells = ["b" * 32, "20131021182902623", "1", "user", "agent", "1.2.3.*", "80", "85", "1", "domain", "url", "null"]
    cells += ["slot", "300", "250", "1", "Na", "5", "10722", "277", "294", "null", "2821", "10006"]
    path = written(tmp_path / "imp.txt", ("\t".join(cells) + "\n").encode())
    (event,) = events_of(path)
    assert (event["campaign_id"], event["amount"]) == ("creative-10722", "0.00294")


def test_a_repeated_bid_is_the_same_event(tmp_path: Path) -> None:
    rows = [ipinyou_row(), ipinyou_row(time="20131021182903000"), ipinyou_row(bid="c" * 32)]
    path = written(tmp_path / "imp.tsv", "\n".join([IPINYOU_HEADER, *rows]).encode())
    first, again, other = (event["event_id"] for event in events_of(path))
    assert first == again != other


def test_a_broken_impression_is_sent_without_its_broken_fields(tmp_path: Path) -> None:
    rows = [ipinyou_row(price="-3"), ipinyou_row(time="yesterday")]
    path = written(tmp_path / "imp.tsv", "\n".join([IPINYOU_HEADER, *rows]).encode())
    without_amount, without_time = events_of(path)
    assert "amount" not in without_amount
    assert "occurred_at" not in without_time


@pytest.mark.parametrize("content", [b"", b"\n\n", b"name,value\na,1\n", b"<html>", b"\x1f\x8b\x08broken"])
def test_a_file_of_another_format_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "other", content)
    with pytest.raises(UnreadableFileError, match="other"):
        list(read(path))


def test_a_truncated_compressed_file_is_refused(tmp_path: Path) -> None:
    content = gzip.compress(json_lines(*[SPEND] * 100))
    with pytest.raises(UnreadableFileError):
        list(read(written(tmp_path / "cut.gz", content[:-10])))


def test_a_summary_counts_accounts_times_and_totals(tmp_path: Path) -> None:
    broken = {**SPEND, "amount": "many", "ad_account_id": "acct-2"}
    summary = summarise(written(tmp_path / "spend", json_lines(SPEND, LATER, broken)))
    assert summary.rows == 3
    assert summary.accounts == {("bc-1", "acct-1"): "USD", ("bc-1", "acct-2"): "USD"}
    assert summary.totals == {("bc-1", "acct-1"): Decimal("0.024690")}
    assert summary.first == datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    assert summary.last == datetime(2026, 11, 21, 12, 0, 0, 123_000, tzinfo=UTC)


def test_a_shift_moves_the_time_and_nothing_else() -> None:
    row = Row(dict(SPEND), json.dumps(SPEND).encode())
    moved = json.loads(shifted(row, timedelta(days=-1, microseconds=1)))
    assert moved == {**SPEND, "occurred_at": "2026-11-20T12:00:00.123001Z"}


@pytest.mark.parametrize("field", ["name", "campaign_id", "business_center_id", "ad_account_id", "currency"])
def test_a_row_with_the_escape_of_a_lone_surrogate_is_shifted_and_keeps_it(field: str, tmp_path: Path) -> None:
    path = written(tmp_path / "spend", json_lines({**SPEND, field: "cut \ud83d"}))
    (row,) = read(path)
    assert json.loads(shifted(row, timedelta(hours=1))) == {
        **SPEND,
        field: "cut \ud83d",
        "occurred_at": "2026-11-21T13:00:00.123000Z",
    }
    assert len(summarise(path).accounts) == (field in ("name", "campaign_id"))


def test_a_row_that_is_not_utf8_is_sent_unchanged(tmp_path: Path) -> None:
    line = json.dumps({**SPEND, "name": "?"}).encode().replace(b'"?"', b'"\xff"')
    (row,) = read(written(tmp_path / "spend", line + b"\n"))
    assert shifted(row, timedelta(hours=1)) == line


@pytest.mark.parametrize("time", ["noon", "2026-11-21T12:00:00", None])
def test_a_row_without_a_time_stays_unchanged(time: str | None) -> None:
    row = Row({**SPEND, "occurred_at": time}, b"as it came")
    assert shifted(row, timedelta(days=1)) == b"as it came"


def test_the_bytes_stay_unchanged_without_a_shift() -> None:
    assert shifted(Row(dict(SPEND), b"as it came"), timedelta()) == b"as it came"


def test_the_last_event_of_a_file_is_moved_to_now(tmp_path: Path) -> None:
    said: list[str] = []
    path = written(tmp_path / "spend", json_lines(SPEND, LATER))
    file = prepare(Settings(data_dir=tmp_path), path, keep_times=False, say=said.append)
    last = max(datetime.fromisoformat(json.loads(record)["occurred_at"]) for _, record in file.records())
    assert abs(datetime.now(UTC) - last) < timedelta(seconds=5)
    assert any("so that its last event is now" in line for line in said)


def test_a_file_sent_again_is_shifted_by_the_same_time_so_its_events_are_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    path = written(tmp_path / "spend", json_lines(SPEND, LATER))
    first, again = (prepare(Settings(data_dir=tmp_path), path, keep_times=False, say=said.append) for _ in range(2))
    assert [record for _, record in first.records()] == [record for _, record in again.records()]
    assert "as when it was sent before" in said[-1]


def test_original_times_are_kept_on_request_and_a_warning_names_those_that_are_too_old(tmp_path: Path) -> None:
    said: list[str] = []
    old = {**SPEND, "occurred_at": "2013-10-21T18:29:02Z"}
    path = written(tmp_path / "spend", json_lines(old))
    file = prepare(Settings(data_dir=tmp_path), path, keep_times=True, say=said.append)
    assert [record for _, record in file.records()] == [json.dumps(old).encode()]
    assert "too_old" in said[-1]


@pytest.mark.parametrize("keep_times", [True, False])
@pytest.mark.parametrize("far", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
@pytest.mark.parametrize("times", ["before", "after"])
def test_times_at_the_ends_of_the_calendar_are_sent_like_other_times(
    far: str, times: str, keep_times: bool, tmp_path: Path
) -> None:
    events = [SPEND, {**SPEND, "occurred_at": far}]
    path = written(
        tmp_path / "spend", json_lines(*(events if times == "before" else events[::-1]), {**SPEND, "occurred_at": far})
    )
    file = prepare(Settings(data_dir=tmp_path), path, keep_times=keep_times, say=lambda _: None)
    assert len(list(file.records())) == 3


@pytest.mark.parametrize(
    "amount", ["1e999999999999999999", "1e-999999999999999999", "-9e999999999999999999", "9" * 19, "1e18", "NaN"]
)
def test_an_invalid_amount_is_sent_and_not_counted_in_the_totals(amount: str, tmp_path: Path) -> None:
    path = written(tmp_path / "spend", json_lines(SPEND, {**SPEND, "amount": amount}, {**SPEND, "amount": amount}))
    summary = summarise(path)
    assert summary.rows == 3
    assert round(summary.totals["bc-1", "acct-1"], 6) == Decimal(SPEND["amount"])
