"""The network of contrastive tuning against the model run by hand, one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from trainers.language.adapters import LoraConfig, load, with_lora
from trainers.language.heads import Groups, HeadConfig, Heads
from trainers.language.model import ModelError
from trainers.language.reader import Reader, ReaderConfig

# Lengths that repeat, so that an order lost in bucketing shows.
PROMPTS = [[7, 8, 9], [10, 11, 12, 13, 14, 15], [16, 17, 18], [19], [20, 21, 22, 23, 24, 25, 26]]
GROUPS = Groups(spaces=("poi_text",), sentences={})


def reader(
    model: Path,
    config: ReaderConfig | None = None,
    *,
    frozen: int = 0,
    pooling: Literal["last", "mean"] = "last",
    first_layer: int = 1,
) -> Reader:
    """The tiny model in float32 with adapters that do something, always the same ones."""
    tunable = load(str(model), full=True)
    torch.manual_seed(0)
    language = with_lora(tunable, LoraConfig(rank=2, first_layer=first_layer))
    for name, parameter in language.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    heads = Heads(["poi"], 32, HeadConfig(width=4), GROUPS)
    return Reader(language, heads, config or ReaderConfig(max_tokens=8), pooling=pooling, frozen=frozen)


def alone(network: Reader, prompt: list[int]) -> Tensor:
    """The final states of one prompt (L, W), from the causal model itself."""
    language: Any = network.language
    with torch.no_grad():
        states: Tensor = language(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
    return states


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_are_those_of_each_prompt_alone(tiny_model: Path, frozen: int, pooling: Literal["last", "mean"]) -> None:
    network = reader(tiny_model, frozen=frozen, pooling=pooling)
    for _ in range(2):  # the second time from what was kept
        pooled = network.pooled(PROMPTS)
        for prompt, state in zip(PROMPTS, pooled, strict=True):
            states = alone(network, prompt)
            torch.testing.assert_close(state, states[-1] if pooling == "last" else states.mean(0), atol=1e-5, rtol=1e-5)


def gradients(network: Reader) -> dict[str, Tensor]:
    network.zero_grad()
    vectors = network(PROMPTS, torch.zeros(len(PROMPTS), dtype=torch.int64))["poi"]
    (vectors * torch.arange(1.0, 6.0)[:, None]).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_frozen_layers_and_cached_gradients_change_no_gradient(tiny_model: Path) -> None:
    whole = gradients(reader(tiny_model))
    assert {name.split(".")[0] for name in whole} == {"language", "heads"}
    assert not any(".layers.0." in name for name in whole)
    for config in (ReaderConfig(), ReaderConfig(max_tokens=8, cached_gradients=True), ReaderConfig(kept_megabytes=0)):
        parts = gradients(reader(tiny_model, config, frozen=1))
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            # Kernels of other processors round otherwise: the measure is the largest gradient of the parameter.
            largest = float(gradient.abs().max())
            torch.testing.assert_close(parts[name], gradient, atol=2e-3 * largest, rtol=0.0)


@pytest.mark.parametrize("kept, runs", [(64, 1), (0, 3)])
def test_frozen_layers_read_a_text_once(tiny_model: Path, kept: int, runs: int) -> None:
    """They run once, unless there is no room for what they say."""
    network = reader(tiny_model, ReaderConfig(kept_megabytes=kept), frozen=1)
    read: list[int] = []
    lowest = network.get_submodule("language.base_model.model.model.layers.0")
    lowest.register_forward_hook(lambda module, inputs, output: read.append(len(inputs[0])))
    for _ in range(3):
        network.pooled(PROMPTS)
    assert read == [5] * runs
    network.pooled([*PROMPTS, [30, 31]])
    assert read[runs:] == ([1] if kept else [6])


def test_weights_that_change_are_seen(tiny_model: Path) -> None:
    """Nothing above the frozen layers is kept."""
    network = reader(tiny_model, frozen=1)
    before = network.pooled(PROMPTS)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    assert not torch.allclose(network.pooled(PROMPTS), before, atol=1e-3)


def test_a_model_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    """GPT-2 adds positions to whatever it is given: the upper part would add them again."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64))
    heads = Heads(["poi"], 32, HeadConfig(width=4), GROUPS)
    with pytest.raises(ModelError, match="cannot be run in two parts"):
        Reader(model, heads, ReaderConfig(), frozen=1)
    assert Reader(model, heads, ReaderConfig()).pooled(PROMPTS).shape == (5, 32)
