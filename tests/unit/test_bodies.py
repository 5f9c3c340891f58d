"""Integers of request bodies are those of JSON Schema: numbers without a fraction, and none that is not exact."""

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from services.api.door.bodies import WHOLE
from services.api.door.errors import sentence
from services.api.present.lookup import EVENTS_LOOKUP
from services.api.quarantine.routes import REPLAY_REQUEST
from services.incentives.terms import DEAL_TERMS
from shared.contracts.commands import FINANCE_COMMAND

MOST = 2**63 - 1
NUMBER: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=MOST), WHOLE])
LOOKUP = '{{"events": [{{"{name}": {value}}}]}}'
REPLAY = '{{"reason": "too_old", "{name}": {value}}}'
# Each integer of a request body, with a body that has it.
INTEGERS = [
    (EVENTS_LOOKUP, LOOKUP, "partition"),
    (EVENTS_LOOKUP, LOOKUP, "offset"),
    (REPLAY_REQUEST, REPLAY, "limit"),
]


def read(text: str) -> int:
    return NUMBER.validate_json(text, strict=True)


def refusal(text: str) -> str:
    with pytest.raises(ValidationError) as caught:
        read(text)
    return sentence(caught.value.errors(include_url=False)[0], ["offset"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0", 0), ("1", 1), ("1.0", 1), ("-0.0", 0), ("1e3", 1000), ("12.50e1", 125), ("2E+2", 200), ("300e-2", 3)),
        *(("9007199254740991.0", 2**53 - 1), ("9007199254740993", 2**53 + 1), (str(MOST), MOST)),
    ],
)
def test_a_number_without_a_fraction_is_read_as_an_integer(text: str, number: int) -> None:
    value = read(text)
    assert (value, type(value)) == (number, int)


@pytest.mark.parametrize("text", ["1.5", "1e-1", "true", "false", '"1"', '"1.0"', "[1]", "{}", "1e999"])
def test_anything_else_is_not_read_as_an_integer(text: str) -> None:
    assert refusal(text) == "offset should be a valid integer"


@pytest.mark.parametrize("text", ["9007199254740992.0", "9007199254740993.0", "1e16", "-1e16", f"{MOST}.0", "1e300"])
def test_a_number_that_may_be_inexact_is_refused_with_an_explanation(text: str) -> None:
    assert refusal(text) == (
        "offset should have neither a fraction nor an exponent: from 2^53 on such a number is not exact"
    )


@pytest.mark.parametrize("text", ["-1", "-1.0", str(MOST + 1)])
def test_an_integer_keeps_its_bounds(text: str) -> None:
    assert refusal(text).startswith(("offset should be greater", "offset should be less"))


@given(st.integers(0, 2**53 - 1))
def test_both_spellings_are_the_same_number(number: int) -> None:
    assert read(str(number)) == read(f"{number}.0") == number


def test_the_schema_is_that_of_a_plain_integer() -> None:
    plain: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=MOST)])
    assert NUMBER.json_schema() == plain.json_schema() == {"type": "integer", "minimum": 0, "maximum": MOST}


@pytest.mark.parametrize(("adapter", "body", "name"), INTEGERS)
def test_every_integer_of_a_body_may_have_a_fraction_of_zero(adapter: TypeAdapter[Any], body: str, name: str) -> None:
    read_ = [adapter.validate_json(body.format(name=name, value=value), strict=True) for value in ("1", "1.0")]
    assert read_[0] == read_[1]
    with pytest.raises(ValidationError):
        adapter.validate_json(body.format(name=name, value="1.5"), strict=True)


def integers(part: Any, name: str = "") -> list[str]:
    """Return the names of all integers in a JSON schema."""
    if isinstance(part, list):
        return [found for each in part for found in integers(each, name)]
    if not isinstance(part, dict):
        return []
    here = [name] if part.get("type") == "integer" else []
    inner = {key: each for key, each in part.items() if key != "properties"}
    below = [found for each in inner.values() for found in integers(each, name)]
    return here + below + [found for key, each in part.get("properties", {}).items() for found in integers(each, key)]


def test_every_integer_of_a_body_is_tested_here() -> None:
    adapters: list[TypeAdapter[Any]] = [EVENTS_LOOKUP, REPLAY_REQUEST, DEAL_TERMS, FINANCE_COMMAND]
    found = [name for adapter in adapters for name in integers(adapter.json_schema())]
    assert sorted(found) == sorted(name for _, _, name in INTEGERS)
