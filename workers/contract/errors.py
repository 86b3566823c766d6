"""Errors that end a job: the user's error, an internal error and a stop, each of its own type.

Every `RunError` carries a stable code and a message for the user (what happened, where, what to do), which
holds nothing confidential. Knows nothing of rows, HTTP or tensors.
"""

from __future__ import annotations

import errno

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_BROKEN_ERRORS = (errno.EIO, errno.EROFS)
# Words that torch and the libraries below it use when memory runs out.
OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "status_alloc_failed",
    "bad_alloc",
)


class SpecError(ValueError):
    """A value in a spec is outside its limits. `field` is its name in PEFT or in the form."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class RunError(Exception):
    """The job cannot succeed as it is configured; the message is for the user."""

    code = "run_failed"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code:
            self.code = code


class DataError(RunError):
    """The rows cannot be used: unreadable, empty, or without a single learnable token."""

    code = "bad_data"


class ColumnsUnclear(DataError):
    """The table's columns fit no known format; the page asks for the mapping."""

    code = "columns_unclear"


class ModelError(RunError):
    """The base model's folder or repository cannot be used."""

    code = "bad_model"


class TargetError(RunError):
    """The target modules match other layers of this model than its census says."""

    code = "target_modules_mismatch"


class Diverged(RunError):
    """Loss or gradient norm stopped being a finite number."""

    code = "diverged"


class OutOfMemory(RunError):
    """The device or the machine had too little memory."""

    code = "out_of_memory"


class DiskFull(RunError):
    """A required file could not be written, even on the second try."""

    code = "disk_full"


def disk_error(error: BaseException) -> DiskFull | None:
    """Return the DiskFull to raise if the disk caused this error, else None."""
    if isinstance(error, DiskFull):
        return error
    if is_full(error):
        return DiskFull("The disk is full, so the result could not be written.")
    if _has_errno(error, DISK_BROKEN_ERRORS):
        return DiskFull("The disk could not be written. Check its health.")
    return None


def is_full(error: BaseException) -> bool:
    """Return whether free space on the disk would have helped."""
    return _has_errno(error, DISK_FULL_ERRORS)


def memory_error(error: BaseException) -> BaseException | None:
    """Return the error in the chain of causes that reports a lack of memory, or None."""
    link: BaseException | None = error
    while link is not None and not _is_memory_error(link):
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return link


def _is_memory_error(error: BaseException) -> bool:
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return (
        any(words in text for words in OUT_OF_MEMORY_TEXTS)
        or isinstance(error, MemoryError)
        or _has_errno(error, (errno.ENOMEM,))
    )


def _has_errno(error: BaseException, numbers: tuple[int, ...]) -> bool:
    # safetensors writes in Rust, whose errors carry the number in their text alone.
    return (isinstance(error, OSError) and error.errno in numbers) or any(
        f"(os error {number})" in str(error) for number in numbers
    )


class CheckpointMismatch(RunError):
    """The checkpoint belongs to other settings, another dataset or another base model."""

    code = "checkpoint_mismatch"


class Stopped(Exception):
    """A stop was requested; no failure. `reason` is one of `events.STOPS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TakenOver(Exception):
    """A later attempt has taken over the training, so this one writes nothing more; no failure."""

    def __init__(self, attempt: int) -> None:
        self.message = f"Attempt {attempt} has taken over the checkpoints of this training, so this one ends."
        super().__init__(self.message)


# The actions that a page offers after a failure.
START, RESUME, REEVALUATE = "start again", "resume", "re-evaluate it"
IMPORT, INSPECT = "import it again", "inspect it again"
ADVICE: dict[str, str] = {
    "bad_data": "Open the dataset's check report, correct the rows it names, and upload the file again.",
    "test_set_changed": "Restore the dataset's folder from a backup, or upload the file as a new version.",
    "columns_unclear": "Choose which column holds the prompt and which the answer, then import again.",
    "bad_model": "Check the model folder or hub id under Settings, Base models.",
    "target_modules_mismatch": "Inspect the base model again, then start the run with a built-in preset.",
    "diverged": "Use a lower learning rate, for example a third of this one, and start again.",
    "out_of_memory": "Use a smaller batch size with more gradient accumulation, or a shorter maximum length.",
    "disk_full": "Free space on the disk that holds the data folder, or repair the disk, then {action}.",
    "checkpoint_mismatch": "Start a new run with the same settings; it begins at step 0.",
    "checkpoint_unreadable": "Repair the disk or the share that holds the data folder, then {action}.",
    "worker_lost": "Check the worker's log. If the machine is healthy, {action}.",
    "publish_failed": "Check the log below, then {action}.",
    "bad_spec": "Change the setting that the message names, then start again.",
    "labels_cut_off": "Raise the maximum length to the value in the message, or shorten the prompts.",
    "max_length_too_long": "Lower the maximum length to what the base model supports.",
    "bad_adapter": "Restore the adapter's folder from a backup, or train the adapter again.",
    "internal_error": "This is an error in Graftworks, not in your data. Report it with the log below.",
}
# Advice that differs with the action.
ADVICE_FOR_ACTION: dict[tuple[str, str], str] = {
    ("checkpoint_mismatch", RESUME): (
        "Start a new run with the same settings; it begins at step 0. To resume this run instead, undo the "
        "change that the message names."
    ),
    ("test_set_changed", REEVALUATE): "Restore the dataset's folder from a backup, then re-evaluate it.",
    ("out_of_memory", REEVALUATE): "Re-evaluate it when the device has more memory free.",
    ("out_of_memory", IMPORT): (
        "Import it again when the worker's machine has more memory free, or upload the rows in smaller files."
    ),
    ("out_of_memory", INSPECT): "Inspect it again when the worker's machine has more memory free.",
    ("bad_adapter", REEVALUATE): (
        "Restore the adapter's folder from a backup, then re-evaluate it. Without a backup, train it again."
    ),
    ("internal_error", REEVALUATE): (
        "This is an error in Graftworks, not in your data. Re-evaluate it. If it fails again, report it."
    ),
}


def advice(code: str, action: str = START) -> str:
    """Return what helps against a failure, or "". `action` is one that the page offers."""
    return ADVICE_FOR_ACTION.get((code, action)) or ADVICE.get(code, "").format(action=action)
