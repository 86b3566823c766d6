"""Hashes of what must not change between the attempts of a run: only that run continues its checkpoints.

Folders may change, and so may the split of a step's rows into micro-batches: after an attempt that ran out of
memory the next one uses smaller batches.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workers.contract.specs import TrainSpec, to_dict

if TYPE_CHECKING:
    from workers.engine.training.arms import Arm

WEIGHT_SAMPLES = 256  # values of each tensor of the base model
DIFFERENCES = {"settings": "other settings", "dataset": "another dataset", "base": "another base model"}


def origin(specs: Sequence[TrainSpec], arms: Sequence[Arm], base: Any) -> dict[str, str]:
    """Return SHA-256 digests of the run's settings, dataset and base model.

    `dataset` covers the tokens that the arms draw, and `base` a sample of every weight, so that files changed
    in place are detected too.
    """
    first = specs[0]
    settings = [to_dict(spec) for spec in specs]
    for spec, values in zip(specs, settings, strict=True):
        values.pop("base")
        values.pop("data")
        values.pop("validation_data")
        learn = values["hyperparameters"]
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"):
            learn.pop(name, None)
        learn["rows_per_step"] = spec.hyperparameters.rows_per_step
    data = hashlib.sha256(first.data.sha256.encode())
    for arm in arms:
        for place in sorted(arm.examples):
            data.update(place.to_bytes(8, "little"))
            data.update(arm.examples[place].ids.tobytes() + arm.examples[place].loss_mask.tobytes())
        for example in arm.validation_examples:
            data.update(example.ids.tobytes() + example.loss_mask.tobytes())
    weights = hashlib.sha256(json.dumps([first.base.name, first.base.revision, first.base.sha256]).encode())
    for path, weight in base.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, math.ceil(len(flat) / WEIGHT_SAMPLES))].float().cpu()
        weights.update(path.encode() + sample.numpy().tobytes())
    return {
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "dataset": data.hexdigest(),
        "base": weights.hexdigest(),
    }


def differences(run: Mapping[str, str], checkpoint: Mapping[str, str]) -> list[str]:
    """Return in words what differs between a run and a checkpoint."""
    return [DIFFERENCES[name] for name, digest in run.items() if checkpoint.get(name) != digest]
