"""References within a JSON schema: what they point to, and whether they lead to anything.

`{"$ref": "#"}` refers to itself alone: it allows nothing and forbids nothing, and a grammar made
from it has no first character. In `{"anyOf": [{"$ref": "#"}, {"type": "integer"}]}` another branch
leads out, so that one can be followed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

# Keywords whose values are schemas: one, several, or several by name.
ONE = frozenset({"items", "additionalProperties"})
SEVERAL = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_DEFINITIONS = frozenset({"$defs", "definitions"})


class References:
    """The references of one schema, all followed once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def target(self, reference: Any) -> Any:
        """The schema in the root that `reference` points to; None where there is none."""
        if not isinstance(reference, str) or not re.match(r"#(/|$)", reference):
            return None
        found: Any = self._root
        for part in _pointer(reference):
            if isinstance(found, Mapping) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                return None
        return found if isinstance(found, Mapping | bool) else None

    def leads(self, schema: Any) -> bool:
        """Whether a schema of the root leads to a value, and not only to itself."""
        return id(schema) in self._leading if isinstance(schema, Mapping) else schema is not False

    def depth(self) -> int:
        """How deep the schemas lie in one another, each where it is come to first."""
        seen: set[int] = set()
        most = 0
        left: list[tuple[Any, int]] = [(self._root, 1)]
        while left:
            schema, depth = left.pop()
            if not isinstance(schema, Mapping) or id(schema) in seen:
                continue
            seen.add(id(schema))
            most = max(most, depth)
            within = [child for _, children in _children(schema) for child in children]
            within.append(self.target(schema.get("$ref")))
            left += [(child, depth + 1) for child in reversed(within)]
        return most

    def circular(self) -> str | None:
        """A reference to itself alone that the root's values may come to; None without one."""
        seen: set[int] = set()
        values: list[Any] = [self._root]
        while values:
            schema = values.pop()
            if not isinstance(schema, Mapping) or id(schema) in seen:
                continue
            seen.add(id(schema))
            if not self.leads(schema):
                if (found := self._circular_from(schema)) is not None:
                    return found
                continue
            for alternatives in self._needs(schema):
                values += filter(self.leads, alternatives)
            for keyword, children in _children(schema):
                if keyword not in _DEFINITIONS and keyword not in ("anyOf", "oneOf", "allOf"):
                    values += children
        return None

    def _circular_from(self, schema: Mapping[str, Any]) -> str | None:
        """The first reference of a schema that leads nowhere."""
        seen: set[int] = set()
        while id(schema) not in seen:
            seen.add(id(schema))
            reference = schema.get("$ref")
            if reference is not None and not self.leads(self.target(reference)):
                return str(reference)
            within = [each for several in self._needs(schema) for each in several]
            schema = next(
                (each for each in within if isinstance(each, Mapping) and not self.leads(each)),
                schema,
            )
        return None

    def _needs(self, schema: Mapping[str, Any]) -> list[list[Any]]:
        """Alternatives of which one each must lead to a value for `schema` to do so."""
        needs = []
        if (target := self.target(schema.get("$ref"))) is not None:
            needs.append([target])
        for keyword, children in _children(schema):
            if keyword == "allOf":
                needs += [[child] for child in children]
            elif keyword in ("anyOf", "oneOf"):
                needs.append(children)
        return needs

    @cached_property
    def _leading(self) -> set[int]:
        """Ids of the schemas that lead to a value, found from those that need no other one."""
        leading: set[int] = set()
        waiting: dict[int, set[int]] = {}  # needs that are not met, by the schema's id
        needed_by: dict[int, list[tuple[int, int]]] = defaultdict(list)
        ready: list[int] = []
        schemas: list[Any] = [self._root]
        while schemas:
            schema = schemas.pop()
            if not isinstance(schema, Mapping) or id(schema) in waiting:
                continue
            schemas += [child for _, children in _children(schema) for child in children]
            unmet = waiting[id(schema)] = set()
            for number, alternatives in enumerate(self._needs(schema)):
                schemas += alternatives
                if any(
                    not isinstance(each, Mapping) and each is not False for each in alternatives
                ):
                    continue
                unmet.add(number)
                for each in alternatives:
                    needed_by[id(each)].append((id(schema), number))
            if not unmet:
                ready.append(id(schema))
        while ready:
            found = ready.pop()
            leading.add(found)
            for schema_id, number in needed_by[found]:
                unmet = waiting[schema_id]
                if number in unmet:
                    unmet.remove(number)
                    if not unmet:
                        ready.append(schema_id)
        return leading


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The schemas right within a schema, with their keywords."""
    for keyword, value in schema.items():
        if keyword in ONE:
            yield keyword, [value]
        elif keyword in SEVERAL and isinstance(value, list):
            yield keyword, value
        elif keyword in NAMED and isinstance(value, Mapping):
            yield keyword, list(value.values())


def _pointer(reference: str) -> Iterator[str]:
    """The parts of a JSON pointer such as "#/$defs/a~1b"."""
    for part in reference.split("/")[1:]:
        yield part.replace("~1", "/").replace("~0", "~")
