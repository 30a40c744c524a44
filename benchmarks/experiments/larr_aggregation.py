"""Ways to join a moment's values into one vector, with and without guidance."""

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

Aggregate = Literal["encoder", "attention", "mean", "concat"]


def aggregated(scale: Scale, aggregate: Aggregate, aligned: bool, seed: int) -> Cell:
    """LARR with another aggregation, guidance on or off."""
    recipe = recipes.larr(scale.size)
    assert recipe.model.scene is not None
    encoder = replace(recipe.model.scene.encoder, aggregate=aggregate)
    recipe = replace(recipe, model=replace(recipe.model, scene=replace(recipe.model.scene, encoder=encoder)))
    return scale.cell(seed, recipe if aligned else unaligned(recipe))


def experiment(scale: Scale) -> Experiment:
    cell = partial(partial, aggregated, scale)
    ordered = ("PLE", "concatenation", "encoder", "encoder + alignment")
    return Experiment(
        name="larr_aggregation",
        question="Is PLE < concatenation < encoder < encoder + alignment, and what do other ways to join values give?",
        arms={
            "PLE": scale.ple,
            "concatenation": cell("concat", False),
            "encoder": cell("encoder", False),
            "mean + alignment": cell("mean", True),
            "attention + alignment": cell("attention", True),
            "concatenation + alignment": cell("concat", True),
            "encoder + alignment": cell("encoder", True),
        },
        seeds=scale.core_seeds,
        comparisons=(
            *(Comparison(ours=b, reference=a) for a, b in pairwise(ordered)),
            *(
                Comparison(ours="encoder + alignment", reference=f"{other} + alignment")
                for other in ("mean", "attention", "concatenation")
            ),
        ),
    )


if __name__ == "__main__":
    main(experiment)
