"""A causal language model made ready to be tuned, and put back on disk as a plain one.

What is trained is small: low-rank adapters (LoRA) beside the linear maps of the upper layers, and the rows of special
tokens that the vocabulary got; or, as an option, everything. Weights that are trained are float32; the rest stays in
the precision that the machine computes fastest. One class (AutoModelForCausalLM) serves every stage, as adapters of
one do not fit the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feature_repo.files import replacing
from trainers.language.model import LOADING, ModelError, Provenance, fastest_dtype, model_folder, quiet


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which low-rank adapters a model gets.

    Args:
        rank: of each update.
        alpha: an update counts alpha / rank times.
        targets: names of linear maps, such as ("q_proj", "v_proj"); None for every linear map of a layer.
        first_layer: layers below it get no adapters: a positive number counts from the first layer, a negative one
            from the last, so -10 adapts the upper ten.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | None = None
    first_layer: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ModelError(f"rank and alpha of LoRA must be positive, got {self}")


@dataclass(frozen=True)
class Tunable:
    """A loaded model with its tokenizer (both from transformers, which carries no types)."""

    model: Any
    tokenizer: Any


def load(model: str, *, revision: str = "main", models: Path | None = None, full: bool = False) -> Tunable:
    """A causal model, nothing of which requires gradients, with weights that bfloat16 has.

    Args:
        full: hold them as float32, to train all of them; otherwise as bfloat16 where the machine computes that fast.
    Raises:
        ModelError: the model cannot be had, or is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    folder = model_folder(model, revision, models)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Fused attention in bfloat16 is slow backwards on a CPU; texts here are short enough for the plain one.
    attention = "sdpa" if device == "cuda" else "eager"
    try:
        with LOADING:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, attn_implementation=attention
            )
    except ValueError as error:
        raise ModelError(f"{folder} is no causal language model, which alone can be tuned: {error}") from error
    if full or fastest_dtype("auto", device) == "float32":
        loaded = loaded.float()
    return Tunable(loaded.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(folder))


def add_tokens(tunable: Tunable, tokens: Sequence[str]) -> list[int]:
    """Give the vocabulary special tokens; a new one starts as the mean of all old ones. Returns the ids of `tokens`."""
    model, tokenizer = tunable.model, tunable.tokenizer
    known = tokenizer.get_vocab()
    fresh = [token for token in dict.fromkeys(tokens) if token not in known]
    tokenizer.add_tokens(fresh, special_tokens=True)
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new = [i for token, i in zip(tokens, ids, strict=True) if token in fresh]
    old = min([rows, *new])  # some models keep more rows than their tokenizer has words
    with torch.no_grad():
        for matrix in _token_matrices(model):
            matrix[new] = matrix[:old].float().mean(0).to(matrix.dtype)
    return ids


def with_lora(tunable: Tunable, lora: LoraConfig, rows: Sequence[int] = ()) -> nn.Module:
    """The model with adapters that require gradients, and with `rows` of its token matrix that do.

    Other rows stay bit-identical. Weights of the model stay as they are until `merge_and_save`.
    """
    import peft

    model = tunable.model
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=0.0,  # on a CPU, dropout halves the speed
        target_modules=_targets(model, lora),
        trainable_token_indices=_row_lists(model, rows) if rows else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by a name that is going away
        adapted: Any = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    module: nn.Module = adapted
    return module


def fully(tunable: Tunable) -> nn.Module:
    """The model with everything requiring gradients; it must have been loaded with `full`."""
    module: nn.Module = tunable.model.requires_grad_(True)
    return module


def merge_and_save(
    module: nn.Module,
    tokenizer: Any,
    folder: Path,
    note: Provenance,
    *,
    seed: int = 0,
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a plain model folder: adapters and rows go into the weights, which are rounded to bfloat16 (`rounded`).

    What was not trained is bit-identical to what was loaded. The folder needs neither peft nor this project, and takes
    the place of an older one when it is complete. `module` is used up: its adapters are gone afterwards.

    Args:
        beside: writes what else belongs into the folder.
    """
    import peft

    merged: Any = module.float()  # in float32: bfloat16 would round most of a small update away
    if isinstance(module, peft.PeftModel):
        merged = merged.merge_and_unload()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.data = rounded(parameter.data.cpu(), generator)
    with replacing(folder) as staging:
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        note.write(staging)
        beside(staging)


def rounded(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> bfloat16, up or down at random with the mean that is exact.

    An update far smaller than the spacing of bfloat16 numbers is lost by rounding to the nearest; so it survives, on
    average over the many weights that it is spread over. Numbers that bfloat16 has are left as they are.
    """
    bits = tensor.contiguous().view(torch.int32)
    below = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32)
    return ((bits + below) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def layers_of(model: Any) -> tuple[str, int]:
    """The dotted name of a model's list of layers, and how many there are."""
    lists = {name: len(m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of layers; its adapters cannot be placed")
    name = max(lists, key=lambda n: (lists[n], -len(n)))
    return name, lists[name]


def _targets(model: Any, lora: LoraConfig) -> list[str]:
    """The full names of the linear maps that get adapters."""
    layers, count = layers_of(model)
    first = lora.first_layer if lora.first_layer >= 0 else count + lora.first_layer
    wanted = [f"{layers}.{i}" for i in range(max(first, 0), count)]
    found = [
        f"{layer}.{name}"
        for layer in wanted
        for name, module in model.get_submodule(layer).named_modules()
        if isinstance(module, nn.Linear) and (lora.targets is None or name.split(".")[-1] in lora.targets)
    ]
    if not found:
        raise ModelError(f"no linear map of layers {first} .. {count - 1} is called {lora.targets}; see {wanted[:1]}")
    return found


def _row_lists(model: Any, rows: Sequence[int]) -> dict[str, list[int]]:
    """The token matrices whose rows are trained: one where input and output share it, else two."""
    names = {id(module): name.split(".")[-1] for name, module in model.named_modules()}
    modules = [model.get_input_embeddings()]
    if not _tied(model):
        modules.append(model.get_output_embeddings())
    return {names[id(module)]: list(rows) for module in modules}


def _token_matrices(model: Any) -> list[Tensor]:
    matrices = [model.get_input_embeddings().weight]
    return matrices if _tied(model) else [*matrices, model.get_output_embeddings().weight]


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight
