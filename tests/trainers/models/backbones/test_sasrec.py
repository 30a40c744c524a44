from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainers.models.backbones.backbone import BackboneSizes
from trainers.models.backbones.sasrec import Block, SasRec
from trainers.models.by_scenario import ScenarioLinear
from trainers.models.embedding import Features
from trainers.models.mlp import GroupedLinear

CONFIG = SasRec.Config(length=5, width=4, heads=2, blocks=2, feed_forward=3, layer_widths=(5,), tower_widths=(3,))


def network_of(sizes: BackboneSizes) -> SasRec:
    torch.manual_seed(0)
    network = SasRec(CONFIG, sizes).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def attended(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    weight = torch.stack([query @ key / len(query) ** 0.5 for key in keys]).softmax(0)
    return sum((w * v for w, v in zip(weight, values, strict=True)), torch.zeros_like(values[0]))


def after(block: object, tokens: list[Tensor]) -> list[Tensor]:
    """One block over the known tokens of one row, newest first: each sees itself and what follows."""
    assert isinstance(block, Block)
    normed = [block.norm_in(token) for token in tokens]
    queries, keys, values = ([part(n) for n in normed] for part in (block.query, block.key, block.value))
    out = []
    for at, token in enumerate(tokens):
        heads = [
            attended(queries[at][half], [k[half] for k in keys[at:]], [v[half] for v in values[at:]])
            for half in (slice(0, 2), slice(2, 4))
        ]
        token = token + block.out(torch.cat(heads))
        out.append(token + block.feed_out(torch.relu(block.feed_in(block.norm_mid(token)))))
    return out


def test_a_short_length_reads_the_newest_alone(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    known = torch.arange(5) < torch.tensor([0, 1, 5, 3, 0, 2, 4, 1])[:, None]
    features = features_of(recent_known_BN=known)
    network = network_of(sizes)
    network.position_NW = torch.nn.Parameter(network.position_NW[:3].detach())
    newest = replace(features, recent_known_BN=known & (torch.arange(5) < 3))
    assert torch.equal(network(features)[0], network(newest)[0])
    changed = features.recent_BNE.clone()
    changed[:, 3:] += 1
    assert torch.equal(network(replace(features, recent_BNE=changed))[0], network(features)[0])


def test_each_row_attends_to_its_own_list(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    known = torch.arange(5) < torch.tensor([0, 1, 5, 3, 0, 2, 4, 1])[:, None]
    network, features = network_of(sizes), features_of(recent_known_BN=known)
    logits, hidden = network(features)
    bottom, tower, head = network.bottom.layers[0], network.towers.towers.layers[0], network.towers.heads
    assert isinstance(bottom, GroupedLinear) and isinstance(tower, ScenarioLinear)
    for row, scenario in enumerate(features.scenario_B.tolist()):
        tokens = [
            network.token(features.recent_BNE[row, n])
            + network.position_NW[n]
            + features.recent_age_BN[row, n] * network.age_W
            for n in range(int(known[row].sum()))
        ]
        tokens.append(network.start_W)
        for block in network.blocks:
            tokens = after(block, tokens)
        tokens = [network.norm(token) for token in tokens]
        query = network.query(features.id_BFE[row, 2])
        interest = attended(query, [network.key(t) for t in tokens], [network.value(t) for t in tokens])
        joined = torch.cat([features.flat_BI[row], interest, interest * query])
        shared = torch.relu(joined @ bottom.weight_GIO[0] + bottom.bias_G1O[0, 0])
        assert torch.allclose(hidden[row], shared, atol=1e-12)
        for task in range(2):
            top = torch.relu(shared @ tower.weight_SGIO[scenario, task] + tower.bias_SG1O[scenario, task, 0])
            logit = top @ head.weight_SGIO[scenario, task] + head.bias_SG1O[scenario, task, 0]
            assert torch.allclose(logits[row, task], logit[0], atol=1e-12)


def test_what_lies_beyond_the_end_of_a_list_does_not_count(
    sizes: BackboneSizes, features_of: Callable[..., Features]
) -> None:
    network, features = network_of(sizes), features_of()
    beyond = ~features.recent_known_BN
    changed = replace(
        features,
        recent_BNE=torch.where(beyond[:, :, None], 100.0, features.recent_BNE),
        recent_age_BN=torch.where(beyond, 100.0, features.recent_age_BN),
    )
    assert bool(beyond.any()) and torch.equal(network(features)[0], network(changed)[0])


def test_order_and_age_count(sizes: BackboneSizes, features_of: Callable[..., Features]) -> None:
    network = network_of(sizes)
    features = features_of(recent_known_BN=torch.ones(8, 5, dtype=torch.bool))
    logits, _ = network(features)
    for changed in (
        replace(features, recent_BNE=features.recent_BNE.flip(1)),
        replace(features, recent_age_BN=features.recent_age_BN + 1),
    ):
        assert bool((network(changed)[0] - logits).abs().amax(dim=1).gt(1e-6).all())


def test_what_cannot_attend_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one position"):
        SasRec.Config(blocks=0)
    with pytest.raises(ValueError, match="they divide it"):
        SasRec.Config(width=9, heads=2)
