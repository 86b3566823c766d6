"""The ends of a job that are no success: the user's error, our bug, and a stop, each of its own type.

Every `RunError` carries a stable code and a sentence for the user (what happened, where, what to do), which
holds nothing confidential. Knows nothing of rows, HTTP or tensors.
"""

from __future__ import annotations

import errno

# Full, over the quota, or beyond the size that one file may have; then: the device itself failed.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN = (errno.EIO, errno.EROFS)
# How torch and the libraries below it word a lack of memory.
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "status_alloc_failed",
    "bad_alloc",
)


class SpecError(ValueError):
    """A value in a spec is outside its limits. `field` is PEFT's or the form's own name of it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class RunError(Exception):
    """The job cannot succeed as it was configured; the message is for the user."""

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
    """The table's columns fit no known shape; the page asks for the mapping."""

    code = "columns_unclear"


class ModelError(RunError):
    """The base model's folder or repository cannot be used."""

    code = "bad_model"


class TargetError(RunError):
    """The target modules do not match this model as promised."""

    code = "target_modules_mismatch"


class Diverged(RunError):
    """Loss or gradient norm stopped being a finite number."""

    code = "diverged"


class OutOfMemory(RunError):
    """The device or the machine had too little memory."""

    code = "out_of_memory"


class DiskFull(RunError):
    """A required file could not be written, although it was tried twice."""

    code = "disk_full"


def disk_error(error: BaseException) -> DiskFull | None:
    """Return the DiskFull to raise if the disk caused this error, else None."""
    if isinstance(error, DiskFull):
        return error
    if is_full(error):
        return DiskFull("The disk is full, so the result could not be written.")
    if _is_one_of(error, BROKEN):
        return DiskFull("The disk could not be written. Check its health.")
    return None


def is_full(error: BaseException) -> bool:
    """Return whether free space on the disk would have helped."""
    return _is_one_of(error, FULL)


def lack_of_memory(error: BaseException) -> BaseException | None:
    """Return the lack of memory in the chain of an error, or None."""
    link: BaseException | None = error
    while link is not None and not _says_no_memory(link):
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return link


def _says_no_memory(error: BaseException) -> bool:
    told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
    return told or isinstance(error, MemoryError) or _is_one_of(error, (errno.ENOMEM,))


def _is_one_of(error: BaseException, numbers: tuple[int, ...]) -> bool:
    # safetensors writes in Rust, whose errors carry the number in their text alone.
    told = any(f"(os error {number})" in str(error) for number in numbers)
    return told or (isinstance(error, OSError) and error.errno in numbers)


class CheckpointMismatch(RunError):
    """The checkpoint belongs to other settings, another dataset or another base model."""

    code = "checkpoint_mismatch"


class Stopped(Exception):
    """A stop was requested; no failure. `reason` is one of `events.STOPS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TakenOver(Exception):
    """A later attempt works on the same training, so this one writes nothing more; no failure."""

    def __init__(self, attempt: int) -> None:
        self.message = f"Attempt {attempt} has taken over the checkpoints of this training, so this one ends."
        super().__init__(self.message)


# The ways on that a page offers.
START, RESUME, SCORE = "start again", "resume", "re-evaluate it"
IMPORT, INSPECT = "import it again", "inspect it again"
ADVICE: dict[str, str] = {
    "bad_data": "Open the dataset's check report, correct the rows it names, and upload the file again.",
    "test_set_changed": "Restore the dataset's folder from a backup, or upload the file as a new version.",
    "columns_unclear": "Choose which column holds the prompt and which the answer, then import again.",
    "bad_model": "Check the model folder or hub id under Settings, Base models.",
    "target_modules_mismatch": "Inspect the base model again, then start the run with a built-in preset.",
    "diverged": "Use a lower learning rate, for example a third of this one, and start again.",
    "out_of_memory": "Use a smaller batch with more accumulation, or a shorter maximum length.",
    "disk_full": "Free space on the disk that holds the data folder, or repair that disk, then {then}.",
    "checkpoint_mismatch": "Start a new run with the same settings; it begins at step 0.",
    "checkpoint_unreadable": "Repair the disk or the share that holds the data folder, then {then}.",
    "worker_lost": "Check the worker's log. If the machine is healthy, {then}.",
    "publish_failed": "Check the log below, then {then}.",
    "bad_spec": "Change the setting that the message names, then start again.",
    "labels_cut_off": "Raise the maximum length to the value in the message, or shorten the prompts.",
    "max_length_too_long": "Lower the maximum length to what the base model supports.",
    "bad_adapter": "Restore the adapter's folder from a backup, or train the adapter again.",
    "internal_error": "This is an error in Graftworks, not in your data. Report it with the log below.",
}
# Other advice where the page offers another way on.
ADVICE_TO: dict[tuple[str, str], str] = {
    ("checkpoint_mismatch", RESUME): (
        "Start a new run with the same settings; it begins at step 0. You can resume this one only after "
        "the change that the message names is undone."
    ),
    ("test_set_changed", SCORE): "Restore the dataset's folder from a backup, then re-evaluate it.",
    ("out_of_memory", SCORE): "Re-evaluate it when the device has more memory free.",
    ("out_of_memory", IMPORT): (
        "Import it again when the worker's machine has more memory free, or upload the rows in smaller files."
    ),
    ("out_of_memory", INSPECT): "Inspect it again when the worker's machine has more memory free.",
    ("bad_adapter", SCORE): (
        "Restore the adapter's folder from a backup, then re-evaluate it. If there is none, train it again."
    ),
    ("internal_error", SCORE): (
        "This is an error in Graftworks, not in your data. Re-evaluate it; if that fails too, report it."
    ),
}


def advice(code: str, then: str = START) -> str:
    """Return what helps against a failure, or "". `then` is the way on that the page offers."""
    return ADVICE_TO.get((code, then)) or ADVICE.get(code, "").format(then=then)
