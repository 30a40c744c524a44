"""Cities that speak of other things in other words than the one in which everything was developed.

Three cities are drawn from a reserve of concept words; each gives three samples of people, which are the same in all
cities, so that the nine runs are no nine independent ones. The language model is the one that was tuned on the
development city: it has not met their words in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from feature_repo.datasets.city import Variant

CITIES = (1, 2, 3)


def experiment(scale: Scale) -> Experiment:
    cities = CITIES[:1] if scale.quick else CITIES

    def in_city(make: Callable[..., Cell], number: int) -> Cell:
        """Numbers run over the cities first, then over the seeds."""
        seed, city = divmod(number, len(cities))
        return make(seed, variant=Variant(concepts=cities[city]))

    where = (ALL, "untold", "unseen scene", "rare scene")
    return Experiment(
        name="larr_new_words",
        question="Do the gains hold in cities whose words development did not use?",
        arms={
            "PLE": partial(in_city, scale.ple),
            "PLE + scene ids": partial(in_city, scale.scene_ids),
            "PLE + random vectors": partial(in_city, scale.random),
            "LARR": partial(in_city, scale.larr),
        },
        seeds=tuple(range(len(cities) * len(scale.seeds))),
        comparisons=tuple(
            Comparison(ours="LARR", reference=reference, slices=where)
            for reference in ("PLE", "PLE + scene ids", "PLE + random vectors")
        ),
        slices=where,
    )


if __name__ == "__main__":
    main(experiment)
