"""The equivalence test of `larr_no_semantics` with as many seeds as it takes to tell a tenth of a percent.

A seed's difference of two rankers spreads by .15 % of click AUC, so that the interval of thirty is +-.06 %.
"""

from __future__ import annotations

from functools import partial

from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.larr_no_semantics import MARGIN, SILENT
from benchmarks.experiments.run import main

SEEDS = tuple(range(30))


def experiment(scale: Scale) -> Experiment:
    references = {"PLE + scene ids": scale.scene_ids, "LARR, moments at random": scale.random_scenes}
    return Experiment(
        name="larr_equivalence",
        question="Where the scene says nothing of what people want, is LARR within .1 % of ids and of random vectors?",
        arms={name: partial(make, variant=SILENT) for name, make in {**references, "LARR": scale.larr}.items()},
        seeds=scale.core_seeds if scale.quick else SEEDS,
        comparisons=tuple(Comparison(ours="LARR", reference=reference, margin=MARGIN) for reference in references),
        measures=("ctr_auc", "ctcvr_auc", "ctr_log_loss", "ctcvr_log_loss"),
        resampled=False,
    )


if __name__ == "__main__":
    main(experiment)
