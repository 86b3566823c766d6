"""Endings that are not success: the user's error, our bug, and a stop, each of its own type.

Every `RunError` carries a stable code, a sentence for people (what happened, where, what to do), and nothing
that a stranger should not read. Knows nothing of rows, HTTP or tensors.
"""

from __future__ import annotations


class SpecError(ValueError):
    """A value in a spec is outside its limits. `field` is PEFT's or the form's own name of it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class RunError(Exception):
    """The job cannot succeed as it was asked; the message is for the person who asked."""

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
    """A table whose columns fit no known shape; the page asks which column is what."""

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


class CheckpointMismatch(RunError):
    """The checkpoint belongs to other settings, another dataset or another base model."""

    code = "checkpoint_mismatch"


class Stopped(Exception):
    """Somebody asked the engine to stop. `reason` is `cancel` or `drain`; it is no failure."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


ADVICE: dict[str, str] = {
    "bad_data": "Open the dataset's check report, correct the rows it names, and upload the file again.",
    "columns_unclear": "Choose which column holds the prompt and which the answer, then import again.",
    "bad_model": "Check the model folder or hub id under Settings, Base models.",
    "target_modules_mismatch": "Inspect the base model again, then start the run with a built-in preset.",
    "diverged": "Use a lower learning rate, for example a third of this one, and start again.",
    "out_of_memory": "Use a smaller batch with more accumulation, or a shorter maximum length.",
    "disk_full": "Free some disk space where the data folder lies, then start again.",
    "checkpoint_mismatch": "Start a new run with the same settings; it begins at step 0.",
    "worker_lost": "Look at the worker's log. If the machine is healthy, start again.",
    "publish_failed": "Look at the log below, then start again.",
    "bad_spec": "Change the setting that the message names, then start again.",
    "labels_cut_off": "Raise the maximum length to what the message says, or shorten the prompts.",
    "max_length_too_long": "Lower the maximum length to what the base model can read.",
    "bad_adapter": "Evaluate again. If it repeats, train the adapter again.",
    "internal_error": "This is a fault in Graftworks, not in your data. The log below helps to report it.",
}
