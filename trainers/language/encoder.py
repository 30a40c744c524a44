"""Text in, vector out: a frozen causal language model asked to sum each text up in one word.

The vector is the hidden state from which the model would say that word (PromptEOL; Jiang et al. 2023, "Scaling
Sentence Embeddings with Large Language Models"). Vectors are raw: who compares them centres them first. A model that
was tuned to embed is read as it was tuned: its folder names templates, pooling and heads. Where the states are computed
is a `Backend`: in this process (`local`), behind an endpoint (`endpoint`) or on a cluster (`cluster`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from trainers.language.model import (
    SMOLLM2,
    Embedder,
    ModelError,
    Provenance,
    default_models,
    model_folder,
    model_identity,
)

Progress = Callable[[str, int, int], None]  # what, done, total
Pooled = tuple[np.ndarray, np.ndarray]  # positions int64 (b,), states float32 (b, width)

SLOT = "{text}"

# One prompt a vector space. A prompt that ends where one word must follow beats every plain pooling at this size.
TEMPLATES: Mapping[str, str] = {
    "poi_text": 'This shop: "{text}" Summed up in one word, its type is "',
    "user_text": 'This person: "{text}" Summed up in one word, what this person likes is "',
    "scenario_text": 'This part of an app: "{text}" Summed up in one word, people come here for "',
    "scene_text": 'This moment: "{text}" Summed up in one word, it is "',
}
UNTUNED = Embedder(templates=TEMPLATES, pooling="last", heads={}, project=False)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How texts become vectors.

    Args:
        model: "smollm2" or "minilm" (embedded), the path of a Hugging Face folder, or a Hugging Face id.
        revision: of a Hugging Face id; a branch is resolved to its commit.
        templates: for each vector space, a prompt with one `{text}`; "{text}" alone embeds the text as it is. None:
            those that the model was tuned with, the text alone for a sentence encoder, else `TEMPLATES`.
        pooling: "last" real token, or the "mean" over all real tokens, of the final layer. None: what the model was
            tuned with, else "last".
        project: whether vectors are what the model's heads make of its states. None: as it was tuned to be read.
        unit_length: scale pooled states to length 1, as some endpoints always do; not for a model with heads.
        dtype: "auto" is bfloat16 on a GPU and on a CPU with bf16 instructions, else float32.
        max_tokens: a batch computes at most this many tokens, padding included (a longer text goes alone). None: 1,536
            on a CPU, whose caches hold so many, 32,768 on a GPU.
        max_length: tokens of one prompt; a longer text is cut, its template never is.
        threads: of this process while it encodes; None leaves torch's setting.
        models: where embedded models are kept once converted.
    """

    model: str = SMOLLM2.name
    revision: str = "main"
    templates: Mapping[str, str] | None = None
    pooling: Literal["last", "mean"] | None = None
    project: bool | None = None
    unit_length: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int | None = None
    max_length: int = 256
    threads: int | None = None
    models: Path = field(default_factory=default_models)

    def __post_init__(self) -> None:
        for kind, template in (self.templates or {}).items():
            if template.count(SLOT) != 1:
                raise ModelError(f"template of {kind}: exactly one {SLOT} expected, got {template!r}")
        if min(1 if n is None else n for n in (self.max_tokens, self.max_length, self.threads)) < 1:
            raise ModelError("max_tokens, max_length and threads must be positive")

    def folder(self) -> Path:
        return model_folder(self.model, self.revision, self.models)

    def provenance(self) -> Provenance | None:
        """What the model says of its training; None for one that `scenerank` did not train."""
        return None if self.model == SMOLLM2.name else Provenance.read(self.folder())

    def embedder(self) -> Embedder:
        """How the model reads texts: as configured here, else as its folder says."""
        noted = UNTUNED
        if self.model != SMOLLM2.name:
            provenance = self.provenance()
            noted = (provenance and provenance.embedder) or _sentence_encoder(self.folder(), self.pooling) or UNTUNED
        project = bool(noted.heads) and (noted.project if self.project is None else self.project)
        if self.unit_length and project:
            raise ModelError(f"{self.model}: its heads were trained on states as they are; leave unit_length off")
        templates, pooling = self.templates or noted.templates, self.pooling or noted.pooling
        return replace(noted, templates=templates, pooling=pooling, project=project)

    def available_at(self) -> datetime | None:
        """Nothing that the model writes was available before; None for a model that learned from no log of ours."""
        provenance = self.provenance()
        return provenance.available_at if provenance else None

    def template(self, kind: str) -> str:
        templates = self.embedder().templates
        if kind not in templates:
            raise ModelError(f"no template for texts of kind {kind!r}; templates has {sorted(templates)}")
        return templates[kind]

    def version(self, kind: str) -> str:
        """Twelve hex digits that change with the model, its heads, the template, the pooling or the maximum length.

        The dtype is left out: it moves a vector by about 1e-4 of cosine, and "auto" would make the version depend on
        the machine. So is the backend. Nothing is loaded; a Hugging Face id may have to be downloaded.
        """
        embedder = self.embedder()
        parts = [
            model_identity(self.model, self.revision, self.models),
            self.template(kind),
            embedder.pooling,
            str(self.max_length),
            *(["projected"] if embedder.project else []),
            *(["unit length"] if self.unit_length else []),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class Backend(Protocol):
    """Where pooled states are computed. They are the same everywhere, up to the rounding of the numbers computed in."""

    @property
    def name(self) -> str:
        """Provenance: the model, and what it ran on or in which numbers."""

    def pooled(self, texts: Sequence[str], template: str) -> Iterator[Pooled]:
        """Raw final-layer states of all texts, some at a time, in any order. Raises ModelError."""


class TextEncoder:
    """A model that is ready to encode. Vectors do not depend on which texts share a batch: cosine distance below 1e-5
    in float32, below 1e-2 in bfloat16."""

    def __init__(self, config: EncoderConfig, backend: Callable[[EncoderConfig], Backend] | None = None) -> None:
        """Loads the model into this process, unless another backend is given."""
        from trainers.language.heads import Heads
        from trainers.language.local import LocalModel

        self.config = config
        self._embedder = config.embedder()
        self._heads = Heads.load(config.folder()) if self._embedder.project else None
        self._backend: Backend = (backend or LocalModel)(config)

    @property
    def name(self) -> str:
        return self._backend.name

    def encode(self, texts: Sequence[str], kind: str, progress: Progress | None = None) -> np.ndarray:
        """Raw vectors in input order: float32 (n, width)."""
        vectors = np.zeros((0, 0), dtype=np.float32)
        done = 0
        for at, batch in self.batches(texts, kind):
            if not done:
                vectors = np.zeros((len(texts), batch.shape[1]), dtype=np.float32)
            vectors[at] = batch
            done += len(at)
            if progress:
                progress(kind, done, len(texts))
        return vectors

    def batches(self, texts: Sequence[str], kind: str) -> Iterator[Pooled]:
        """The same, some texts at a time in any order, with their positions."""
        from trainers.language.heads import project

        head = self._embedder.heads.get(kind)
        for at, states in self._backend.pooled(texts, self.config.template(kind)):
            if self.config.unit_length:
                states = states / np.linalg.norm(states, axis=1, keepdims=True)
            if self._heads is not None and head is not None:
                states = project(states, [texts[i] for i in at], kind, self._heads, head)
            yield at, states


def _sentence_encoder(folder: Path, pooling: str | None) -> Embedder | None:
    """How a folder of sentence-transformers pools, in its older or newer words; None for another folder.

    Raises ModelError for a pooling that is neither known here nor overruled by `pooling`.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    settings = json.loads(path.read_text())
    named = settings.get("pooling_mode")
    modes = {named} if named else {k.removeprefix("pooling_mode_") for k, on in settings.items() if on is True}
    bare = dict.fromkeys(TEMPLATES, SLOT)
    if modes & {"mean", "mean_tokens"}:
        return Embedder(templates=bare, pooling="mean", heads={}, project=False)
    if "lasttoken" in modes or pooling:
        return Embedder(templates=bare, pooling="last", heads={}, project=False)
    raise ModelError(f"{path}: pooling {sorted(modes)} is not known; set pooling to 'last' or 'mean' if that is meant")
