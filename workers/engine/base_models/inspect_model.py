"""Inspects a base model before use: refuses unsafe files, then reads its census, checksum and licence.

Run it as `python -m workers.engine inspect spec.json out/`. No weight is loaded and no code of the repository
runs: pickled weights, Python files and configs that request remote code are refused. Knows nothing of rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, snapshot_download
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

from workers.contract.errors import ModelError, Stopped
from workers.contract.events import Progress, Report, Result, ShouldStop, never_stop, print_event
from workers.contract.specs import InspectSpec
from workers.engine.base_models.folder_checks import (
    check_file_names,
    check_files,
    check_parameter_count,
    check_weights,
    read_license,
)
from workers.engine.base_models.limited_inspection import read_census

WANTED_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "README.md")
HUB_TIMEOUT_SECONDS = 10.0
DOWNLOAD_REPORT_SECONDS = 2.0
_BLOCK_BYTES = 1 << 20


def inspect_base_model(
    spec: InspectSpec, out_dir: Path, *, report: Report = print_event, should_stop: ShouldStop = never_stop
) -> None:
    """Inspect the model and report a Result. Raises ModelError with a message for the user."""
    folder, revision = _download(spec, report) if spec.hub_id else (Path(spec.path), spec.revision)
    check_files(folder, allowed=Path(spec.cache) if spec.cache else folder)
    elements = check_weights(folder)
    license_name = read_license(folder)
    report(Progress("counting"))
    counted = read_census(folder)
    check_parameter_count(counted.parameters, elements)
    values: dict[str, Any] = {
        "census": counted.to_dict(),
        "sha256": weights_sha256(folder, report=report, should_stop=should_stop),
        "revision": revision,
        "path": str(folder),
        "license": license_name,
        "parameters": counted.parameters,
    }
    (out_dir / "census.json").write_text(json.dumps(values, indent=1))
    report(Result(values))


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


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


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
