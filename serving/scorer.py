"""Bundle + rows -> probabilities, as plain arrays.

A scene that comes again is not encoded again: its vector depends on nothing but its ids and rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from serving.observe import stage
from trainers.batch import Batch
from trainers.bundle import Bundle
from trainers.models.larr import SceneUse
from trainers.rows import Rows

MOST_SCENES = 4096  # kept; the ones used longest ago go first


@dataclass(frozen=True, kw_only=True)
class Probabilities:
    """For n rows, float32 (n,): of a click, and of a click and then an order."""

    p_click: np.ndarray
    p_order: np.ndarray


class Scorer:
    """One bundle's ranker, ready to answer; safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        bundle.ranker.eval()
        self._scenes: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @stage("score")
    def score(self, table: pa.Table | Rows) -> Probabilities:
        """Score n rows of an online read (or of a pull: the columns are the same)."""
        batch = Batch.from_arrow(table, self.bundle.encoding)
        with torch.inference_mode():
            use = self.bundle.ranker.scene
            scores = self.bundle.ranker(batch, None if use is None else self._encoded(use, batch))
            return Probabilities(p_click=scores.p_click_B.numpy(), p_order=scores.p_order_B.numpy())

    def _encoded(self, use: SceneUse, batch: Batch) -> Tensor:
        """The vectors (U, C) of a batch's scenes; those of the one scene of a request are kept."""
        if len(batch.scene_id_US) != 1:
            return use.scenes(batch)
        scene = batch.scene_id_US.numpy().tobytes() + batch.scene_row_US.numpy().tobytes()
        with self._lock:
            if scene in self._scenes:
                self._scenes.move_to_end(scene)
                return self._scenes[scene]
        vector_UC = use.scenes(batch)
        with self._lock:
            self._scenes[scene] = vector_UC
            while len(self._scenes) > MOST_SCENES:
                self._scenes.popitem(last=False)
        return vector_UC
