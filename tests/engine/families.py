"""Tiny models of every family that the presets support, and the names that each preset must adapt there.

The names were written by hand, family by family, and not derived from the census: they are the reference for
the census and the presets. A name is the end of a module's name, or of a tensor's if PEFT needs the tensor
(experts). No preset may adapt a name that contains `excluded` (image towers, projectors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from workers.engine.base_models.model import build

USUAL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WITHOUT_KV = {name: value for name, value in USUAL.items() if name != "num_key_value_heads"}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
HYBRID = {**USUAL, "num_hidden_layers": 4}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 64,
}
COMPRESSED = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Family:
    """A tiny configuration, and the names of each part: attention output, query, key, value, the MLP's."""

    sizes: dict[str, Any]
    out: str = "self_attn.o_proj"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    linear_in: str = ""  # input projections of linear attention
    mlp_in: str = "mlp.gate_proj mlp.up_proj"
    down: str = "mlp.down_proj"
    excluded: str = ""  # part of a name that no preset may adapt
    auto: Any = None

    def config(self, model_type: str) -> PreTrainedConfig:
        return AutoConfig.for_model(model_type.partition("/")[0], **self.sizes)

    def build(self, model_type: str) -> PreTrainedModel:
        """Return a new model on the meta device."""
        if self.auto is None:
            return build(self.config(model_type))
        with torch.device("meta"):
            model: PreTrainedModel = self.auto.from_config(self.config(model_type))
        return model

    def expected(self, preset: str) -> list[str]:
        """Return the ends of the names that a preset must adapt."""
        attention = f"{self.query} {self.key} {self.value} {self.out} {self.linear_in}"
        parts = {
            "efficient": self.out,
            "balanced": f"{self.out} {self.down}",
            "query_value": f"{self.query} {self.value}",
            "attention": attention,
            "mlp": f"{self.mlp_in} {self.down}",
            "quality": f"{attention} {self.mlp_in} {self.down}",
        }
        return parts[preset].split()


def fused(name: str) -> dict[str, str]:
    """One layer for query, key and value."""
    return {"query": name, "key": name, "value": name}


BERT = {
    "out": "attention.output.dense",
    "query": "self.query",
    "key": "self.key",
    "value": "self.value",
    "mlp_in": "intermediate.dense",
    "down": r"\d.output.dense",
}
DEEPSEEK = {
    "mlp_in": "mlp.gate_proj.weight mlp.up_proj.weight shared_experts.gate_proj.weight "
    "shared_experts.up_proj.weight mlp.experts.gate_up_proj",
    "down": "mlp.down_proj.weight shared_experts.down_proj.weight mlp.experts.down_proj",
}
ROUTED = {"mlp_in": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"}
SHARED = {
    "mlp_in": "shared_expert.gate_proj shared_expert.up_proj mlp.experts.gate_up_proj",
    "down": "shared_expert.down_proj mlp.experts.down_proj",
}
QWEN_HYBRID = {
    "out": "self_attn.o_proj linear_attn.out_proj",
    "linear_in": "linear_attn.in_proj_qkv linear_attn.in_proj_z",
}
LINEAR_THEN_FULL = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]

USUAL_NAMES = (
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text smollm3 olmo2 olmo3 granite cohere cohere2 stablelm "
    "exaone4 helium seed_oss"
)
FAMILIES: dict[str, Family] = {
    **{name: Family(USUAL) for name in USUAL_NAMES.split()},
    "gemma4_text": Family({**USUAL, "head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 64}),
    "phi3": Family(USUAL, **fused("self_attn.qkv_proj"), mlp_in="mlp.gate_up_proj"),
    "glm4": Family(USUAL, mlp_in="mlp.gate_up_proj"),
    "phi": Family(WITHOUT_KV, out="self_attn.dense", mlp_in="mlp.fc1", down="mlp.fc2"),
    "starcoder2": Family(USUAL, mlp_in="mlp.c_fc", down="mlp.c_proj"),
    "gpt2": Family(GPT, out="attn.c_proj", **fused("attn.c_attn"), mlp_in="mlp.c_fc", down="mlp.c_proj"),
    "gpt_bigcode": Family(
        GPT, out="attn.c_proj", **fused("attn.c_attn"), mlp_in="mlp.c_fc", down="mlp.c_proj"
    ),
    "gpt_neo": Family(
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        out="attention.out_proj",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        mlp_in="mlp.c_fc",
        down="mlp.c_proj",
    ),
    "gptj": Family(
        {**GPT, "rotary_dim": 8},
        out="attn.out_proj",
        query="attn.q_proj",
        key="attn.k_proj",
        value="attn.v_proj",
        mlp_in="mlp.fc_in",
        down="mlp.fc_out",
    ),
    **{
        name: Family(
            {**WITHOUT_KV, "n_head": 4, "n_layer": 3} if name == "bloom" else WITHOUT_KV,
            out=f"{parent}.dense",
            **fused(f"{parent}.query_key_value"),
            mlp_in="mlp.dense_h_to_4h",
            down="mlp.dense_4h_to_h",
        )
        for name, parent in (
            ("gpt_neox", "attention"),
            ("falcon", "self_attention"),
            ("bloom", "self_attention"),
        )
    },
    "opt": Family(
        {**WITHOUT_KV, "ffn_dim": 48, "word_embed_proj_dim": 16},
        out="self_attn.out_proj",
        mlp_in="fc1",
        down="fc2",
    ),
    "mpt": Family(
        {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": 64},
        out="attn.out_proj",
        **fused("attn.Wqkv"),
        mlp_in="ffn.up_proj",
        down="ffn.down_proj",
    ),
    "t5": Family(
        T5,
        out="Attention.o",
        query="Attention.q",
        key="Attention.k",
        value="Attention.v",
        mlp_in="DenseReluDense.wi",
        down="DenseReluDense.wo",
        auto=AutoModelForSeq2SeqLM,
    ),
    "mt5": Family(
        T5,
        out="Attention.o",
        query="Attention.q",
        key="Attention.k",
        value="Attention.v",
        mlp_in="DenseReluDense.wi_0 DenseReluDense.wi_1",
        down="DenseReluDense.wo",
        auto=AutoModelForSeq2SeqLM,
    ),
    "bert": Family(WITHOUT_KV, **BERT, auto=AutoModelForMaskedLM),
    "roberta": Family(WITHOUT_KV, **BERT, auto=AutoModelForMaskedLM),
    "distilbert": Family(
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 64},
        out="attention.out_lin",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        mlp_in="ffn.lin1",
        down="ffn.lin2",
        auto=AutoModelForMaskedLM,
    ),
    "mixtral": Family({**USUAL, "num_local_experts": 4}, **ROUTED),
    "gpt_oss": Family({**USUAL, "num_local_experts": 4, "head_dim": 8}, **ROUTED),
    "qwen3_moe": Family({**USUAL, **EXPERTS, "num_experts": 8}, **ROUTED),
    "olmoe": Family({**USUAL, "num_experts": 8}, **ROUTED),
    "phimoe": Family({**USUAL, "num_local_experts": 4}, **ROUTED),
    "granitemoe": Family(
        {**USUAL, "num_local_experts": 4},
        mlp_in="block_sparse_moe.experts.gate_up_proj",
        down="block_sparse_moe.experts.down_proj",
    ),
    "qwen2_moe": Family(
        {**USUAL, **EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 16}, **SHARED
    ),
    "qwen3_5_moe_text": Family(
        {
            **HYBRID,
            **EXPERTS,
            "num_experts": 8,
            "shared_expert_intermediate_size": 16,
            "layer_types": LINEAR_THEN_FULL,
        },
        **QWEN_HYBRID,
        **SHARED,
    ),
    "qwen3_5_text": Family({**HYBRID, "layer_types": LINEAR_THEN_FULL}, **QWEN_HYBRID),
    "qwen3_next": Family(
        {
            **HYBRID,
            **EXPERTS,
            "num_experts": 8,
            "shared_expert_intermediate_size": 16,
            "layer_types": LINEAR_THEN_FULL,
        },
        out="self_attn.o_proj linear_attn.out_proj",
        linear_in="linear_attn.in_proj_qkvz",
        mlp_in="shared_expert.gate_proj.weight shared_expert.up_proj.weight mlp.experts.gate_up_proj",
        down="shared_expert.down_proj.weight mlp.experts.down_proj",
    ),
    "deepseek_v3": Family(
        {**WITHOUT_KV, **EXPERTS, **COMPRESSED, "n_routed_experts": 8, "first_k_dense_replace": 1},
        query="self_attn.q_a_proj self_attn.q_b_proj",
        key="self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj",
        value="self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj",
        **DEEPSEEK,
    ),
    "glm4_moe": Family(
        {
            **USUAL,
            **EXPERTS,
            "n_routed_experts": 8,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        **DEEPSEEK,
    ),
    "llama4_text": Family(
        {
            **HYBRID,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 48,
            "head_dim": 8,
        },
        mlp_in="feed_forward.gate_proj feed_forward.up_proj shared_expert.gate_proj shared_expert.up_proj "
        "feed_forward.experts.gate_up_proj",
        down="feed_forward.down_proj shared_expert.down_proj feed_forward.experts.down_proj",
    ),
    "lfm2": Family(
        {**HYBRID, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
        out="self_attn.out_proj",
        mlp_in="feed_forward.w1 feed_forward.w3",
        down="feed_forward.w2",
    ),
    "nemotron_h": Family(
        {
            **USUAL,
            "layers_block_type": ["mamba", "mlp", "attention", "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
        },
        out="mixer.o_proj",
        query="mixer.q_proj",
        key="mixer.k_proj",
        value="mixer.v_proj",
        mlp_in="mixer.up_proj",
        down="mixer.down_proj",
    ),
    "granitemoehybrid": Family(
        {
            **HYBRID,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
        },
        mlp_in="shared_mlp.input_linear",
        down="shared_mlp.output_linear",
    ),
    "gemma3": Family(
        {"text_config": {**USUAL, "head_dim": 8}, "vision_config": VISION, "mm_tokens_per_image": 4},
        excluded="vision_tower",
    ),
    "llava": Family(
        {
            "text_config": {"model_type": "llama", **USUAL},
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
        },
        excluded="vision_tower",
    ),
    "qwen2_5_vl": Family(
        {
            "text_config": USUAL,
            "vision_config": {
                "hidden_size": 32,
                "depth": 2,
                "num_heads": 4,
                "intermediate_size": 48,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            },
        },
        excluded="visual",
    ),
}
