"""Ways to join a moment's values into one vector: the paper's order of them, and each in LARR as it is here.

The paper's rankers have no linear term beside the aggregation (`SceneEncoder.Config.shortcut`), LARR has one: arms of
the first kind say what the paper compares, those that end in "LARR" exchange the aggregation and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Literal

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale, unaligned
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from trainers import recipes
from trainers.recipes import Recipe

Aggregate = Literal["encoder", "attention", "mean", "concat"]
EXCHANGED: dict[str, Aggregate] = {"mean": "mean", "attention": "attention", "concatenation": "concat"}


def aggregated(recipe: Recipe, aggregate: Aggregate, shortcut: bool) -> Recipe:
    """The same ranker with another aggregation, with or without the linear term."""
    assert recipe.model.scene is not None
    encoder = replace(recipe.model.scene.encoder, aggregate=aggregate, shortcut=shortcut)
    return replace(recipe, model=replace(recipe.model, scene=replace(recipe.model.scene, encoder=encoder)))


def experiment(scale: Scale) -> Experiment:
    larr = recipes.larr(scale.size)

    def cell(recipe: Recipe, seed: int) -> Cell:
        return scale.cell(seed, recipe)

    papers = {
        "concatenation": unaligned(aggregated(larr, "concat", False)),
        "encoder": unaligned(aggregated(larr, "encoder", False)),
        "encoder + alignment": aggregated(larr, "encoder", False),
    }
    exchanged = {f"{name} LARR": aggregated(larr, aggregate, True) for name, aggregate in EXCHANGED.items()}
    return Experiment(
        name="larr_aggregation",
        question="Is PLE < concatenation < encoder < encoder + alignment, and what do other ways to join values give?",
        arms={
            "PLE": scale.ple,
            **{name: partial(cell, recipe) for name, recipe in (papers | exchanged).items()},
            "LARR": scale.larr,
        },
        seeds=scale.core_seeds,
        comparisons=(
            *(Comparison(ours=b, reference=a) for a, b in pairwise(("PLE", *papers))),
            *(Comparison(ours="LARR", reference=name) for name in ("encoder + alignment", *exchanged)),
        ),
    )


if __name__ == "__main__":
    main(experiment)
