"""AUCs of a cell on resampled users, kept beside its scores: the same users for all cells of one world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.experiments import worlds
from benchmarks.experiments.cells import Cell, Store, staged
from benchmarks.experiments.places import Places
from benchmarks.experiments.slices import BOOTSTRAPPED, slices
from benchmarks.experiments.statistics import RESAMPLES, Scored, resampled_aucs
from feature_repo import columns
from feature_repo.scenes import features_of

# Raise it by hand with any change of slices or of resampling.
VERSION = 2


def resample(cell: Cell, places: Places, resamples: int = RESAMPLES) -> None:
    """Draw the resamples of a computed cell, of all slices that are bootstrapped.

    Raises ValueError for a cell whose scores are not there.
    """
    scores = Store(places).scores(cell)
    if scores is None:
        raise ValueError(f"the scores of cell {cell.hash} are not there; compute it again")
    world = worlds.load(cell.world, places)
    train, _, test = cell.parts(world)
    masks = slices(train, test, [f.name for f in features_of(world.schema)])
    user = np.unique(test[columns.USER_ID].to_numpy(), return_inverse=True)[1]
    tasks = (("ctr_auc", scores.click, columns.CLICK), ("ctcvr_auc", scores.order, columns.ORDER))
    sets = {
        f"{name} {metric}": Scored(
            score=score[masks[name]], label=test[label].to_numpy()[masks[name]], user=user[masks[name]]
        )
        for name in BOOTSTRAPPED
        for metric, score, label in tasks
    }
    found = resampled_aucs(sets, users=int(user.max()) + 1, seed=cell.world.seed, resamples=resamples)
    drawn = {name: areas.astype(np.float32) for name, areas in found.items()}
    with staged(path(cell, places)) as file:
        pq.write_table(pa.table(drawn), file)


def replicates(cell: Cell, places: Places, at: str, metric: str) -> np.ndarray:
    """The resampled AUCs, (K,), of one slice; NaN where a resample could not tell it."""
    found: np.ndarray = pq.read_table(path(cell, places), columns=[f"{at} {metric}"]).column(0).to_numpy()
    return found.astype(np.float64)


def path(cell: Cell, places: Places) -> Path:
    return places.scratch / "resamples" / f"{cell.hash}-{VERSION}.parquet"
