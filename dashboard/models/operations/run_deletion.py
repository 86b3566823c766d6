"""Deletion of runs with their adapters and scores. What a study or a job needs is never deleted."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _

from dashboard.models.accounts.project import Project
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.adapters.unloading import unload_on_commit
from dashboard.models.evaluations.blind_comparison import BlindComparison
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import TERMINAL
from dashboard.models.training.tag import Tag
from dashboard.models.training.training_run import TrainingRun


def deletion_refusal(run: TrainingRun) -> str:
    """Return why a run cannot be deleted, as a sentence; "" if it can."""
    if not run.is_over:
        return _("It has not ended. Stop it first.")
    if not run.is_settled:
        return _("Its adapter is being evaluated. Wait for the scores, or stop the evaluation.")
    if run.study_arm is not None:
        text = _("It belongs to the study “%(study)s”, whose result needs it.")
        return text % {"study": run.study_arm.study}
    if run.reuses.exists():
        return _("A study uses it in place of training an equal run again.")
    adapter = Adapter.objects.filter(run=run).first()
    return adapter_refusal(adapter) if adapter else ""


def adapter_refusal(adapter: Adapter) -> str:
    """Return why an adapter cannot be deleted, as a sentence; "" if it can."""
    if adapter.stage == Adapter.Stage.APPROVED:
        return _("Its adapter is approved. A manager can change the stage on the adapter's page.")
    works_on = Q(exports__adapter=adapter) | Q(hub_pushes__adapter=adapter)
    works_on |= Q(judged_evaluations__adapter=adapter)
    if Job.objects.exclude(state__in=TERMINAL).filter(works_on).exists():
        return _("A job exports, pushes or judges its adapter. Wait until it ends, or stop it.")
    compared = BlindComparison.objects.filter(Q(adapter_a=adapter) | Q(adapter_b=adapter))
    if compared.exclude(vote="").exists():
        return _("People compared its answers blind, and their votes need it.")
    return ""


def delete_runs(project: Project, keys: Sequence[int]) -> list[TrainingRun]:
    """Delete those of the project's runs that can be deleted, and return them.

    Jobs and their history stay, because the compute budget counts them. The files of an adapter are deleted
    by the next clean-up.
    """
    with transaction.atomic():
        # Held, so that no study takes one of the runs in place of a new one meanwhile.
        project.hold()
        runs = TrainingRun.objects.with_scores().select_related("job", "study_arm__study")
        found = runs.filter(project=project, pk__in=keys).order_by("pk")
        deleted = [run for run in found if not deletion_refusal(run)]
        for run in deleted:
            _keep_base_scores(run)
        adapters = Adapter.objects.filter(run__in=deleted)
        unload_on_commit(adapters.select_related("base_model"))
        adapters.delete()
        TrainingRun.objects.filter(pk__in=[run.pk for run in deleted]).delete()
        Tag.objects.drop_unused(project)
    return deleted


def _keep_base_scores(run: TrainingRun) -> None:
    """Hand the base model's scores to another run whose adapter is compared with them."""
    for base in run.evaluations.filter(subject=Evaluation.Subject.BASE):
        other = base.adapter_evaluations.exclude(run=run).order_by("pk").first()
        if other is not None:
            Evaluation.objects.filter(pk=base.pk).update(run=other.run_id)
