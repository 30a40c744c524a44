"""Frozen dataclasses to plain JSON data and back, strictly: unknown, missing and mistyped entries are refused."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class PlainDataError(ValueError):
    """Plain data do not fit a type. The message names the place, the value and what is expected."""


def to_plain(value: object) -> Any:
    """A dataclass (or anything in one) as dicts, lists, strings, numbers, booleans and None; times in ISO 8601."""
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def from_plain(kind: type[T], plain: object, place: str = "") -> T:
    """The inverse of `to_plain` for one dataclass; fields with defaults may be absent. Raises PlainDataError."""
    if not isinstance(plain, dict):
        raise PlainDataError(f"{place or kind.__name__}: expected an object, got {plain!r}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass type
    unknown = sorted(set(plain) - set(known))
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(required - set(plain))
    if unknown or missing:
        raise PlainDataError(f"{place or kind.__name__}: unknown entries {unknown}, missing entries {missing}")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], item, f"{place}.{name}".strip(".")) for name, item in plain.items()})


def _read(kind: Any, plain: object, place: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return plain
    if origin is Literal:
        return _checked(plain in get_args(kind), plain, place, f"one of {get_args(kind)}")
    if origin in (Union, types.UnionType):
        return _read_union(get_args(kind), plain, place)
    if origin is tuple:
        _checked(isinstance(plain, list), plain, place, "a list")
        return tuple(_read(get_args(kind)[0], item, f"{place}[{i}]") for i, item in enumerate(plain))  # type: ignore[arg-type,var-annotated]
    if origin is not None and issubclass(origin, Mapping):
        _checked(isinstance(plain, dict), plain, place, "an object")
        return {key: _read(get_args(kind)[1], item, f"{place}.{key}") for key, item in plain.items()}  # type: ignore[attr-defined]
    if is_dataclass(kind):
        return from_plain(kind, plain, place)  # type: ignore[arg-type]
    return _read_scalar(kind, plain, place)


def _read_scalar(kind: Any, plain: object, place: str) -> Any:
    if kind is datetime:
        return datetime.fromisoformat(str(_checked(isinstance(plain, str), plain, place, "a time in ISO 8601")))
    if kind is float and type(plain) is int:
        return float(plain)
    return _checked(type(plain) is kind, plain, place, kind.__name__)


def _read_union(kinds: tuple[Any, ...], plain: object, place: str) -> Any:
    """The member that the data's `kind` names, else the first one that they fit; the last one tells what is wrong."""
    if plain is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) > 1 and isinstance(plain, dict) and "kind" in plain:
        named = [kind for kind in others if plain["kind"] in _names(kind)]
        known = [name for kind in others for name in _names(kind)]
        _checked(bool(named) or not known, plain["kind"], f"{place}.kind", f"one of {known}")
        others = named or others
    for kind in others[:-1]:
        try:
            return _read(kind, plain, place)
        except PlainDataError:
            continue
    return _read(others[-1], plain, place)


def _names(kind: Any) -> tuple[Any, ...]:
    """What the field `kind` of a dataclass may be, where it is a literal."""
    hint = get_type_hints(kind).get("kind") if is_dataclass(kind) else None
    return get_args(hint) if get_origin(hint) is Literal else ()


def _checked(right: bool, plain: object, place: str, expected: str) -> object:
    if not right:
        raise PlainDataError(f"{place}: expected {expected}, got {plain!r}")
    return plain
