"""A merged model answers as its base model does with the adapter, in every format."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from gguf import GGUFReader, dequantize
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.conftest import Recorder
from tests.tiny_model import build_tiny_model, tiny_base
from workers.contract.errors import DiskFull, ModelError, OutOfMemory, SpecError, Stopped
from workers.contract.events import Progress, Result, never_stop
from workers.contract.specs import EXPORT_FORMATS, ExportSpec
from workers.engine.exporting.export import check_room, export
from workers.forecasting.export_cost import FILE_BYTES, forecast_export

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 43)[None]
Make = Callable[..., ExportSpec]


def make_spec(tmp_path: Path, format: str = "float32", **options: Any) -> ExportSpec:
    """Return the spec of a random adapter on a tiny model of `model_type`."""
    sizes = {
        name: options.pop(name) for name in ("model_type", "head_dim", "rope_parameters") if name in options
    }
    base = build_tiny_model(tmp_path / "base", **sizes)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR} | options
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    return ExportSpec(
        base=tiny_base(base), adapter=str(tmp_path / "adapter"), name="Triage-v1", format=format
    )


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ExportSpec:
    """A random adapter on a tiny Llama, which no test changes."""
    return make_spec(tmp_path_factory.mktemp("spec"))


def run(spec: ExportSpec, out_dir: Path, record: Recorder) -> Path:
    out_dir.mkdir(exist_ok=True)
    export(spec, out_dir, report=record, should_stop=never_stop, disk_reserve=0)
    (path,) = (out_dir / "export").iterdir()
    facts = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    assert record.of(Result)[-1].values == {"files": {path.name: facts}}
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def expected(spec: ExportSpec) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(spec.base.path, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(base, spec.adapter))


def unpack(path: Path, target: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(target)
    return target / path.stem


@pytest.mark.parametrize(
    "options", [{"use_rslora": True, "r": 8}, {"use_dora": True, "target_modules": ["o_proj"]}]
)
def test_the_merged_folder_has_the_logits_of_base_and_adapter(
    tmp_path: Path, record: Recorder, options: dict[str, Any]
) -> None:
    spec = make_spec(tmp_path, **options)
    folder = unpack(run(spec, tmp_path / "out", record), tmp_path)
    base = AutoModelForCausalLM.from_pretrained(spec.base.path, dtype=torch.float32)
    assert (logits(base) - expected(spec)).abs().max() > 0.5
    merged = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (merged - expected(spec)).abs().max() < 1e-4


def test_the_folder_is_complete_and_names_no_place(
    spec: ExportSpec, tmp_path: Path, record: Recorder
) -> None:
    spec = dataclasses.replace(spec, format="bfloat16")
    folder = unpack(run(spec, tmp_path / "out", record), tmp_path)
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    others = {path.name: path for path in folder.iterdir() if path.name != "SHA256SUMS"}
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in others.items()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} < set(others)
    assert all(str(tmp_path) not in path.read_text(errors="ignore") for path in others.values())
    assert {tensor.dtype for tensor in load_file(others["model.safetensors"]).values()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_equal_exports_have_equal_bytes(spec: ExportSpec, tmp_path: Path, record: Recorder) -> None:
    for format in ("float32", "gguf-q8_0"):
        one = dataclasses.replace(spec, format=format)
        first, second = (run(one, tmp_path / f"{format}{number}", record) for number in range(2))
        assert first.read_bytes() == second.read_bytes()


def test_an_export_of_a_bfloat16_base_rounds_once(tmp_path: Path, record: Recorder) -> None:
    spec = make_spec(tmp_path)
    folder = Path(spec.base.path)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(folder)
    merged = AutoModelForCausalLM.from_pretrained(unpack(run(spec, tmp_path / "out", record), tmp_path))
    assert merged.dtype == torch.float32
    assert (logits(merged) - expected(spec)).abs().max() < 1e-4


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_gguf_holds_the_merged_weights(tmp_path: Path, record: Recorder, model_type: str) -> None:
    sizes = {"head_dim": 8} if model_type == "qwen3" else {}
    spec = make_spec(tmp_path, "gguf-f16", model_type=model_type, **sizes)
    reader = GGUFReader(run(spec, tmp_path / "out", record))
    base = AutoModelForCausalLM.from_pretrained(spec.base.path, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, spec.adapter).merge_and_unload()
    found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    own = merged.state_dict()
    assert len(found) == len(own) - 1, "the tied head is stored once"
    down = own["model.layers.1.mlp.down_proj.weight"].numpy()
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], down, rtol=1e-3, atol=1e-4)
    query = own["model.layers.0.self_attn.q_proj.weight"].numpy()
    if model_type == "llama":
        # Head 0: its dimension 1 stands in the middle of Transformers' halves and second in GGUF's pairs.
        np.testing.assert_allclose(found["blk.0.attn_q.weight"][1], query[4], rtol=1e-3, atol=1e-4)
    else:
        np.testing.assert_allclose(found["blk.0.attn_q.weight"], query, rtol=1e-3, atol=1e-4)


def test_q8_0_is_near_the_merged_weights_and_half_as_large(
    spec: ExportSpec, tmp_path: Path, record: Recorder
) -> None:
    spec = dataclasses.replace(spec, format="gguf-q8_0")
    path = run(spec, tmp_path / "out", record)
    fine = run(dataclasses.replace(spec, format="gguf-f16"), tmp_path / "fine", record)
    found, exact = ({tensor.name: tensor for tensor in GGUFReader(one).tensors} for one in (path, fine))
    for name, tensor in found.items():
        values = dequantize(tensor.data, tensor.tensor_type)
        wanted = dequantize(exact[name].data, exact[name].tensor_type)
        assert np.abs(values - wanted).max() <= np.abs(wanted).max() / 127
    assert found["blk.0.ffn_up.weight"].n_bytes * 32 == found["blk.0.ffn_up.weight"].n_elements * 34


def test_llama_3_positions_are_written_as_factors(tmp_path: Path, record: Recorder) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    spec = make_spec(tmp_path, "gguf-f16", rope_parameters=rope)
    reader = GGUFReader(run(spec, tmp_path / "out", record))
    (factors,) = (tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    assert factors[0] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(8.0)


def test_the_forecast_is_the_size_of_the_file(spec: ExportSpec, tmp_path: Path, record: Recorder) -> None:
    parameters = sum(
        tensor.numel() for tensor in load_file(Path(spec.base.path) / "model.safetensors").values()
    )
    text = sum(path.stat().st_size for path in Path(spec.adapter).glob("tokenizer*"))
    for format in EXPORT_FORMATS:
        path = run(dataclasses.replace(spec, format=format), tmp_path / format, record)
        forecast = forecast_export(
            format, parameters, stored_dtype="float32", changed=0, tokenizer_bytes=text
        )
        # Names and sizes of tensors are no small part of so small a model.
        assert forecast.file_bytes == pytest.approx(path.stat().st_size, abs=20_000), format
    assert set(FILE_BYTES) == set(EXPORT_FORMATS)


def test_other_models_and_tokenizers_are_refused_for_gguf(tmp_path: Path, record: Recorder) -> None:
    gpt2 = make_spec(tmp_path / "gpt2", "gguf-f16", model_type="gpt2", target_modules=["c_attn"])
    with pytest.raises(ModelError, match="type gpt2"):
        run(gpt2, tmp_path / "out", record)
    spec = make_spec(tmp_path, "gguf-f16")
    tokenizer = Path(spec.adapter) / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"ByteLevel"', '"Metaspace"', 1))
    with pytest.raises(ModelError, match="tokenizer"):
        run(spec, tmp_path / "out", record)
    assert not (tmp_path / "out" / "export").exists()


def test_a_tied_head_is_not_merged(tmp_path: Path, record: Recorder) -> None:
    spec = make_spec(tmp_path, target_modules=["lm_head"])
    with pytest.raises(ModelError, match="head"):
        run(spec, tmp_path / "out", record)


def test_pickled_adapters_are_refused(tmp_path: Path, record: Recorder) -> None:
    spec = make_spec(tmp_path)
    weights = Path(spec.adapter) / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(ModelError, match="safetensors"):
        run(spec, tmp_path / "out", record)


def test_it_needs_room_before_it_begins(
    spec: ExportSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiskFull, match="disk space"):
        check_room(spec, tmp_path, 10**18)
    little = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(OutOfMemory, match="memory"):
        check_room(spec, tmp_path, 0)


@pytest.mark.parametrize(("format", "phase"), [("float32", "merging"), ("gguf-f16", "writing")])
def test_a_stop_ends_it_between_two_tensors(
    spec: ExportSpec, tmp_path: Path, record: Recorder, phase: str, format: str
) -> None:
    spec = dataclasses.replace(spec, format=format)

    def should_stop() -> str:
        return "cancel" if any(event.phase == phase for event in record.of(Progress)) else ""

    with pytest.raises(Stopped):
        export(spec, tmp_path, report=record, should_stop=should_stop, disk_reserve=0)
    assert record.of(Result) == []


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 201])
def test_names_are_no_paths(spec: ExportSpec, tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError):
        dataclasses.replace(spec, name=name)
