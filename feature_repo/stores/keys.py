"""Entity keys as Feast's own bytes (serialisation version 3), for hundreds of entities, without a protobuf for each.

number of join keys, the name of each in alphabetical order, then for each its type, its length and its value
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.types import Bytes, FeastType, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

VERSION = 3
_HEAD = struct.Struct("<II")
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

        Raises ValueError for a join key that is absent, or a value that is not of its type.
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
    try:
        return _encoder(dtype)(values)
    except (struct.error, AttributeError, TypeError) as error:
        wrong = next((v for v in values if not _fits(dtype, v)), None)
        raise ValueError(f"{wrong!r} is no value of join key {name!r}, which has type {dtype}") from error


def _encoder(dtype: FeastType) -> Callable[[Sequence[Any]], list[bytes]]:
    if dtype in _NUMBERS:
        kind, layout = _NUMBERS[dtype]
        packer = struct.Struct(layout)
        size = packer.size - _HEAD.size
        return lambda values: [packer.pack(kind.value, size, int(value)) for value in values]
    if dtype == Bytes:
        return lambda values: [_HEAD.pack(ValueType.BYTES.value, len(value)) + value for value in values]
    if dtype == String:
        return _strings
    raise TypeError(f"join keys of type {dtype} are not served by packed stores")


def _strings(values: Sequence[str]) -> list[bytes]:
    return [_string(value) for value in values]


@lru_cache(maxsize=1 << 14)  # the same places are asked for again and again; what callers make up is let go of soon
def _string(value: str) -> bytes:
    text = value.encode()
    return _HEAD.pack(ValueType.STRING.value, len(text)) + text


def _fits(dtype: FeastType, value: Any) -> bool:
    return isinstance(value, str if dtype == String else bytes if dtype == Bytes else int)
