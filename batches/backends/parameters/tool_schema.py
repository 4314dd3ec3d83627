"""The schema of a function's parameters as Ollama shows it to the model.

api/types.go ToolFunctionParameters and ToolProperty have some of the keywords of JSON Schema. What they lack is gone
before the template renders a tool: a property that is a mere reference would be shown as {}. What can be said by the
keywords that they have is said by them: references are followed, `oneOf` is `anyOf`, `const` is `enum`. `items` is kept
whole, and so is `$defs`, to which the references in `items` lead.
"""

from typing import Any

from batches.backends.parameters.table import JSON, Entry, Note, Weight

DEFINITIONS = ("$defs", "definitions")
# Keywords that limit an answer, and that the model is not shown.
LIMITS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"),
    *("format", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "patternProperties"),
    *("propertyNames", "prefixItems", "not", "if", "dependentRequired", "dependentSchemas"),
)
# Definitions that name each other twice would double with each step.
MOST_SCHEMAS = 10_000
HINT = "Ollama does not show it to the model; say it in the description."


class ToolSchema(Entry):
    """The schema in the keywords that Ollama keeps, and notes on those that limit an answer and are lost."""

    def check(self, value: Any, notes: list[Note]) -> Any:
        if type(value) is not dict:
            return value
        definitions = {
            f"#/{place}/{name}": schema
            for place in DEFINITIONS
            if isinstance(value.get(place), dict)
            for name, schema in value[place].items()
        }
        schema = _Reader(definitions, notes).read(value, "", ())
        if "anyOf" in schema:
            notes.append(Note(HINT, path="anyOf", weight=Weight.TOLD))
        if "definitions" in schema and "$defs" not in schema:
            renamed: JSON = _renamed(schema)
            return renamed
        return schema


class _Reader:
    def __init__(self, definitions: JSON, notes: list[Note]) -> None:
        self.definitions = definitions
        self.notes = notes
        self.read_so_far = 0

    def read(self, schema: Any, path: str, followed: tuple[str, ...]) -> Any:
        """The same schema in the keywords that are kept; itself if it has no others. `followed`: references so far."""
        if type(schema) is not dict:
            return schema
        self.read_so_far += 1
        said, followed = self._followed(schema, path, followed)
        if isinstance(parts := said.get("allOf"), list):
            said = self._joined(said, [self.read(part, path, followed) for part in parts])
        if "oneOf" in said and "anyOf" not in said:
            said = {"anyOf" if name == "oneOf" else name: inner for name, inner in said.items()}
        if "const" in said and "enum" not in said:
            said = {name: inner for name, inner in said.items() if name != "const"} | {"enum": [said["const"]]}
        for name in LIMITS:
            if name in said:
                self._tell(path, name)
        if isinstance(said.get("additionalProperties"), dict):
            self._tell(path, "additionalProperties")
        if isinstance(inner := said.get("properties"), dict):
            properties = {name: self.read(each, f"{path}.properties.{name}", followed) for name, each in inner.items()}
            said = _with(said, "properties", properties)
        if isinstance(inner := said.get("anyOf"), list):
            kinds = [self.read(each, f"{path}.anyOf[{index}]", followed) for index, each in enumerate(inner)]
            said = _with(said, "anyOf", kinds)
        return said

    def _followed(self, said: JSON, path: str, followed: tuple[str, ...]) -> tuple[JSON, tuple[str, ...]]:
        """The schema to which a reference leads, with what stands beside the reference."""
        while isinstance(reference := said.get("$ref"), str) and reference in self.definitions:
            if reference in followed or self.read_so_far > MOST_SCHEMAS:
                self._tell(path, "$ref")
                break
            followed = (*followed, reference)
            target = self.definitions[reference]
            said = (target if isinstance(target, dict) else {}) | {name: said[name] for name in said if name != "$ref"}
        return said, followed

    def _joined(self, said: JSON, parts: list[Any]) -> JSON:
        joined: JSON = {}
        for each in [*parts, {name: inner for name, inner in said.items() if name != "allOf"}]:
            for name, inner in (each if isinstance(each, dict) else {}).items():
                before = joined.get(name)
                if name == "properties" and isinstance(before, dict) and isinstance(inner, dict):
                    joined[name] = before | inner
                elif name == "required" and isinstance(before, list) and isinstance(inner, list):
                    joined[name] = [*before, *(each for each in inner if each not in before)]
                else:
                    joined[name] = inner
        return joined

    def _tell(self, path: str, name: str) -> None:
        self.notes.append(Note(HINT, path=f"{path}.{name}".lstrip("."), weight=Weight.TOLD))


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
