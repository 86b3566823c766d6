"""Counts a base model's layers on the meta device: no weights, no remote code, well under a second.

Roles come from names, as every family spells them its own way; PEFT then attaches each preset to the same
empty model, and the modules it adapts must equal those that `workers.target_modules.presets` expects.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import peft
import torch
import transformers
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import (  # type: ignore[attr-defined]
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_TARGET_MODULE_MAPPING,
)
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.pytorch_utils import Conv1D

from workers.engine.base_models.model import build
from workers.engine.training.lora import attach_adapter
from workers.target_modules.census import Census, Group
from workers.target_modules.presets import PRESETS, resolve
from workers.target_modules.resolution import Resolution

logger = logging.getLogger(__name__)

# First match wins; each pattern is searched at the end of the name, numbers left out. Parts that steer come
# first, then attention before MLP, because `c_proj` and `dense` mean either, by their parent alone.
_ATTENTION = (
    r"(attn|attention|self_attention|self_attn|cross_attn|crossattention|encoder_attn|SelfAttention"
    r"|EncDecAttention|multi_head_attention|mixer|temporal_block)"
)
_LINEAR_ATTENTION = r"(linear_attn|linear_attention|mlstm_layer)"
_RECURRENT = r"(mamba|mixer|ssm|conv|short_conv)\.(in_proj|out_proj|x_proj|dt_proj)"
ROLE_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"(indexer|compressor|router_mlp|\w*layernorm\.mlp|visual_projection)\.[\w.]+", "other"),
    (
        r"(router|router\.(gate|layer|classifier))|(block_sparse_moe|mlp|moe|feed_forward|mixer)\.gate",
        "router",
    ),
    (r"mlp\.gate\.\w+", "router"),
    (_ATTENTION + r"\.(gate_proj|q_gate_proj|output_gate|[gb]_proj|g_[ab]_proj)", "gate_other"),
    (r"shared_expert_gate|in_proj_ba|in_proj_a|in_proj_b|forget_gate\.\w+", "gate_other"),
    (_LINEAR_ATTENTION + r"\.([abg]_proj|\w+_preact)", "gate_other"),
    (_LINEAR_ATTENTION + r"\.(in_proj_qkvz?|in_proj_z|[qkv]_proj|[qkv])", "linattn_in"),
    (_LINEAR_ATTENTION + r"\.(out_proj|o_proj)", "linattn_out"),
    (_RECURRENT, "other"),
    (r"self_attention\.experts\.input_linear", "attn_q"),
    (r"self_attention\.experts\.output_linear", "attn_out"),
    (r"feed_forward\.key", "mlp_up"),
    (r"feed_forward\.value", "mlp_down"),
    (r"(q_proj|q_a_proj|q_b_proj|q_lin|query|query_proj|project_q|[wW]q)", "attn_q"),
    (r"(k_proj|k_lin|key|key_proj|project_k|[wW]k)", "attn_k"),
    (r"(v_proj|v_proj_current|v_proj_delayed|v_lin|value|value_proj|project_v|[wW]v)", "attn_v"),
    (r"(qkv_proj|c_attn|query_key_value|Wqkv)", "attn_qkv"),
    (r"kv_a_proj_with_mqa|kv_b_proj|" + _ATTENTION + r"\.kv_proj", "attn_kv"),
    (_ATTENTION + r"\.q", "attn_q"),
    (_ATTENTION + r"\.k", "attn_k"),
    (_ATTENTION + r"\.v", "attn_v"),
    (
        r"o_proj|o_a_proj|o_b_proj|out_lin|attention_out|"
        + _ATTENTION
        + r"\.(output\.dense|output|out_proj|c_proj|dense|o|Wo)",
        "attn_out",
    ),
    (r"gate_up_proj|shared_mlp\.input_linear|mlp\.Wi", "mlp_gate_up"),
    (r"gate_proj|(feed_forward|mlp)\.w1|wi_0|w_in\.w_0|proj_up_gate", "mlp_gate"),
    (
        r"up_proj|fc1|c_fc|fc_in|dense_h_to_4h|lin1|wi|wi_1|(feed_forward|mlp)\.w3|intermediate\.dense"
        r"|w_in\.w_1|proj_up|feed_forward\.intermediate",
        "mlp_up",
    ),
    (
        r"down_proj|fc2|fc_out|dense_4h_to_h|lin2|wo|(feed_forward|mlp)\.w2|mlp\.c_proj|mlp\.Wo"
        r"|shared_mlp\.output_linear|output\.dense|ffn\.w_out|proj_down|feed_forward\.output",
        "mlp_down",
    ),
)
SCOPE_PATTERNS: tuple[tuple[str, str], ...] = (
    (
        r"(^|\.)(multi_modal_projector|projector|connector|aligner|visual_projection|embed_(vision|audio))(\.|$)",
        "projector",
    ),
    (r"(^|\.)(vision\w*|visual|image\w*|audio\w*|speech\w*)(\.|$)", "vision"),
    (r"(^|\.)(patcher|cls|pooler|lm_head)(\.|$)", "other"),
    (r"\.shared_experts?\.", "shared_expert"),
    (r"\.experts\.", "routed_expert"),
    (r"\.(encoder_attn|crossattention|cross_attn|EncDecAttention)\.", "cross"),
    (r"(^|\.)encoder\.", "encoder"),
)


def count(config: PreTrainedConfig, *, has_chat_template: bool) -> Census:
    """Return groups of layers with their roles, and for each preset whether PEFT attaches as promised."""
    census = listed(build(config), has_chat_template=has_chat_template)
    census.refused.update(_refused(census, config))
    return census


def listed(model: PreTrainedModel, *, has_chat_template: bool = False) -> Census:
    """Count one model's layers without PEFT."""
    text = model.config.get_text_config()
    return Census(
        model_type=model.config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        # Not every type states all of these, and models with relative positions have no limit: 0 says so.
        hidden_size=getattr(text, "hidden_size", None) or 0,
        num_layers=getattr(text, "num_hidden_layers", None) or 0,
        max_positions=getattr(text, "max_position_embeddings", None) or 0,
        vocab_size=getattr(text, "vocab_size", None) or 0,
        groups=tuple(groups(model)),
        tied_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        has_chat_template=has_chat_template,
        versions={
            "peft": peft.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        rewrites=rewrites(model.config.model_type),
    )


def rewrites(model_type: str) -> dict[str, str]:
    """Return the names of experts that PEFT turns into other ones on this type of model, old to new."""
    if get_checkpoint_conversion_mapping(model_type) is None:  # type: ignore[no-untyped-call]
        return {}
    kin = _MODEL_TO_CONVERSION_PATTERN.get(model_type, "")
    return dict(_MOE_TARGET_MODULE_MAPPING.get(kin, {}))


def groups(model: PreTrainedModel) -> list[Group]:
    """Return the layers of one name, kind and shape counted together, in the model's own order."""
    layers_by_kind: dict[tuple[str, str, int, int, int, bool], list[int]] = {}
    for name, kind, d_in, d_out, experts, bias in _layers(model):
        pattern, layer = _pattern(name)
        layers_by_kind.setdefault((pattern, kind, d_in, d_out, experts, bias), []).append(layer)
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
        for (pattern, kind, d_in, d_out, experts, bias), layers in layers_by_kind.items()
    ]


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, str, int, int, int, bool]]:
    """Yield (name, kind, d_in, d_out, experts, bias) of everything that PEFT could match by name."""
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
        else:
            yield from _tensors(name, module)


def _tensors(owner: str, module: nn.Module) -> Iterator[tuple[str, str, int, int, int, bool]]:
    """Yield tensors outside of modules: routed experts are one [experts, ., .] each, routers a matrix."""
    for name, tensor in module.named_parameters(recurse=False):
        full = f"{owner}.{name}"
        if tensor.dim() == 3 and "Experts" in type(module).__name__:
            # PEFT reads [experts, d_out, d_in], unless the module says that it keeps them transposed.
            count, first, second = tensor.shape
            d_in, d_out = (first, second) if getattr(module, "is_transposed", False) else (second, first)
            yield full, "expert", d_in, d_out, count, False
        elif tensor.dim() == 2 and name == "weight" and _role(full, "parameter") == "router":
            yield full, "parameter", tensor.shape[1], tensor.shape[0], 1, False


def _pattern(name: str) -> tuple[str, int]:
    """Return the name with `*` for its first number, which is the layer; -1 without one."""
    segments = name.split(".")
    position = next((i for i, segment in enumerate(segments) if segment.isdigit()), -1)
    if position < 0:
        return name, -1
    return ".".join([*segments[:position], "*", *segments[position + 1 :]]), int(segments[position])


def _role(pattern: str, kind: str) -> str:
    if kind in ("embedding", "conv"):
        return kind
    name = ".".join(segment for segment in pattern.split(".") if segment != "*" and not segment.isdigit())
    name = name.removesuffix(".weight").removesuffix(".linear")
    if kind == "expert" and not name.startswith("self_attention.") and ".self_attention." not in name:
        return "expert_down" if re.search(r"\.(down_proj|output_linear|w2)$", name) else "expert_gate_up"
    for expression, role in ROLE_PATTERNS:
        if re.search(rf"(^|\.)({expression})$", name):
            return role
    return "other"


def _scope(pattern: str, kind: str) -> str:
    for expression, scope in SCOPE_PATTERNS:
        if re.search(expression, pattern):
            return scope
    if kind == "expert":
        return "routed_expert"
    return "decoder" if "*" in pattern else "other"


def _refused(census: Census, config: PreTrainedConfig) -> dict[str, str]:
    """Attach every preset that resolves; what PEFT touched otherwise than promised is refused by name."""
    refused = {}
    for preset in PRESETS.values():
        resolution = resolve(preset.roles, census)
        problem = "" if resolution.refusal else attach_problem(build(config), resolution)
        if problem:
            refused[resolution.key] = problem
    return refused


def attach_problem(model: PreTrainedModel, resolution: Resolution, r: int = 64) -> str:
    """Return how PEFT deviates from the resolution, or "". Attaches the adapter to the empty model."""
    arguments = resolution.arguments(r, 2 * r)
    try:
        with torch.device("meta"):
            attached = attach_adapter(
                model, LoraConfig(r=r, lora_alpha=2 * r, bias="none", **arguments.to_dict())
            )
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        return f"PEFT cannot attach an adapter to these layers: {_first_line(error)}"
    adapted = [*attached.targeted_module_names, *attached.targeted_parameter_names]
    promised = resolution.names()
    if sorted(adapted) != sorted(promised):
        logger.warning("promised %s, attached %s", sorted(promised), sorted(adapted))
        return f"PEFT attaches to {len(adapted)} layers here where {len(promised)} were meant."
    trainable = sum(item.numel() for item in attached.parameters() if item.requires_grad)
    if trainable != resolution.params(r):
        return f"PEFT makes {trainable:,} parameters here where {resolution.params(r):,} were counted."
    return ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
