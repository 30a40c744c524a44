"""Surprise against the model run by hand, one document at a time; masks worked out on paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainers.language import adapters
from trainers.language.corpus import Span
from trainers.language.likelihood import Example, NextToken, completion, encode, pad, perplexity

CONDITIONAL = (
    Span("<|name|>", content=False, target=False),
    Span(" bread", content=True, target=False),
    Span("<|offers|>", content=False, target=False),
    Span(" soup and fish", content=True, target=True),
)
PLAIN = (Span("<|name|>"), Span(" This is"), Span(" bread", content=True), Span("."))


@pytest.fixture(scope="module")
def tunable(tiny_model) -> adapters.Tunable:
    loaded = adapters.load(str(tiny_model), full=True)
    adapters.add_tokens(loaded, ["<|name|>", "<|offers|>"])
    return loaded


def test_masks_by_hand(tunable):
    example = encode(CONDITIONAL, tunable.tokenizer, 64)
    words = tunable.tokenizer.convert_ids_to_tokens(list(example.ids))
    said = " ".join(word.replace("Ġ", "_") for word in words)
    written = " ".join(w.replace("Ġ", "_") for w, target in zip(words, example.target, strict=True) if target)
    content = "".join(w.replace("Ġ", "_") for w, c in zip(words, example.content, strict=True) if c)
    assert said.startswith("<|name|> _bread <|offers|> _soup")
    assert said.endswith("<end>")
    assert written == said.split("<|offers|> ")[1]
    assert content == "_bread_soup_and_fish"


def test_the_first_token_is_never_foreseen_and_a_long_document_is_cut(tunable):
    example = encode(PLAIN, tunable.tokenizer, 64)
    assert example.target == (False, *[True] * (len(example) - 1))
    assert example.content.count(True) == len(tunable.tokenizer(" bread").input_ids)
    cut = encode(PLAIN, tunable.tokenizer, 3)
    assert (cut.ids, cut.target, cut.content) == (example.ids[:3], example.target[:3], example.content[:3])


def by_hand(model: Any, example: Example) -> list[float]:
    """-log p of each target, from the whole sequence of logits of one document without padding."""
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
    return [-float(log_p[t - 1, example.ids[t]]) for t in range(len(example)) if example.target[t]]


def test_surprise_is_that_of_each_document_alone(tunable):
    examples = [encode(d, tunable.tokenizer, 64) for d in (CONDITIONAL, PLAIN, (Span("Warm soup near the station."),))]
    expected = [value for example in examples for value in by_hand(tunable.model, example)]
    with torch.no_grad():
        surprise_N = NextToken(tunable.model)(pad(examples))
    assert surprise_N.tolist() == pytest.approx(expected, abs=1e-4)


def test_perplexity_counts_all_targets_together_and_content_apart(tunable):
    examples = [encode(d, tunable.tokenizer, 64) for d in (CONDITIONAL, PLAIN)]
    surprises = [by_hand(tunable.model, e) for e in examples]
    contents = [[c for c, t in zip(e.content, e.target, strict=True) if t] for e in examples]
    said = [s for values, c in zip(surprises, contents, strict=True) for s, yes in zip(values, c, strict=True) if yes]
    everything = [s for values in surprises for s in values]
    for max_tokens in (1, 10_000):
        found = perplexity(tunable.model, examples, max_tokens)
        assert found is not None
        assert found.all == pytest.approx(math.exp(sum(everything) / len(everything)), rel=1e-4)
        assert found.content == pytest.approx(math.exp(sum(said) / len(said)), rel=1e-4)
        assert (found.documents, found.tokens) == (2, len(everything))
    assert perplexity(tunable.model, []) is None
    bare = perplexity(tunable.model, [encode((Span("Fish"), Span(" soup")), tunable.tokenizer, 64)])
    assert bare is not None and bare.content is None


def test_a_completion_is_the_likeliest_word_after_word(tunable):
    example = encode(CONDITIONAL, tunable.tokenizer, 64)
    ids = [i for i, target in zip(example.ids, example.target, strict=True) if not target]
    written = []
    with torch.no_grad():
        while len(written) < 5:
            written.append(int(tunable.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
            if written[-1] == tunable.tokenizer.eos_token_id:
                written.pop()
                break
    expected = tunable.tokenizer.decode(written).strip()
    assert completion(tunable.model, tunable.tokenizer, example, max_tokens=5) == expected
