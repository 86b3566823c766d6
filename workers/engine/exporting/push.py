"""Uploads an adapter, or its export, to a repository of the Hugging Face hub with a token of the person.

The token comes beside the spec, is kept in memory alone, and stands in no message. Knows nothing of rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.errors import HTTPError as ConnectionFailed  # type: ignore[attr-defined]

from workers.contract.errors import RunError
from workers.contract.events import KeepAlive, Progress, Report, Result, ShouldStop
from workers.contract.specs import PushSpec
from workers.engine.runtime import stop_if_asked

POLL_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 60.0
REFUSALS = {
    401: "it does not accept the token",
    403: "the token may not write to this repository",
    404: "there is no such owner, or the token does not see it",
}


class HubRefused(RunError):
    """The hub did not take the upload."""

    code = "hub_refused"


def push(
    spec: PushSpec, token: str, out_dir: Path, *, report: Report, should_stop: ShouldStop, disk_reserve: int
) -> None:
    """Create the repository, write the files, upload them, and report address and commit."""
    if not token:
        raise HubRefused("The token of this push is gone, because it had waited for a day. Push again.")
    api = HfApi(token=token)
    # First, because a token that the hub refuses should cost no export.
    with hub_errors(spec.repository):
        open_repository(api, spec)
    folder = Path(spec.adapter)
    if not (folder / "adapter_model.safetensors").is_file():
        raise RunError("The files of this adapter are no longer on this machine.", code="bad_adapter")
    if spec.format != "adapter":
        folder = write_folder(spec, out_dir, report, should_stop, disk_reserve)
    stop_if_asked(should_stop)
    report(Progress("uploading"))
    with hub_errors(spec.repository):
        upload: Future[Any] = api.upload_folder(
            repo_id=spec.repository,
            folder_path=folder,
            commit_message=f"Upload {spec.name} with Graftworks",
            run_as_future=True,
        )
        commit = wait(upload, report, should_stop)
    report(Result({"url": f"{api.endpoint}/{spec.repository}", "commit": str(commit.oid)[:64]}))


def open_repository(api: HfApi, spec: PushSpec) -> None:
    """Create the repository unless it exists; refuse one that is public if it should be private."""
    api.create_repo(spec.repository, private=spec.private, exist_ok=True)
    if spec.private and not api.repo_info(spec.repository).private:
        raise HubRefused(
            f"The repository {spec.repository} exists and is public. Choose another name, or push in public."
        )


def write_folder(
    spec: PushSpec, out_dir: Path, report: Report, should_stop: ShouldStop, disk_reserve: int
) -> Path:
    """Return the folder with the merged model and its card."""
    # An adapter alone is uploaded without torch, which takes seconds to import.
    from workers.engine.exporting import gguf_model, model_folder
    from workers.engine.exporting.export import check, merge, new_folder

    check(spec, out_dir, disk_reserve)
    model = merge(spec, report, should_stop)
    folder = new_folder(out_dir)
    report(Progress("writing"))
    if spec.format.startswith("gguf"):
        gguf_model.write_gguf(model, spec, folder, report, should_stop)
        (folder / "README.md").write_text(model_folder.card(spec), encoding="utf-8")
    else:
        model_folder.write_folder(model, spec, folder)
    return folder


def wait(upload: Future[Any], report: Report, should_stop: ShouldStop) -> Any:
    """Return the upload's result; a large file takes longer than the supervisor waits for a sign of life."""
    told = time.monotonic()
    while not upload.done():
        with contextlib.suppress(NotDone):
            upload.exception(timeout=POLL_SECONDS)
        stop_if_asked(should_stop)
        if time.monotonic() - told >= KEEP_ALIVE_SECONDS:
            report(KeepAlive())
            told = time.monotonic()
    return upload.result()


@contextlib.contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn the hub's refusals and a lost connection into HubRefused."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REFUSALS.get(status, "try again later")
        raise HubRefused(f"The hub answered {status} for {repository}: {reason}.") from None
    except OfflineModeIsEnabled:
        raise HubRefused("This installation is offline (HF_HUB_OFFLINE), so it uploads nothing.") from None
    except (ConnectionFailed, OSError, RuntimeError, ValueError) as error:
        # A failed part of an upload is a RuntimeError, a card that the hub refuses a ValueError.
        raise HubRefused(f"The upload to {repository} failed ({type(error).__name__}). Try again.") from None
