"""Prompts as one tree of tokens: what several of them begin with is computed once, and nothing is padded.

In a causal model the state of a token depends on the tokens up to it and on nothing else, so prompts that begin alike
share the states of their beginning. The distinct beginnings of a batch lie in a row and are one sequence to every layer
that works token by token; only attention has to know which tokens stand before which.

n: prompts, T: tokens of the tree, L: tokens of the longest prompt, Q: the most tokens that one prompt adds, H: heads,
D: width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
import torch.nn.functional as F

# Attention pads each prompt to the longest one beside it: this many times the budget of tokens at most.
PADDING = 4
# Prompts that add many tokens attend apart from those that add few, in about so many groups.
GROUPS = 4


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One call of attention: the tokens that n prompts add, each to all tokens of its prompt up to it.

    Attributes:
        queries_nQ, keys_nL: tokens of the tree, right-padded with any.
        real_nQ: which queries are not padding.
        positions_nQ: where in its prompt each query stands; a key stands where its column says.
    """

    queries_nQ: torch.Tensor
    keys_nL: torch.Tensor
    real_nQ: torch.Tensor
    positions_nQ: torch.Tensor

    def visible_n1QL(self, window: int | None = None) -> torch.Tensor:
        """Which keys a query sees: itself and those before it, of them the nearest only where there is a `window`."""
        places_L = torch.arange(self.keys_nL.shape[1], device=self.keys_nL.device)
        positions_n1Q1 = self.positions_nQ[:, None, :, None]
        visible = places_L <= positions_n1Q1
        return visible if window is None else visible & (places_L > positions_n1Q1 - window)

    def to(self, device: str) -> Attention:
        return Attention(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class TokenTree:
    """The distinct beginnings of n prompts.

    Attributes:
        tokens_T: the last token id of each beginning.
        positions_T: its place in the prompt, from 0.
        paths_nL: the tokens of each prompt, right-padded with any.
        lengths_n: tokens of each prompt.
        attention: calls that together give every token of the tree its attention.
        order_T: where each token's result stands in theirs, one after the other.
    """

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    paths_nL: torch.Tensor
    lengths_n: torch.Tensor
    attention: tuple[Attention, ...]
    order_T: torch.Tensor

    @property
    def ends_n(self) -> torch.Tensor:
        """The last token of each prompt."""
        return self.paths_nL.gather(1, self.lengths_n[:, None] - 1)[:, 0]

    @staticmethod
    def of(prompts: Sequence[list[int]], device: str) -> TokenTree:
        """Prompts share what they have in common with the prompt before them, so sorted ones share most."""
        lengths = np.array([len(p) for p in prompts])
        ids = np.full((len(prompts), lengths.max()), -1)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        real = ids >= 0
        shared = np.zeros_like(real)
        shared[1:] = np.logical_and.accumulate((ids[1:] == ids[:-1]) & real[1:], axis=1)
        new = real & ~shared
        number = np.zeros_like(ids)
        number[new] = np.arange(new.sum())
        # Numbers grow from row to row, so the greatest so far in a column is the one that the row before has there.
        paths = np.maximum.accumulate(number, axis=0)
        calls = [_attention(paths[at], lengths[at], new[at].sum(1)) for at in _groups(new.sum(1))]
        order = torch.cat([call.queries_nQ[call.real_nQ] for call in calls]).argsort()
        return TokenTree(
            tokens_T=torch.from_numpy(ids[new]).to(device),
            positions_T=torch.from_numpy(np.nonzero(new)[1]).to(device),
            paths_nL=torch.from_numpy(paths).to(device),
            lengths_n=torch.from_numpy(lengths).to(device),
            attention=tuple(call.to(device) for call in calls),
            order_T=order.to(device),
        )


def _groups(added: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of the prompts that add about equally many tokens; those that add none need no attention."""
    for at in batch_by_length(added.tolist(), int(added.sum()) // GROUPS):
        if len(adding := at[added[at] > 0]):
            yield adding


def _attention(paths: np.ndarray, lengths: np.ndarray, added: np.ndarray) -> Attention:
    """What prompts add is their end."""
    column = np.arange(added.max())
    positions = np.minimum((lengths - added)[:, None] + column, lengths[:, None] - 1)
    return Attention(
        queries_nQ=torch.from_numpy(np.take_along_axis(paths, positions, axis=1)),
        keys_nL=torch.from_numpy(paths[:, : lengths.max()]),
        real_nQ=torch.from_numpy(column < added[:, None]),
        positions_nQ=torch.from_numpy(positions),
    )


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    tree: TokenTree,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over a tree, in the form in which transformers calls it: (1, H, T, D) -> (1, T, H, D)."""
    query_THD, key_THD, value_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    results = []
    for call in tree.attention:
        result_nHQD = F.scaled_dot_product_attention(
            query_THD[call.queries_nQ].transpose(1, 2),
            key_THD[call.keys_nL].transpose(1, 2),
            value_THD[call.keys_nL].transpose(1, 2),
            attn_mask=call.visible_n1QL(sliding_window),
            scale=scaling,
            enable_gqa=grouped,
        )
        results.append(result_nHQD.transpose(1, 2)[call.real_nQ])
    return torch.cat(results)[tree.order_T][None], None


def batch_by_beginning(prompts: Sequence[list[int]], max_tokens: int) -> Iterator[np.ndarray]:
    """Positions of prompts in lexical order; the tree of a batch has at most `max_tokens` tokens where it can.

    >>> [b.tolist() for b in batch_by_beginning([[1, 2, 3], [7, 7], [1, 2, 4], [1, 5]], 5)]
    [[0, 2, 3], [1]]
    """
    batch: list[int] = []
    tokens = longest = 0
    for at in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        prompt = prompts[at]
        common = takewhile(
            lambda pair: pair[0] == pair[1], zip(prompt, prompts[batch[-1]] if batch else (), strict=False)
        )
        new = len(prompt) - sum(1 for _ in common)
        longest = max(longest, len(prompt))
        if batch and (tokens + new > max_tokens or (len(batch) + 1) * longest > PADDING * max_tokens):
            yield np.array(batch)
            batch, tokens, new, longest = [], 0, len(prompt), len(prompt)
        batch.append(at)
        tokens += new
    if batch:
        yield np.array(batch)


def batch_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[np.ndarray]:
    """Positions grouped by length, longest first; count times longest stays within `max_tokens` where it can.

    >>> [b.tolist() for b in batch_by_length([2, 9, 2, 4], 8)]
    [[1], [3, 0], [2]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(order):
        count = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count
