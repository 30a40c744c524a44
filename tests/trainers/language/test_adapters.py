"""Special tokens, adapters and the folder they end in, on a model of 60,000 weights."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.language import adapters
from trainers.language.adapters import LoraConfig
from trainers.language.model import ModelError, Provenance

TOKENS = ("<|name|>", "<|location|>")
NOTE = Provenance(stage="pretrain", base="b" * 8, available_at=datetime(2026, 3, 1, tzinfo=UTC), config={"steps": 3})


def trained(tiny_model: Path, lora: LoraConfig | None, steps: int = 3) -> tuple[adapters.Tunable, Any, list[int]]:
    """A few steps of gradient descent on one sentence with both tokens; what is trained, before them."""
    tunable = adapters.load(str(tiny_model), full=lora is None)
    ids = adapters.add_tokens(tunable, TOKENS)
    torch.manual_seed(0)
    module = adapters.with_lora(tunable, lora, ids) if lora else adapters.fully(tunable)
    tokens = torch.tensor([tunable.tokenizer("<|name|>Soup<|location|>near the station").input_ids])
    wanted = [p for p in module.parameters() if p.requires_grad]
    for _ in range(steps):
        module(input_ids=tokens, labels=tokens).loss.backward()
        with torch.no_grad():
            for parameter in wanted:
                parameter -= 0.5 * parameter.grad
        module.zero_grad()
    return tunable, module, ids


def loaded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def logits(model: Any, tokenizer: Any) -> Tensor:
    tokens = tokenizer("<|name|>Soup<|location|> near", return_tensors="pt").input_ids
    with torch.inference_mode():
        return model.eval()(input_ids=tokens).logits.float()


@pytest.mark.parametrize("count", [2, 20], ids=["in spare rows", "in new rows"])
def test_a_new_token_is_one_token_and_starts_as_the_mean_of_all_others(tiny_model, count):
    """The tokenizer has 384 words, the model 400 rows."""
    tunable = adapters.load(str(tiny_model))
    before = tunable.model.get_input_embeddings().weight.clone()
    tokens = [f"<|{i}|>" for i in range(count)]
    ids = adapters.add_tokens(tunable, [*tokens, "<end>", tokens[0]])
    assert ids == [*range(384, 384 + count), 0, 384]  # <end> was there
    rows = tunable.model.get_input_embeddings().weight
    assert torch.equal(rows[:384], before[:384])
    mean = before[:384].float().mean(0).to(before.dtype)
    assert all(torch.equal(rows[i], mean) for i in range(384, 384 + count))
    assert torch.equal(rows[384 + count : 400], before[384 + count :])
    assert len(rows) == max(400, 384 + count) == tunable.model.config.vocab_size
    assert tunable.tokenizer("<|1|>Soup").input_ids[0] == 385
    assert tunable.tokenizer.decode([384, 385], skip_special_tokens=True) == ""
    assert adapters.add_tokens(tunable, tokens) == ids[:count]
    assert torch.equal(tunable.model.get_input_embeddings().weight, rows)


def test_adapters_stand_where_they_are_asked_for(tiny_model):
    def maps(lora: LoraConfig) -> set[str]:
        module = adapters.with_lora(adapters.load(str(tiny_model)), lora)
        return {n.split("layers.")[1].split(".lora")[0] for n, p in module.named_parameters() if p.requires_grad}

    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    linear = attention | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert maps(LoraConfig()) == {f"{layer}.{name}" for layer in (0, 1) for name in linear}
    assert maps(LoraConfig(first_layer=-1)) == maps(LoraConfig(first_layer=1)) == {f"1.{name}" for name in linear}
    two = LoraConfig(targets=("q_proj", "v_proj"), first_layer=1)
    assert maps(two) == {"1.self_attn.q_proj", "1.self_attn.v_proj"}
    with pytest.raises(ModelError, match=r"no linear map of layers 0 \.\. 1 is called \('query',\)"):
        maps(LoraConfig(targets=("query",)))
    with pytest.raises(ModelError, match="must be positive"):
        LoraConfig(rank=0)


def test_new_rows_are_trained_and_all_others_stay_bit_identical(tiny_model, tmp_path):
    tunable, module, ids = trained(tiny_model, LoraConfig(rank=4))
    adapters.merge_and_save(module, tunable.tokenizer, tmp_path / "model", NOTE)
    before, after = loaded(tiny_model), loaded(tmp_path / "model")
    rows = after.get_input_embeddings().weight
    old = before.get_input_embeddings().weight
    assert ids == [384, 385] and torch.equal(rows[:384], old[:384]) and torch.equal(rows[386:], old[386:])
    mean = old[:384].float().mean(0)
    assert all((rows[i].float() - mean).abs().max() > 0.01 for i in ids)
    same = [n for n, p in before.named_parameters() if p.ndim == 1 and torch.equal(p, after.get_parameter(n))]
    assert len(same) == 5  # norms have no adapters
    assert not torch.equal(before.get_parameter(LAST), after.get_parameter(LAST))


LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None], ids=["lora", "full"])
def test_a_saved_model_says_what_the_tuned_one_said(tiny_model, tmp_path, lora):
    from transformers import AutoModel, AutoTokenizer

    tunable, module, _ = trained(tiny_model, lora)
    expected = logits(module.float(), tunable.tokenizer)
    adapters.merge_and_save(module, tunable.tokenizer, tmp_path / "model", NOTE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(
        logits(loaded(tmp_path / "model", torch.float32), tokenizer), expected, atol=0.02, rtol=0
    )
    assert float((logits(loaded(tiny_model, torch.float32), tokenizer) - expected).abs().max()) > 0.2
    assert AutoModel.from_pretrained(tmp_path / "model").get_input_embeddings().weight.shape == (400, 32)
    assert Provenance.read(tmp_path / "model") == NOTE
    assert {p.dtype for p in loaded(tmp_path / "model", "auto").parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_token_matrices_stay_tied_or_apart(tiny_model, tmp_path, tied):
    from transformers import AutoTokenizer, LlamaForCausalLM

    source: Any = loaded(tiny_model)
    if tied:
        source.config.tie_word_embeddings = True
        source = LlamaForCausalLM(source.config)
    source.save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "source")
    tunable, module, _ = trained(tmp_path / "source", LoraConfig(rank=2))
    rows = [p for n, p in module.named_parameters() if p.requires_grad and "token" in n]
    assert [tuple(p.shape) for p in rows] == [(2, 32)] * (1 if tied else 2)
    adapters.merge_and_save(module, tunable.tokenizer, tmp_path / "model", NOTE)
    model = loaded(tmp_path / "model")
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inputs.data_ptr() == outputs.data_ptr()) == tied
    assert inputs.shape == outputs.shape == (400, 32)


def test_a_failed_save_leaves_the_model_that_was_there(tiny_model, tmp_path):
    tunable, module, _ = trained(tiny_model, LoraConfig(rank=2), steps=1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(TypeError):
        odd = dataclasses.replace(NOTE, config={"odd": object()})
        adapters.merge_and_save(module, tunable.tokenizer, tmp_path / "model", odd)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_rounding_keeps_what_bfloat16_has_and_is_right_on_average():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(1000, generator=generator).to(torch.bfloat16)
    assert torch.equal(adapters.rounded(exact.float(), generator), exact)
    # A quarter of the way from 1 to the next number, 1 + 1/128: one in four goes up, on both sides of zero.
    for sign in (1.0, -1.0):
        between = torch.full((40_000,), sign * (1 + 0.25 / 128))
        result = adapters.rounded(between, generator)
        assert set(result.tolist()) == {sign, sign * (1 + 1 / 128)}
        up = (result != sign).float().mean()
        assert float(up) == pytest.approx(0.25, abs=0.01)


def test_a_folder_without_a_causal_model_is_refused(tiny_model, tmp_path):
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    sizes = T5Config(vocab_size=400, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(sizes).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is no causal language model"):
        adapters.load(str(tmp_path))
