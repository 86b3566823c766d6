"""A tiny base, its data and specs, made once per session; every test trains for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.engine_server import forked_engines, unforked_engines  # noqa: F401 - fixtures
from tests.tiny_model import build_tiny_model, colour_rows, tiny_base, tiny_target, write_canonical
from workers.contract.events import Event, Metrics
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import BaseSpec, DataSpec, TrainSpec
from workers.engine.base_models.model import load_base
from workers.engine.training import artifacts
from workers.engine.training.packed import attention
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]
Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Recorder(list[Event]):
    """A reporter that keeps every event."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]

    def series(self, name: str, arm: int = 0) -> list[float]:
        """The values of one metric in the order of its steps."""
        found = [event for event in self.of(Metrics) if event.arm == arm and name in event.values]
        return [event.values[name] for event in found]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def base(tiny_folder: Path) -> BaseSpec:
    return tiny_base(tiny_folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    """Rows that no test changes: they are tokenized once for all trainings."""
    return write_canonical(tmp_path_factory.mktemp("colours") / "data", colour_rows())


@pytest.fixture
def make_spec(base: BaseSpec, data: DataSpec) -> MakeSpec:
    """A small TrainSpec; keywords change the spec's fields or its hyperparameters."""
    return spec_maker(base, data)


def spec_maker(base: BaseSpec, data: DataSpec) -> MakeSpec:
    """Return the function of `make_spec`, for fixtures of a whole file."""

    def make(**changes: Any) -> TrainSpec:
        fields = ("name", "base", "data", "target", "validation_steps", "validation_rows", "dtype")
        fields += ("validation_data",)
        outer = {name: changes.pop(name) for name in fields if name in changes}
        learn = {"r": 4, "learning_rate": 1e-2, "max_steps": 6, "per_device_train_batch_size": 4} | changes
        if "num_train_epochs" in learn:
            learn.pop("max_steps")
        defaults: dict[str, Any] = {
            "name": "tiny",
            "base": base,
            "data": data,
            "target": tiny_target(int(learn["r"])),
            "dtype": "float32",
        }
        return TrainSpec(**(defaults | outer), hyperparameters=Hyperparameters(**learn))

    return make


@pytest.fixture
def record() -> Recorder:
    return Recorder()


@contextmanager
def without_fused_layers(model: torch.nn.Module) -> Iterator[None]:
    """Let each layer use its own forward for a while; linear layers keep what `load_base` gives them all."""
    layers = [layer for layer in model.modules() if type(layer) is not torch.nn.Linear]
    replaced = [(layer, vars(layer).pop("forward")) for layer in layers if "forward" in vars(layer)]
    yield
    for layer, forward in replaced:
        layer.forward = forward


@pytest.fixture
def train_and_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainSpec], Logits]:
    """Train a spec in `tmp_path`; return the logits of its base model, of the trained model, and of the saved
    adapter as PEFT loads it.
    """
    models: list[torch.nn.Module] = []
    real = artifacts.save_adapter

    def keep(model: torch.nn.Module, *arguments: Any) -> Any:
        models.append(model)
        return real(model, *arguments)

    monkeypatch.setattr(artifacts, "save_adapter", keep)

    def run(spec: TrainSpec) -> Logits:
        learn = spec.hyperparameters
        train([spec], tmp_path, report=Recorder())
        ids = torch.arange(3, 43).reshape(2, 20)
        dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
        plain = load_base(spec.base, dtype, torch.device("cpu"), in_4bit=learn.load_in_4bit)
        with torch.no_grad():
            base = plain(input_ids=ids).logits
            reloaded = PeftModel.from_pretrained(
                plain, tmp_path / "arm-0/adapter", autocast_adapter_dtype=learn.autocast_adapter_dtype
            ).eval()
            trained: Any = models[-1]
            with attention(trained.config, plain.config._attn_implementation), without_fused_layers(trained):
                return base, trained(input_ids=ids).logits, reloaded(input_ids=ids).logits

    return run
