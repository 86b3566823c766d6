"""Steps of a training, of its continuation and of answers, on a device that exists only in this process.

Tensors have a device, a shape and a number format, but no numbers: an operation that reads tensors of two
devices fails as on a GPU. torch allows for one such device per process, which stays until the process ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.tiny_model import tiny_base, tiny_target
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import DataSpec, TrainSpec
from workers.engine import runtime
from workers.engine.base_models.model import auto_class, read_config
from workers.engine.generation import adapters
from workers.engine.generation.generator import Generator
from workers.engine.generation.requests import GenerationRequest, Sampling
from workers.engine.training import checkpoints, fused, lora, packed
from workers.engine.training.arms import Arm
from workers.engine.training.encoding import Example
from workers.engine.training.loss import make_scorer
from workers.engine.training.validation import validate

LENGTHS = (24, 17, 12)
aten = torch.ops.aten


class Numbers(TorchDispatchMode):
    """Answers 1 or False where a number is read from a tensor that has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default):
            return {torch.bool: False, torch.int64: 1}.get(args[0].dtype, 1.0)
        return True if func is aten.allclose.default else func(*args, **(kwargs or {}))


def move(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replace the tensors of a module, which without numbers torch cannot change in place."""
    for child in module.children() if recurse else ():
        move(child, change)
    for name, weight in module._parameters.items():
        if weight is not None:
            module._parameters[name] = nn.Parameter(change(weight), requires_grad=weight.requires_grad)
    module._buffers.update(
        {name: change(value) for name, value in module._buffers.items() if value is not None}
    )
    return module


def load(folder: Path, dtype: torch.dtype) -> Any:
    """Return the base model on the card."""
    config = read_config(folder)
    model = auto_class(config).from_config(config).to(dtype).to("card")
    model.tie_weights()
    return model.requires_grad_(False).eval()


def train(folder: Path, device: torch.device, dtype: torch.dtype, *, has_prefix: bool) -> None:
    """Compute a step, put its state back as from a checkpoint, compute one more and validate."""
    learn = Hyperparameters(r=4, max_steps=2, lora_dropout=0.1, learning_rate=1e-3)
    spec = TrainSpec(
        name="card", base=tiny_base(folder), data=DataSpec(path="", sha256=""), target=tiny_target(),
        hyperparameters=learn,
    )  # fmt: skip
    base = load(folder, dtype)
    model = lora.attach(base, [spec])
    fused.fuse(model)
    rows = {number: example(number, length, has_prefix=has_prefix) for number, length in enumerate(LENGTHS)}
    arm = Arm(0, spec, rows, range(len(rows)), list(rows.values()), 2)
    arm.create_optimizer(model, device)
    scorer = make_scorer(model, base, [*rows.values()][:2], device)
    assert scorer.is_packed
    assert scorer.collate([*rows.values()], device).packing.prefix == (8 if has_prefix else 0)
    lora.set_dropout(list(model.modules()), True)
    for step in (1, 2):
        for batch in scorer.batches(arm.step_examples(step), device):
            scorer.training_loss(batch, 9)[0].backward()
        float(torch.nn.utils.clip_grad_norm_(arm.parameters, 1.0))
        arm.optimizer.step()
        arm.optimizer.zero_grad()
        arm.step = step
        if step == 1:
            put_back(arm, folder)
    validation = validate(scorer, arm.validation_batches(), device, lambda: "", lambda: None)
    arm.record_validation(arm.step, validation)
    with arm.with_best_weights():
        pass


def put_back(arm: Arm, folder: Path) -> None:
    """Put the arm's state back as from a checkpoint, whose tensors are read into main memory."""
    tensors = checkpoints._tensors(arm).items()
    saved = {name: torch.empty_like(value, device="cpu") for name, value in tensors}
    checkpoints.load_file = lambda _path: saved
    checkpoints._restore_tensors(arm, folder, with_random=True)
    states = [value for state in arm.optimizer.state.values() for value in state.values()]
    assert states
    assert {value.device for value in states} == {arm.parameters[0].device}


def example(number: int, length: int, *, has_prefix: bool) -> Example:
    """Return a row whose last three tokens are an answer."""
    ids = np.arange(3, 3 + length, dtype=np.int32) + (0 if has_prefix else 40 * number)
    ids[10:] += number
    mask = np.arange(length) >= length - 3
    return Example(ids=ids, loss_mask=mask, row=number)


def answer(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Answer prompts to the base model and to two adapters, drawn and not."""
    generator = Generator(load(folder, dtype), device, max_rows=4, max_tokens=1024)
    assert generator.is_batched
    for name in ("one", "two"):
        generator.load_adapter(name, folder)
    for key, adapter in enumerate((None, "one", "two", "one")):
        sampling = Sampling(4, temperature=0.7 * (key % 2), top_p=0.9)
        prompt = np.arange(3, 33 - 3 * key, dtype=np.int32)
        generator.submit(GenerationRequest(key, prompt, adapter, sampling))
    steps = 0
    while not generator.is_idle:
        generator.step()
        steps += 1
    assert steps >= 4


def tensor(make: Callable[..., Any], values: Any, device: Any = None, **options: Any) -> Tensor:
    """Make a tensor on the card by way of the CPU."""
    return make(values, **options).to(device or "cpu")


def attend(query: Tensor, *states: Any, attn_mask: Any, enable_gqa: bool, **options: Any) -> Tensor:
    """Attend; only so can a card compute fewer key heads without a matrix of all pairs of tokens."""
    assert not enable_gqa or (attn_mask is None and query.dtype == torch.bfloat16)
    options |= {"attn_mask": attn_mask, "enable_gqa": enable_gqa}
    return nn.functional.scaled_dot_product_attention(query, *states, **options)


def attach(self: adapters.Adapters, own_name: str, _folder: Path) -> None:
    """Attach a new adapter, because a file has numbers."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["o_proj"])
    self._peft = lora.attach_adapter(self._peft or self.base, config, own_name).eval()


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    _setup_privateuseone_for_python_backend("card")
    device = torch.device("card", 0)
    runtime.random_state = lambda _device: torch.get_rng_state()
    nn.Module._apply = move
    packed.scaled_dot_product_attention = attend
    adapters.Adapters._attach = attach
    adapters.check_adapter = adapters.check_bias = lambda _folder: None
    torch.tensor = partial(tensor, torch.tensor)
    fused._is_equal = lambda *_: True
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.may_turn_const = lambda _tensor: False  # else single numbers are kept, and computed with
    with mode, Numbers():
        for dtype in (torch.float32, torch.bfloat16):
            for has_prefix in (True, False):
                train(folder, device, dtype, has_prefix=has_prefix)
            answer(folder, device, dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
