"""Pooled states from many encoders at a time: Ray Data spreads the texts over the machines of a cluster."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from trainers.language.encoder import EncoderConfig, Pooled
from trainers.language.model import ModelError

AT, TEXT, STATE = "at", "text", "state"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the work is spread. Call it with a configuration to start; every machine has to reach the model's folder.

    Args:
        workers: encoders at a time, each with a model of its own.
        cpus, gpus: of each; without a GPU, an encoder has as many threads as CPUs.
        address: of a running cluster; None: what `RAY_ADDRESS` names, else Ray is started on this machine.
        texts: of one piece of work. They come sorted, and within a piece encoders share what texts begin with.
    """

    workers: int = 1
    cpus: int = 1
    gpus: int = 0
    address: str | None = None
    texts: int = 4096

    def __post_init__(self) -> None:
        if min(self.workers, self.cpus, self.texts) < 1 or self.gpus < 0:
            raise ModelError(f"workers, cpus and texts must be positive and gpus at least 0, got {self}")

    def __call__(self, config: EncoderConfig) -> ClusterModel:
        return ClusterModel(self, config)


class ClusterModel:
    """A Ray that is ready to encode."""

    def __init__(self, cluster: Cluster, config: EncoderConfig) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray: Any = importlib.import_module("ray")
            self._data: Any = importlib.import_module("ray.data")
        except ImportError as error:
            raise ModelError("Ray Data is not installed: pip install 'scenerank[ray]'") from error
        self._cluster = cluster
        self._config = config if cluster.gpus else replace(config, threads=cluster.cpus)
        if not self._ray.is_initialized():
            self._ray.init(address=cluster.address, logging_level="error", log_to_driver=False)

    @property
    def name(self) -> str:
        return f"{self._config.model} on Ray"

    def pooled(self, texts: Sequence[str], template: str) -> Iterator[Pooled]:
        if not texts:
            return
        self._data.DataContext.get_current().enable_progress_bars = False
        size = self._cluster.texts
        pieces = [
            pa.table({AT: np.arange(start, min(start + size, len(texts))), TEXT: texts[start : start + size]})
            for start in range(0, len(texts), size)
        ]
        encoded = self._data.from_arrow(pieces).map_batches(
            Encoder,
            fn_constructor_args=(self._config, template),
            compute=self._data.ActorPoolStrategy(size=min(self._cluster.workers, len(pieces))),
            num_cpus=self._cluster.cpus,
            num_gpus=self._cluster.gpus,
            batch_size=None,
            batch_format="pyarrow",
        )
        try:
            for piece in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
                at = piece[AT].to_numpy()
                yield at, piece[STATE].combine_chunks().flatten().to_numpy().reshape(len(at), -1)
        except self._ray.exceptions.RayError as error:
            raise ModelError(f"an encoder on Ray failed: {error}") from error


class Encoder:
    """What runs in a worker: a model in that process, and a piece of work at a time."""

    def __init__(self, config: EncoderConfig, template: str) -> None:
        from trainers.language.local import LocalModel

        self._model, self._template = LocalModel(config), template

    def __call__(self, piece: pa.Table) -> pa.Table:
        batches = list(self._model.pooled(piece[TEXT].to_pylist(), self._template))
        order = np.concatenate([at for at, _ in batches]).argsort()
        states = np.concatenate([states for _, states in batches])[order]
        offsets = np.arange(len(states) + 1, dtype=np.int32) * states.shape[1]
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(states.ravel()))
        return pa.table({AT: piece[AT], STATE: column})
