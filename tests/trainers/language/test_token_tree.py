"""Trees of prompts against the prompts one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from trainers.language.token_tree import PADDING, TokenTree, attend, batch_by_beginning, batch_by_length

prompt = st.lists(st.integers(0, 3), min_size=1, max_size=9)
prompts = st.lists(prompt, min_size=1, max_size=12)


def test_a_tree_by_hand() -> None:
    tree = TokenTree.of([[7, 8, 9], [7, 8], [7, 8, 5, 6], [4]], "cpu")
    assert tree.tokens_T.tolist() == [7, 8, 9, 5, 6, 4]
    assert tree.positions_T.tolist() == [0, 1, 2, 2, 3, 0]
    assert tree.ends_n.tolist() == [2, 1, 4, 5]
    paths = [row[:length].tolist() for row, length in zip(tree.paths_nL, tree.lengths_n, strict=True)]
    assert paths == [[0, 1, 2], [0, 1], [0, 1, 3, 4], [5]]


@given(prompts)
def test_every_distinct_beginning_is_in_the_tree_of_sorted_prompts_once(found: list[list[int]]) -> None:
    found = sorted(found)
    tree = TokenTree.of(found, "cpu")
    beginnings = {tuple(p[: k + 1]) for p in found for k in range(len(p))}
    assert len(tree.tokens_T) == len(beginnings)
    for path, p in zip(tree.paths_nL, found, strict=True):
        own = path[: len(p)]
        assert tree.tokens_T[own].tolist() == p
        assert tree.positions_T[own].tolist() == list(range(len(p)))


@pytest.mark.parametrize("window", [None, 3])
@given(found=prompts)
def test_attention_over_a_tree_is_attention_over_each_prompt(window: int | None, found: list[list[int]]) -> None:
    """Queries, keys and values depend on the beginning alone, as in a model; two query heads share a key head."""
    tree = TokenTree.of(found, "cpu")
    draw = torch.Generator().manual_seed(len(found))
    size = len(tree.tokens_T)
    query, key, value = (torch.randn(1, heads, size, 4, generator=draw) for heads in (4, 2, 2))
    out, _ = attend(torch.nn.Identity(), query, key, value, None, tree=tree, scaling=0.3, sliding_window=window)
    assert out.shape == (1, size, 4, 4)
    for path, length in zip(tree.paths_nL, tree.lengths_n.tolist(), strict=True):
        own = path[:length]
        place = torch.arange(length)
        visible = place <= place[:, None]
        if window is not None:
            visible &= place > place[:, None] - window
        alone = F.scaled_dot_product_attention(
            query[:, :, own],
            key[:, :, own].repeat_interleave(2, 1),
            value[:, :, own].repeat_interleave(2, 1),
            attn_mask=visible,
            scale=0.3,
        )
        torch.testing.assert_close(out[0, own], alone[0].transpose(0, 1), atol=1e-6, rtol=1e-5)


@given(prompts, st.integers(1, 40))
def test_batches_by_beginning_hold_every_prompt_once_within_the_budget(found: list[list[int]], budget: int) -> None:
    batches = [b.tolist() for b in batch_by_beginning(found, budget)]
    assert sorted(i for b in batches for i in b) == list(range(len(found)))
    assert [found[i] for b in batches for i in b] == sorted(found)
    for batch in batches:
        own = [found[i] for i in batch]
        assert len(batch) == 1 or len(TokenTree.of(own, "cpu").tokens_T) <= budget
        assert len(batch) == 1 or len(batch) * max(map(len, own)) <= PADDING * budget


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 2000))
def test_batches_by_length_hold_every_text_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    batches = [b.tolist() for b in batch_by_length(lengths, max_tokens)]
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= max_tokens for b in batches)


def test_nothing_makes_no_batch() -> None:
    assert list(batch_by_beginning([], 9)) == []
    assert list(batch_by_length(np.array([], dtype=int).tolist(), 9)) == []
