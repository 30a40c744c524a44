"""Vectors of prompts against the model run by hand, one prompt at a time, without padding and without a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from trainers.knowledge import VectorMatrix
from trainers.language.encoder import EncoderConfig
from trainers.language.generation import continuations
from trainers.language.local import CausalModel
from trainers.language.model import ModelError
from trainers.language.poolings import PoiMean, Pooling, PromptReader, reader_of

SHARED = "This shop sells warm soup and bread near the station. "
PROMPTS = [
    f'{SHARED}One word: "',
    f'{SHARED}It is raining; one word: "',
    "Fish",
    f"{SHARED}One word",
    "noodles for lunch",
]
TOKENS = 6


def by_hand(config: EncoderConfig, prompt: str, tokens: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The states of a prompt and of what is written after it, and what that is: the whole text is read at each step."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    model.eval()
    ids = AutoTokenizer.from_pretrained(config.model)(prompt)["input_ids"]
    asked = len(ids)
    with torch.inference_mode():
        for _ in range(tokens):
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if following == model.generation_config.eos_token_id:
                break
            ids.append(following)
        states = model.model(torch.tensor([ids])).last_hidden_state[0].numpy()
    return states[:asked], states[asked:], ids[asked:]


def read(reader: PromptReader, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    vectors, asked = {}, {}
    for reading in reader.read(prompts):
        vectors |= dict(zip(reading.at.tolist(), reading.vectors_nE, strict=True))
        asked |= dict(zip(reading.at.tolist(), reading.asked_nE, strict=True))
    order = range(len(prompts))
    return np.stack([vectors[i] for i in order]), np.stack([asked[i] for i in order])


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
@pytest.mark.parametrize("pooling", ["last", "generated-last", "generated-mean"])
def test_vectors_are_those_of_each_prompt_alone(tiny: EncoderConfig, pooling: Pooling, max_tokens: int) -> None:
    """Whether prompts share what they begin with, how many stand in a batch: the vectors are the same."""
    vectors, asked = read(reader_of(pooling, dataclasses.replace(tiny, max_tokens=max_tokens), TOKENS), PROMPTS)
    pooled: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "last": lambda prompt, written: prompt[-1],
        "generated-last": lambda prompt, written: written[-1],
        "generated-mean": lambda prompt, written: written.mean(0),
    }
    for prompt, vector, state in zip(PROMPTS, vectors, asked, strict=True):
        of_prompt, of_written, words = by_hand(tiny, prompt, TOKENS)
        assert len(words) == TOKENS
        np.testing.assert_allclose(vector, pooled[pooling](of_prompt, of_written), atol=1e-5)
        np.testing.assert_allclose(state, of_prompt[-1], atol=1e-5)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("pooling", ["last", "generated-last", "generated-mean"])
def test_a_second_reading_is_the_same_to_the_bit(tiny: EncoderConfig, pooling: Pooling) -> None:
    first, second = (read(reader_of(pooling, tiny, TOKENS), PROMPTS)[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_what_is_written_ends_where_the_model_ends_it(tiny: EncoderConfig) -> None:
    model = CausalModel(tiny)
    written = {int(i): w for at, batch in continuations(model, PROMPTS, TOKENS) for i, w in zip(at, batch, strict=True)}
    expected = {i: by_hand(tiny, prompt, TOKENS)[2] for i, prompt in enumerate(PROMPTS)}
    assert {i: w.ids for i, w in written.items()} == expected
    # The token that prompt 0 goes on with first ends every text that it appears in; the others go on beside it.
    end = expected[0][0]
    model.ends = [end]
    cut = {int(i): w for at, batch in continuations(model, PROMPTS, TOKENS) for i, w in zip(at, batch, strict=True)}
    for i, ids in expected.items():
        kept = ids[: ids.index(end)] if end in ids else ids
        assert cut[i].ids == kept
        np.testing.assert_allclose(cut[i].states_mE, written[i].states_mE[: len(kept)], atol=1e-5)
    assert cut[0].ids == [] and cut[0].states_mE.shape == (0, 32)


def test_a_prompt_after_which_nothing_is_written_keeps_its_own_state(
    tiny: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of("generated-mean", tiny, TOKENS)
    monkeypatch.setattr(reader._model, "ends", list(range(400)))  # type: ignore[attr-defined]
    vectors, asked = read(reader, PROMPTS)
    np.testing.assert_array_equal(vectors, asked)


def test_nothing_of_a_prompt_is_ever_cut(tiny: EncoderConfig) -> None:
    short = dataclasses.replace(tiny, max_length=20)
    for pooling in ("last", "generated-mean"):
        with pytest.raises(
            ModelError, match=r"a prompt has [0-9]+ tokens and 20 are allowed; tell less or raise max_length: '"
        ):
            read(reader_of(pooling, short, TOKENS), PROMPTS)
    with pytest.raises(ModelError, match="a prompt is empty"):
        read(reader_of("last", tiny, TOKENS), ["Fish", ""])


def test_a_model_that_cannot_go_on_writing_is_refused(tiny: EncoderConfig, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    sizes = BertConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    BertModel(sizes).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is no causal language model"):
        reader_of("last", dataclasses.replace(tiny, model=str(tmp_path)), TOKENS)


def test_the_mean_of_pois_counts_every_click() -> None:
    matrix = np.array([[0, 0], [1, 2], [5, 6]], np.float32)
    pois = VectorMatrix(
        space="poi_text",
        version="v",
        matrix=matrix,
        keys=pa.array(["a", "b"]),
        rows=np.array([1, 2]),
        available_at=np.zeros(2, np.int64),
    )
    vectors, asked = read(PoiMean(pois), ["1 2 2 1", "2"])
    assert vectors.tolist() == asked.tolist() == [[3, 4], [5, 6]]
