"""The base of every configuration class, reading TOML, and `path=value` overrides.

All mistakes of a configuration are reported at once, each as `path: what is wrong (got VALUE)`, with what is allowed.
This module needs only the standard library and pydantic, so that a mistake answers before anything heavy is loaded.
"""

import difflib
import hashlib
import json
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
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

    `none` unsets an optional field; a TOML array or inline table is read as such where the field admits one.

    Raises:
        ConfigError: an override without `=`. An unknown path is left for `Config.parse` to report with all the others.
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
            return raw
    return raw


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
        members = [
            member
            for model in _models(members)
            for member in _members(_field(model, key))
            if _field(model, key) is not None
        ]
    return members


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
        fields = {field.alias or key for model in _models(members) for key, field in model.model_fields.items()}
        if isinstance(part, int):
            keys.append(str(part))
        elif part in fields:
            keys.append(part)
            members = _declared(schema, keys)
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
    path, detail = ".".join(keys), details[0]
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_nearest(schema, keys, detail['loc'])}"
    if detail["type"] == "missing":
        return f"{path}: is required"
    message = " or ".join(dict.fromkeys(_message(each) for each in details))
    if detail["type"] == "value_error" and isinstance(detail["input"], Mapping):
        return message  # a rule between fields names its paths itself
    return f"{path}: {message} (got {_shown(detail['input'])})"


def _message(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _nearest(schema: type[BaseModel], keys: list[str], location: tuple[int | str, ...]) -> str:
    """What the key may have meant, among those of the union's member that the location names."""
    models = list(_models(_declared(schema, keys[:-1]))) if len(keys) > 1 else [schema]
    models = [model for model in models if any(_is_tag([model], str(part)) for part in location[:-1])] or models
    siblings = sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
    near = difflib.get_close_matches(keys[-1], siblings, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(siblings)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
