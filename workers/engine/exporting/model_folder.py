"""Writes a merged model as the folder that Transformers loads, in a zip archive with checksums."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from workers.contract.archives import checksums, store
from workers.contract.events import Progress, Report, ShouldStop
from workers.contract.specs import ExportSpec
from workers.engine.base_models.model import TOKENIZER_FILES
from workers.engine.runtime import stop_if_asked
from workers.engine.training.artifacts import file_sha256

# A shard exists twice for a moment: in the folder and in the archive.
SHARD_BYTES = "2GB"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def write_zip(model: Any, spec: ExportSpec, folder: Path, report: Report, should_stop: ShouldStop) -> Path:
    """Write `folder/NAME.zip` and return it. Its one folder is NAME."""
    source = folder / ".model"
    source.mkdir()
    report(Progress("writing"))
    write_folder(model, spec, source)
    stop_if_asked(should_stop)
    target = folder / f"{spec.name}.zip"
    paths = sorted(source.iterdir())
    total, done, sums = sum(path.stat().st_size for path in paths), 0, {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            stop_if_asked(should_stop)
            report(Progress("writing", done, total))
            done += path.stat().st_size
            sums[path.name] = file_sha256(path)
            store(archive, f"{spec.name}/{path.name}", path)
            path.unlink()
        store(archive, f"{spec.name}/SHA256SUMS", checksums(sums))
    shutil.rmtree(source)
    return target


def write_folder(model: Any, spec: ExportSpec, folder: Path) -> None:
    """Write weights, configuration, tokenizer and card. No file names a folder of this machine."""
    model.to(DTYPES[spec.format])
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    config = folder / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # The adapter's folder has the tokenizer as it was used in training.
    for name in TOKENIZER_FILES:
        if (Path(spec.adapter) / name).is_file():
            shutil.copyfile(Path(spec.adapter) / name, folder / name)
    (folder / "README.md").write_text(card(spec), encoding="utf-8")


def card(spec: ExportSpec) -> str:
    """Return the model card: the hub's metadata block, the origin, and how to load it."""
    from huggingface_hub.repocard_data import ModelCardData

    data = ModelCardData(
        base_model=spec.base.name,
        base_model_relation="finetune",
        library_name="transformers",
        license=spec.base.license or None,
        pipeline_tag="text-generation",
        tags=["lora", "merged"],
    )
    return f"""---
{data.to_yaml()}
---

# {spec.name}

`{spec.base.name}` with a LoRA adapter merged into its weights ({spec.format}), trained and written with \
Graftworks.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{spec.name}")
tokenizer = AutoTokenizer.from_pretrained("{spec.name}")
```
"""
