"""Ray Data on this machine: the same vectors as in this process, from workers of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainers.language.cluster import Cluster
from trainers.language.encoder import EncoderConfig, TextEncoder
from trainers.language.model import ModelError

TEXTS = sorted(["Soup.", "Warm soup and bread near the station, open late.", "Fish", "Noodles for lunch", "Soup"])


@pytest.mark.full
def test_workers_give_the_vectors_of_this_process(ray: None, tiny: EncoderConfig) -> None:
    seen: list[tuple[str, int, int]] = []
    spread = TextEncoder(tiny, Cluster(workers=2, texts=2))
    vectors = spread.encode(TEXTS, "poi_text", lambda *a: seen.append(a))
    np.testing.assert_allclose(vectors, TextEncoder(tiny).encode(TEXTS, "poi_text"), atol=1e-5)
    assert seen[-1] == ("poi_text", 5, 5)
    assert len(seen) == 3
    assert spread.name == f"{tiny.model} on Ray"
    assert len(spread.encode([], "poi_text")) == 0
    empty = dataclasses.replace(tiny, templates={"poi_text": "{text}"})
    with pytest.raises(ModelError, match=r"(?s)an encoder on Ray failed.*text '' in template"):
        TextEncoder(empty, Cluster(texts=1)).encode(["", "Fish"], "poi_text")


def test_impossible_clusters_are_refused() -> None:
    with pytest.raises(ModelError, match="must be positive"):
        Cluster(workers=0)
