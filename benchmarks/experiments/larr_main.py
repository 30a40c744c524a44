"""LARR against rankers without a scene, with the scene as ids, and with vectors that mean nothing."""

from __future__ import annotations

from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL

WORDS = ("untold", "unseen scene", "rare scene", "frequent scene", "new POI", "rare POI")


def experiment(scale: Scale) -> Experiment:
    references = ("PLE", "PLE + scene ids", "PLE + scene ids + POI text", "PLE + random vectors")
    return Experiment(
        name="larr_main",
        question="Does what a language model knows of the moment help, beyond the moment itself?",
        arms={
            "PLE": scale.ple,
            "PLE + scene ids": scale.scene_ids,
            "PLE + scene ids + POI text": scale.scene_ids_and_text,
            "PLE + random vectors": scale.random,
            "LARR": scale.larr,
        },
        seeds=scale.core_seeds,
        comparisons=tuple(
            Comparison(ours="LARR", reference=reference, slices=(ALL, *WORDS)) for reference in references
        ),
        slices=(ALL, *WORDS),
    )


if __name__ == "__main__":
    main(experiment)
