"""Text in, vector out: a frozen causal language model asked to sum each text up in one word.

The vector is the hidden state from which the model would say that word (PromptEOL; Jiang et al. 2023, "Scaling
Sentence Embeddings with Large Language Models"). Vectors are raw: who compares them centres them first. This file is
the only place that imports transformers, and only when a model is really needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainers.language.model import ModelError, default_models, fastest_dtype, model_folder, model_identity, quiet

Progress = Callable[[str, int, int], None]  # what, done, total

SLOT = "{text}"

# One prompt a vector space. A prompt that ends where one word must follow beats every plain pooling at this size.
TEMPLATES: Mapping[str, str] = {
    "poi_text": 'This shop: "{text}" Summed up in one word, its type is "',
    "user_text": 'This person: "{text}" Summed up in one word, what this person likes is "',
    "scenario_text": 'This part of an app: "{text}" Summed up in one word, people come here for "',
    "scene_text": 'This moment: "{text}" Summed up in one word, it is "',
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How texts become vectors.

    Args:
        model: "smollm2" (embedded), the path of a Hugging Face folder, or a Hugging Face id.
        revision: of a Hugging Face id; a branch is resolved to its commit.
        templates: for each vector space, a prompt with one `{text}`; "{text}" alone embeds the text as it is.
        pooling: "last" real token, or the "mean" over all real tokens, of the final layer.
        dtype: "auto" is bfloat16 on a GPU and on a CPU with bf16 instructions, else float32.
        max_tokens: a batch holds at most this many tokens, padding included (a longer text goes alone).
        max_length: tokens of one prompt; a longer text is cut, its template never is.
        threads: of this process while it encodes; None leaves torch's setting.
        models: where embedded models are kept once converted.
    """

    model: str = "smollm2"
    revision: str = "main"
    templates: Mapping[str, str] = field(default_factory=lambda: dict(TEMPLATES))
    pooling: Literal["last", "mean"] = "last"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = 1536
    max_length: int = 256
    threads: int | None = None
    models: Path = field(default_factory=default_models)

    def __post_init__(self) -> None:
        for kind, template in self.templates.items():
            if template.count(SLOT) != 1:
                raise ModelError(f"template of {kind}: exactly one {SLOT} expected, got {template!r}")
        if min(self.max_tokens, self.max_length, self.threads or 1) < 1:
            raise ModelError("max_tokens, max_length and threads must be positive")

    def template(self, kind: str) -> str:
        if kind not in self.templates:
            raise ModelError(f"no template for texts of kind {kind!r}; templates has {sorted(self.templates)}")
        return self.templates[kind]

    def version(self, kind: str) -> str:
        """Twelve hex digits that change with the model, the template, the pooling or the maximum length.

        The dtype is left out: it moves a vector by about 1e-4 of cosine, and "auto" would make the version depend on
        the machine. Nothing is loaded; a Hugging Face id may have to be downloaded.
        """
        parts = (
            model_identity(self.model, self.revision, self.models),
            self.template(kind),
            self.pooling,
            str(self.max_length),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class TextEncoder:
    """A loaded model. Vectors do not depend on which texts share a batch: cosine distance below 1e-5 in float32,
    below 1e-2 in bfloat16."""

    def __init__(self, config: EncoderConfig) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        quiet()
        folder = model_folder(config.model, config.revision, config.models)
        self.config = config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, fastest_dtype(config.dtype, self.device))
        # AutoModel is the backbone without the vocabulary head, for causal models and sentence encoders alike.
        self._model: Any = AutoModel.from_pretrained(folder, dtype=self.dtype).to(self.device).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    @property
    def name(self) -> str:
        """Provenance: the model and the numbers it ran in."""
        return f"{self.config.model} {str(self.dtype).removeprefix('torch.')}"

    def encode(self, texts: Sequence[str], kind: str, progress: Progress | None = None) -> np.ndarray:
        """Raw final-layer vectors in input order: float32 (n, width)."""
        vectors = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        done = 0
        for at, batch in self.batches(texts, kind):
            vectors[at] = batch
            done += len(at)
            if progress:
                progress(kind, done, len(texts))
        return vectors

    def batches(self, texts: Sequence[str], kind: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Texts of similar length together, longest first: positions int64 (b,) and vectors float32 (b, width)."""
        ids = self.token_ids(texts, self.config.template(kind))
        for at in batch_by_length([len(i) for i in ids], self.config.max_tokens):
            with _threads(self.config.threads):
                vectors = self._forward([ids[i] for i in at])
            yield at, vectors

    def token_ids(self, texts: Sequence[str], template: str) -> list[list[int]]:
        """Token ids of each text in its template, at most `max_length`: the text is cut, the template never."""
        if not texts:
            return []
        prompts = [template.replace(SLOT, text) for text in texts]
        ids: list[list[int]] = self._tokenizer(prompts)["input_ids"]
        limit = self.config.max_length
        room = limit - len(self._tokenizer(template.replace(SLOT, ""))["input_ids"])
        for i in [i for i, tokens in enumerate(ids) if len(tokens) > limit]:
            ids[i] = self._cut(texts[i], template, room)
        if not all(ids):
            raise ModelError(f"text {ids.index([])} is empty and template {template!r} adds nothing to it; remove it")
        return ids

    def _cut(self, text: str, template: str, room: int) -> list[int]:
        """Shorten the text, in whole tokens, until text and template fit: tokens may merge where they meet."""
        starts = [start for start, _ in self._tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
        for keep in range(min(room, len(starts) - 1), -1, -1):
            prompt = template.replace(SLOT, text[: starts[keep]])
            ids: list[int] = self._tokenizer(prompt)["input_ids"]
            if len(ids) <= self.config.max_length:
                return ids
        raise ModelError(f"max_length {self.config.max_length} has no room for the template {template!r}; raise it")

    def _forward(self, ids: Sequence[list[int]]) -> np.ndarray:
        """Pool the final layer of one right-padded batch: float32 (b, width)."""
        import torch

        lengths = torch.tensor([len(i) for i in ids], device=self.device)
        longest = int(lengths.max())
        tokens = torch.tensor([i + [0] * (longest - len(i)) for i in ids], device=self.device)
        # Real tokens are known by length, never by the padding id: some models pad with their end-of-text token.
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        with torch.inference_mode():
            hidden = self._model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
        if self.config.pooling == "last":
            pooled = hidden[torch.arange(len(ids), device=self.device), lengths - 1]
        else:
            pooled = (hidden * mask[:, :, None]).sum(1) / lengths[:, None]
        return np.asarray(pooled.cpu().numpy(), dtype=np.float32)


def batch_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[np.ndarray]:
    """Positions grouped by length, longest first; count times longest stays within `max_tokens` where it can.

    >>> [b.tolist() for b in batch_by_length([2, 9, 2, 4], 8)]
    [[1], [3, 0], [2]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(order):
        count = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Give torch `count` threads for a while; the setting is process-wide."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
