"""How well a causal language model foresees the tokens of documents.

Letters: B documents, T tokens of the longest, N tokens that are to be foreseen.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.language.corpus import Document
from trainers.language.token_tree import batch_by_length


@dataclass(frozen=True)
class Example:
    """A document in tokens: what each is, whether the model learns to write it, whether it says what is so."""

    ids: tuple[int, ...]
    target: tuple[bool, ...]
    content: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Padded:
    """Examples side by side, padded on the right."""

    ids_BT: Tensor
    real_BT: Tensor
    target_BT: Tensor
    content_BT: Tensor


def encode(document: Document, tokenizer: Any, max_length: int) -> Example:
    """Tokens of a document, its end included, at most `max_length`.

    A token belongs to the span in which it ends; the token for the end continues the last span but has no content. The
    first token has nothing before it, so it is never a target.
    """
    ends = list(accumulate(len(span.text) for span in document))
    found = tokenizer("".join(span.text for span in document), return_offsets_mapping=True)
    ids, spans = list(found["input_ids"]), []
    for start, end in found["offset_mapping"]:
        spans.append(document[bisect_right(ends, end - 1)] if end > start else None)  # None: put there by the tokenizer
    target = [span is not None and span.target for span in spans] + [document[-1].target]
    content = [span is not None and span.content for span in spans] + [False]
    target[0] = False
    ids.append(tokenizer.eos_token_id)
    return Example(tuple(ids[:max_length]), tuple(target[:max_length]), tuple(content[:max_length]))


def pad(examples: Sequence[Example]) -> Padded:
    longest = max(map(len, examples))

    def side_by_side(rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])

    return Padded(
        ids_BT=side_by_side([e.ids for e in examples]),
        real_BT=side_by_side([[1] * len(e) for e in examples]),
        target_BT=side_by_side([e.target for e in examples]).bool(),
        content_BT=side_by_side([e.content for e in examples]).bool(),
    )


class NextToken(nn.Module):
    """Surprise at the targets, given all tokens before each.

    Args:
        model: AutoModelForCausalLM, with or without adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, padded: Padded) -> Tensor:
        """-log p of each target, row by row: float32 (N,)."""
        device = next(self.parameters()).device
        ids_BT, real_BT = padded.ids_BT.to(device), padded.real_BT.to(device)
        foreseen_BT = padded.target_BT.to(device)[:, 1:]  # what position t says of t + 1
        head = self.model.get_output_embeddings()  # type: ignore[operator]  # of transformers
        # Only positions that foresee something pass through the vocabulary, the widest layer of all.
        hook = head.register_forward_pre_hook(lambda _, states: (states[0][:, :-1][foreseen_BT],))
        try:
            logits_NV = self.model(input_ids=ids_BT, attention_mask=real_BT, use_cache=False).logits
        finally:
            hook.remove()
        return functional.cross_entropy(logits_NV.float(), ids_BT[:, 1:][foreseen_BT], reduction="none")


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp of the mean surprise a token; `content` counts only tokens that say what is so (None: there are none)."""

    all: float
    content: float | None
    documents: int
    tokens: int


@torch.no_grad()
def perplexity(model: nn.Module, examples: Sequence[Example], max_tokens: int = 2048) -> Perplexity | None:
    """Over all targets of the examples together; None without examples."""
    reader = NextToken(model).eval()
    sums = torch.zeros(2, 2, dtype=torch.float64)  # (all, content) x (surprise, tokens)
    for at in batch_by_length([len(e) for e in examples], max_tokens):
        padded = pad([examples[i] for i in at])
        surprise_N = reader(padded).double().cpu()
        content_N = padded.content_BT[:, 1:][padded.target_BT[:, 1:]]
        for row, chosen_N in enumerate((torch.ones_like(content_N), content_N)):
            sums[row] += torch.stack([surprise_N[chosen_N].sum(), chosen_N.sum().double()])
    (surprise, tokens), (said, contents) = sums.tolist()
    if not tokens:
        return None
    return Perplexity(
        all=math.exp(surprise / tokens),
        content=math.exp(said / contents) if contents else None,
        documents=len(examples),
        tokens=int(tokens),
    )


@torch.no_grad()
def completion(model: Any, tokenizer: Any, example: Example, max_tokens: int = 60) -> str:
    """What a model itself writes after the part of an example that is only read, always taking the likeliest token."""
    read = [i for i, target in zip(example.ids, example.target, strict=True) if not target]
    prompt = torch.tensor([read], device=next(model.parameters()).device)
    written = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    text: str = tokenizer.decode(written[0, len(read) :]).removesuffix(tokenizer.eos_token)
    return text.strip()
