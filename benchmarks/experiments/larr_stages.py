"""The language model's two stages of tuning, each left out."""

from __future__ import annotations

from functools import partial

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import LanguageModel, Vectors
from trainers import recipes


def experiment(scale: Scale) -> Experiment:
    def reading(vectors: Vectors, seed: int) -> Cell:
        return scale.cell(seed, recipes.larr(scale.size), vectors=vectors)

    where = (ALL, "untold")
    without = {
        "without stage 1": scale.contrasted("without stage 1", LanguageModel()),
        "without stage 2": scale.pretrained,
        "without both": LanguageModel(),
    }
    return Experiment(
        name="larr_stages",
        question="What do continual pretraining (stage 1) and contrastive tuning (stage 2) each give?",
        arms={
            "PLE": scale.ple,
            **{name: partial(reading, vectors) for name, vectors in without.items()},
            "LARR": scale.larr,
        },
        seeds=scale.core_seeds,
        comparisons=(
            *(Comparison(ours="LARR", reference=name, slices=where) for name in without),
            Comparison(ours="without stage 1", reference="without both", slices=where),
            Comparison(ours="without stage 2", reference="without both", slices=where),
        ),
        slices=where,
    )


if __name__ == "__main__":
    main(experiment)
