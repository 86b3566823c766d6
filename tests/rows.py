"""Write what a project has after some days into the database of a running installation, and print the ids.

    DATA_DIR=… python -m tests.rows RUN

RUN: id of a finished run, whose project, dataset and base model the rows get.
"""

from __future__ import annotations

import json
import os
import sys

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "dashboard.settings"
django.setup()

from django.db import transaction  # noqa: E402

from dashboard.models import MetricSeries, PromptSet, State, Study, TrainingRun, User  # noqa: E402
from tests.conftest import finish, make_run  # noqa: E402
from tests.dashboard.conftest import make_checkpoint, start_training  # noqa: E402
from tests.dashboard.studies.factories import conclude, make_study  # noqa: E402

SCORES = [0.0, 1.0, 1.0, 0.0] * 5


def write_rows(like: TrainingRun, by: User) -> dict[str, int]:
    """Return the ids of a failed and a stopped run, a finished and a stopped study."""
    where = like.project, like.dataset_version.dataset, like.base_model
    failed_run, stopped_run = (make_run(*where, by=by, name=name) for name in ("Cut off", "Too long"))
    assert failed_run.job
    assert stopped_run.job
    finish(failed_run.job, State.FAILED, error_code="bad_data", error_message="All answers are cut off.")
    MetricSeries.objects.append(stopped_run, "train/loss", [(step, 3.0 / step) for step in range(1, 6)])
    job = start_training(stopped_run)
    job.request_cancel(by, "checkpoint")
    make_checkpoint(job, step=5)
    job.complete_stop(actor="gpu@host")
    study = make_study(*where, by=by, name="Placement", seeds=[1])
    conclude(study, {"base": {1: [0.0] * 20}, "efficient": {1: SCORES}, "quality": {1: [1.0] * 20}})
    stopped_study = make_study(*where, by=by, name="Stopped")
    stopped_study.request_cancel(by)
    assert Study.objects.get(pk=study.pk).state == "succeeded"
    prompt_set = PromptSet.objects.save_prompt(like.project, by, "Greetings", "Be brief.", "Who are you?")
    prompt_set.prompts.get().answers.create(base_model=like.base_model, text="A model. " * 40)
    return {
        "prompt_set": prompt_set.pk,
        "failed_run": failed_run.pk,
        "stopped_run": stopped_run.pk,
        "study": study.pk,
        "stopped_study": stopped_study.pk,
    }


if __name__ == "__main__":
    # In one transaction: no worker sees a job before it has ended.
    with transaction.atomic():
        finished = TrainingRun.objects.get(pk=sys.argv[1])
        print(json.dumps(write_rows(finished, User.objects.earliest("pk"))))
