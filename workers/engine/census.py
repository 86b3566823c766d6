"""Counts a base model's layers on the meta device: no weights, no remote code, well under a second.

Roles come from names, as every family spells them its own way; PEFT then attaches each preset to the same
empty model, and what it really touched must equal what `workers.presets` promised. Knows no rows and no files
but `config.json`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import peft
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workers.errors import ModelError
from workers.presets import PRESETS, Census, Group, resolve

logger = logging.getLogger(__name__)

# First match wins; each pattern is searched at the end of the name, numbers left out. Attention stands before
# MLP because `c_proj` and `dense` mean either, by their parent alone.
_ATTENTION = (
    r"(attn|attention|self_attention|self_attn|crossattention|encoder_attn|SelfAttention|EncDecAttention)"
)
ROLE_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"(linear_attn|linear_attention)\.(in_proj_qkvz?|in_proj_z)", "linattn_in"),
    (r"(linear_attn|linear_attention)\.out_proj", "linattn_out"),
    (r"(in_proj_ba|in_proj_a|in_proj_b|shared_expert_gate)", "gate_other"),
    (r"(mamba|mixer|ssm|conv|short_conv)\.(in_proj|out_proj|x_proj|dt_proj)", "other"),
    (r"(q_proj|q_a_proj|q_b_proj|q_lin|query|wq)", "attn_q"),
    (r"(k_proj|k_lin|key|wk)", "attn_k"),
    (r"(v_proj|v_lin|value|wv)", "attn_v"),
    (r"(qkv_proj|c_attn|query_key_value|Wqkv)", "attn_qkv"),
    (r"(kv_a_proj_with_mqa|kv_b_proj)", "attn_kv"),
    (_ATTENTION + r"\.q", "attn_q"),
    (_ATTENTION + r"\.k", "attn_k"),
    (_ATTENTION + r"\.v", "attn_v"),
    (r"o_proj|" + _ATTENTION + r"\.(output\.dense|out_proj|c_proj|dense|out_lin|o)", "attn_out"),
    (r"(block_sparse_moe|mlp|moe|feed_forward)\.(gate|router|router\.layer)", "router"),
    (r"gate_up_proj|shared_mlp\.input_linear", "mlp_gate_up"),
    (r"gate_proj|(feed_forward|mlp)\.w1|wi_0", "mlp_gate"),
    (r"up_proj|fc1|c_fc|fc_in|dense_h_to_4h|lin1|wi|wi_1|(feed_forward|mlp)\.w3", "mlp_up"),
    (
        r"down_proj|fc2|fc_out|dense_4h_to_h|lin2|wo|(feed_forward|mlp)\.w2|mlp\.c_proj"
        r"|shared_mlp\.output_linear",
        "mlp_down",
    ),
)
SCOPE_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(vision\w*|visual|image\w*|audio\w*)\.", "vision"),
    (r"(^|\.)(multi_modal_projector|projector|connector)(\.|$)", "projector"),
    (r"\.shared_experts?\.", "shared_expert"),
    (r"\.experts\.", "routed_expert"),
    (r"\.(encoder_attn|crossattention|EncDecAttention)\.", "cross"),
    (r"(^|\.)encoder\.", "encoder"),
)


def read_config(folder: Path) -> PreTrainedConfig:
    """The folder's `config.json`, for a model type that this version of transformers knows itself."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"config.json cannot be used: {_first_line(error)}") from error
    return config


def count(config: PreTrainedConfig, *, has_chat_template: bool) -> Census:
    """Groups of layers with their roles, and for each preset whether PEFT attaches what was promised."""
    model = _on_meta(config)
    text = config.get_text_config()
    census = Census(
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        # Models with relative positions have no such limit: 0 says so.
        max_positions=getattr(text, "max_position_embeddings", None) or 0,
        vocab_size=text.vocab_size,
        groups=tuple(groups(model)),
        tied_embeddings=bool(text.tie_word_embeddings),
        has_chat_template=has_chat_template,
        versions={
            "peft": peft.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    )
    census.refused.update(_refused(census, config))
    return census


def groups(model: PreTrainedModel) -> list[Group]:
    """Layers of one name, kind and shape counted together, in the model's own order."""
    found: dict[tuple[str, str, int, int, int, bool], list[int]] = {}
    for name, kind, d_in, d_out, experts, bias in _layers(model):
        pattern, layer = _pattern(name)
        found.setdefault((pattern, kind, d_in, d_out, experts, bias), []).append(layer)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head_name = next((name for name, module in model.named_modules() if module is head), "")
    return [
        Group(
            pattern=pattern,
            role="head" if pattern == head_name else _role(pattern, kind),
            scope=_scope(pattern, kind),
            kind=kind,
            layers=tuple(layers) if "*" in pattern else (),
            d_in=d_in,
            d_out=d_out,
            experts=experts,
            bias=bias,
        )
        for (pattern, kind, d_in, d_out, experts, bias), layers in found.items()
    ]


def _on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        message = f"A model of type {config.model_type} cannot be built as a causal language model"
        raise ModelError(f"{message}: {_first_line(error)}") from error
    return model


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, str, int, int, int, bool]]:
    """(name, kind, d_in, d_out, experts, bias) of everything that PEFT could match by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, "linear", module.in_features, module.out_features, 1, module.bias is not None
        elif isinstance(module, Conv1D):
            # [d_in, d_out]: transformers' Conv1D stores the transpose of a Linear.
            yield name, "conv1d", module.weight.shape[0], module.weight.shape[1], 1, True
        elif isinstance(module, nn.Embedding):
            yield name, "embedding", module.num_embeddings, module.embedding_dim, 1, False
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield name, "conv", module.in_channels, module.out_channels, 1, module.bias is not None
    for name, parameter in model.named_parameters():
        # Routed experts are one [experts, ., .] tensor per layer, no modules.
        if parameter.dim() == 3 and ".experts." in name:
            yield name, "expert", parameter.shape[1], parameter.shape[2], parameter.shape[0], False


def _pattern(name: str) -> tuple[str, int]:
    """The name with `*` for its first number, which is the layer; -1 without one."""
    segments = name.split(".")
    position = next((i for i, segment in enumerate(segments) if segment.isdigit()), -1)
    if position < 0:
        return name, -1
    return ".".join([*segments[:position], "*", *segments[position + 1 :]]), int(segments[position])


def _role(pattern: str, kind: str) -> str:
    if kind in ("embedding", "conv"):
        return kind
    if kind == "expert":
        return "expert_down" if "down" in pattern else "expert_gate_up"
    name = ".".join(segment for segment in pattern.split(".") if segment != "*" and not segment.isdigit())
    for expression, role in ROLE_PATTERNS:
        if re.search(rf"(^|\.)({expression})$", name):
            return role
    return "other"


def _scope(pattern: str, kind: str) -> str:
    if kind == "expert":
        return "routed_expert"
    for expression, scope in SCOPE_PATTERNS:
        if re.search(expression, pattern):
            return scope
    return "decoder" if "*" in pattern else "other"


def _refused(census: Census, config: PreTrainedConfig) -> dict[str, str]:
    """Attach every preset that resolves; what PEFT touched otherwise than promised is refused by name."""
    refused = {}
    for preset in PRESETS.values():
        resolution = resolve(preset.roles, census)
        if resolution.refusal:
            continue
        promised = sorted(name for group in resolution.matched for name in group.names())
        problem = _attach_problem(config, list(resolution.target_modules), promised)
        if problem:
            refused[" ".join(resolution.target_modules)] = problem
    return refused


def _attach_problem(config: PreTrainedConfig, target_modules: list[str], promised: list[str]) -> str:
    lora = peft.LoraConfig(r=1, target_modules=target_modules, task_type="CAUSAL_LM", bias="none")
    try:
        attached = peft.get_peft_model(_on_meta(config), lora).targeted_module_names
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        return f"PEFT cannot attach an adapter to these layers: {_first_line(error)}"
    if sorted(attached) != promised:
        logger.warning("promised %s, attached %s", promised, sorted(attached))
        return f"PEFT attaches to {len(attached)} layers here where {len(promised)} were meant."
    return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
