"""What was never seen in training: POIs, and values of the moment."""

from __future__ import annotations

from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale, reading_pois
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from trainers import recipes

WHERE = (ALL, "new POI", "rare POI", "known POI", "unseen scene", "rare scene", "frequent scene")
SINGLE = ("unseen landmark", "unseen occasion", "unseen last_specialty")


def experiment(scale: Scale) -> Experiment:
    def ple_reading_pois(seed: int) -> Cell:
        return scale.cell(seed, reading_pois(recipes.ple(scale.size), True))

    pairs = (
        ("LARR", "PLE"),
        ("LARR", "PLE + POI text"),
        ("LARR", "PLE + scene ids"),
        ("LARR", "PLE + scene ids + POI text"),
        ("LARR", "PLE + random vectors"),
        ("LARR", "LARR, moments at random"),
        ("LARR", "LARR without POI text"),
    )
    return Experiment(
        name="larr_cold_start",
        question="Where training has seen nothing, does what words mean take the place of what ids have learned?",
        arms={
            "PLE": scale.ple,
            "PLE + POI text": ple_reading_pois,
            "PLE + scene ids": scale.scene_ids,
            "PLE + scene ids + POI text": scale.scene_ids_and_text,
            "PLE + random vectors": scale.random,
            "LARR, moments at random": scale.random_scenes,
            "LARR without POI text": scale.larr_without_pois,
            "LARR": scale.larr,
        },
        seeds=scale.seeds,
        comparisons=tuple(Comparison(ours=ours, reference=reference, slices=WHERE) for ours, reference in pairs),
        measures=("ctr_auc", "ctcvr_auc", "ctr_log_loss", "ctcvr_log_loss"),
        slices=(*WHERE, *SINGLE),
    )


if __name__ == "__main__":
    main(experiment)
