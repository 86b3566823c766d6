"""The conversion of a GGUF: weights, row order, tokenizer, and what it refuses.

Each test writes its own tiny GGUF, in llama.cpp's row order, from a random model; nothing is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from workers.contract.errors import ModelError
from workers.engine.base_models import convert

HEADS, KV_HEADS, HIDDEN = 4, 2, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "ab", "12"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
BUNDLED = Path(
    os.environ.get("BUNDLED_MODEL_DIR")
    or Path(__file__).parents[3] / ".cache" / "bundled" / "SmolLM2-135M-Instruct"
)


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    # Values that bfloat16 holds exactly, so that the conversion rounds nothing.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return model


def llama_cpp_order(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The permutation of llama.cpp's own converter (`LlamaModel.permute`)."""
    rows, d_in = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, d_in).swapaxes(1, 2).reshape(rows, d_in)


def write_gguf(path: Path, model: PreTrainedModel, *, architecture: str = "llama") -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["a b", "1 2"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if "q_proj" in name or "k_proj" in name:
            values = llama_cpp_order(values, HEADS if "q_proj" in name else KV_HEADS)
        writer.add_tensor(
            f"{names.get_name(name.removesuffix('.weight'))}.weight", np.ascontiguousarray(values)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def folder(model: PreTrainedModel, tmp_path: Path) -> Path:
    convert.convert(write_gguf(tmp_path / "tiny.gguf", model), tmp_path / "out")
    return tmp_path / "out"


def test_it_gives_the_logits_of_the_original(model: PreTrainedModel, folder: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 9, 40, 200, 7, 31, 3, 77]])
    assert torch.equal(converted(ids).logits, model(ids).logits)


def test_it_splits_numbers_into_single_digits(folder: Path) -> None:
    # "12" is a token with a merge of its own, and still must not be used.
    assert AutoTokenizer.from_pretrained(folder).tokenize("ab12") == ["ab", "1", "2"]


def test_any_text_survives_encoding_and_decoding(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = " Grüße,  12 Äpfel ☂\n\tab , ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_knows_its_end_its_length_and_its_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.model_max_length == 256
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|im_start|>user\nab<|im_end|>\n"


def test_the_model_knows_where_to_stop(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == 2
    assert model.config.rope_parameters["rope_theta"] == 5000.0
    assert model.config.rms_norm_eps == 1e-6


def test_it_names_licence_and_origin(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in card


def test_it_refuses_another_architecture_and_leaves_nothing(model: PreTrainedModel, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "other.gguf", model, architecture="gemma")
    with pytest.raises(ModelError, match="gemma"):
        convert.convert(gguf, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


def test_it_does_not_overwrite_a_folder(model: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Remove it"):
        convert.convert(tmp_path / "tiny.gguf", folder)


@pytest.mark.slow
def test_the_bundled_model_knows_the_capital_of_france() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="auto")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
