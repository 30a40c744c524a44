"""The point-in-time join on a Ray cluster: a task a view and part of its entities, each on whatever machine is free.

    offline_store:
      type: feature_repo.stores.asof_ray.AsofRayOfflineStore
      parts: 64

Every machine has to reach the sources and to have this package. The rows are those of the ASOF store on one machine,
time to live included, which Feast's own Ray store ignores.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from feature_repo.stores.asof import AsofOfflineStore, AsofOfflineStoreConfig
from feature_repo.stores.merge import Lookup, join_part, together


class AsofRayOfflineStoreConfig(AsofOfflineStoreConfig):
    """
    Args:
        parts: into how many the entities of each view are divided, by a hash of their keys.
        address: of a running cluster; None: what `RAY_ADDRESS` names, else Ray is started on this machine.
    """

    type: str = "feature_repo.stores.asof_ray.AsofRayOfflineStore"
    parts: int = 16
    address: str | None = None

    def joined(
        self, spine: pa.Table, moments_us: np.ndarray, lookups: Sequence[Lookup]
    ) -> Iterator[dict[str, pa.ChunkedArray]]:
        """All parts of all views are asked for at once; views are answered in order."""
        ray = self._started()
        task = ray.remote(join_part)
        moments = ray.put(moments_us)
        asked = []
        for lookup in lookups:
            keys = ray.put(spine.select(sorted(set(lookup.keys.values()))))
            parts = self.parts if lookup.keys else 1
            asked.append([task.remote(keys, moments, lookup, part, parts) for part in range(parts)])
        return (together(ray.get(parts)) for parts in asked)

    def _started(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ValueError("Ray is not installed: pip install 'scenerank[ray]'") from error
        if not ray.is_initialized():
            ray.init(address=self.address, logging_level="error", log_to_driver=False)
        return ray


class AsofRayOfflineStore(AsofOfflineStore):
    """The ASOF store; its configuration says that the join is spread."""
