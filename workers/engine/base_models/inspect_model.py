"""Inspects a base model before use: refuses unsafe files, then reads its census, checksum and licence.

Run it as `python -m workers.engine inspect spec.json out/`. No weight is loaded and no code of the repository
runs: pickled weights, Python files and configs that request remote code are refused. Knows nothing of rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, metadata_load, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as ConnectionFailed  # type: ignore[attr-defined]
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from yaml import YAMLError

from workers.contract.errors import ModelError, Stopped
from workers.contract.events import Progress, Report, Result, ShouldStop, never_stop, print_event
from workers.contract.specs import InspectSpec
from workers.engine.base_models import census
from workers.engine.base_models.model import read_config

WANTED_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "README.md")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
MAX_CONFIG_BYTES = 1_000_000
MAX_TEMPLATE_BYTES = 64_000
HUB_TIMEOUT_SECONDS = 10.0
DOWNLOAD_REPORT_SECONDS = 2.0
_BLOCK_BYTES = 1 << 20


def inspect_base_model(
    spec: InspectSpec, out_dir: Path, *, report: Report = print_event, should_stop: ShouldStop = never_stop
) -> None:
    """Inspect the model and report a Result. Raises ModelError with a message for the user."""
    folder, revision = _download(spec, report) if spec.hub_id else (Path(spec.path), spec.revision)
    check_files(folder, allowed=Path(spec.cache) if spec.cache else folder)
    check_weights(folder)
    config = read_config(folder)
    tokenizer = _read_tokenizer(folder)
    report(Progress("counting"))
    counted = census.count(config, has_chat_template=bool(tokenizer.chat_template))
    values: dict[str, Any] = {
        "census": counted.to_dict(),
        "sha256": weights_sha256(folder, report=report, should_stop=should_stop),
        "revision": revision,
        "path": str(folder),
        "license": read_license(folder),
        "parameters": counted.parameters,
    }
    (out_dir / "census.json").write_text(json.dumps(values, indent=1))
    report(Result(values))


def check_files(folder: Path, *, allowed: Path) -> None:
    """Raise ModelError for unsafe files. Links must stay inside `allowed`."""
    if not folder.is_dir():
        raise ModelError(
            f"There is no model folder named {folder.name}. Put it into the models folder, then add it."
        )
    root = allowed.resolve()
    names = []
    for path in sorted(folder.rglob("*")):
        if not path.resolve().is_relative_to(root):
            raise ModelError(
                f"{path.name} is a link that leads out of the model's folder. Replace it with the file."
            )
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    check_file_names(names)
    _check_config(folder / "config.json")
    if (folder / "tokenizer_config.json").exists():
        _check_config(folder / "tokenizer_config.json")
    for template in folder.glob("*.jinja"):
        if template.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ModelError(f"The chat template {template.name} is larger than 64 kB. Choose another model.")


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
        found = f"only {pickled[0]}" if pickled else "no weights at all"
        raise ModelError(
            f"This model has {found}. Graftworks reads only safetensors files, because other formats can "
            "run code when they are opened. Convert the model to safetensors first."
        )


def check_weights(folder: Path) -> None:
    """Raise ModelError for weight files whose header does not match their content."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path.name} is damaged or incomplete. Copy the model again.") from error


def weights_sha256(folder: Path, *, report: Report, should_stop: ShouldStop) -> str:
    """Return the SHA-256 over the sorted lines `name SHA-256` of the weight files."""
    files = sorted(folder.glob("*.safetensors"))
    total = sum(path.stat().st_size for path in files)
    done = 0
    lines = []
    for path in files:
        digest = hashlib.sha256()
        for block in _blocks(path):
            digest.update(block)
            done += len(block)
            if should_stop():
                raise Stopped(should_stop())
        report(Progress("hashing", done, total))
        lines.append(f"{path.name} {digest.hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_license(folder: Path) -> str:
    """Return the licence in the model card, or ""."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    try:
        values = metadata_load(card) or {}
    except (ValueError, YAMLError):
        return ""
    stated = values.get("license_name") or values.get("license") or ""
    return str(stated[0] if isinstance(stated, list) and stated else stated)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _check_config(path: Path) -> None:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path.name} is larger than the limit of 1 MB. Check the folder.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON. Copy the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path.name} contains no settings. Copy the model again.")
    for key in ("auto_map", "trust_remote_code"):
        if key in values:
            raise ModelError(
                f"{path.name} requests remote code (`{key}`), which Graftworks never runs. Choose a model "
                "whose type Transformers supports."
            )


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = re.sub(re.escape(str(folder)), folder.name, str(error)).strip().partition("\n")[0][:300]
        raise ModelError(f"The model's tokenizer cannot be loaded: {reason}") from error


def _download(spec: InspectSpec, report: Report) -> tuple[Path, str]:
    """Download one commit of a hub repository into the cache; its file names are checked first."""
    try:
        info = HfApi().model_info(
            spec.hub_id, revision=spec.revision or None, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True
        )
        commit = str(info.sha)
        check_file_names([item.rfilename for item in info.siblings or []])
        cached = Path(spec.cache) / repo_folder_name(repo_id=spec.hub_id, repo_type="model")
        with report_download(cached, _download_bytes(info), report):
            folder = snapshot_download(
                spec.hub_id, revision=commit, cache_dir=spec.cache, allow_patterns=list(WANTED_FILES)
            )
    except GatedRepoError as error:
        raise ModelError(f"{spec.hub_id} is gated. Accept its licence on the hub, then try again.") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{spec.hub_id} has no revision {spec.revision}. Check the spelling.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"The hub has no public model named {spec.hub_id}. Check the spelling.") from error
    except HfHubHTTPError as error:
        raise ModelError(f"The hub refused the download of {spec.hub_id}. Try again later.") from error
    except (ConnectionFailed, LocalEntryNotFoundError, ConnectionError) as error:
        raise ModelError(
            f"The hub cannot be reached from this machine, so {spec.hub_id} cannot be downloaded. Put the "
            "model's folder under DATA_DIR/models, or connect this machine to the internet."
        ) from error
    return Path(folder), commit


@contextlib.contextmanager
def report_download(folder: Path, total: int, report: Report) -> Iterator[None]:
    """Report the bytes below `folder` while it grows, so that a long download does not look stalled."""
    is_finished = threading.Event()

    def watch() -> None:
        reported = -1
        while True:
            size = min(_downloaded_bytes(folder), total)
            if size != reported:
                reported = size
                report(Progress("downloading", size, total))
            if is_finished.wait(DOWNLOAD_REPORT_SECONDS):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_finished.set()
        watcher.join()


def _downloaded_bytes(folder: Path) -> int:
    """Return the bytes of all files below `folder`. Links point to files that are counted already."""
    total = 0
    for path in folder.rglob("*"):
        # A complete file is renamed while this loop runs.
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
    return total


def _download_bytes(info: ModelInfo) -> int:
    return sum(item.size or 0 for item in info.siblings or [] if Path(item.rfilename).match("*.safetensors"))
