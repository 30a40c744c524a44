"""What is measured of a trained ranker: quality overall and on slices, and what it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainers.batch import Batch
from trainers.metrics import Outcomes, task_metrics
from trainers.models.ranker import Ranker

CANDIDATES = 200
REPEATS = 30
# Measure -> whether more is better. CTR is p(click), CTCVR p(click and order).
MEASURES: Mapping[str, bool] = {
    "ctr_auc": True,
    "ctcvr_auc": True,
    "ctr_gauc": True,
    "ctcvr_gauc": True,
    "ctr_log_loss": False,
    "ctcvr_log_loss": False,
    "ctr_ece": False,
    "ctcvr_ece": False,
}


def quality(
    click: np.ndarray, order: np.ndarray, outcomes: Outcomes, masks: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float | None]]:
    """Every measure on every slice that has rows."""
    found: dict[str, dict[str, float | None]] = {}
    for name, mask in masks.items():
        if not mask.any():
            continue
        tasks = {"ctr": (click, outcomes.click), "ctcvr": (order, outcomes.order)}
        of_slice: dict[str, float | None] = {"rows": int(mask.sum())}
        for task, (probability, label) in tasks.items():
            m = task_metrics(probability[mask], label[mask], outcomes.user[mask])
            of_slice |= {f"{task}_positives": m.positives, f"{task}_auc": m.auc, f"{task}_gauc": m.gauc}
            of_slice |= {f"{task}_log_loss": m.log_loss, f"{task}_ece": m.ece}
        found[name] = of_slice
    return found


def request(batch: Batch, candidates: int = CANDIDATES) -> Batch:
    """A request of one user in one scene: rows of a batch as candidates, repeated where it has too few."""
    rows = batch.rows(torch.arange(candidates) % len(batch))
    one_scene = torch.zeros_like(rows.scene_of_row_B)
    return replace(rows, scene_of_row_B=one_scene, scene_id_US=rows.scene_id_US[:1], scene_row_US=rows.scene_row_US[:1])


def inference_ms(ranker: Ranker, asked: Batch, repeats: int = REPEATS) -> float:
    """Median milliseconds of scoring a request."""
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            started = time.perf_counter()
            ranker(asked)
            seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[3:])  # the first ones warm up


def inference_mflops(ranker: Ranker, asked: Batch) -> float:
    """Millions of floating-point operations of the matrix products of scoring a request."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ranker(asked)
    return float(counter.get_total_flops()) / 1e6


def parameters(ranker: Ranker) -> int:
    """How many numbers training moves."""
    return sum(p.numel() for p in ranker.parameters() if p.requires_grad)
