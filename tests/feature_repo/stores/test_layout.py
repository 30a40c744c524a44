"""Records hold what they were given, whatever it is, and keys are those that Feast makes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import python_values_to_proto_values
from feast.types import Bytes, FeastType, Int32, Int64, String, UnixTimestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.stores.keys import EntityKeys
from feature_repo.stores.layout import NEVER, SECOND_US, Layout, LayoutError, Slot, times_of

ITEMS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "float64": st.floats(allow_nan=False),
    "seconds": st.integers(-(2**33), 2**33).map(lambda s: s * SECOND_US),
    "string": st.text(max_size=5),
    "bytes": st.binary(max_size=5),
}
MICROS = st.integers(-(2**52), 2**52)


@st.composite
def slots(draw: st.DrawFn, at: int) -> Slot:
    item = draw(st.sampled_from(sorted(ITEMS)))
    lengths = [None, 0] if item in ("string", "bytes") else [None, 0, 1, 3]
    return Slot(name=f"f{at}", item=item, length=draw(st.sampled_from(lengths)))


@st.composite
def tables(draw: st.DrawFn) -> tuple[Layout, list[dict[str, Any]]]:
    layout = Layout(tuple(draw(slots(at)) for at in range(draw(st.integers(1, 11)))))
    rows = [{slot.name: draw(st.none() | items(slot)) for slot in layout.slots} for _ in range(draw(st.integers(0, 4)))]
    return layout, rows


def items(slot: Slot) -> st.SearchStrategy[Any]:
    item = ITEMS[slot.item]
    if slot.length is None:
        return item
    return st.lists(item, min_size=slot.length, max_size=slot.length or 4)


def arrays(layout: Layout, rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    return {slot.name: pa.array([row[slot.name] for row in rows], slot.arrow) for slot in layout.slots}


def decoded(layout: Layout, records: list[bytes], wanted: Sequence[Slot]) -> tuple[list[pa.Array], np.ndarray]:
    head = layout.heads(records)
    assert head is not None
    return layout.decode(records, head, wanted), head["event"]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(made=tables(), times=st.lists(st.tuples(MICROS, MICROS), min_size=4, max_size=4))
def test_what_goes_in_comes_out(made, times):
    layout, rows = made
    event, created = (np.array([pair[at] for pair in times[: len(rows)]], dtype=np.int64) for at in (0, 1))
    given_ = arrays(layout, rows)
    records = layout.encode(given_, event, created)
    assert [times_of(record) for record in records] == times[: len(rows)]
    wanted = layout.slots[::-1]
    read, read_event = decoded(Layout.parse(str(layout)), records, wanted)
    assert read_event.tolist() == event.tolist()
    for slot, array in zip(wanted, read, strict=True):
        array.validate(full=True)
        assert array.type == slot.arrow
        assert array.to_pylist() == given_[slot.name].to_pylist()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(made=tables())
def test_a_record_is_the_same_alone_and_in_company(made):
    layout, rows = made
    never = np.full(len(rows), NEVER, dtype=np.int64)
    together = layout.encode(arrays(layout, rows), never, never)
    alone = [layout.encode(arrays(layout, [row]), never[:1], never[:1])[0] for row in rows]
    assert together == alone


def test_what_is_null_is_not_in_the_bytes():
    layout = Layout((Slot(name="n", item="int64", length=None), Slot(name="s", item="string", length=None)))
    hidden = pa.Array.from_buffers(pa.int64(), 1, [pa.py_buffer(b"\x00"), pa.py_buffer(b"\x07" * 8)])
    zero = np.zeros(1, dtype=np.int64)
    plain = layout.encode({"n": pa.array([None], pa.int64()), "s": pa.array([None], pa.string())}, zero, zero)
    assert hidden.to_pylist() == [None]
    assert layout.encode({"n": hidden, "s": pa.array([None], pa.string())}, zero, zero) == plain


def test_the_layout_of_a_record_by_hand():
    layout = Layout((Slot(name="n", item="int32", length=None), Slot(name="s", item="string", length=None)))
    one = layout.encode({"n": pa.array([-2], pa.int32()), "s": pa.array(["hi"])}, np.array([5]), np.array([NEVER]))
    assert one == [
        layout.tag
        + (5).to_bytes(8, "little")
        + b"\0\0\0\0\0\0\0\x80"
        + b"\x03"
        + b"\xfe\xff\xff\xff"
        + b"\x02\0\0\0"
        + b"hi"
    ]


def test_not_a_number_is_missing_but_may_stand_in_a_vector():
    layout = Layout((Slot(name="x", item="float32", length=None), Slot(name="v", item="float32", length=2)))
    nan = float("nan")
    zero = np.zeros(1, dtype=np.int64)
    records = layout.encode(
        {"x": pa.array([nan], pa.float32()), "v": pa.array([[nan, 1.0]], pa.list_(pa.float32()))}, zero, zero
    )
    x, v = decoded(layout, records, layout.slots)[0]
    assert x.to_pylist() == [None]
    assert np.isnan(v.to_pylist()[0][0])


def test_times_are_kept_to_the_second_as_in_feasts_protobufs():
    layout = Layout((Slot(name="t", item="seconds", length=None),))
    moment = datetime(2024, 1, 1, 0, 0, 1, 999_999, tzinfo=UTC)
    zero = np.zeros(1, dtype=np.int64)
    (read,), _ = decoded(layout, layout.encode({"t": pa.array([moment])}, zero, zero), layout.slots)
    assert read.to_pylist() == [moment.replace(microsecond=0)]


def test_records_of_another_layout_and_damaged_ones_have_no_heads():
    one, other = (Layout((Slot(name=name, item="string", length=None),)) for name in ("a", "b"))
    zero = np.zeros(2, dtype=np.int64)
    records = one.encode({"a": pa.array(["x", "y"])}, zero, zero)
    assert len(one.heads(records)) == 2
    assert other.heads(records) is None
    assert one.heads([*records, records[0][:10]]) is None
    with pytest.raises(LayoutError, match="a record of view 'v' is damaged"):
        one.checked([records[0][:20]], "v")


def test_another_type_or_length_is_another_layout():
    one, other = (Layout((Slot(name="v", item="float32", length=length),)) for length in (2, 3))
    assert one.tag != other.tag
    zero = np.zeros(1, dtype=np.int64)
    records = one.encode({"v": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))}, zero, zero)
    assert decoded(one, records, other.slots)[0][0].to_pylist() == [None]
    with pytest.raises(LayoutError, match="'v' is declared with vector_length 3, a row has 2"):
        other.encode({"v": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))}, zero, zero)


KEYS: dict[FeastType, st.SearchStrategy[Any]] = {
    String: st.text(max_size=8),
    Int64: st.integers(-(2**63), 2**63 - 1),
    Int32: st.integers(-(2**31), 2**31 - 1),
    Bytes: st.binary(min_size=1, max_size=8),  # Feast takes an empty one for none
    UnixTimestamp: st.integers(0, 2**33) | st.datetimes(timezones=st.none() | st.just(UTC) | st.timezones()),
}


@given(data=st.data(), names=st.lists(st.text("abz_", min_size=1, max_size=4), min_size=1, max_size=3, unique=True))
def test_keys_are_those_that_feast_makes(data, names):
    types = {name: data.draw(st.sampled_from(list(KEYS))) for name in names}
    rows = [{name: data.draw(KEYS[dtype]) for name, dtype in types.items()} for _ in range(3)]
    columns = {name: [row[name] for row in rows] for name in names}
    feasts = [
        serialize_entity_key(
            EntityKey(
                join_keys=names,
                entity_values=[python_values_to_proto_values([row[n]], types[n].to_value_type())[0] for n in names],
            ),
            3,
        )
        for row in rows
    ]
    assert EntityKeys(types).of(columns) == feasts


def test_words_that_callers_make_up_are_not_kept():
    """A server met a new word of the scene with every request, and kept 250 bytes of each: 30 MiB in the end."""
    keys = EntityKeys({"value": String})
    tracemalloc.start()
    try:
        keys.of({"value": [f"weather=weather of day {day}" for day in range(20_000)]})
        before, _ = tracemalloc.get_traced_memory()
        keys.of({"value": [f"weather=weather of night {day}" for day in range(200_000)]})
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2**20
