"""Guidance: how strong, and which of the scene vector's two uses does what."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale, unaligned
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from trainers import recipes

FACTORS = (0.3, 3.0)  # of the recipe's own weight


def experiment(scale: Scale) -> Experiment:
    def weighted(factor: float, seed: int) -> Cell:
        recipe = recipes.larr(scale.size)
        loss = replace(recipe.loss, alignment=round(factor * recipe.loss.alignment, 6))
        return scale.cell(seed, replace(recipe, loss=loss))

    def off(seed: int) -> Cell:
        return scale.cell(seed, unaligned(recipes.larr(scale.size)))

    def guidance_alone(seed: int) -> Cell:
        recipe = recipes.larr(scale.size)
        assert recipe.model.scene is not None
        scene = replace(recipe.model.scene, utilization=False)
        return scale.cell(seed, replace(recipe, model=replace(recipe.model, scene=scene)))

    others = {f"both, guidance x {factor:g}": lambda seed, f=factor: weighted(f, seed) for factor in FACTORS}
    return Experiment(
        name="larr_alignment",
        question="Does guiding the ranker by the scene help, beside giving it the scene, and how much of it?",
        arms={
            "neither (PLE)": scale.ple,
            "guidance": guidance_alone,
            "utilization": off,
            "both (LARR)": scale.larr,
            **others,
        },
        seeds=scale.core_seeds,
        comparisons=(
            Comparison(ours="guidance", reference="neither (PLE)"),
            Comparison(ours="utilization", reference="neither (PLE)"),
            Comparison(ours="both (LARR)", reference="utilization"),
            Comparison(ours="both (LARR)", reference="guidance"),
            *(Comparison(ours=name, reference="both (LARR)") for name in others),
        ),
    )


if __name__ == "__main__":
    main(experiment)
