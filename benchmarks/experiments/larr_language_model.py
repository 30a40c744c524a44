"""Which model reads the words: quality, time to embed, size."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.experiments import worlds
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.city import Scale
from benchmarks.experiments.experiment import Comparison, Experiment
from benchmarks.experiments.places import Places
from benchmarks.experiments.run import main
from benchmarks.experiments.slices import ALL
from benchmarks.experiments.vectors import HashedWords, LanguageModel, Vectors, hashed_words
from feature_repo.workspace import Workspace
from trainers import recipes
from trainers.knowledge import POI_SPACE
from trainers.language.encoder import TextEncoder


def experiment(scale: Scale) -> Experiment:
    kinds: Mapping[str, Vectors] = {
        "hashed words": HashedWords(),
        "MiniLM": LanguageModel(model="minilm"),
        "SmolLM2": LanguageModel(),
        "SmolLM2, tuned (LARR)": scale.tuned,
    }

    def reading(vectors: Vectors, seed: int) -> Cell:
        return scale.cell(seed, recipes.larr(scale.size), vectors=vectors)

    def facts(places: Places) -> dict[str, dict[str, float]]:
        workspace = Workspace(worlds.folder(scale.world(scale.seeds[0]), places))
        texts = worlds.texts_of_rows(workspace, POI_SPACE)[1]
        return {name: cost(vectors, texts, places) for name, vectors in kinds.items()}

    where = (ALL, "untold", "new POI")
    tuned = "SmolLM2, tuned (LARR)"
    return Experiment(
        name="larr_language_model",
        question="How much of the gain is the language model's, and would a smaller reader do?",
        arms={"random vectors": scale.random, **{name: partial(reading, vectors) for name, vectors in kinds.items()}},
        seeds=scale.seeds,
        comparisons=(
            *(Comparison(ours=tuned, reference=name, slices=where) for name in kinds if name != tuned),
            Comparison(ours="SmolLM2", reference="hashed words", slices=where),
            Comparison(ours="SmolLM2", reference="MiniLM", slices=where),
            Comparison(ours="hashed words", reference="random vectors", slices=where),
        ),
        slices=where,
        facts=facts,
    )


def cost(vectors: Vectors, texts: Sequence[str], places: Places) -> dict[str, float]:
    """Texts a second with all processors, the model loaded and warm; megabytes of weights; width of a vector."""
    if isinstance(vectors, LanguageModel):
        config = replace(vectors.config(places), threads=os.cpu_count())
        encoder = TextEncoder(config)
        encoder.encode(texts[:16], POI_SPACE)
        started = time.perf_counter()
        made = encoder.encode(texts, POI_SPACE)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(config.folder()).glob("*.safetensors")) / 1e6
    else:
        started = time.perf_counter()
        made = hashed_words(texts, HashedWords().width)
        seconds, size = time.perf_counter() - started, 0.0
    return {"texts": len(texts), "texts/s": len(texts) / seconds, "weights MB": size, "width": made.shape[1]}


if __name__ == "__main__":
    main(experiment)
