"""How a prompt becomes a vector: by the state of its last token, or by states of what the model writes after it.

As a control that asks no model at all, the mean of the vectors of POIs can stand in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

from trainers.knowledge import VectorMatrix
from trainers.language.encoder import SLOT, EncoderConfig
from trainers.language.model import ModelError, threads_of

Pooling = Literal["last", "generated-last", "generated-mean", "poi-mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POI_MEAN: Pooling = "poi-mean"


class Reading(NamedTuple):
    """What came of some prompts: their positions, their vectors, and the states from which the model would answer."""

    at: np.ndarray
    vectors_nE: np.ndarray
    asked_nE: np.ndarray


class PromptReader(Protocol):
    """Reads prompts, some at a time, in any order."""

    @property
    def name(self) -> str:
        """The model, and the numbers that it computed in."""

    def read(self, prompts: Sequence[str]) -> Iterator[Reading]:
        """Raises ModelError for a prompt that is too long: nothing of a prompt is ever cut."""


def reader_of(pooling: Pooling, config: EncoderConfig, tokens: int) -> PromptReader:
    """A reader that asks a model. Loads it; raises ModelError for one that is not causal."""
    from trainers.language.local import is_causal

    if not is_causal(config):
        raise ModelError(f"{config.model} is no causal language model, and prompts need one; choose another")
    return LastToken(config) if pooling == "last" else Generated(config, pooling, tokens)


class LastToken:
    """The state of the last token of a prompt; prompts of a batch share the computation of what they begin with."""

    def __init__(self, config: EncoderConfig) -> None:
        from trainers.language.local import LocalModel, Prompts

        self._model = LocalModel(replace(config, pooling="last", project=False))
        self._prompts = Prompts(config.folder(), config.max_length)

    @property
    def name(self) -> str:
        return self._model.name

    def read(self, prompts: Sequence[str]) -> Iterator[Reading]:
        self._prompts.whole(prompts)  # or the model's own reading would cut the end, where the question stands
        for at, states_nE in self._model.pooled(prompts, SLOT):
            yield Reading(at, states_nE, states_nE)


class Generated:
    """States of what the model writes after a prompt; where it writes nothing, the state of the prompt's last token."""

    def __init__(self, config: EncoderConfig, pooling: Pooling, tokens: int) -> None:
        from trainers.language.local import CausalModel

        self._model = CausalModel(config)
        self._threads = config.threads
        self._last = pooling == "generated-last"
        self._tokens = tokens

    @property
    def name(self) -> str:
        return self._model.name

    def read(self, prompts: Sequence[str]) -> Iterator[Reading]:
        from trainers.language.generation import continuations

        with threads_of(self._threads):
            for at, written in continuations(self._model, prompts, self._tokens):
                asked_nE = np.stack([w.asked_E for w in written])
                pooled = [self._pooled(w.states_mE) if w.ids else w.asked_E for w in written]
                yield Reading(at, np.stack(pooled), asked_nE)

    def _pooled(self, states_mE: np.ndarray) -> np.ndarray:
        pooled_E: np.ndarray = states_mE[-1] if self._last else states_mE.mean(axis=0)
        return pooled_E


class PoiMean:
    """The mean over POIs' vectors; its prompts are rows of their matrix, such as "7 3 3", where a click counts once."""

    def __init__(self, pois: VectorMatrix) -> None:
        self._pois = pois

    @property
    def name(self) -> str:
        return f"mean of {self._pois.space} {self._pois.version}"

    def read(self, prompts: Sequence[str]) -> Iterator[Reading]:
        for at, prompt in enumerate(prompts):
            mean_1E = self._pois.matrix[[int(row) for row in prompt.split()]].mean(axis=0, keepdims=True)
            yield Reading(np.array([at]), mean_1E, mean_1E)
