"""Checks before a run is frozen: its rows, its base model and its target modules fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _

from workers.contract.errors import SpecError

if TYPE_CHECKING:
    from dashboard.models.catalog.dataset import DatasetVersion
    from dashboard.models.training.training_run import TrainingRun
    from workers.contract.hyperparameters import Hyperparameters


def check_choices(run: TrainingRun, hyperparameters: Hyperparameters) -> None:
    """Raise SpecError unless the run's rows and base model are ready and fit the settings."""
    if not run.dataset_version.is_ready:
        raise SpecError("dataset", "This dataset is not imported yet.")
    if run.validation_version:
        check_validation_rows(run.validation_version, run.dataset_version)
    if not run.base_model.is_ready:
        raise SpecError("base_model", "This base model has not been inspected yet.")
    census = run.base_model.load_census()
    if census.max_positions and hyperparameters.max_length > census.max_positions:
        raise SpecError(
            "max_length",
            f"`max_length` is {hyperparameters.max_length}. "
            f"{run.base_model} reads at most {census.max_positions} tokens.",
        )


def check_validation_rows(version: DatasetVersion, training: DatasetVersion) -> None:
    """Raise SpecError unless the loss on these rows can be compared with the training loss."""
    if not version.is_ready:
        raise SpecError("validation_dataset", _("This dataset is not imported yet."))
    # All tokens of plain text are learned, and of chats the answers alone.
    if len({rows.report.get("shape") == "text" for rows in (version, training)}) == 2:
        text = _(
            "One dataset has plain text and the other one has answers, so their losses cannot be compared. "
            "Choose validation rows of the same kind as the training rows."
        )
        raise SpecError("validation_dataset", text)


def confirmation_request(sentences: Sequence[str]) -> str:
    """Return the warnings to confirm, and how to confirm them."""
    return _("Read this, and confirm it with `confirmed`: true. %(sentences)s") % {
        "sentences": " ".join(sentences)
    }
