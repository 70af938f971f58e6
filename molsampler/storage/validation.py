"""Mappings from files become pydantic models, or one sentence says what is wrong with them."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import InputError, UnknownNameError, nearest
from ..frozen import Frozen

M = TypeVar("M", bound=BaseModel)

#: What pydantic's types of errors expect, in words.
_FORMS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_type": "text",
}


def validated(model: type[M], values: Mapping[str, Any]) -> M:
    """The model that a mapping describes.

    Messages name the key with dots. A field's ``description`` is the form that they ask for: "KEY
    must be DESCRIPTION, got VALUE".

    Raises
    ------
    UnknownNameError
        A key is unknown; the nearest and all known ones are named.
    InputError
        Keys are missing, or a value is unusable.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [
            (problem, *_locate(model, problem["loc"], values)) for problem in error.errors()
        ]
    for problem, key, known, _ in problems:
        if problem["type"] == "extra_forbidden":
            hint = nearest(str(problem["loc"][-1]), known)
            raise UnknownNameError(f"unknown key {key!r}{hint} (known: {', '.join(known)})")
    missing = [repr(key) for problem, key, *_ in problems if problem["type"] == "missing"]
    if missing:
        raise InputError(f"missing key(s) {', '.join(missing)}")
    problem, key, _, form = problems[0]
    form = form or _FORMS.get(problem["type"], "")
    # Of pydantic's own sentences most begin with the same words.
    said = f"must be {form}" if form else problem["msg"].replace("Input should be", "must be", 1)
    said = said.removeprefix("Value error, ")
    if not key:
        raise InputError(said)
    got = repr(problem["input"])
    raise InputError(f"{key} {said}, got {got if len(got) <= 120 else got[:117] + '...'}")


def _locate(
    model: type[BaseModel], path: tuple[int | str, ...], values: Any
) -> tuple[str, list[str], str]:
    """The key of a problem as its author wrote it, the keys known beside it, and its expected form."""
    models, known, keys, form = [model], list(model.model_fields), [], ""
    for part in path:
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        tagged = [each for each in models if part == _tag(each)]
        if tagged and not fields:
            # The member of a union that pydantic chose; nobody wrote this.
            models = tagged
            continue
        known = list(dict.fromkeys(key for each in models for key in each.model_fields))
        form = (fields[0].description or "") if fields else ""
        keys.append(str(part))
        values = values.get(part) if isinstance(values, Mapping) else None
        models = [
            inner.model_of(values) if issubclass(inner, Frozen) else inner
            for field in fields
            for inner in _models(field.annotation)
        ]
    return ".".join(keys), known, form


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)
