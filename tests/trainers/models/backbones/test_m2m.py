from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.m2m import FieldAttention, M2m, MetaLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear, GroupedMLP

SMALL = M2m.Config(experts=3, expert_widths=(5, 4), scenario_widths=(3,), bottleneck=2, tower_layers=2)


def shaken(sizes: BackboneSizes) -> M2m:
    torch.manual_seed(0)
    network = M2m(SMALL, sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


def perceptron(grouped: GroupedMLP, group: int, row: Tensor) -> Tensor:
    for layer in grouped.layers:
        assert isinstance(layer, GroupedLinear)
        row = torch.relu(row @ layer.weight_GIO[group] + layer.bias_G1O[group, 0])
    return row


def meta(unit: MetaLinear, row: Tensor, scenario: Tensor) -> Tensor:
    side = unit.down.out_features
    weight = unit.down.weight.T @ unit.square(scenario).view(side, side) @ unit.up.weight.T
    return row @ weight + unit.shift(scenario)


def attended(attention: FieldAttention, tokens: Tensor) -> Tensor:
    """One head, field by field."""
    tokens = tokens + attention.field_FE
    query, key, value = (tokens @ part.T for part in attention.query_key_value.weight.chunk(3))
    rows = []
    for field in range(len(tokens)):
        scores = torch.stack([torch.dot(query[field], other) for other in key]) / tokens.shape[1] ** 0.5
        rows.append(tokens[field] + attention.out(scores.softmax(0) @ value))
    return torch.stack(rows)


def test_a_row_is_mixed_and_mapped_by_what_its_scenario_generates(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network, features = shaken(sizes), features_of()
    logits, hidden = network(features)
    for row in range(len(logits)):
        scenario = perceptron(network.scenario, 0, features.id_BFE[row, 0])
        x = torch.cat([features.flat_BI[row], attended(network.fields, features.id_BFE[row]).flatten()])
        experts = [perceptron(network.experts, i, x) for i in range(3)]
        ends = []
        for task in range(2):
            pairs = [torch.cat([expert, network.task_TH[task]]) for expert in experts]
            scores = [network.score_out(leaky_relu(meta(network.score, pair, scenario))) for pair in pairs]
            weight = torch.cat(scores).softmax(0)
            r = sum((w * expert for w, expert in zip(weight, experts, strict=True)), torch.zeros(()))
            for unit in network.tower:
                assert isinstance(unit, MetaLinear)
                r = leaky_relu(meta(unit, r, scenario) + r)
            ends.append(r)
            logit = r @ network.heads.weight_GIO[task] + network.heads.bias_G1O[task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-10)
        assert torch.allclose(hidden[row], (ends[0] + ends[1]) / 2, atol=1e-10)


def test_attention_is_over_the_fields_of_a_row_never_over_the_batch(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network, features = shaken(sizes), features_of()
    others = features.id_BFE.clone()
    others[1:] = 7.0
    before, _ = network(features)
    after, _ = network(replace(features, id_BFE=others))
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1:], after[1:])


def test_several_heads_split_the_width_of_an_id() -> None:
    """Two heads that read separate halves are two attentions of half the width."""
    torch.manual_seed(0)
    whole = FieldAttention(3, 4, heads=2, dropout=0.0).double()
    torch.nn.init.zeros_(whole.field_FE)
    halves = [FieldAttention(3, 2, heads=1, dropout=0.0).double() for _ in range(2)]
    rows = torch.randn(5, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        whole.query_key_value.weight.zero_()
        whole.out.weight.zero_()
        for at, half in enumerate(halves):
            half.field_FE.zero_()
            span = slice(2 * at, 2 * at + 2)
            for part in range(3):
                of_half = half.query_key_value.weight[2 * part : 2 * part + 2]
                whole.query_key_value.weight[4 * part + 2 * at : 4 * part + 2 * at + 2, span] = of_half
            whole.out.weight[span, span] = half.out.weight
            whole.out.bias[span] = half.out.bias
        expected = torch.cat([half(rows[:, :, 2 * at : 2 * at + 2]) for at, half in enumerate(halves)], dim=2)
        assert torch.allclose(whole(rows), expected, atol=1e-12)


def test_sizes_that_cannot_be_are_refused(sizes: BackboneSizes) -> None:
    with pytest.raises(ValueError, match="two experts"):
        M2m.Config(experts=1)
    with pytest.raises(ValueError, match="2 do not divide 3"):
        M2m(M2m.Config(attention_heads=2), sizes)
