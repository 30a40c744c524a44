"""A world where moments mean nothing: what helps there is not meaning. An equivalence test."""

from __future__ import annotations

from functools import partial

from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from feature_repo.datasets.city import Variant

MARGIN = 0.001  # of relative differences


def experiment(scale: Scale) -> Experiment:
    silent = Variant(semantics=False)
    return Experiment(
        name="larr_no_semantics",
        question="Where the scene says nothing of what people want, is LARR as good as ids and as random vectors?",
        arms={
            "PLE + scene ids": partial(scale.scene_ids, variant=silent),
            "PLE + random vectors": partial(scale.random, variant=silent),
            "LARR": partial(scale.larr, variant=silent),
        },
        seeds=scale.core_seeds,
        comparisons=tuple(
            Comparison(ours="LARR", reference=reference, margin=MARGIN)
            for reference in ("PLE + scene ids", "PLE + random vectors")
        ),
    )


if __name__ == "__main__":
    main(experiment)
