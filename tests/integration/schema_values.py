"""Values that a JSON Schema of /openapi.json allows, generated from that document alone."""

from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
_ITEMS_AT_MOST = 3


def values(schema: Schema, schemas: dict[str, Schema]) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a schema. `schemas` has the components that it may refer to."""
    if "$ref" in schema:
        return values(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema or ("oneOf" in schema and "properties" not in schema):
        return st.one_of([values(each, schemas) for each in schema.get("anyOf") or schema["oneOf"]])
    if schema["type"] == "array":
        least, most = schema.get("minItems", 0), min(schema.get("maxItems", _ITEMS_AT_MOST), _ITEMS_AT_MOST)
        return st.lists(values(schema["items"], schemas), min_size=least, max_size=most)
    return _objects(schema, schemas) if schema["type"] == "object" else _scalars(schema)


def _scalars(schema: Schema) -> st.SearchStrategy[Any]:
    if schema["type"] == "null":
        return st.none()
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "integer":
        return st.integers(schema.get("minimum"), schema.get("maximum"))
    assert schema["type"] == "string", schema
    longest = schema.get("maxLength", 10_000)
    if "pattern" not in schema:
        return st.text(st.characters(codec="utf-8"), max_size=longest)
    return _matching(schema["pattern"], longest)


@lru_cache(maxsize=100)
def _matching(pattern: str, longest: int) -> st.SearchStrategy[str]:
    inner = pattern.removeprefix("^").removesuffix("$")  # In JSON Schema, `$` matches only at the very end.
    return st.from_regex(f"(?:{inner})", fullmatch=True).filter(lambda text: len(text) <= longest)


def _objects(schema: Schema, schemas: dict[str, Schema]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with all required fields and any others. Where one of several fields is required, they have
    exactly one, and no field that needs another of them.
    """
    choices = [each["required"] for each in schema.get("oneOf", [])]
    if not choices:
        return _with(schema.get("required", []), set(), schema, schemas)
    others = {name for choice in choices for name in choice}
    return st.one_of([_with(choice, others.difference(choice), schema, schemas) for choice in choices])


def _with(
    required: list[str], absent: set[str], schema: Schema, schemas: dict[str, Schema]
) -> st.SearchStrategy[dict[str, Any]]:
    of, needs = schema["properties"], schema.get("dependentRequired", {})
    optional = [name for name in of if name not in {*required, *absent} and absent.isdisjoint(needs.get(name, []))]
    return st.fixed_dictionaries(
        {name: values(of[name], schemas) for name in required},
        optional={name: values(of[name], schemas) for name in optional},
    )
