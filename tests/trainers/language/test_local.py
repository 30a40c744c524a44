"""A model in this process against the model run by hand, one text at a time and without padding."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from trainers.language.encoder import EncoderConfig, TextEncoder
from trainers.language.local import LocalModel, Prompts
from trainers.language.model import ModelError

TEXTS = ["Soup.", "Warm soup and bread near the station, open late.", "Fish", "Noodles for lunch", "a" * 40, "Soup"]
PLAIN = {"poi_text": "{text}"}


def by_hand(config: EncoderConfig, text: str) -> np.ndarray:
    """Hidden states (tokens, width) of one prompt, straight from the library."""
    from transformers import AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(config.model, dtype=torch.float32)
    model.eval()
    tokens = AutoTokenizer.from_pretrained(config.model)(text, return_tensors="pt")
    with torch.inference_mode():
        return np.asarray(model(**tokens).last_hidden_state[0].numpy())


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def save_model(folder: Path, tiny: EncoderConfig, model: Any) -> EncoderConfig:
    """Another architecture with the tokenizer of the tiny model, read without templates."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(folder)
    model.save_pretrained(folder)
    return dataclasses.replace(tiny, model=str(folder), templates=PLAIN, max_length=128)


def test_models_that_threads_load_at_once_leave_later_ones_whole(tiny: EncoderConfig) -> None:
    from transformers import AutoConfig, LlamaForCausalLM

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(LocalModel, [tiny] * 24))
    config: Any = AutoConfig.from_pretrained(tiny.model)
    config.tie_word_embeddings = True
    later: Any = LlamaForCausalLM(config)
    assert later.get_output_embeddings().weight is later.get_input_embeddings().weight


@pytest.fixture
def bidirectional(tiny: EncoderConfig, tmp_path: Path) -> EncoderConfig:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = BertConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return dataclasses.replace(save_model(tmp_path, tiny, BertModel(sizes)), pooling="mean")


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_each_text_alone_in_input_order(
    tiny: EncoderConfig, pooling: Literal["last", "mean"]
) -> None:
    config = dataclasses.replace(tiny, pooling=pooling, max_tokens=200)
    vectors = TextEncoder(config).encode(TEXTS, "poi_text")
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = by_hand(config, config.template("poi_text").replace("{text}", text))
        expected = states[-1] if pooling == "last" else states.mean(0)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert vectors.dtype == np.float32


def test_batch_composition_does_not_change_a_vector(tiny: EncoderConfig) -> None:
    together = TextEncoder(dataclasses.replace(tiny, max_tokens=100_000)).encode(TEXTS, "user_text")
    alone = TextEncoder(dataclasses.replace(tiny, max_tokens=1)).encode(TEXTS[::-1], "user_text")[::-1]
    assert max(map(cosine_distance, together, alone)) < 1e-5
    rounded = dataclasses.replace(tiny, dtype="bfloat16")
    half = TextEncoder(rounded).encode(TEXTS, "user_text")
    half_alone = TextEncoder(dataclasses.replace(rounded, max_tokens=1)).encode(TEXTS, "user_text")
    assert max(map(cosine_distance, half, half_alone)) < 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_causal_model_shares_beginnings(tiny: EncoderConfig, dtype: Literal["float32", "bfloat16"]) -> None:
    assert LocalModel(dataclasses.replace(tiny, dtype=dtype)).shares


def test_a_sentence_encoder_shares_nothing_and_never_attends_to_padding(bidirectional: EncoderConfig) -> None:
    """Attention in both directions sees what follows, and padding too unless it is masked."""
    assert not LocalModel(bidirectional).shares
    together = TextEncoder(bidirectional).encode(TEXTS, "poi_text")
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(vector, by_hand(bidirectional, text).mean(0), atol=1e-5)


def test_tokens_that_meet_outside_of_attention_share_nothing(tiny: EncoderConfig, tmp_path: Path) -> None:
    """LFM2 is causal, but its layers are short convolutions over neighbours as well as attention."""
    from transformers import Lfm2Config, Lfm2Model

    torch.manual_seed(0)
    sizes = Lfm2Config(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.2,  # at the usual 0.02 a layer without training does next to nothing
        pad_token_id=0,
    )
    config = save_model(tmp_path, tiny, Lfm2Model(sizes))
    assert not LocalModel(config).shares
    for text, vector in zip(TEXTS, TextEncoder(config).encode(TEXTS, "poi_text"), strict=True):
        np.testing.assert_allclose(vector, by_hand(config, text)[-1], atol=1e-4)


def test_a_sliding_window_is_kept(tiny: EncoderConfig, tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralModel

    torch.manual_seed(0)
    sizes = MistralConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
    )
    config = save_model(tmp_path, tiny, MistralModel(sizes))
    assert LocalModel(config).shares
    for text, vector in zip(TEXTS, TextEncoder(config).encode(TEXTS, "poi_text"), strict=True):
        np.testing.assert_allclose(vector, by_hand(config, text)[-1], atol=1e-5)


def test_a_text_that_ends_in_the_padding_token_keeps_it(tiny: EncoderConfig) -> None:
    bare = dataclasses.replace(tiny, templates=PLAIN)
    texts = ["Fish<end>", "Warm soup and bread near the station"]
    vectors = TextEncoder(bare).encode(texts, "poi_text")
    np.testing.assert_allclose(vectors[0], by_hand(bare, texts[0])[-1], atol=1e-5)
    assert cosine_distance(vectors[0], by_hand(bare, "Fish")[-1]) > 1e-3


def test_long_texts_are_cut_and_their_template_is_not(tiny: EncoderConfig) -> None:
    prompts = Prompts(Path(tiny.model), 60)
    template = tiny.template("poi_text")
    suffix = prompts.fit([""], template)[0].ids[-12:]
    for text in ("bread " * 300, "x" * 900, "soup " * 30 + "é" * 50):
        (prompt,) = prompts.fit([text], template)
        assert 55 <= len(prompt.ids) <= 60
        assert prompt.ids[-12:] == suffix
        before, after = template.split("{text}")
        assert prompt.text.startswith(before)
        assert prompt.text.endswith(after)
    with pytest.raises(ModelError, match="no room for the template"):
        Prompts(Path(tiny.model), 5).fit(["bread " * 9], template)


def test_an_empty_prompt_is_an_error(tiny: EncoderConfig) -> None:
    bare = TextEncoder(dataclasses.replace(tiny, templates=PLAIN))
    with pytest.raises(ModelError, match=r"text '' in template '\{text\}' is empty"):
        bare.encode(["Fish", ""], "poi_text")


def test_more_tokens_than_the_model_reads_are_refused(bidirectional: EncoderConfig) -> None:
    with pytest.raises(ModelError, match=r"max_length 513: .* reads 512 tokens; lower it"):
        LocalModel(dataclasses.replace(bidirectional, max_length=513))


def test_many_windows_of_texts_are_one(tiny: EncoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TextEncoder(tiny).encode(TEXTS, "poi_text")
    monkeypatch.setattr("trainers.language.local.WINDOW_TEXTS", 2)
    np.testing.assert_allclose(TextEncoder(tiny).encode(TEXTS, "poi_text"), whole, atol=1e-5)


@pytest.mark.parametrize(("dtype", "distance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_vectors_are_those_of_sentence_transformers(
    tiny: EncoderConfig, dtype: Literal["float32", "bfloat16"], distance: float
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    config = dataclasses.replace(tiny, dtype=dtype)
    module = Transformer(config.model, max_seq_length=256, model_kwargs={"dtype": getattr(torch, dtype)})
    peer = SentenceTransformer(modules=[module, Pooling(32, "lasttoken")], device="cpu")
    prompts = [config.template("poi_text").replace("{text}", text) for text in TEXTS]
    vectors = TextEncoder(config).encode(TEXTS, "poi_text")
    assert max(map(cosine_distance, vectors, peer.encode(prompts))) < distance
