"""Thirty JSON schemas as people ask models to follow them, written for these tests.

They go through what the usual sets exercise: tool arguments, records, configurations, API answers,
trees, unions, maps, formats, bounds.
"""

from typing import Any

Schema = dict[str, Any]


def record(required: str, **properties: Schema) -> Schema:
    """A closed object; `required` names properties, "*" all of them."""
    names = list(properties) if required == "*" else required.split()
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }


def array(items: Schema, **limits: Any) -> Schema:
    return {"type": "array", "items": items, **limits}


def options(*values: Any) -> Schema:
    return {"enum": list(values)}


def optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


STRING: Schema = {"type": "string"}
SHORT: Schema = {"type": "string", "minLength": 1, "maxLength": 12}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}

SCHEMAS: dict[str, Schema] = {
    "weather tool": record(
        "*", city=STRING, unit=options("celsius", "fahrenheit"), days={"type": "integer",
        "minimum": 1, "maximum": 14},
    ),
    "search tool": record(
        "query", query=SHORT, limit={"type": "integer", "minimum": 1, "maximum": 100},
        safe=BOOLEAN, sort=options("relevance", "date", None),
    ),
    "sentiment": record(
        "*", label=options("positive", "neutral", "negative"),
        confidence={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "person": record(
        "name age", name=STRING, age={"type": "integer", "minimum": 0, "maximum": 150},
        email={"type": "string", "format": "email"}, tags=array(SHORT, maxItems=4),
    ),
    "address book": record(
        "*", contacts=array(
            record("*", name=SHORT, phone={"type": "string", "pattern": r"^\+[0-9]{6,12}$"}),
            minItems=1, maxItems=3,
        ),
    ),
    "receipt": record(
        "*", shop=SHORT, date={"type": "string", "format": "date"},
        items=array(
            record("*", name=SHORT, quantity={"type": "integer", "minimum": 1, "maximum": 99},
                   price={"type": "number", "exclusiveMinimum": 0, "maximum": 1000}),
            minItems=1, maxItems=2,
        ),
        paid=BOOLEAN,
    ),
    "meeting": record(
        "*", title=SHORT, start={"type": "string", "format": "date-time"},
        minutes={"type": "integer", "multipleOf": 15, "minimum": 15, "maximum": 480},
        attendees=array({"type": "string", "format": "email"}, minItems=1, maxItems=2),
    ),
    "point": record("*", x=NUMBER, y=NUMBER),
    "polygon": record("*", points=array(array(NUMBER, minItems=2, maxItems=2), minItems=3,
                                        maxItems=5)),
    "pair of two kinds": {
        "type": "array", "prefixItems": [SHORT, INTEGER], "items": False, "minItems": 2,
    },
    "matrix": array(array({"type": "integer", "minimum": -9, "maximum": 9}, minItems=3,
                          maxItems=3), minItems=2, maxItems=2),
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {"node": record(
            "value", value={"type": "integer", "minimum": 0, "maximum": 9},
            children=array({"$ref": "#/$defs/node"}, maxItems=2),
        )},
    },
    "linked list": {
        "$defs": {"cell": record("*", head=BOOLEAN, tail=optional({"$ref": "#/$defs/cell"}))},
        "$ref": "#/$defs/cell",
    },
    "shape by kind": {
        "oneOf": [
            record("*", kind={"const": "circle"}, radius=NUMBER),
            record("*", kind={"const": "square"}, side=NUMBER),
            record("*", kind={"const": "text"}, content=SHORT),
        ],
    },
    "id of either kind": record("*", id={"anyOf": [INTEGER, {"type": "string",
                                                               "format": "uuid"}]}),
    "several types": record("*", value={"type": ["string", "integer", "null"]}),
    "nothing or a name": record("*", nickname=optional(SHORT)),
    "all of two": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": BOOLEAN}, "required": ["b"]},
        ],
    },
    "scores by name": {
        "type": "object", "minProperties": 1, "maxProperties": 3,
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "environment": {
        "type": "object", "patternProperties": {"^[A-Z]{1,6}$": SHORT},
        "additionalProperties": False,
    },
    "open object": {"type": "object", "properties": {"name": SHORT}, "required": ["name"]},
    "server": record(
        "host port", host={"type": "string", "format": "ipv4"},
        port={"type": "integer", "minimum": 1, "maximum": 65535},
        tls=record("", cert=SHORT, key=SHORT), level=options("debug", "info", "warn"),
    ),
    "deployment": record(
        "*", apiVersion={"const": "v1"}, kind=options("Pod", "Service"),
        metadata=record("name", name={"type": "string", "pattern": "^[a-z][a-z0-9-]{0,10}$"},
                        labels={"type": "object", "additionalProperties": SHORT}),
    ),
    "steps of a proof": record(
        "*", steps=array(record("*", claim=SHORT, because=SHORT), minItems=1, maxItems=3),
        answer={"type": "string", "maxLength": 20},
    ),
    "flags": record("*", **{f"flag_{n}": BOOLEAN for n in range(12)}),
    "deep": record("*", a=record("*", b=record("*", c=record("*", d=record("*", e=INTEGER))))),
    "colour": record("*", hex={"type": "string", "pattern": "^#[0-9a-f]{6}$"},
                     alpha={"type": "number", "minimum": 0, "exclusiveMaximum": 1}),
    "times": record("*", at={"type": "string", "format": "time"},
                    every={"type": "string", "format": "duration"}),
    "names in other scripts": record("*", größe=INTEGER, 名前=SHORT,
                                     город=options("Москва", "Київ", "東京")),
    "one word": options("yes", "no", "it \"depends\"", 3, None, True),
}  # fmt: skip
