"""The owner of a quarantined record: the Business Center that its data names, if it names only one, and no other."""

import json
from base64 import b64encode
from typing import Any

import pytest

from services.allocation.records.record_decoding import Fault, business_center_of, decode_event

INNER, OUTER = "inner", "outer"
DATA = {"business_center_id": INNER, "amount": "none"}
ENVELOPE = {"specversion": "1.0", "id": "x", "source": "/ads", "type": "any", "business_center_id": OUTER}
ENCODED = {**ENVELOPE, "data_base64": b64encode(json.dumps(DATA).encode()).decode()}
Headers = list[tuple[str, bytes | None]]
SAYS_STRUCTURED: Headers = [("Content-Type", b"application/cloudevents+json; charset=utf-8")]
SAYS_BATCH: Headers = [("content-type", b"application/cloudevents-batch+json")]
SAYS_BINARY: Headers = [("ce_specversion", b"1.0"), ("ce_business_center_id", OUTER.encode())]
RECORDS: list[tuple[Any, Headers, str | None]] = [
    (DATA, [], INNER),
    ({**ENVELOPE, "data": DATA}, [], INNER),
    ({**ENVELOPE, "data": DATA}, SAYS_STRUCTURED, INNER),
    ({**ENVELOPE, "data": DATA, "specversion": "0.3"}, [], INNER),
    (ENCODED, [], INNER),
    (ENCODED, SAYS_STRUCTURED, INNER),
    ({**ENVELOPE, "data": {"amount": "1"}}, [], None),
    ({**ENVELOPE, "data": "text"}, SAYS_STRUCTURED, None),
    (ENVELOPE, [], None),
    ({**ENVELOPE, "data_base64": "no base64"}, [], None),
    ({**ENCODED, "data": DATA}, [], INNER),
    ({**ENCODED, "data": {"amount": "1"}}, SAYS_STRUCTURED, INNER),
    ({**ENVELOPE, "data_base64": "no base64", "data": DATA}, SAYS_STRUCTURED, INNER),
    ({**ENVELOPE, "data_base64": 7, "data": DATA}, [], INNER),
    ({**ENCODED, "data": {"business_center_id": OUTER}}, [], None),
    ([{**ENVELOPE, "data": DATA}, ENCODED, ENVELOPE, 7], SAYS_BATCH, INNER),
    ([{**ENVELOPE, "data": DATA}, {**ENVELOPE, "data": {"business_center_id": OUTER}}], SAYS_BATCH, None),
    ([], SAYS_BATCH, None),
    ([DATA], [], None),
    ({**DATA, "data": {"business_center_id": OUTER}}, [], INNER),
    (DATA, SAYS_BINARY, INNER),
    ({"business_center_id": OUTER}, SAYS_STRUCTURED, None),
]


@pytest.mark.parametrize(("document", "headers", "whose"), RECORDS)
def test_a_record_belongs_to_the_business_center_that_its_data_names(
    document: Any, headers: Headers, whose: str | None
) -> None:
    value = json.dumps(document).encode()
    assert isinstance(decode_event(value, headers), Fault)
    assert business_center_of(value, headers) == whose
