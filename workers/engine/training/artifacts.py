"""Writes a trained adapter: a folder that PEFT loads as it is, complete or absent.

Files are written under a temporary name, synced, and renamed once. They contain the base model's public name
and no path of this machine. Knows nothing of publishing, of `eval.json` or of the zip's checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from workers.contract.errors import Diverged, RunError, disk_error
from workers.contract.events import Artifact, finite
from workers.contract.loading_code import loading_code
from workers.contract.specs import DataSpec, TrainSpec, to_dict
from workers.engine import runtime
from workers.engine.base_models.model import TOKENIZER_FILES, storage_description
from workers.engine.training import lora

WEIGHTS = "adapter_model.safetensors"


def save_adapter(
    model: Any, tokenizer: Any, spec: TrainSpec, out_dir: Path, index: int, summary: dict[str, Any]
) -> Artifact:
    """Save arm `index` under `out_dir/arm-<index>/adapter` and return each file's SHA-256.

    Raises DiskFull if the retry fails too, and RunError for an adapter that must not be published.
    """
    final = out_dir / f"arm-{index}" / "adapter"
    temporary, name = final.with_name(".saving"), lora.arm_name(index)
    for is_retry in (False, True):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            # Not the adapter's card: without any, PEFT would compile its template of one for 0.1 s.
            (temporary / "README.md").write_text("---\nlibrary_name: peft\n---\n", encoding="utf-8")
            model.save_pretrained(str(temporary), selected_adapters=[name], save_embedding_layers=False)
            _complete_folder(temporary / name, tokenizer, spec, summary)
            check_saved(temporary / name, model, name)
            shutil.rmtree(final, ignore_errors=True)
            (temporary / name).rename(final)
            sync(final.parent)
            break
        except (OSError, SafetensorError) as error:
            if is_retry:
                raise disk_error(error) or error from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    files = {path.name: file_sha256(path) for path in sorted(final.iterdir())}
    return Artifact(index, final.relative_to(out_dir).as_posix(), files)


def _complete_folder(folder: Path, tokenizer: Any, spec: TrainSpec, summary: dict[str, Any]) -> None:
    """Add tokenizer, model card and run record to the saved weights, and flush all to the disk."""
    _normalize_config(folder / "adapter_config.json")
    _save_tokenizer(tokenizer, spec, folder)
    (folder / "README.md").write_text(model_card(spec, summary), encoding="utf-8")
    (folder / "run.json").write_text(to_json(run_record(spec, summary)), encoding="utf-8")
    for path in sorted(folder.iterdir()):
        path.chmod(0o640)  # safetensors writes 0600, but the web process may run as another user of the group
        sync(path)
    folder.chmod(0o750)
    sync(folder)


def check_saved(folder: Path, model: Any, name: str) -> None:
    """Read the saved adapter back: the model's tensors, all finite, with the r of the config.

    Raises RunError, or Diverged for weights that are not finite.
    """
    from peft.utils.save_and_load import get_peft_model_state_dict
    from safetensors.torch import load_file

    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    saved = load_file(folder / WEIGHTS)
    if {key: value.shape for key, value in saved.items()} != {
        key: value.shape for key, value in expected.items()
    }:
        raise RunError("The saved adapter holds other tensors than the model has.", code="publish_failed")
    if not all(bool(value.isfinite().all()) for value in saved.values()):
        raise Diverged(
            "The adapter's weights are not finite, so it is not published. "
            "Use a lower `learning_rate`, for example a third of this one."
        )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = {config["r"], *config["rank_pattern"].values()}
    sizes = {value.shape[0] for key, value in saved.items() if ".lora_A." in key}
    # If all experts of a layer share one tensor, it has r rows for each of them.
    if not all(any(size % rank == 0 for rank in ranks) for size in sizes):
        raise RunError("The saved adapter has another r than its config says.", code="publish_failed")


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(values: dict[str, Any]) -> str:
    """Return the text of a file: sorted, and NaN as null."""
    return json.dumps(finite(values), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _normalize_config(path: Path) -> None:
    """Sort the lists that PEFT writes in random order, so that equal runs write equal files."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "target_parameters", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(to_json(config), encoding="utf-8")


def _save_tokenizer(tokenizer: Any, spec: TrainSpec, folder: Path) -> None:
    """Save the tokenizer as used in training, without the folder that it was loaded from."""
    tokenizer.save_pretrained(str(folder))
    for path in list(folder.iterdir()):
        if path.name not in TOKENIZER_FILES and not path.name.startswith("adapter_"):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    config = folder / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    for key in ("name_or_path", "auto_map", "is_local", "local_files_only"):
        values.pop(key, None)
    if values.get("tokenizer_class") == "TokenizersBackend":
        # The same class under the name that Transformers 4 knows too.
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(to_json(values), encoding="utf-8")


def run_record(spec: TrainSpec, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the origin of an adapter: spec, versions and result, without folders of this machine."""
    settings = to_dict(spec)
    for part in ("base", "data", "validation_data"):
        if settings[part]:
            settings[part].pop("path")
    return {"format": 1, "spec": settings, "versions": runtime.versions(), "result": summary}


def model_card(spec: TrainSpec, summary: dict[str, Any]) -> str:
    """Return README.md: the hub's metadata block, origin, loading code, settings and results."""
    from huggingface_hub.repocard_data import ModelCardData

    data = ModelCardData(
        base_model=spec.base.name,
        library_name="peft",
        license=spec.base.license or None,
        pipeline_tag="text-generation",
        tags=["lora", f"base_model:adapter:{spec.base.name}"],
        base_model_relation="adapter",
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_card_text(spec, summary)}"


def _card_text(spec: TrainSpec, summary: dict[str, Any]) -> str:
    trained_on = _data_name(spec.data)
    title = " ".join(spec.name.split())
    in_4bit = spec.hyperparameters.load_in_4bit
    code = loading_code(spec.base.name, spec.base.revision, "path/to/this/folder", in_4bit=in_4bit)
    return f"""# {title}

A LoRA adapter for `{spec.base.name}`, trained with Graftworks on {trained_on} \
(content SHA-256 `{spec.data.sha256}`). Only the adapter's {summary["trainable_parameters"]:,} parameters \
were trained; the base model is unchanged and is not part of this folder.

## Load it

```python
{code}```

## Settings

{_table(_settings(spec, summary))}

## Results

{_table(_results(summary))}

Losses are mean cross-entropy in nats over the learned tokens: answers only, or all tokens of plain text. \
`run.json` holds every setting, the versions of the libraries and the costs.
"""


def _data_name(data: DataSpec) -> str:
    return f"{data.name or 'dataset'}, version {data.version}"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _settings(spec: TrainSpec, summary: dict[str, Any]) -> list[tuple[str, str]]:
    learn = spec.hyperparameters
    modules = ", ".join(
        f"`{name}`" for name in sorted((*spec.target.target_modules, *spec.target.target_parameters))
    )
    return [
        ("target modules", f"{modules} ({spec.target.modules} in all)"),
        ("r / lora_alpha / lora_dropout", f"{learn.r} / {learn.lora_alpha} / {learn.lora_dropout:g}"),
        (
            "learning rate",
            f"{learn.learning_rate:g}, {learn.lr_scheduler_type}, warm-up {learn.warmup_ratio:.0%}",
        ),
        ("steps", f"{learn.max_steps or summary['steps']}"),
        ("rows per step", f"{learn.rows_per_step}"),
        ("max_length", f"{learn.max_length} tokens"),
        ("seed", f"{learn.seed}"),
        *([("validation rows of", _data_name(spec.validation_data))] if spec.validation_data else []),
        ("base model stored", storage_description(summary["dtype"], in_4bit=learn.load_in_4bit)),
    ]


def _results(summary: dict[str, Any]) -> list[tuple[str, str]]:
    summary = finite(summary)
    rows = []
    if summary["published_step"] != summary["steps"]:
        rows.append(("weights of", f"step {summary['published_step']} of {summary['steps']} trained"))
    if summary["train_loss"] is not None:
        rows.append(("training loss, last step", f"{summary['train_loss']:.4f}"))
    if summary["validation_loss"] is not None:
        last = "last step" if summary["published_step"] == summary["steps"] else "of these weights"
        rows.append((f"validation loss, {last}", f"{summary['validation_loss']:.4f}"))
    if summary["best_validation_loss"] is not None:
        best = f"{summary['best_validation_loss']:.4f} (step {summary['best_validation_step']})"
        rows.append(("validation loss, best", best))
    rows.append(("tokens read", f"{summary['tokens']:,}"))
    rows.append(("training time", f"{summary['seconds']:.0f} s on {summary['device']}"))
    return rows
