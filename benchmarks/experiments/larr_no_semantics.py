"""A world where moments mean nothing: what helps there is not meaning. An equivalence test.

What POIs are called goes on to mean something (people's tastes are of kinds of places), so the clean comparisons are
those in which both sides read POIs: with ids of the moment, and with vectors of the moment that are drawn at random.
"""

from __future__ import annotations

from functools import partial

from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from feature_repo.datasets.city import Variant

MARGIN = 0.001  # of relative differences
SILENT = Variant(semantics=False)


def experiment(scale: Scale) -> Experiment:
    references = {
        "PLE + scene ids": scale.scene_ids,
        "PLE + scene ids + POI text": scale.scene_ids_and_text,
        "LARR, moments at random": scale.random_scenes,
    }
    return Experiment(
        name="larr_no_semantics",
        question="Where the scene says nothing of what people want, is LARR as good as ids and as random vectors?",
        arms={
            **{name: partial(make, variant=SILENT) for name, make in references.items()},
            "LARR": partial(scale.larr, variant=SILENT),
        },
        seeds=scale.core_seeds,
        comparisons=tuple(Comparison(ours="LARR", reference=reference, margin=MARGIN) for reference in references),
    )


if __name__ == "__main__":
    main(experiment)
