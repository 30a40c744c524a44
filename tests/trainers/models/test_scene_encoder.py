from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trainers.models.scene_encoder import AggregationEncoder, SceneEncoder, TransformerLayer

CONFIG = SceneEncoder.Config(width=8, heads=2, layers=2, feed_forward=16, output=4)
MATRIX = torch.cat([torch.zeros(1, 6), torch.randn(9, 6, generator=torch.Generator().manual_seed(0))])


def encoder(config: SceneEncoder.Config = CONFIG) -> SceneEncoder:
    torch.manual_seed(0)
    return SceneEncoder(config, (4, 4, 4), MATRIX).eval()


def test_the_layer_is_a_standard_pre_norm_transformer_layer() -> None:
    torch.manual_seed(0)
    layer = TransformerLayer(CONFIG).double()
    theirs = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).double()
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([layer.query.weight, layer.key_value.weight]),
            "self_attn.in_proj_bias": torch.cat([layer.query.bias, layer.key_value.bias]),
            "self_attn.out_proj.weight": layer.out.weight,
            "self_attn.out_proj.bias": layer.out.bias,
            "linear1.weight": layer.feed[0].weight,
            "linear1.bias": layer.feed[0].bias,
            "linear2.weight": layer.feed[2].weight,
            "linear2.bias": layer.feed[2].bias,
            "norm1.weight": layer.norm_in.weight,
            "norm1.bias": layer.norm_in.bias,
            "norm2.weight": layer.norm_mid.weight,
            "norm2.bias": layer.norm_mid.bias,
        }
    )
    rows = torch.randn(5, 4, 8).double()
    assert torch.allclose(layer(rows, rows), theirs(rows), atol=1e-12)
    assert torch.allclose(layer(rows[:, :1], rows), theirs(rows)[:, :1], atol=1e-12)


def test_the_aggregation_token_hears_every_token() -> None:
    torch.manual_seed(0)
    aggregation = AggregationEncoder(CONFIG)
    tokens = torch.randn(1, 3, 8, requires_grad=True)
    aggregation(tokens).square().sum().backward()
    assert tokens.grad is not None and bool((tokens.grad.abs().sum(2) > 0).all())


@pytest.mark.parametrize("aggregate", ["encoder", "attention", "concat"])
def test_slots_are_told_apart(aggregate: str) -> None:
    """The same two values in exchanged slots are another scene: warm coffee is not a coffee-coloured warmth."""
    scene = encoder(replace(CONFIG, aggregate=aggregate))
    rows = torch.tensor([[1, 2, 3], [2, 1, 3]])
    vectors = scene(torch.zeros_like(rows), rows)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


@pytest.mark.parametrize(("tokens", "reads_ids", "reads_rows"), [("vectors", 0, 1), ("ids", 1, 0), ("both", 1, 1)])
def test_tokens_are_made_of_what_they_should(tokens: str, reads_ids: int, reads_rows: int) -> None:
    scene = encoder(replace(CONFIG, tokens=tokens))
    ids, rows = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])

    def moved(other_ids: Tensor, other_rows: Tensor) -> bool:
        return not torch.allclose(scene(ids, rows), scene(other_ids, other_rows), atol=1e-6)

    assert moved(torch.tensor([[3, 2, 3]]), rows) == bool(reads_ids)
    assert moved(ids, torch.tensor([[7, 5, 6]])) == bool(reads_rows)


def test_a_value_never_seen_but_described_alike_is_treated_alike() -> None:
    """The point of vectors: a new row close to a known one gives nearly the same scene; an unknown id tells nothing."""
    scene = encoder()
    assert scene.vectors is not None
    scene.vectors.extend(torch.cat([MATRIX, MATRIX[4:5] + 0.01, MATRIX[5:6] * -2]))
    known, alike, unlike = (scene(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[r, 1, 2]])) for r in (4, 10, 11))
    assert float((known - alike).detach().norm()) < 0.1 * float((known - unlike).detach().norm())


def test_what_cannot_be_built_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="embed them, or use ids"):
        SceneEncoder(CONFIG, (4, 4), None)
    with pytest.raises(ValueError, match="no scene features"):
        SceneEncoder(CONFIG, (), MATRIX)
    with pytest.raises(ValueError, match="heads divide"):
        SceneEncoder.Config(width=10, heads=4)


def test_the_shortcut_is_the_sum_of_what_each_value_says_alone() -> None:
    with_it, without = encoder(), encoder(replace(CONFIG, shortcut=False))
    without.load_state_dict({k: v for k, v in with_it.state_dict().items() if not k.startswith("shortcut")})
    assert with_it.shortcut is not None and with_it.vectors is not None
    rows = torch.tensor([[1, 2, 3], [4, 0, 6]])
    ids = torch.zeros_like(rows)
    token_USW = with_it.slot_SW + with_it.vectors(rows)
    added = sum(with_it.shortcut(token_USW[:, slot]) for slot in range(3)) / 3**0.5
    assert torch.allclose(with_it(ids, rows), without(ids, rows) + added, atol=1e-6)
