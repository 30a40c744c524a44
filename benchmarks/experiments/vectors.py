"""What scene values and other texts are to a ranker: vectors of a language model, of hashed words, or of chance.

A kind of vectors takes the place of any other: same keys and rows of the matrix, other numbers. Each distinct text is
read once a version of a language model over all worlds; what was read lies in `<vectors>/<version>.parquet`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.experiments.places import Places
from feature_repo import columns
from trainers.knowledge import POI_SPACE, USER_KNOWLEDGE
from trainers.language.encoder import SLOT, EncoderConfig, TextEncoder
from trainers.language.model import MINILM, SMOLLM2

EMBEDDED = (SMOLLM2.name, MINILM.name)
SPACES = tuple(columns.KNOWLEDGE)
TEXT, VECTOR = "text", "vector"
CHUNK_TEXTS = 1024
PROMPT_LENGTH = 1024  # tokens; nothing of a prompt is to be cut


class Vectors(Protocol):
    """A kind of vectors; a frozen dataclass whose fields say all that the numbers depend on."""

    def of(self, space: str, texts: Sequence[str], places: Places) -> np.ndarray:
        """float32 (n, width) of n texts of one space."""
        ...

    def models(self, space: str) -> tuple[LanguageModel, ...]:
        """The language models that must have read the texts of a space before `of` is asked."""
        ...


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Vectors of a language model.

    Args:
        model: "smollm2" or "minilm" (embedded), or a folder.
    """

    model: str = SMOLLM2.name

    def of(self, space: str, texts: Sequence[str], places: Places) -> np.ndarray:
        known = read_cache(cache_file(places, self.config(places).version(space)))
        return np.stack([known[text] for text in texts])

    def models(self, space: str) -> tuple[LanguageModel, ...]:
        return (self,)

    def reading(self, space: str, texts: Sequence[str]) -> Reading:
        """What it must have read before `of` is asked for these texts."""
        return Reading(model=self, space=space, texts=tuple(texts))

    @property
    def label(self) -> str:
        """What results call it; each one reads a space in one version."""
        return self.model

    def source(self, places: Places) -> str:
        """What `EncoderConfig.model` is."""
        return self.model

    def is_at_hand(self, places: Places) -> bool:
        return self.source(places) in EMBEDDED or Path(self.source(places)).is_dir()

    def config(self, places: Places) -> EncoderConfig:
        """How this model reads texts."""
        return EncoderConfig(model=self.source(places))

    def versions(self, places: Places) -> dict[str, str] | None:
        """The version of each space, which changes with the weights; None where the model is not at hand."""
        if not self.is_at_hand(places):
            return None
        config = self.config(places)
        return {space: config.version(space) for space in self.spaces}

    @property
    def spaces(self) -> tuple[str, ...]:
        """What it can read."""
        return SPACES


@dataclass(frozen=True, kw_only=True)
class PromptStates(LanguageModel):
    """The states of a language model at the end of prompts, which are read as they are."""

    def config(self, places: Places) -> EncoderConfig:
        templates = dict.fromkeys(self.spaces, SLOT)
        return EncoderConfig(model=self.source(places), templates=templates, pooling="last", max_length=PROMPT_LENGTH)

    @property
    def spaces(self) -> tuple[str, ...]:
        return tuple(columns.PROMPTED)


@dataclass(frozen=True, kw_only=True)
class PoiMeans(PromptStates):
    """Of a user, the mean over the vectors of the POIs clicked last (`asked.PoiClicks`), which prompts have to beat.

    The pooling "poi-mean" of `scenerank knowledge`. Scenarios' prompts are read as they are.
    """

    kind: Literal["poi means"] = "poi means"

    @property
    def label(self) -> str:
        return f"{self.model}, means of POIs"

    def of(self, space: str, texts: Sequence[str], places: Places) -> np.ndarray:
        if space != USER_KNOWLEDGE:
            return super().of(space, texts, places)
        clicked = [json.loads(text) for text in texts]
        distinct = _distinct(texts)
        row_of = {text: row for row, text in enumerate(distinct)}
        vectors = self._pois.of(POI_SPACE, distinct, places)
        return np.stack([vectors[[row_of[text] for text in of_user]].mean(axis=0) for of_user in clicked])

    def reading(self, space: str, texts: Sequence[str]) -> Reading:
        if space != USER_KNOWLEDGE:
            return super().reading(space, texts)
        return self._pois.reading(POI_SPACE, _distinct(texts))

    def versions(self, places: Places) -> dict[str, str] | None:
        read, pois = super().versions(places), self._pois.versions(places)
        return None if read is None or pois is None else {**read, USER_KNOWLEDGE: pois[POI_SPACE]}

    @property
    def _pois(self) -> LanguageModel:
        return LanguageModel(model=self.model)


def _distinct(lists: Sequence[str]) -> list[str]:
    """The texts that some lists in JSON have, each once."""
    return sorted({text for texts in lists for text in json.loads(texts)})


@dataclass(frozen=True, kw_only=True)
class Knowing:
    """One kind of vectors for texts, another one for prompts about users and scenarios."""

    texts: Vectors
    prompts: Vectors

    def of(self, space: str, texts: Sequence[str], places: Places) -> np.ndarray:
        return self._kind(space).of(space, texts, places)

    def models(self, space: str) -> tuple[LanguageModel, ...]:
        return self._kind(space).models(space)

    def _kind(self, space: str) -> Vectors:
        return self.prompts if space in columns.PROMPTED else self.texts


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Every text gets the vector of another one: the same numbers, for the wrong users and scenarios.

    Args:
        kind: tells it from `RandomVectors` within other vectors, whose plain data have no names of classes.
    """

    like: LanguageModel
    seed: int = 0
    kind: Literal["shuffled"] = "shuffled"

    def of(self, space: str, texts: Sequence[str], places: Places) -> np.ndarray:
        different = sorted(set(texts))
        order = np.random.default_rng(self.seed).permutation(len(different))
        # Each text's is that of the next one in a random order: of six prompts, a permutation would leave one or two.
        other = {different[at]: different[after] for at, after in zip(order, np.roll(order, -1), strict=True)}
        return self.like.of(space, [other[text] for text in texts], places)

    def models(self, space: str) -> tuple[LanguageModel, ...]:
        return self.like.models(space)


@dataclass(frozen=True, kw_only=True)
class RandomVectors:
    """Vectors that mean nothing: each text's direction is drawn at random, its length is that of the model's vector.

    Args:
        like: gives width and lengths.
        seed: of all directions.
        spaces: in these spaces only; the others keep the model's vectors. None: in all.
    """

    like: LanguageModel
    seed: int = 0
    spaces: tuple[str, ...] | None = None

    def of(self, space: str, texts: Sequence[str], places: Places) -> np.ndarray:
        meant = self.like.of(space, texts, places)
        if self.spaces is not None and space not in self.spaces:
            return meant
        return random_like(meant, texts, self.seed)

    def models(self, space: str) -> tuple[LanguageModel, ...]:
        return self.like.models(space)


@dataclass(frozen=True, kw_only=True)
class HashedWords:
    """Bags of words: each word adds or subtracts 1 in one of `width` columns, chosen by its hash."""

    width: int = 576

    def of(self, space: str, texts: Sequence[str], places: Places) -> np.ndarray:
        return hashed_words(texts, self.width)

    def models(self, space: str) -> tuple[LanguageModel, ...]:
        return ()


def random_like(vectors: np.ndarray, texts: Sequence[str], seed: int) -> np.ndarray:
    """Random directions, the same for the same text, with the lengths of `vectors`: float32 (n, width)."""
    draws = [np.random.default_rng(_number(f"{seed} {text}", 16)).normal(size=vectors.shape[1]) for text in texts]
    drawn = np.stack(draws)
    scale = np.linalg.norm(vectors, axis=1) / np.linalg.norm(drawn, axis=1)
    scaled: np.ndarray = (drawn * scale[:, None]).astype(np.float32)
    return scaled


def hashed_words(texts: Sequence[str], width: int) -> np.ndarray:
    """Signed counts of hashed words, float32 (n, width); words are runs of letters and digits in lower case."""
    vectors = np.zeros((len(texts), width), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            number = _number(word, 8)
            vectors[row, (number >> 1) % width] += 1.0 if number & 1 else -1.0
    return vectors


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Texts that a language model has to have read."""

    model: LanguageModel
    space: str
    texts: tuple[str, ...]

    def missing(self, places: Places) -> list[str]:
        """Those that it has not read yet."""
        known = read_cache(cache_file(places, self.model.config(places).version(self.space)))
        return sorted(set(self.texts) - known.keys())


def read(reading: Reading, places: Places) -> None:
    """Have a language model read what it has not read yet, with all processors; what is done is kept."""
    config = reading.model.config(places)
    file = cache_file(places, config.version(reading.space))
    encoder = TextEncoder(replace(config, threads=os.cpu_count()))
    missing = reading.missing(places)
    for start in range(0, len(missing), CHUNK_TEXTS):
        texts = missing[start : start + CHUNK_TEXTS]
        vectors = encoder.encode(texts, reading.space)
        _write_cache(file, read_cache(file) | dict(zip(texts, vectors, strict=True)))


def cache_file(places: Places, version: str) -> Path:
    return places.vectors / f"{version}.parquet"


def read_cache(file: Path) -> dict[str, np.ndarray]:
    """Text -> vector of everything that one version has read; empty before it has read anything."""
    if not file.is_file():
        return {}
    table = pq.read_table(file).combine_chunks()
    vectors = table[VECTOR].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return dict(zip(table[TEXT].to_pylist(), vectors, strict=True))


def _write_cache(file: Path, vectors: dict[str, np.ndarray]) -> None:
    """All or nothing: a reader sees the old file or the new one."""
    stacked = np.stack(list(vectors.values()))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(stacked.reshape(-1)), stacked.shape[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(pa.table({TEXT: pa.array(list(vectors), pa.string()), VECTOR: flat}), staged)
    os.replace(staged, file)


def _number(text: str, size: int) -> int:
    """A number of `size` bytes that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big")
