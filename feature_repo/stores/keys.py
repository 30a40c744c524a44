"""Entity keys as Feast's own bytes (serialisation version 3), for hundreds of entities, without a protobuf for each.

number of join keys, the name of each in alphabetical order, then for each its type, its length and its value
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from typing import Any

from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.types import Bytes, FeastType, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

VERSION = 3
_HEAD = struct.Struct("<II")
_Encoder = Callable[[Sequence[Any]], list[bytes]]
_WRONG = (struct.error, AttributeError, TypeError, ValueError, OverflowError)  # what encoders raise for a value
_NUMBERS: Mapping[FeastType, tuple[ValueType, str]] = {
    Int32: (ValueType.INT32, "<IIi"),
    Int64: (ValueType.INT64, "<IIq"),
    UnixTimestamp: (ValueType.UNIX_TIMESTAMP, "<IIq"),
}


@dataclass(frozen=True)
class EntityKeys:
    """How the entities of one view become keys.

    Args:
        types: join key -> its type.
    """

    types: Mapping[str, FeastType]

    @classmethod
    def of_view(cls, view: FeatureView) -> EntityKeys:
        return cls({field.name: field.dtype for field in view.entity_columns})

    def of(self, values: Mapping[str, Sequence[Any]]) -> list[bytes]:
        """The keys of n entities, given n values of each join key, or one that all of them share.

        Raises ValueError for a join key that is absent, one of a type that no key has, a value that is not of its type.
        """
        absent = [name for name in self.types if name not in values]
        if absent:
            raise ValueError(f"no values for join key {absent}; got {sorted(values)}")
        parts = [_encoded(name, self.types[name], values[name]) for name in sorted(self.types)]
        prefix = self._prefix
        if len(parts) == 1:
            return [prefix + part for part in parts[0]]
        n = max(map(len, parts))
        return [prefix + b"".join(row) for row in zip(*(p * n if len(p) == 1 else p for p in parts), strict=True)]

    @cached_property
    def _prefix(self) -> bytes:
        return serialize_entity_key_prefix(list(self.types), VERSION)


def _encoded(name: str, dtype: FeastType, values: Sequence[Any]) -> list[bytes]:
    encoder = _encoder(name, dtype)
    try:
        return encoder(values)
    except _WRONG as error:
        wrong = next(v for v in values if _refused(encoder, v))
        raise ValueError(f"{wrong!r} is no value of join key {name!r}, which has type {dtype}") from error


def _encoder(name: str, dtype: FeastType) -> _Encoder:
    if dtype in _NUMBERS:
        return partial(_numbers, *_NUMBERS[dtype])
    if dtype == Bytes:
        return lambda values: [_HEAD.pack(ValueType.BYTES.value, len(value)) + value for value in values]
    if dtype == String:
        return _strings
    raise ValueError(
        f"join key {name!r} has type {dtype}, which Feast's keys have not: declare its entity as String, Int64, Int32, "
        "Bytes or UnixTimestamp"
    )


def _numbers(kind: ValueType, layout: str, values: Sequence[Any]) -> list[bytes]:
    packer = struct.Struct(layout)
    size = packer.size - _HEAD.size
    try:
        return [packer.pack(kind.value, size, value) for value in values]
    except struct.error:  # some are no integers
        return [packer.pack(kind.value, size, _whole(kind, value)) for value in values]


def _whole(kind: ValueType, value: Any) -> int:
    """A moment in seconds, cut as Feast cuts them; else a whole number, never a rounded one: 1.5 is not entity 1."""
    if kind == ValueType.UNIX_TIMESTAMP and isinstance(value, datetime):
        return int((value.replace(tzinfo=UTC) if value.tzinfo is None else value).timestamp())
    number = int(value)
    if number != value:
        raise ValueError(f"{value!r} is not whole")
    return number


def _strings(values: Sequence[str]) -> list[bytes]:
    return [_string(value) for value in values]


@lru_cache(maxsize=1 << 14)  # the same places are asked for again and again; what callers make up is let go of soon
def _string(value: str) -> bytes:
    text = value.encode()
    return _HEAD.pack(ValueType.STRING.value, len(text)) + text


def _refused(encoder: _Encoder, value: Any) -> bool:
    try:
        encoder([value])
    except _WRONG:
        return True
    return False
