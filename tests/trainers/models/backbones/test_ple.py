from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.ple import Extraction, Ple
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear, GroupedMLP


def expert(grouped: GroupedMLP, index: int, rows: Tensor) -> Tensor:
    for layer in grouped.layers:
        assert isinstance(layer, GroupedLinear)
        rows = torch.relu(rows @ layer.weight_GIO[index] + layer.bias_G1O[index])
    return rows


def gated(level: Extraction, group: int, members: list[int], gate_rows: Tensor, experts: dict[int, Tensor]) -> Tensor:
    logits = (gate_rows @ level.gates.weight_GIO[group] + level.gates.bias_G1O[group])[:, members]
    return sum(
        (weight[:, None] * experts[m] for m, weight in zip(members, logits.softmax(1).T, strict=True)),
        torch.zeros(()),
    )


def test_two_levels_are_the_equations_of_the_paper(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    """Two tasks with one expert each (0, 1) and two shared ones (2, 3), written out expert by expert."""
    torch.manual_seed(0)
    config = Ple.Config(levels=2, task_experts=1, shared_experts=2, expert_widths=(5, 3), tower_widths=(4,))
    ple = Ple(config, sizes).double().eval()
    for level in ple.levels:
        assert isinstance(level, Extraction)
        torch.nn.init.normal_(level.gates.bias_G1O)
    features = features_of()
    rows = features.flat_BI
    first, last = ple.levels
    assert isinstance(first, Extraction) and isinstance(last, Extraction)
    of_first = {x: expert(first.experts, x, rows) for x in range(4)}
    middle = [
        gated(first, 0, [0, 2, 3], rows, of_first),
        gated(first, 1, [1, 2, 3], rows, of_first),
        gated(first, 2, [0, 1, 2, 3], rows, of_first),
    ]
    of_last = {x: expert(last.experts, x, middle[group]) for x, group in enumerate((0, 1, 2, 2))}
    ends = [gated(last, t, [t, 2, 3], middle[t], of_last) for t in range(2)]
    logits, hidden = ple(features)
    for task in range(2):
        top = expert(ple.towers, task, ends[task]) @ ple.heads.weight_GIO[task] + ple.heads.bias_G1O[task]
        assert torch.allclose(logits[:, task], top[:, 0], atol=1e-12)
    assert torch.allclose(hidden, (ends[0] + ends[1]) / 2, atol=1e-12)


def test_a_task_cannot_reach_the_other_tasks_experts(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    ple = Ple(Ple.Config(task_experts=2, shared_experts=1, expert_widths=(4,)), sizes).double()
    logits, _ = ple(features_of())
    logits[:, 0].sum().backward()
    level = ple.levels[0]
    assert isinstance(level, Extraction)
    layer = level.experts.layers[0]
    assert isinstance(layer, GroupedLinear) and layer.weight_GIO.grad is not None
    reached = layer.weight_GIO.grad.abs().sum((1, 2)) > 0
    assert reached[2:4].tolist() == [False, False] and bool(reached[[0, 1, 4]].any())


def test_no_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one level, expert"):
        Ple.Config(shared_experts=0)
