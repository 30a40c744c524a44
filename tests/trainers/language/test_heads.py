"""Projector heads against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from trainers.language.heads import FILE, Groups, HeadConfig, HeadError, Heads, project

SENTENCES = {
    "place_kind": "The user is at: {value}.",
    "landmark": "The user is near {value}.",
    "mood": "{value} is the mood.",
    "near": "The user is near the {value}.",
}
GROUPS = Groups(spaces=("poi_text", "scene_text"), sentences=SENTENCES)


def test_the_sentence_of_a_text_names_its_group() -> None:
    texts = [
        "The user is at: home.",
        "The user is near Oak.",
        "calm is the mood.",
        "The user is near the sea.",
        "Rain.",
    ]
    found = GROUPS.of("scene_text", texts)
    assert [GROUPS.names[at] for at in found] == ["place_kind", "landmark", "mood", "near", "scene_text"]
    assert [GROUPS.names[at] for at in GROUPS.of("poi_text", texts[:2])] == ["poi_text"] * 2
    with pytest.raises(HeadError, match="user_text"):
        GROUPS.of("user_text", texts)


def test_states_are_centred_by_group_and_scaled_by_one_number() -> None:
    """Group means 2 and 20; deviations -1, 1, -3, 3: the scale is sqrt(5)."""
    heads = Heads(["poi"], 1, HeadConfig(width=1), GROUPS)
    heads.fit(torch.tensor([[1.0], [3.0], [17.0], [23.0]]), torch.tensor([0, 0, 2, 2]))
    assert heads.scale.item() == pytest.approx(5**0.5)
    assert heads.mean_GW[:, 0].tolist() == [2.0, 11.0, 20.0, 11.0, 11.0, 11.0]  # groups without texts: the mean of all
    with torch.no_grad():
        heads.projectors["poi"][0].weight.fill_(10.0)  # type: ignore[operator,index,union-attr]
        heads.projectors["poi"][0].bias.fill_(1.0)  # type: ignore[operator,index,union-attr]
    vectors = project(np.array([[4.0]], np.float32), ["A pub."], "poi_text", heads, "poi")
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[pytest.approx(10 * 2 / 5**0.5 + 1)]]


def test_linear_heads_start_from_what_states_differ_in() -> None:
    """States differ in the second coordinate most, then in the first, not at all in the third: cosines are kept."""
    states = torch.tensor([[0.0, 9.0, 5.0], [0.0, -9.0, 5.0], [2.0, 0.0, 5.0], [-2.0, 0.0, 5.0]])
    groups = torch.zeros(4, dtype=torch.int64)
    heads = Heads(["user", "poi"], 3, HeadConfig(width=2), GROUPS)
    heads.fit(states, groups)
    vectors = heads(states, groups)
    assert torch.equal(vectors["user"], vectors["poi"])
    assert vectors["poi"].abs().argmax(1).tolist() == [0, 0, 1, 1]
    lengths = vectors["poi"].norm(dim=1)
    assert (lengths[0] / lengths[2]).item() == pytest.approx(9 / 2)
    at_random = Heads(["user", "poi"], 3, HeadConfig(width=2, principal=False), GROUPS)
    at_random.fit(states, groups)
    assert not torch.allclose(*at_random(states, groups).values())


@pytest.mark.parametrize("hidden", [0, 7])
def test_what_is_loaded_projects_as_what_was_saved(tmp_path: Path, hidden: int) -> None:
    torch.manual_seed(0)
    heads = Heads(["user", "poi"], 6, HeadConfig(width=4, hidden=hidden), GROUPS)
    heads.fit(torch.randn(9, 6) * 3 + 1, torch.tensor([0, 0, 0, 2, 2, 3, 3, 4, 4]))
    heads.save(tmp_path)
    loaded = Heads.load(tmp_path)
    states = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    texts = ["The user is at: home.", "calm is the mood.", "Rain."]
    for name in ("user", "poi"):
        expected = heads(torch.from_numpy(states), torch.from_numpy(GROUPS.of("scene_text", texts)))[name]
        np.testing.assert_array_equal(project(states, texts, "scene_text", loaded, name), expected.detach().numpy())
    assert loaded.note == heads.note
    assert sum(p.numel() for p in heads.projectors["poi"].parameters()) == (28 if not hidden else 49 + 32)


def test_heads_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="tune the model again"):
        Heads.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(HeadError, match=str(tmp_path)):
        Heads.load(tmp_path)
    heads = Heads(["poi"], 2, HeadConfig(width=1), GROUPS)
    with pytest.raises(HeadError, match=r"no head 'user'.*\['poi'\]"):
        project(np.zeros((1, 2), np.float32), ["x"], "poi_text", heads, "user")
    with pytest.raises(HeadError, match="positive width"):
        HeadConfig(width=0)


def test_the_file_holds_numbers_and_names_only(tmp_path: Path) -> None:
    Heads(["poi"], 3, HeadConfig(width=2), GROUPS).save(tmp_path)
    with safe_open(tmp_path / FILE, framework="np") as file:
        assert sorted(file.keys()) == ["mean_GW", "projectors.poi.0.bias", "projectors.poi.0.weight", "scale"]
        assert file.get_tensor("mean_GW").shape == (6, 3)
