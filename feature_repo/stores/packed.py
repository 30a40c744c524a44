"""Online stores of packed records: Feast's interface for everybody, arrays for those who read hundreds of entities.

`apply`, `materialize`, `push` and `get_online_features` work as with any online store. `read` answers for several views
at once with Arrow arrays, ages and what has outlived its view's time to live; no protobuf is made on the way. A write
that is older than what is there is dropped. Where records lie is left to the stores that extend this one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import Entity, FeatureStore, FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType

from feature_repo.stores.keys import VERSION, EntityKeys
from feature_repo.stores.layout import NEVER, PROTOBUF, TAG_BYTES, Layout, LayoutError, Slot

MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


class PackedConfig(FeastConfigBaseModel):
    """What all packed stores can be told.

    Args:
        expire: whether `get_online_features` leaves out values that have outlived their view's time to live by the
            clock on the wall. Off, it answers as Feast's own stores do; a log of the past wants that. `read` is told
            its moment and always applies the time to live.
    """

    expire: bool = True


class StoreUnavailable(OSError):
    """The online store does not answer: it is away, refuses, or takes too long. Nothing is known of what was asked."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How some features of one view are read: made once, used for every request.

    Attributes:
        table: what the view's records are kept under.
        ttl_us: 0 for ever.
    """

    view: str
    table: str
    keys: EntityKeys
    layout: Layout
    wanted: tuple[Slot, ...]
    ttl_us: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.wanted)


@dataclass(frozen=True)
class Columns:
    """What was read of n entities.

    Attributes:
        values: feature -> array (n,), null where there is no value or it is too old.
        found: bool (n,), whether there is a record.
        stale: bool (n,), whether it is older than its view lets it live.
        times_us: int64 (n,), event times; 0 where nothing was found.
    """

    values: Mapping[str, pa.Array]
    found: np.ndarray
    stale: np.ndarray
    times_us: np.ndarray


class PackedOnlineStore(OnlineStore):
    """All that does not depend on where records lie.

    Attributes:
        is_local: whether records lie on this machine, so that no read waits for anybody else's.
    """

    is_local = False

    def __init__(self) -> None:
        super().__init__()
        self._layouts: dict[bytes, Layout] = {}

    @abstractmethod
    def get(self, config: RepoConfig, asked: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """For each (table, keys) the record of each key, None where there is none. In as few round trips as can be.

        Raises StoreUnavailable.
        """

    @abstractmethod
    def put(
        self, config: RepoConfig, table: str, layout: Layout, keys: Sequence[bytes], records: Sequence[bytes]
    ) -> None:
        """Keep each record unless a newer one (by event time, then by creation time) is there; all or nothing where
        the store can. Of two records of the same times the later one stays.

        The description of their layout is kept beside them, each time anew: the store may have been emptied since.
        """

    @abstractmethod
    def times(self, config: RepoConfig, table: str) -> np.ndarray:
        """The event time of every record of a table, int64 microseconds, in no order. Reads them all."""

    @abstractmethod
    def create(self, config: RepoConfig, table: str) -> None:
        """Have a place for the records of a table."""

    @abstractmethod
    def drop(self, config: RepoConfig, table: str) -> None:
        """Delete all records of a table, and the descriptions of their layouts."""

    @abstractmethod
    def announced(self, config: RepoConfig, table: str) -> list[Layout]:
        """Every layout that records of a table may have."""

    def prepare(self, config: RepoConfig, view: FeatureView, features: Sequence[str] | None = None) -> Plan:
        """How these features of a view (None: all) are read.

        Raises LayoutError for a feature that the view has not.
        """
        layout = Layout.of_view(view)
        slots = {slot.name: slot for slot in layout.slots}
        absent = [name for name in features or () if name not in slots]
        if absent:
            raise LayoutError(f"view {view.name!r} has no features {absent}; it has {', '.join(slots)}")
        return Plan(
            view=view.name,
            table=compute_versioned_name(view, config.registry.enable_online_feature_view_versioning),
            keys=EntityKeys.of_view(view),
            layout=layout,
            wanted=tuple(slots[name] for name in (slots if features is None else features)),
            ttl_us=view.ttl // MICROSECOND if view.ttl else 0,
        )

    def read(
        self, config: RepoConfig, asked: Sequence[tuple[Plan, Mapping[str, Sequence[Any]]]], at_us: int | None
    ) -> list[Columns]:
        """Several views at once, as of a moment (microseconds UTC); None: whatever their time to live.

        Args:
            asked: a plan, and for every join key of its view the values of n entities, or one that all share.
        """
        made: dict[Any, list[bytes]] = {}  # views of the same entities have the same keys
        keyed = []
        for plan, entities in asked:
            same = (*plan.keys.types.items(), *(id(entities.get(name)) for name in plan.keys.types))
            if same not in made:
                made[same] = plan.keys.of(entities)
            keyed.append((plan.table, made[same]))
        answers = self.get(config, keyed)
        return [self._columns(config, plan, records, at_us) for (plan, _), records in zip(asked, answers, strict=True)]

    def read_columns(
        self,
        config: RepoConfig,
        view: FeatureView,
        entities: Mapping[str, Sequence[Any]],
        features: Sequence[str] | None = None,
        at: datetime | None = None,
    ) -> Columns:
        """One view, as of a moment (now, unless told otherwise)."""
        moment = at or datetime.now(UTC)
        return self.read(config, [(self.prepare(config, view, features), entities)], microseconds(moment))[0]

    def write(
        self,
        config: RepoConfig,
        plan: Plan,
        keys: Sequence[bytes],
        values: Mapping[str, pa.Array],
        event_us: np.ndarray,
        created_us: np.ndarray,
    ) -> None:
        """Write n entities of one view, with all of its features; see `Layout.encode`."""
        records = plan.layout.encode(values, event_us, created_us)
        self.put(config, plan.table, plan.layout, keys, records)

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Feast's way in: rows as protobufs."""
        plan = self.prepare(config, table)
        keys = [serialize_entity_key(key, VERSION) for key, *_ in data]
        values = {
            slot.name: pa.array([_plain(row.get(slot.name), slot) for _, row, *_ in data], slot.arrow)
            for slot in plan.layout.slots
        }
        event_us = np.array([microseconds(event) for *_, event, _ in data], dtype=np.int64)
        created_us = np.array([NEVER if c is None else microseconds(c) for *_, c in data], dtype=np.int64)
        self.write(config, plan, keys, values, event_us, created_us)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Feast's way out: values as protobufs."""
        plan = self.prepare(config, table, requested_features)
        records = self.get(config, [(plan.table, [serialize_entity_key(key, VERSION) for key in entity_keys])])[0]
        now_us = microseconds(datetime.now(UTC)) if config.online_store.expire else None
        read = self._columns(config, plan, records, now_us)
        kinds = {f.name: f.dtype.to_value_type() for f in table.features}
        protos = {slot.name: _protobufs(read.values[slot.name], slot, kinds[slot.name]) for slot in plan.wanted}
        times = [EPOCH + time * MICROSECOND for time in read.times_us.tolist()]
        there = read.found & ~read.stale
        return [
            (times[at], {name: of_name[at] for name, of_name in protos.items()}) if there[at] else (None, None)
            for at in range(len(records))
        ]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Feast's `apply`."""
        for view in tables_to_keep:
            self.create(config, self.prepare(config, view).table)
        self.teardown(config, tables_to_delete, entities_to_delete)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Feast's `teardown`."""
        for view in tables:
            self.drop(config, self.prepare(config, view).table)

    def _is_versioned_read_supported(self) -> bool:
        """Feast asks its own stores by their classes."""
        return True

    def _columns(self, config: RepoConfig, plan: Plan, records: Sequence[bytes | None], at_us: int | None) -> Columns:
        """Records of one layout are decoded in one go; those of several, each by its own."""
        nothing = plan.layout.nothing
        there = [nothing if record is None else record for record in records]
        found = np.array([record is not None for record in records], dtype=bool)
        head = plan.layout.heads(there)
        if head is not None:
            times_us = head["event"].copy()
            stale = _stale(plan, times_us, found, at_us)
            arrays = plan.layout.decode(there, head, plan.wanted, stale if stale.any() else None)
        else:
            arrays, times_us, stale = self._mixed(config, plan, there, found, at_us)
        return Columns(dict(zip(plan.names, arrays, strict=True)), found, stale, times_us)

    def _mixed(
        self, config: RepoConfig, plan: Plan, records: Sequence[bytes], found: np.ndarray, at_us: int | None
    ) -> tuple[list[pa.Array], np.ndarray, np.ndarray]:
        parts, times, gone, order = [], [], [], []
        for tag in {record[:TAG_BYTES] for record in records}:
            rows = [at for at, record in enumerate(records) if record[:TAG_BYTES] == tag]
            some, layout = [records[at] for at in rows], self._layout(config, plan, tag)
            head = layout.checked(some, plan.view)
            stale = _stale(plan, head["event"], found[rows], at_us)
            parts.append(layout.decode(some, head, plan.wanted, stale))
            times.append(head["event"])
            gone.append(stale)
            order += rows
        back = np.argsort(order)
        arrays = [pa.concat_arrays([p[at] for p in parts]).take(pa.array(back)) for at in range(len(plan.wanted))]
        return arrays, np.concatenate(times)[back], np.concatenate(gone)[back]

    def _layout(self, config: RepoConfig, plan: Plan, tag: bytes) -> Layout:
        """The layout that begins with these bytes. Raises LayoutError where nobody described it."""
        if tag not in self._layouts:
            known = [plan.layout, *self.announced(config, plan.table)]
            self._layouts |= {layout.tag: layout for layout in known}
        if tag not in self._layouts:
            raise LayoutError(
                f"the online store has records of view {plan.view!r} in a layout that it does not describe "
                f"({tag.hex()}); materialise the view again, by one version of this project"
            )
        return self._layouts[tag]


def _stale(plan: Plan, event_us: np.ndarray, found: np.ndarray, at_us: int | None) -> np.ndarray:
    """bool (n,), which records have outlived their view's time to live at a moment; None: there is no moment."""
    if not plan.ttl_us or at_us is None:
        return np.zeros(len(event_us), dtype=bool)
    late: np.ndarray = found & (event_us < at_us - plan.ttl_us)
    return late


def micros_of(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Times of any type that Feast takes, UTC where they name no zone, as int64 microseconds; `NEVER` for null."""
    if not pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("us", "UTC"))
    whole = array.cast(pa.timestamp("us", tz=array.type.tz), safe=False).cast(pa.int64())
    filled: np.ndarray = np.asarray(pc.fill_null(whole, NEVER))
    return filled


def microseconds(time: datetime) -> int:
    """Times without a zone are UTC, as everywhere in Feast."""
    aware = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    return (aware - EPOCH) // MICROSECOND


def _plain(value: Value | None, slot: Slot) -> Any:
    """A protobuf as Arrow takes it; None for none and for one that holds nothing."""
    if value is None or value.WhichOneof("val") is None:
        return None
    if slot.item == PROTOBUF:
        return value.SerializeToString(deterministic=True)
    return feast_value_type_to_python_type(value)


def _protobufs(array: pa.Array, slot: Slot, kind: ValueType) -> list[Value]:
    if slot.item == PROTOBUF:
        return [Value() if data is None else Value.FromString(data) for data in array.to_pylist()]
    protos: list[Value] = python_values_to_proto_values(array.to_pylist(), kind)
    return protos


def packed_store(store: FeatureStore) -> PackedOnlineStore | None:
    """The online store of a feature store, where it is one of these."""
    online = store._get_provider().online_store  # Feast has no public way to a plug-in
    return online if isinstance(online, PackedOnlineStore) else None
