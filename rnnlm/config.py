"""The base of every configuration class, reading TOML, and `path=value` overrides.

All mistakes of a configuration are reported at once, each as `path: what is wrong (got VALUE)`, with what is allowed.
This module needs only the standard library and pydantic, so that a mistake answers before anything heavy is loaded.
"""

import difflib
import hashlib
import json
import re
import shlex
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rnnlm.errors import ConfigError, UsageError


class Config(BaseModel):
    """Base class: frozen, and an unknown key is an error. The docstring under each field says what it is and its unit."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str = "") -> Self:
        """Validate a plain tree of values.

        Raises:
            ConfigError: with every mistake.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe(cls, error), origin) from None

    def plain(self) -> dict[str, Any]:
        """The whole tree as JSON-compatible values, defaults included."""
        return self.model_dump(mode="json")


def digest(value: Any) -> str:
    """SHA-256 of a JSON-compatible value in canonical form, as 64 hexadecimal digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: the file does not exist or is not TOML; the message has line and column.
    """
    try:
        text = Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error})") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, table by table. A table whose `kind` changes replaces the one below it."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            changes_kind = "kind" in value and value["kind"] != below.get("kind", value["kind"])
            result[key] = dict(value) if changes_kind else merge(below, value)
        else:
            result[key] = value
    return result


def apply_overrides(schema: type[BaseModel], values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Lay `path=value` strings over a plain tree. A value is read by the declared type of its field.

    `none` unsets an optional field; a TOML array or inline table is read as such where the field admits one. One whose
    quotes a shell has taken away is left for `Config.parse` to report with all the others, as is an unknown path.

    Raises:
        ConfigError: an override without `=`.
    """
    result = merge(values, {})
    problems = []
    for override in overrides:
        path, separator, raw = override.partition("=")
        if not separator or not path:
            problems.append(f"{override}: an override is written PATH=VALUE")
            continue
        keys = path.split(".")
        _set(result, keys, _read(raw, _declared(schema, keys)))
    if problems:
        raise ConfigError(problems, "command line")
    return result


def unset(schema: type[BaseModel], values: Mapping[str, Any], keys: Sequence[str] = ()) -> dict[str, Any]:
    """A tree read from TOML, which has no null, with `"none"` read as unset where a field is optional."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        path = [*keys, key]
        if isinstance(value, Mapping):
            result[key] = unset(schema, value, path)
        else:
            result[key] = None if value == "none" and type(None) in _declared(schema, path) else value
    return result


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, Mapping) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _read(raw: str, declared: list[Any]) -> Any:
    if raw == "none" and type(None) in declared:
        return None
    if raw.startswith(("[", "{")) and declared != [str]:
        try:
            return tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            if _is_bracketed(raw) and any(get_origin(member) is tuple for member in declared):
                return _NoArray(raw)
    return raw


@dataclass(frozen=True)
class _NoArray:
    """What was meant as a TOML array and is none. No field admits it."""

    raw: str

    def __str__(self) -> str:
        return self.raw

    def quoted(self, path: str) -> str:
        """The override with its quotes, as one word of a shell."""
        items = [item.strip() for item in self.raw[1:-1].split(",")]
        return shlex.quote(f"{path}=[{', '.join(_as_toml(item) for item in items if item)}]")


def _as_toml(item: str) -> str:
    try:
        tomllib.loads(f"value = {item}")
    except tomllib.TOMLDecodeError:
        return json.dumps(item, ensure_ascii=False)
    return item


def _is_bracketed(raw: str) -> bool:
    """Whether the first bracket is closed by the last character, unlike that of a glob such as `[0-9]*.[ch]`."""
    depths = list(accumulate((character == "[") - (character == "]") for character in raw))
    return depths[-1] == 0 and 0 not in depths[:-1]


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type annotation, with `Annotated` and unions unfolded."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _models(members: Iterable[Any]) -> list[type[BaseModel]]:
    return [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]


def _declared(schema: type[BaseModel], keys: list[str]) -> list[Any]:
    """The alternatives declared for the field at a path; empty where the path leads nowhere."""
    members: list[Any] = [schema]
    for key in keys:
        members = _below(members, key)
    return members


def _below(members: Iterable[Any], key: str) -> list[Any]:
    """The alternatives declared for a key of a table; empty where none of the tables in `members` has it."""
    annotations = [_field(model, key) for model in _models(members)]
    annotations += [get_args(member)[1] for member in members if get_origin(member) is dict]
    return [member for annotation in annotations if annotation is not None for member in _members(annotation)]


def _field(model: type[BaseModel], key: str) -> Any:
    """The annotation of the field that is written as `key`, or None."""
    for name, field in model.model_fields.items():
        if (field.alias or name) == key:
            return field.annotation
    return None


def describe(schema: type[BaseModel], error: ValidationError) -> list[str]:
    """One line for each mistake: path, what is wrong, the value, and for a misspelt key the nearest that exists.

    pydantic reports a mistake in a union once for each alternative: those of one path become one line, and those that
    only say that another alternative was meant are left out.
    """
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(tuple(_config_path(schema, detail["loc"])), []).append(detail)
    lines = []
    for keys, details in found.items():
        is_outer = any(len(other) > len(keys) and other[: len(keys)] == keys for other in found)
        if not is_outer:
            lines.append(_line(schema, list(keys), details))
    return lines


def _config_path(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """A pydantic location without the tags of unions, which are not keys that a user writes."""
    keys: list[str] = []
    members: list[Any] = [schema]
    for part in location:
        below = [] if isinstance(part, int) else _below(members, part)
        if isinstance(part, int):
            keys.append(str(part))
        elif below and (len(members) == 1 or not _is_tag(members, part)):
            keys.append(part)
            members = below
        elif part == location[-1] and not _is_tag(members, part):
            keys.append(part)
    return keys


def _is_tag(members: Iterable[Any], part: str) -> bool:
    for member in members:
        if part == getattr(member, "__name__", None) or part.startswith(("tuple[", "list[", "dict[", "constrained-")):
            return True
        for model in _models([member]):
            if "kind" in model.model_fields and part in get_args(model.model_fields["kind"].annotation):
                return True
    return part in {"str", "int", "float", "bool", "none"}


def _line(schema: type[BaseModel], keys: list[str], details: list[ErrorDetails]) -> str:
    path, detail = _shown_path(keys), details[0]
    if isinstance(detail["input"], _NoArray):
        given = detail["input"]
        return (
            f"{path}: is no TOML array; a shell takes quotes away, so write {given.quoted(path)} (got {_shown(given)})"
        )
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_nearest(schema, keys, detail['loc'])}"
    if detail["type"] == "missing":
        return f"{path}: is required"
    message = " or ".join(dict.fromkeys(_message(each) for each in details))
    if detail["type"] == "value_error" and isinstance(detail["input"], Mapping):
        return _between_fields(schema, keys, message)
    return f"{path}: {message} (got {_shown(detail['input'])})"


def _between_fields(schema: type[BaseModel], keys: list[str], rule: str) -> str:
    """What a rule between fields says, which may begin with a path from the top, with a field of its table, or with none."""
    path, first = _shown_path(keys), rule.partition(":")[0].split(".")[0]
    if not keys or rule.startswith((f"{path}:", f"{path}.")):
        return rule
    is_field = ":" in rule and any(_field(model, first) is not None for model in _models(_declared(schema, keys)))
    return f"{path}.{rule}" if is_field else f"{path}: {rule}"


def _message(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _nearest(schema: type[BaseModel], keys: list[str], location: tuple[int | str, ...]) -> str:
    """What the key may have meant, among those of the union's member that the location names."""
    models = list(_models(_declared(schema, keys[:-1]))) if len(keys) > 1 else [schema]
    models = [model for model in models if any(_is_tag([model], str(part)) for part in location[:-1])] or models
    siblings = sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
    near = difflib.get_close_matches(keys[-1], siblings, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(siblings)}"


def _shown_path(keys: Iterable[str]) -> str:
    """A path as TOML writes it: a key with a dot in it stands in quotes."""
    return ".".join(key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False) for key in keys)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
