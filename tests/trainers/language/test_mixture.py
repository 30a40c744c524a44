"""What a step reads: fixed shares, every document before any a second time, the same whoever shares it."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.language import adapters, mixture
from trainers.language.corpus import Corpus, CorpusConfig, Span
from trainers.language.likelihood import NextToken, Padded
from trainers.language.mixture import KINDS, Mixture, MixtureConfig, Reading
from trainers.loop import TrainingError

CORPUS = Corpus(
    config=CorpusConfig(),
    tokens=("<|name|>", "<|description|>", "<|user|>"),
    available_at=datetime(2026, 3, 1, tzinfo=UTC),
    places=tuple({"name": f"p{i}", "description": "warm " * (i + 1) + "soup."} for i in range(7)),
    held_out_places=(),
    histories=tuple((Span("<|user|>"), Span(f" u{i} likes bread", content=True)) for i in range(3)),
    held_out_histories=(),
    general=tuple((Span(f"{i} people read in silence.", content=True),) for i in range(11)),
    held_out_general=(),
)
CONFIG = MixtureConfig(documents=8, general=0.25, histories=0.25, conditional=0.5)


@pytest.fixture(scope="module")
def tunable(tiny_model) -> adapters.Tunable:
    loaded = adapters.load(str(tiny_model), full=True)
    adapters.add_tokens(loaded, CORPUS.tokens)
    return loaded


@pytest.fixture(scope="module")
def task(tunable) -> Mixture:
    return Mixture(CORPUS, tunable.tokenizer, CONFIG)


def texts(task: Any, tunable: adapters.Tunable, batch: Reading) -> list[tuple[str, str]]:
    """Kind and text of each document of a batch."""
    found = []
    for padded, kind_B in batch.parts:
        for ids, real, kind in zip(padded.ids_BT, padded.real_BT, kind_B, strict=True):
            found.append((KINDS[int(kind)], tunable.tokenizer.decode(ids[real.bool()])))
    return sorted(found)


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(mixture).failed == 0


def test_a_step_reads_the_shares_and_everything_before_anything_again(task, tunable):
    read = [texts(task, tunable, task.batch(step, 0, 1)) for step in range(11)]
    for step in read:
        kinds = [kind for kind, _ in step]
        assert [kinds.count(kind) for kind in KINDS] == [2, 2, 2, 2]
    general = [text for step in read for kind, text in step if kind == "general"]
    assert len(set(general[:10])) == 10 and [general.count(text) for text in set(general)] == [2] * 11
    conditional = [text for step in read[:7] for kind, text in step if kind == "conditional"]
    assert [conditional.count(text) for text in set(conditional)] == [2] * 7
    places = {text for step in read for kind, text in step if kind == "place"}
    assert len(places) > 7  # the same POI in several wordings
    assert not any("Let me tell you more" in text for text in places)  # never in the family that is held out


def test_a_step_is_a_pure_function_of_its_number(task, tunable):
    fresh = Mixture(CORPUS, tunable.tokenizer, CONFIG)
    assert texts(fresh, tunable, fresh.batch(9, 0, 1)) == texts(task, tunable, task.batch(9, 0, 1))
    assert texts(task, tunable, task.batch(9, 0, 1)) != texts(task, tunable, task.batch(8, 0, 1))


@pytest.mark.parametrize("max_tokens", [20, 10_000])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_share_what_one_would_read_alone(tunable, world, max_tokens):
    config = MixtureConfig(documents=8, general=0.25, histories=0.25, max_tokens=max_tokens)
    task = Mixture(CORPUS, tunable.tokenizer, config)
    alone = task.batch(4, 0, 1)
    shares = [task.batch(4, rank, world) for rank in range(world)]
    together = [document for share in shares for document in texts(task, tunable, share)]
    assert sorted(together) == texts(task, tunable, alone)
    assert len({len(share.parts) for share in shares}) == 1  # sharded processes wait for each other in every part
    assert sum(task.tokens(share) for share in shares) == task.tokens(alone)
    module = NextToken(tunable.model)
    with torch.no_grad():
        losses = [task.losses(module, share) for share in shares]
        expected = task.losses(module, alone)
    assert float(torch.stack([one.total for one in losses]).mean()) == pytest.approx(float(expected.total), rel=1e-5)
    for kind, part in expected.parts.items():
        assert float(torch.stack([one.parts[kind] for one in losses]).mean()) == pytest.approx(float(part), rel=1e-5)


def test_the_loss_is_the_mean_over_targets_of_all_kinds(task):
    class Constant(nn.Module):
        """Every target is as surprising as its document's first token says."""

        def forward(self, padded: Padded) -> Tensor:
            return torch.ones(int(padded.target_BT.sum())) * 3.0

    losses = task.losses(Constant(), task.batch(0, 0, 1))
    assert float(losses.total) == pytest.approx(3.0)
    assert {kind: float(part) for kind, part in losses.parts.items()} == dict.fromkeys(KINDS, pytest.approx(3.0))


def test_only_what_is_to_be_written_counts_in_a_conditional_document(task):
    """`<|name|> p0 <|description|>` is read; the words after it and the end are targets."""
    for padded, kind_B in task.batch(0, 0, 1).parts:
        for row, kind in enumerate(kind_B.tolist()):
            if KINDS[kind] == "conditional":
                asked = task._tokenizer.convert_tokens_to_ids("<|description|>")
                at = padded.ids_BT[row].tolist().index(asked)
                length = int(padded.real_BT[row].sum())
                expected = [at < t < length for t in range(padded.ids_BT.shape[1])]
                assert padded.target_BT[row].tolist() == expected


def test_impossible_mixtures_are_refused(tunable):
    with pytest.raises(TrainingError, match="shares in 0"):
        MixtureConfig(general=0.7, histories=0.7)
    with pytest.raises(TrainingError, match="2 documents a step are too few"):
        MixtureConfig(documents=2, general=0.5, histories=0.5, conditional=1.0).composition()
    with pytest.raises(TrainingError, match=r"no documents of kind \['history'\]; set their share to zero"):
        empty = Corpus(**{**vars(CORPUS), "histories": ()})
        Mixture(empty, tunable.tokenizer, CONFIG)
    with pytest.raises(TrainingError, match="8 documents a step for 9 processes"):
        Mixture(CORPUS, tunable.tokenizer, CONFIG).batch(0, 0, 9)
