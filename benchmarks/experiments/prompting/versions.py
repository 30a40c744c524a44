"""A second version of the embedded model: the same weights, packed once more in blocks of four bits.

Whoever packs a model for the second time, with another tool or in another format, changes every state a little; so does
a step of tuning. Formats are those of GGUF: Q4_0 has one scale for 32 weights, where the embedded file (Q4_1) has a
scale and an offset.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from benchmarks.experiments.places import Places
from benchmarks.experiments.vectors import LanguageModel
from trainers.language.model import model_folder

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Repacked(LanguageModel):
    """The embedded model, the matrices of its layers rounded to a format; embeddings and norms stay as they are."""

    format: Literal["Q4_0", "Q8_0"] = "Q4_0"

    def source(self, places: Places) -> str:
        return str(places.language / f"{Path(self.model).name}-{self.format}")


def repack(model: Repacked, places: Places) -> Path:
    """Make the folder of a model, all or nothing; one that is there is left as it is."""
    target = Path(model.source(places))
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        source = model_folder(model.model)
        shutil.copytree(source, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
        weights = load_file(source / WEIGHTS)
        packed = {name: rounded(w, model.format) if ".layers." in name else w for name, w in weights.items()}
        save_file(packed, staging / WEIGHTS, metadata={"format": "pt"})
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def rounded(weight: torch.Tensor, format: str) -> torch.Tensor:
    """A matrix as it comes out of a format, in its own dtype; a vector as it is."""
    if weight.ndim < 2:
        return weight
    kind = GGMLQuantizationType[format]
    return torch.from_numpy(dequantize(quantize(weight.float().numpy(), kind), kind)).to(weight.dtype)
