"""The identity of a base model's scores, by which they are kept and computed once. Standard library only."""

from __future__ import annotations

import hashlib
import json

from workers.contract.specs import EvalSpec

# Raise it when the engine's prompts, scores, general text or general questions change.
SCORING_VERSION = 1
# Scores that every evaluation has, whatever its metric.
ALWAYS_SCORED = ("", "loss", "exact_match", "contains", "token_f1", "rouge_l", "chrf")


def base_scores_key(spec: EvalSpec, split_rows: int) -> str:
    """Return the SHA-256 of all that decides the base model's scores, but for the number format.

    `split_rows`: rows of the split; a limit above it draws the same rows as none.
    """
    drawn = [spec.max_rows, spec.seed] if spec.max_rows < split_rows else []
    metric = "" if spec.metric in ALWAYS_SCORED else spec.metric
    identity = [
        SCORING_VERSION,
        [spec.base.name, spec.base.revision, spec.base.sha256, spec.load_in_4bit],
        [spec.data.sha256, spec.split, drawn],
        [spec.max_length, spec.max_new_tokens],
        [metric, spec.pattern],
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def number_format(dtype: str, device: str) -> str:
    """Return the number format and device of a computation; scores of another one are not paired with it."""
    return f"{dtype} on {device}"
