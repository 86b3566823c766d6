"""Refuses unsafe model folders before anything in them is read: file kinds, names, sizes and headers.

No weight is loaded. Knows nothing of Transformers or of downloads.
"""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from workers.contract.errors import ModelError
from workers.engine.base_models.config_limits import check_config, largest_layer_count, read_checked_json

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
MAX_FILES = 10_000
MAX_TEMPLATE_BYTES = 64_000
MAX_TOKENIZER_CONFIG_BYTES = 10_000_000
# All files but the weights: the largest vocabularies take some 40 MB.
MAX_OTHER_BYTES = 100_000_000
MAX_HEADER_BYTES = 20_000_000
MAX_FRONT_MATTER_BYTES = 64_000
# Four-bit weights are stored eight to a number; with room for scales and for parts that are shared.
MAX_PARAMETERS_PER_ELEMENT = 16


def check_files(folder: Path, *, allowed: Path) -> None:
    """Raise ModelError for unsafe files. Links must stay inside `allowed`."""
    if not folder.is_dir():
        raise ModelError(
            f"There is no model folder named {folder.name}. Put it into the models folder, then add it."
        )
    root = allowed.resolve()
    names: list[str] = []
    for path in folder.rglob("*"):
        if len(names) >= MAX_FILES:
            raise ModelError(f"The model's folder holds more than {MAX_FILES:,} files. Check the folder.")
        if _check_file(path, root):
            names.append(path.relative_to(folder).as_posix())
    check_file_names(sorted(names))
    check_config(read_checked_json(folder / "config.json"))
    if (folder / "tokenizer_config.json").exists():
        read_checked_json(folder / "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES)
    for index in folder.glob("*.safetensors.index.json"):
        _check_index(index)


def _check_file(path: Path, root: Path) -> bool:
    """Return whether this is a file; raise ModelError for one that must not be opened."""
    try:
        mode, target = path.stat(), path.resolve()
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path.name} is a broken link. Replace it with the file.") from error
    if not target.is_relative_to(root):
        raise ModelError(
            f"{path.name} is a link that leads out of the model's folder. Replace it with the file."
        )
    if stat.S_ISDIR(mode.st_mode):
        return False
    if not stat.S_ISREG(mode.st_mode):
        raise ModelError(f"{path.name} is a pipe or a device, not a file. Remove it from the model's folder.")
    if path.suffix == ".jinja" and mode.st_size > MAX_TEMPLATE_BYTES:
        raise ModelError(f"The chat template {path.name} is larger than 64 kB. Choose another model.")
    if path.suffix in (".json", ".txt", ".model", ".md") and mode.st_size > MAX_OTHER_BYTES:
        raise ModelError(f"{path.name} is larger than the limit of 100 MB. Check the folder.")
    return True


def check_file_names(names: list[str]) -> None:
    """Check the rules on file names, so that a repository is refused before it is downloaded."""
    code = [name for name in names if name.endswith(".py")]
    if code:
        raise ModelError(
            f"This model contains program code ({code[0]}), which Graftworks never runs. Choose a model "
            "whose type Transformers supports."
        )
    if "config.json" not in names:
        raise ModelError("The model has no config.json. Add the missing file.")
    if not any(name.endswith(".safetensors") for name in names):
        pickled = [name for name in names if name.endswith(PICKLED)]
        contents = f"only {pickled[0]}" if pickled else "no weights at all"
        raise ModelError(
            f"This model has {contents}. Graftworks reads only safetensors files, because other formats can "
            "run code when they are opened. Convert the model to safetensors first."
        )


def _check_index(path: Path) -> None:
    """Raise ModelError if an index names weights that do not lie beside it."""
    parts = read_checked_json(path, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(parts, dict):
        raise ModelError(f"{path.name} lists no weights. Copy the model again.")
    for name in set(map(str, parts.values())):
        is_plain = Path(name).name == name and name.endswith(".safetensors")
        if not is_plain or not (path.parent / name).is_file():
            raise ModelError(
                f"{path.name} names {name[:100]}, which is not a weight file of this folder. Copy the "
                "model again."
            )


def check_weights(folder: Path) -> int:
    """Return the number of elements in all weight files.

    Raises ModelError for a header that does not match its file, and for more layers than there are tensors.
    """
    tensors = elements = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise ModelError(f"{path.name} is damaged or incomplete. Copy the model again.")
        try:
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118 - it is no dictionary
                    tensors += 1
                    elements += math.prod(weights.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path.name} is damaged or incomplete. Copy the model again.") from error
    layers = largest_layer_count(json.loads((folder / "config.json").read_bytes()))
    if layers > tensors:
        raise ModelError(
            f"config.json states {layers:,} layers, but the weight files hold {tensors:,} tensors. Copy the "
            "model again."
        )
    return elements


def check_parameter_count(parameters: int, elements: int) -> None:
    """Raise ModelError if the config describes a model that the weight files cannot hold."""
    if parameters > MAX_PARAMETERS_PER_ELEMENT * elements:
        raise ModelError(
            f"config.json describes {parameters:,} parameters, but the weight files hold {elements:,}. "
            "Copy the model again."
        )


class _TextLoader(yaml.BaseLoader):
    """A loader of text, lists and objects alone: numbers and dates of any length end in errors of every kind.

    A few lines of aliases unfold to gigabytes, so there are none.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ModelError(
                "The front matter of README.md contains YAML aliases, which are not read. Remove them."
            )
        return super().compose_node(parent, index)


def read_license(folder: Path) -> str:
    """Return the licence in the front matter of the model card, or ""."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open("rb") as file:
        start = file.read(MAX_FRONT_MATTER_BYTES).decode(errors="replace")
    if not re.match(r"---\s*\n", start):
        return ""
    _, front_matter, *rest = re.split(r"^---[ \t]*\r?$", start, maxsplit=2, flags=re.MULTILINE)
    if not rest:
        if card.stat().st_size <= MAX_FRONT_MATTER_BYTES:
            return ""
        raise ModelError("The front matter of README.md is larger than 64 kB. Shorten it.")
    try:
        values = yaml.load(front_matter, Loader=_TextLoader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    if not isinstance(values, dict):
        return ""
    stated = values.get("license_name") or values.get("license") or ""
    return str(stated[0] if isinstance(stated, list) and stated else stated)[:200]
