"""The schema of a function's parameters as Ollama shows it to the model.

api/types.go ToolFunctionParameters and ToolProperty have some of the keywords of JSON Schema. What they lack is gone
before the template renders a tool: a property that is a mere reference would be shown as {}. What can be said by the
keywords that they have is said by them: references are followed, `oneOf` is `anyOf`, `const` is `enum`. `items` is kept
whole, and so is `$defs`, to which the references in `items` lead.
"""

import json
from typing import Any

from batches.backends.parameters.names import shortened
from batches.backends.parameters.table import JSON, Entry, Note, Notes, Weight

DEFINITIONS = ("$defs", "definitions")
# Keywords that limit an answer, and that the model is not shown.
LIMITS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"),
    *("format", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "patternProperties"),
    *("propertyNames", "prefixItems", "not", "if", "dependentRequired", "dependentSchemas", "dependencies"),
    *("contains", "minContains", "maxContains", "unevaluatedProperties", "contentEncoding", "contentMediaType"),
)
# Keywords that say to the model what to write, and that it is not shown.
ADVICE = ("default", "examples", "example")
# Following a reference costs what it adds, and this for each member that it copies, of the room in Notes.
BYTES_PER_MEMBER = 100
MOST_FOLLOWED = 100  # references within each other
MOST_NOTES = 1000  # of one request; more hints help nobody
HINT = "Ollama does not show it to the model; say it in the description."


class ToolSchema(Entry):
    """The schema in the keywords that Ollama keeps, and notes on those that limit an answer and are lost."""

    def check(self, value: Any, notes: Notes) -> Any:
        if type(value) is not dict:
            return value
        definitions = {
            f"#/{place}/{name}": schema
            for place in DEFINITIONS
            if isinstance(value.get(place), dict)
            for name, schema in value[place].items()
        }
        schema = _Reader(definitions, notes).read(value, "", frozenset())
        # ToolFunctionParameters has less than ToolProperty.
        for name in ("anyOf", "description"):
            if schema.get(name):
                notes.append(Note(HINT, path=name, weight=Weight.TOLD))
        if "definitions" in schema and "$defs" not in schema:
            renamed: JSON = _renamed(schema)
            return renamed
        return schema


class _Reader:
    def __init__(self, definitions: JSON, notes: Notes) -> None:
        self.definitions = definitions
        self.notes = notes
        self._sizes: dict[str, int] = {}  # of the definitions, in bytes

    def read(self, schema: Any, path: str, followed: frozenset[str]) -> Any:
        """The same schema in the keywords that are kept; itself if it has no others. `followed`: references so far."""
        if type(schema) is not dict:
            return schema
        said, followed = self._followed(schema, path, followed)
        if not isinstance(parts := said.get("allOf"), list):
            return self._shown(said, path, followed)
        own = self._shown({name: inner for name, inner in said.items() if name != "allOf"}, path, followed)
        return _joined([*(self.read(part, path, followed) for part in parts), own])

    def _shown(self, said: JSON, path: str, followed: frozenset[str]) -> JSON:
        if "oneOf" in said and "anyOf" not in said:
            said = {"anyOf" if name == "oneOf" else name: inner for name, inner in said.items()}
        if "const" in said and "enum" not in said:
            said = {name: inner for name, inner in said.items() if name != "const"} | {"enum": [said["const"]]}
        for name in LIMITS:
            if name in said:
                self._tell(path, name)
        for name in ADVICE:
            if said.get(name) is not None:
                self._tell(path, name)
        if isinstance(said.get("additionalProperties"), dict):
            self._tell(path, "additionalProperties")
        if isinstance(inner := said.get("properties"), dict):
            properties = {
                name: self.read(each, shortened(f"{path}.properties.{shortened(name)}"), followed)
                for name, each in inner.items()
            }
            said = _with(said, "properties", properties)
        if isinstance(inner := said.get("anyOf"), list):
            kinds = [self.read(each, shortened(f"{path}.anyOf[{index}]"), followed) for index, each in enumerate(inner)]
            said = _with(said, "anyOf", kinds)
        return said

    def _followed(self, said: JSON, path: str, followed: frozenset[str]) -> tuple[JSON, frozenset[str]]:
        """The schema to which a reference leads, with what stands beside the reference."""
        while isinstance(reference := said.get("$ref"), str):
            is_known = reference in self.definitions and reference not in followed
            if not is_known or len(followed) == MOST_FOLLOWED or not self._has_room(reference, said):
                self._tell(path, "$ref")
                break
            followed |= {reference}
            target = self.definitions[reference]
            said = (target if isinstance(target, dict) else {}) | {name: said[name] for name in said if name != "$ref"}
        return said, followed

    def _has_room(self, reference: str, said: JSON) -> bool:
        """Take the room for what this reference adds, if it is there."""
        if reference not in self._sizes:
            self._sizes[reference] = len(json.dumps(self.definitions[reference]))
        added = self._sizes[reference] + BYTES_PER_MEMBER * len(said)
        if added > self.notes.room:
            return False
        self.notes.room -= added
        return True

    def _tell(self, path: str, name: str) -> None:
        if len(self.notes) < MOST_NOTES:
            self.notes.append(Note(HINT, path=f"{path}.{name}".lstrip("."), weight=Weight.TOLD))


def _joined(schemas: list[Any]) -> JSON:
    """One schema with the members of all, later ones first; of `properties` and `required` it has those of each."""
    joined: JSON = {}
    properties: JSON = {}
    required: list[Any] = []
    seen: set[str] = set()
    for schema in schemas:
        for name, inner in (schema if isinstance(schema, dict) else {}).items():
            joined[name] = inner
            if name == "properties" and isinstance(inner, dict):
                properties.update(inner)
                joined[name] = properties
            elif name == "required" and isinstance(inner, list):
                required += [each for each in inner if not isinstance(each, str) or each not in seen]
                seen.update(each for each in inner if isinstance(each, str))
                joined[name] = required
    return joined


def _with(schema: JSON, name: str, inner: Any) -> JSON:
    """`schema` with this member, itself if it has it already: lines are compared and stored by what is sent."""
    return schema if schema[name] == inner else schema | {name: inner}


def _renamed(value: Any) -> Any:
    """`definitions` and the references to them, by the name that Ollama keeps."""
    if isinstance(value, dict):
        return {"$defs" if name == "definitions" else name: _renamed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    return value.replace("#/definitions/", "#/$defs/") if isinstance(value, str) else value
