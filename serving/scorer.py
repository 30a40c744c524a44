"""Bundle + rows -> probabilities, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from serving.observe import stage
from trainers.batch import Batch
from trainers.bundle import Bundle


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

    @stage("score")
    def score(self, table: pa.Table) -> Probabilities:
        """Score n rows of an online read (or of a pull: the columns are the same)."""
        batch = Batch.from_arrow(table, self.bundle.encoding)
        with torch.inference_mode():
            scores = self.bundle.ranker(batch)
            return Probabilities(p_click=scores.p_click_B.numpy(), p_order=scores.p_order_B.numpy())
