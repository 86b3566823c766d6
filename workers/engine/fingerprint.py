"""Hashes of what must not change between attempts: a checkpoint is continued by its own run alone.

Where things lie on this machine may change, and so may how a step's rows are split into micro-batches: after
running out of memory they become smaller.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workers.hyperparameters import Hyperparameters
from workers.specs import TrainSpec, to_dict

if TYPE_CHECKING:
    from workers.engine.arms import Arm

DEFAULTS = Hyperparameters()
WEIGHT_SAMPLES = 256
OTHER = {"settings": "other settings", "dataset": "another dataset", "base": "another base model"}


def origin(specs: Sequence[TrainSpec], arms: Sequence[Arm], base: Any) -> dict[str, str]:
    """`dataset` covers the tokens that the arms draw, `base` a sample of every weight, so that a dataset or a
    model changed in place is noticed too.
    """
    first = specs[0]
    settings = [to_dict(spec) for spec in specs]
    for spec, values in zip(specs, settings, strict=True):
        values.pop("base")
        values.pop("data")
        learn = values["hyperparameters"]
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"):
            learn.pop(name, None)
        # Options that came later: left at their defaults, they change nothing of an earlier checkpoint.
        for name in ("use_dora", "loraplus_lr_ratio", "autocast_adapter_dtype", "load_in_4bit"):
            if learn[name] == getattr(DEFAULTS, name):
                del learn[name]
        learn["rows_per_step"] = spec.hyperparameters.rows_per_step
    data = hashlib.sha256(first.data.sha256.encode())
    for arm in arms:
        for place in sorted(arm.examples):
            data.update(place.to_bytes(8, "little"))
            data.update(arm.examples[place].ids.tobytes() + arm.examples[place].learn.tobytes())
        for example in arm.validation_examples:
            data.update(example.ids.tobytes() + example.learn.tobytes())
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


def changes(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """What differs between two runs, in words."""
    return [OTHER[name] for name, digest in mine.items() if theirs.get(name) != digest]
