"""One view of the online store at a time: values as arrays, each present, missing or stale as of a moment.

Whatever the store answers, a value counts as missing if it is null, and as stale if it outlived its view's time to live
at that moment. A value newer than the moment is used: the online store holds nothing older. A packed store answers in
arrays; any other one of Feast's in protobufs, value by value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from feast.errors import FeatureViewNotFoundException
from feast.infra.provider import get_provider
from feast.types import from_feast_to_pyarrow_type

from feature_repo.stores.packed import Columns, Plan, StoreUnavailable, packed_store

# What clients of stores raise where nobody answers: errors of connections, which Redis has under these names too, and
# the two that PEP 249 gives every client of a database. They go by their names: of all the clients that Feast knows,
# the one in use is installed.
AWAY = frozenset(
    {"OSError", "ConnectionError", "TimeoutError", "BusyLoadingError", "OperationalError", "InterfaceError"}
)


class ServiceMismatch(ValueError):
    """The bundle reads what this store or this code does not have. The message names it and the remedy."""


class ValueStatus(IntEnum):
    """Whether a stored value was there; the numbers are those of the wire contract."""

    PRESENT = 1
    MISSING = 2
    STALE = 3


@dataclass(frozen=True, kw_only=True)
class ViewReading:
    """How many values of one view had which status, and from when (microseconds UTC) the present ones were."""

    view: str
    present: int
    missing: int
    stale: int
    oldest_us: int | None
    newest_us: int | None


@dataclass(frozen=True, kw_only=True)
class View:
    """What is read of one feature view: `types` of the chosen features, `ttl_us` the time to live (0: for ever), and,
    of a packed store, how records are read."""

    name: str
    keys: frozenset[str]
    ttl_us: int
    types: Mapping[str, pa.DataType]
    plan: Plan | None


@dataclass(frozen=True, kw_only=True)
class Read:
    """One view's answer for n entities.

    Attributes:
        values: feature -> n values, null where missing or stale.
        stale: bool (n,), which rows have outlived the view's time to live.
        times_us: int64 (n,), event times; 0 where nothing was found.
    """

    view: View
    values: dict[str, pa.Array]
    stale: np.ndarray
    times_us: np.ndarray

    def status(self, feature: str) -> np.ndarray:
        """`ValueStatus` of n values: all of a row that is too old is stale, whether it had a value or not."""
        missing = self.values[feature].is_null().to_numpy(zero_copy_only=False)
        return np.where(self.stale, ValueStatus.STALE, np.where(missing, ValueStatus.MISSING, ValueStatus.PRESENT))

    def keep(self, feature: str, good: pa.Array) -> None:
        """Turn values of one feature into missing ones, but where `good`, n booleans, is true."""
        self.values[feature] = pc.if_else(good, self.values[feature], None)

    def summary(self) -> ViewReading:
        n, arrays = len(self.times_us), self.values.values()
        stale = int(self.stale.sum()) * len(self.values)
        absent = sum(array.null_count for array in arrays)
        used = self.times_us
        if absent == n * len(self.values):
            used = used[:0]
        elif absent and all(array.null_count for array in arrays):
            some = np.zeros(n, dtype=bool)
            for array in arrays:
                some |= array.is_valid().to_numpy(zero_copy_only=False)
            used = used[some]
        return ViewReading(
            view=self.view.name,
            present=n * len(self.values) - absent,
            missing=absent - stale,
            stale=stale,
            oldest_us=int(used.min()) if len(used) else None,
            newest_us=int(used.max()) if len(used) else None,
        )


def open_view(store: FeatureStore, name: str, features: Sequence[str]) -> View:
    """What is to be read of a view. Raises ServiceMismatch where the store lacks the view or one of the features."""
    try:
        view = store.get_feature_view(name)
    except FeatureViewNotFoundException as error:
        raise ServiceMismatch(
            f"the store has no view {name!r}, which the bundle reads; run `scenerank apply`"
        ) from error
    types = {f.name: f.dtype for f in view.features}
    absent = [feature for feature in features if feature not in types]
    if absent:
        raise ServiceMismatch(f"view {name!r} of the store has no {absent}, which the bundle reads; train again")
    return View(
        name=name,
        keys=frozenset(view.join_keys),
        ttl_us=int(view.ttl.total_seconds() * 1_000_000) if view.ttl else 0,
        types={feature: from_feast_to_pyarrow_type(types[feature]) for feature in features},
        plan=packed.prepare(store.config, view, features) if (packed := packed_store(store)) else None,
    )


def fetch(
    store: FeatureStore, views: Sequence[View], keys: Mapping[str, Sequence[str]], time_us: int | None
) -> list[Read]:
    """Read several views in one call.

    Args:
        keys: n values of every key that one of the views has, or one that all entities share.
        time_us: the moment that times to live are counted to; None: nothing is too old.
    Raises:
        StoreUnavailable: it does not answer.
    """
    if not views:
        return []
    packed = packed_store(store)
    if packed is not None:
        asked = [(view.plan, {key: keys[key] for key in view.keys}) for view in views if view.plan is not None]
        answers = packed.read(store.config, asked, time_us)
        return [_of_columns(view, columns) for view, columns in zip(views, answers, strict=True)]
    needed = frozenset[str]().union(*(view.keys for view in views))
    n = max(len(keys[name]) for name in needed)
    try:
        response = store.get_online_features(
            features=[f"{view.name}:{feature}" for view in views for feature in view.types],
            entity_rows={name: list(keys[name]) * (n // len(keys[name])) for name in needed},
        )
    except Exception as error:
        if AWAY.isdisjoint(kind.__name__ for kind in type(error).__mro__):
            raise
        # Feast keeps a connection for good, broken or not: the next read is to open one.
        store._provider = get_provider(store.config)
        raise StoreUnavailable(f"the online store does not answer ({type(error).__name__})") from error
    values = response.to_dict()
    vectors = dict(zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True))
    return [_of_protobufs(view, values, vectors[next(iter(view.types))], time_us) for view in views]


def is_local(store: FeatureStore) -> bool:
    """Whether reads of this store wait for nobody else."""
    packed = packed_store(store)
    return packed is not None and packed.is_local


def _of_columns(view: View, columns: Columns) -> Read:
    return Read(view=view, values=dict(columns.values), stale=columns.stale, times_us=columns.times_us)


def absent(view: View, n: int) -> Read:
    """What is known of n entities where the store is not asked: nothing."""
    nothing = {feature: pa.nulls(n, dtype) for feature, dtype in view.types.items()}
    return Read(view=view, values=nothing, stale=np.zeros(n, dtype=bool), times_us=np.zeros(n, dtype=np.int64))


def _of_protobufs(view: View, values: Mapping[str, list[Any]], vector: Any, time_us: int | None) -> Read:
    """One view of a response with its time to live applied: expired after `ttl`, not at it, as offline."""
    times_us = np.array([t.seconds * 1_000_000 + t.nanos // 1000 for t in vector.event_timestamps], dtype=np.int64)
    expired = np.zeros(len(times_us), dtype=bool)
    if time_us is not None and view.ttl_us:
        expired = (times_us != 0) & (times_us < time_us - view.ttl_us)
    arrays = {
        feature: pc.if_else(pa.array(expired), pa.scalar(None, dtype), pa.array(values[feature], dtype))
        for feature, dtype in view.types.items()
    }
    return Read(view=view, values=arrays, stale=expired, times_us=times_us)
