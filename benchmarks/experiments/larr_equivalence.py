"""The equivalence test of `larr_no_semantics` with as many seeds as it takes to tell a tenth of a percent.

A seed's difference of two rankers spreads by .15 % of click AUC, so that the interval of thirty is +-.06 %.

Two things could mean something even where moments do not: what POIs are called, and what the user looked at last, since
people's tastes are of kinds of places. So the test is repeated without the last look on either side, and, against ids,
without the words of POIs too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.larr_no_semantics import MARGIN, SILENT
from benchmarks.experiments.larr_scene_features import DECLARED
from benchmarks.experiments.run import main

SEEDS = tuple(range(30))
OF_THE_PAST = ("last_category", "last_specialty")
MOMENT = tuple(name for name in DECLARED if name not in OF_THE_PAST)


def experiment(scale: Scale) -> Experiment:
    arms = {
        "PLE + scene ids": partial(scale.scene_ids, variant=SILENT),
        "LARR, moments at random": partial(scale.random_scenes, variant=SILENT),
        "LARR": partial(scale.larr, variant=SILENT),
        "PLE + scene ids, no last look": lambda seed: momentary(scale.scene_ids(seed, SILENT)),
        "LARR, moments at random, no last look": lambda seed: momentary(scale.random_scenes(seed, SILENT)),
        "LARR, no last look": lambda seed: momentary(scale.larr(seed, SILENT)),
        "LARR, no last look, no POI text": lambda seed: momentary(scale.larr_without_pois(seed, SILENT)),
    }
    pairs = (
        ("LARR", "PLE + scene ids"),
        ("LARR", "LARR, moments at random"),
        ("LARR, no last look", "LARR, moments at random, no last look"),
        ("LARR, no last look", "PLE + scene ids, no last look"),
        ("LARR, no last look, no POI text", "PLE + scene ids, no last look"),
    )
    return Experiment(
        name="larr_equivalence",
        question="Where the scene says nothing of what people want, is LARR within .1 % of ids and of random vectors?",
        arms=arms,
        seeds=scale.core_seeds if scale.quick else SEEDS,
        comparisons=tuple(Comparison(ours=ours, reference=reference, margin=MARGIN) for ours, reference in pairs),
        measures=("ctr_auc", "ctcvr_auc", "ctr_log_loss", "ctcvr_log_loss"),
        resampled=False,
    )


def momentary(cell: Cell) -> Cell:
    """The same ranker, which sees nothing of the scene that the user's past has a part in."""
    return replace(cell, slots=MOMENT)


if __name__ == "__main__":
    main(experiment)
