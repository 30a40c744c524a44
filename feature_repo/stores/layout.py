"""The record: all values of one entity in one feature view, as bytes of a fixed layout.

    8 bytes    which layout this is (a hash of names and types)
    8 bytes    event time, 8 bytes creation time: microseconds UTC, little-endian
    a bit      a feature: whether it has a value
    fixed      numbers, times (whole seconds, as in Feast's protobufs) and vectors of a declared length
    4 bytes    the length of each feature of no fixed width (strings, lists), then, in the same order, their bytes

A reader of hundreds of records looks at all of them at once: one array of the fixed part, one slice a string. Records
say which layout they have, so one written before a view changed is read by its own layout and never misread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    PrimitiveFeastType,
    String,
    UnixTimestamp,
)

SECOND_US = 1_000_000
NEVER = np.iinfo(np.int64).min  # the creation time of a row that has none
TAG_BYTES = 8
TIMES = slice(TAG_BYTES, TAG_BYTES + 16)
# Name of a type in a stored layout -> how one item of it lies in a record, and what Arrow calls it.
NUMBERS: Mapping[str, tuple[str, pa.DataType]] = {
    "bool": ("?", pa.bool_()),
    "int32": ("<i4", pa.int32()),
    "int64": ("<i8", pa.int64()),
    "float32": ("<f4", pa.float32()),
    "float64": ("<f8", pa.float64()),
    "seconds": ("<i8", pa.timestamp("us", tz="UTC")),
}
# Values of any other type (maps, structs, JSON ...) lie in a record as Feast's own protobuf.
PROTOBUF = "protobuf"
TEXTS: Mapping[str, pa.DataType] = {"string": pa.string(), "bytes": pa.binary(), PROTOBUF: pa.binary()}
_ITEMS: Mapping[FeastType, str] = {
    Bool: "bool",
    Int32: "int32",
    Int64: "int64",
    Float32: "float32",
    Float64: "float64",
    UnixTimestamp: "seconds",
    String: "string",
    Bytes: "bytes",
}


class LayoutError(ValueError):
    """A value that no record can hold, or a record that nobody can read. Says where, what, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One feature in a record.

    Args:
        item: one of `NUMBERS` or `TEXTS`.
        length: None for a single item; items of a list, 0 for any number of them.
    """

    name: str
    item: str
    length: int | None

    @property
    def fixed(self) -> bool:
        """Whether it takes the same number of bytes in every record."""
        return self.item in NUMBERS and self.length != 0

    @property
    def arrow(self) -> pa.DataType:
        item = NUMBERS[self.item][1] if self.item in NUMBERS else TEXTS[self.item]
        return item if self.length is None else pa.list_(item)

    @property
    def format(self) -> str | tuple[str, tuple[int]]:
        """Of NumPy, for a fixed one."""
        code = NUMBERS[self.item][0]
        return (code, (self.length,)) if self.length else code


@dataclass(frozen=True)
class Layout:
    """What a record of one view holds, in which order."""

    slots: tuple[Slot, ...]

    @classmethod
    def of_view(cls, view: FeatureView) -> Layout:
        return cls(tuple(_slot(f.name, f.dtype, f.vector_length) for f in view.features))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The layout that `str` wrote."""
        return cls(tuple(Slot(name=n, item=i, length=length) for n, i, length in json.loads(text)))

    def __str__(self) -> str:
        return json.dumps([[slot.name, slot.item, slot.length] for slot in self.slots])

    @cached_property
    def tag(self) -> bytes:
        """The first bytes of its records."""
        return hashlib.sha256(str(self).encode()).digest()[:TAG_BYTES]

    @cached_property
    def _number(self) -> int:
        """The tag as it is read."""
        return int.from_bytes(self.tag, "little")

    @cached_property
    def loose(self) -> tuple[Slot, ...]:
        """The slots of no fixed width."""
        return tuple(slot for slot in self.slots if not slot.fixed)

    @cached_property
    def fixed(self) -> np.dtype[np.void]:
        """Everything in front of the bytes of loose slots."""
        fields: list[tuple[str, object]] = [("tag", "<u8"), ("event", "<i8"), ("created", "<i8")]
        fields.append(("bits", ("u1", ((len(self.slots) + 7) // 8,))))
        fields += [(f"v{at}", slot.format) for at, slot in enumerate(self.slots) if slot.fixed]
        fields.append(("sizes", ("<u4", (len(self.loose),))))
        return np.dtype(fields)

    @cached_property
    def nothing(self) -> bytes:
        """A record without any value, of the epoch: what an entity without a record reads as."""
        head = np.zeros(1, dtype=self.fixed)
        head["tag"] = self._number
        return head.tobytes()

    def position(self, slot: Slot) -> int | None:
        """Where this very slot is, type included; None where it is not."""
        return self._positions.get(slot)

    @cached_property
    def _positions(self) -> dict[Slot, int]:
        return {slot: at for at, slot in enumerate(self.slots)}

    def encode(self, values: Mapping[str, pa.Array], event_us: np.ndarray, created_us: np.ndarray) -> list[bytes]:
        """n records.

        Args:
            values: an array of n for every slot. Numbers that are not a number are missing, as they are to Feast.
            event_us, created_us: int64 (n,); `NEVER` for no creation time.

        Raises:
            LayoutError: a list whose length is not the declared one.
        """
        count = len(event_us)
        head = np.zeros(count, dtype=self.fixed)
        head["tag"], head["event"], head["created"] = self._number, event_us, created_us
        tails: list[tuple[bytes, list[int]]] = []
        for at, slot in enumerate(self.slots):
            array = _cast(values[slot.name], slot)
            valid = array.is_valid().to_numpy(zero_copy_only=False)
            if slot.fixed:
                head[f"v{at}"], valid = _numbers(array, slot, valid)
            else:
                sizes, data = _bytes(array, slot)
                head["sizes"][:, len(tails)] = sizes
                ends = np.cumsum(sizes)
                tails.append((data, [0, *ends.tolist()]))
            head["bits"][:, at >> 3] |= valid.astype(np.uint8) << np.uint8(at & 7)
        return _joined(head, tails)

    def heads(self, records: Sequence[bytes]) -> np.ndarray | None:
        """The fixed parts of n records, `fixed` (n,); None where some are of another layout."""
        width = self.fixed.itemsize
        joined = b"".join(records) if not self.loose else b"".join([record[:width] for record in records])
        if len(joined) != width * len(records):
            return None
        head = np.frombuffer(joined, dtype=self.fixed)
        return head if (head["tag"] == self._number).all() else None

    def checked(self, records: Sequence[bytes], view: str) -> np.ndarray:
        """The fixed parts of records that are of this layout. Raises LayoutError for a record that is cut short."""
        head = self.heads(records)
        if head is None:
            raise LayoutError(f"a record of view {view!r} is damaged; materialise the view again")
        return head

    def decode(
        self, records: Sequence[bytes], head: np.ndarray, wanted: Sequence[Slot], gone: np.ndarray | None = None
    ) -> list[pa.Array]:
        """The wanted slots of n records of this layout, null where there is no value.

        A slot that this layout has not, or has with another type, is null throughout.

        Args:
            head: what `heads` says of the records.
            gone: bool (n,), records whose values count no more; None: none.
        """
        there = np.unpackbits(head["bits"], axis=1, bitorder="little")
        if gone is not None:
            there[gone] = 0
        whole = np.asarray(there.all(axis=0))
        starts: list[list[int]] | None = None
        arrays = []
        for slot in wanted:
            at = self.position(slot)
            if at is None:
                arrays.append(pa.nulls(len(records), slot.arrow))
                continue
            missing = None if whole[at] else there[:, at] == 0
            if slot.fixed:
                arrays.append(_number_array(head[f"v{at}"], slot, missing))
                continue
            if starts is None:
                starts = self._starts(head["sizes"])
            which = self.loose.index(slot)
            arrays.append(_text_array(records, starts[which], starts[which + 1], slot, missing))
        return arrays

    def _starts(self, sizes: np.ndarray) -> list[list[int]]:
        """Where each loose slot begins in every record, and where the last one ends."""
        starts = np.full((sizes.shape[1] + 1, sizes.shape[0]), self.fixed.itemsize, dtype=np.int64)
        np.cumsum(sizes.T, axis=0, out=starts[1:])
        starts[1:] += self.fixed.itemsize
        plain: list[list[int]] = starts.tolist()
        return plain


def times_of(record: bytes) -> tuple[int, int]:
    """Event and creation time of a record of any layout."""
    event, created = np.frombuffer(record[TIMES], dtype="<i8")
    return int(event), int(created)


def _slot(name: str, dtype: FeastType, vector_length: int) -> Slot:
    if isinstance(dtype, Array) and isinstance(dtype.base_type, PrimitiveFeastType) and dtype.base_type in _ITEMS:
        return Slot(name=name, item=_ITEMS[dtype.base_type], length=vector_length or 0)
    known = isinstance(dtype, PrimitiveFeastType) and dtype in _ITEMS
    return Slot(name=name, item=_ITEMS[dtype] if known else PROTOBUF, length=None)


def _cast(values: pa.Array | pa.ChunkedArray, slot: Slot) -> pa.Array:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_timestamp(array.type) and array.type.tz is None and slot.item == "seconds":
        array = array.cast(pa.timestamp(array.type.unit, tz="UTC"))
    # Times may be finer than microseconds: records hold seconds.
    return array if array.type == slot.arrow else array.cast(slot.arrow, safe=slot.item != "seconds")


def _numbers(array: pa.Array, slot: Slot, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) or (n, length) with zeros for nothing, and where there are some."""
    code = NUMBERS[slot.item][0]
    if slot.length is None:
        numbers = _plain(array, slot)
        if code in ("<f4", "<f8"):
            valid = valid & ~np.isnan(numbers)
            numbers = np.where(valid, numbers, 0)
        return numbers, valid
    lengths = pc.list_value_length(array).drop_null().to_numpy()
    if (lengths != slot.length).any():
        wrong = int(lengths[lengths != slot.length][0])
        raise LayoutError(
            f"feature {slot.name!r} is declared with vector_length {slot.length}, a row has {wrong} numbers; correct "
            "the row, or the declaration and apply it again"
        )
    numbers = np.zeros((len(array), slot.length), dtype=code)
    numbers[valid] = _plain(array.flatten(), slot).reshape(-1, slot.length)
    return numbers, valid


def _plain(array: pa.Array, slot: Slot) -> np.ndarray:
    """Numbers of a record, zero for null."""
    if slot.item == "seconds":
        whole: np.ndarray = np.asarray(array.cast(pa.int64()).fill_null(0)) // SECOND_US
        return whole
    filled = array.fill_null(False) if slot.item == "bool" else array.fill_null(0)
    plain: np.ndarray = filled.to_numpy(zero_copy_only=False)
    return plain


def _bytes(array: pa.Array, slot: Slot) -> tuple[np.ndarray, bytes]:
    """How many bytes each row takes, int64 (n,), and all of them in one."""
    if slot.length is None:
        return _text_bytes(array)
    if slot.item in TEXTS:
        nested = [] if len(array) == 0 else array.to_pylist()
        return _text_bytes(pa.array([_pack_texts(texts) for texts in nested], pa.binary()))
    code = NUMBERS[slot.item][0]
    sizes = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64) * np.dtype(code).itemsize
    return sizes, _plain(array.flatten(), slot).astype(code).tobytes()


def _text_bytes(array: pa.Array) -> tuple[np.ndarray, bytes]:
    filled = array.cast(pa.large_binary()).fill_null(b"")
    sizes = pc.binary_length(filled).to_numpy().astype(np.int64)
    return sizes, b"".join(filled.to_pylist())


def _pack_texts(texts: Sequence[str | bytes] | None) -> bytes:
    packed = [t.encode() if isinstance(t, str) else t for t in texts or ()]
    return b"".join(len(p).to_bytes(4, "little") + p for p in packed)


def _unpack_texts(packed: bytes) -> list[bytes]:
    texts, at = [], 0
    while at < len(packed):
        size = int.from_bytes(packed[at : at + 4], "little")
        texts.append(packed[at + 4 : at + 4 + size])
        at += 4 + size
    return texts


def _joined(head: np.ndarray, tails: Sequence[tuple[bytes, list[int]]]) -> list[bytes]:
    width, plain = head.dtype.itemsize, head.tobytes()
    records = [plain[at : at + width] for at in range(0, len(plain), width)]
    for data, ends in tails:
        records = [record + data[ends[at] : ends[at + 1]] for at, record in enumerate(records)]
    return records


def _number_array(values: np.ndarray, slot: Slot, missing: np.ndarray | None) -> pa.Array:
    if slot.length is None:
        plain = np.ascontiguousarray(values)
        if slot.item == "seconds":
            return pa.array(plain * SECOND_US, mask=missing).view(slot.arrow)
        return pa.array(plain, mask=missing)
    ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * np.int32(slot.length))
    return _list_array(ends, np.ascontiguousarray(values).reshape(-1), slot, missing)


def _list_array(ends: pa.Array, flat: np.ndarray, slot: Slot, missing: np.ndarray | None) -> pa.Array:
    items = pa.array(flat * SECOND_US).view(slot.arrow.value_type) if slot.item == "seconds" else pa.array(flat)
    return pa.ListArray.from_arrays(ends, items, mask=None if missing is None else pa.array(missing))


def _text_array(
    records: Sequence[bytes], starts: Sequence[int], ends: Sequence[int], slot: Slot, missing: np.ndarray | None
) -> pa.Array:
    parts = [record[a:b] for record, a, b in zip(records, starts, ends, strict=True)]
    if slot.item in TEXTS and slot.length is None:
        return pa.array(parts, slot.arrow, mask=missing)
    if slot.item in TEXTS:
        gone = [False] * len(parts) if missing is None else missing.tolist()
        lists = [None if absent else _unpack_texts(part) for part, absent in zip(parts, gone, strict=True)]
        return pa.array(lists, pa.list_(pa.binary())).cast(slot.arrow)
    code = NUMBERS[slot.item][0]
    size = np.dtype(code).itemsize
    counts = pa.array(np.array([0, *accumulate(len(part) // size for part in parts)], dtype=np.int32))
    return _list_array(counts, np.frombuffer(b"".join(parts), dtype=code), slot, missing)
