"""Judge evaluations: answers of a study or a run sent to the judge, by whose consent, and the verdicts.

A verdict is one more score of an item, so it is compared like any other metric. Votes on the same answers are
in `dashboard.models.evaluations.vote`. Knows nothing of HTTP: a worker calls the judge.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from django.conf import settings
from django.db import models, transaction

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.evaluation import Evaluation, EvaluationItem, EvaluationQuerySet
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import TERMINAL
from dashboard.models.training.training_run import TrainingRun
from workers.judge import PROMPT_SHA256, Endpoint, Question

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study

DEFAULT_ROWS, MOST_ROWS = 200, 1000
Scope: TypeAlias = "Study | TrainingRun"


class JudgeBusy(Exception):
    """A judge evaluation of these answers is queued or running."""


def configured_judge() -> Endpoint | None:
    """Return the judge of this installation, if any."""
    if not settings.JUDGE_URL:
        return None
    return Endpoint(settings.JUDGE_URL, settings.JUDGE_MODEL, settings.JUDGE_API_KEY)


def evaluations_of(scope: Scope) -> EvaluationQuerySet:
    """Return the ended evaluations of a study's arms and base model, or the newest ones of a run."""
    if not isinstance(scope, TrainingRun):
        return Evaluation.objects.of_study(scope)
    newest = {evaluation.subject: evaluation.pk for evaluation in scope.evaluations.ended().order_by("pk")}
    return Evaluation.objects.filter(pk__in=newest.values())


def pending_items(
    evaluations: models.QuerySet[Evaluation], model: str, most_rows: int
) -> models.QuerySet[EvaluationItem]:
    """Return the items without a verdict of this model and the present prompt.

    At most `most_rows` rows are drawn at random: always the same ones, and a larger number adds to them.
    """
    items = EvaluationItem.objects.filter(evaluation__in=evaluations).order_by()
    rows = sorted(set(items.values_list("row", flat=True)))
    drawn = random.Random(0).sample(rows, len(rows))[:most_rows]  # noqa: S311 - a draw, no secret
    same_judge = evaluations.filter(
        judge_evaluation__model=model, judge_evaluation__prompt_sha256=PROMPT_SHA256
    )
    return items.filter(row__in=drawn).exclude(scores__has_key=JUDGE, evaluation__in=same_judge)


class JudgeEvaluationQuerySet(ProjectQuerySet["JudgeEvaluation"]):
    """Judge evaluations by scope."""

    def of(self, scope: Scope) -> JudgeEvaluationQuerySet:
        return self.filter(run=scope) if isinstance(scope, TrainingRun) else self.filter(study=scope)

    def submit(self, scope: Scope, *, by: User, judge: Endpoint, rows: int) -> JudgeEvaluation:
        """Queue a job that asks the judge. The caller has the consent of `by` to send the answers.

        Raises JudgeBusy while an earlier one of the same answers has not ended.
        """
        with transaction.atomic():
            # The lock on the row makes one judge evaluation of two requests at once.
            type(scope).objects.select_for_update().get(pk=scope.pk)
            if self.of(scope).exclude(job=None).exclude(job__state__in=TERMINAL).exists():
                raise JudgeBusy
            evaluations = evaluations_of(scope)
            _remove_other_verdicts(evaluations, judge.model)
            judge_evaluation = self.create(
                project=scope.project,
                study=None if isinstance(scope, TrainingRun) else scope,
                run=scope if isinstance(scope, TrainingRun) else None,
                by=by,
                host=judge.host,
                model=judge.model,
                prompt_sha256=PROMPT_SHA256,
                rows=rows,
            )
            spec = {"judge_evaluation": judge_evaluation.pk, "model": judge.model, "host": judge.host}
            judge_evaluation.job = Job.objects.submit(Job.Kind.JUDGE, spec, project=scope.project, by=by)
            judge_evaluation.save(update_fields=["job"])
            evaluations.update(judge_evaluation=judge_evaluation)
        return judge_evaluation


def _remove_other_verdicts(evaluations: models.QuerySet[Evaluation], model: str) -> None:
    """Remove the verdicts of another model or prompt: verdicts of two judges do not mix."""
    same = models.Q(judge_evaluation__model=model, judge_evaluation__prompt_sha256=PROMPT_SHA256)
    for evaluation in evaluations.exclude(judge_evaluation=None).exclude(same):
        for name in (JUDGE, "judge_rows"):
            evaluation.metrics.pop(name, None)
        evaluation.save(update_fields=["metrics"])
        items = list(evaluation.items.filter(scores__has_key=JUDGE))
        for item in items:
            item.scores.pop(JUDGE)
        EvaluationItem.objects.bulk_update(items, ["scores"], batch_size=500)


class JudgeEvaluation(models.Model):
    """One job that sends the pending answers of a study or a run to the judge."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="judge_evaluations")
    study = models.ForeignKey(
        "dashboard.Study", models.CASCADE, null=True, blank=True, related_name="judge_evaluations"
    )
    run = models.ForeignKey(
        TrainingRun, models.CASCADE, null=True, blank=True, related_name="judge_evaluations"
    )
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="judge_evaluations")
    # The user who consented to sending, and the host that received the rows.
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    host = models.CharField(max_length=255)
    model = models.CharField(max_length=200)
    prompt_sha256 = models.CharField(max_length=64)
    rows = models.PositiveIntegerField()
    # Different answers to be judged, and those with a verdict, over all attempts.
    answers = models.PositiveIntegerField(default=0)
    judged = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = JudgeEvaluationQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(study=None) ^ models.Q(run=None), name="judge_evaluation_of_study_or_run"
            )
        ]

    def __str__(self) -> str:
        return f"{self.model} on {self.subject}"

    @property
    def subject(self) -> Scope:
        """Return the study or run whose answers are judged."""
        subject = self.study or self.run
        assert subject  # noqa: S101 - the constraint says so
        return subject

    @property
    def is_over(self) -> bool:
        """Return whether no further verdicts will come."""
        return self.job is None or self.job.is_over

    def pending_questions(self) -> list[tuple[Question, list[int]]]:
        """Return each different answer without a verdict, and the numbers of its items."""
        items = pending_items(Evaluation.objects.filter(judge_evaluation=self), self.model, self.rows)
        fields = items.values_list("pk", "row", "prompt", "expected", "output").iterator(chunk_size=500)
        found: dict[tuple[int, str], tuple[Question, list[int]]] = {}
        for pk, row, prompt, expected, output in fields:
            found.setdefault((row, output), (Question(prompt, expected, output), []))[1].append(pk)
        return list(found.values())

    def record(self, verdicts: Iterable[tuple[bool, Sequence[int]]]) -> None:
        """Store verdicts: (is the answer right, numbers of its items)."""
        by_item = {pk: float(is_right) for is_right, items in verdicts for pk in items}
        items = list(EvaluationItem.objects.filter(pk__in=by_item))
        for item in items:
            item.scores[JUDGE] = by_item[item.pk]
        EvaluationItem.objects.bulk_update(items, ["scores"], batch_size=500)

    def summarize(self) -> None:
        """Store the share of right answers of each evaluation, and how many answers have a verdict."""
        for evaluation in Evaluation.objects.filter(judge_evaluation=self):
            scores = evaluation.items.filter(scores__has_key=JUDGE).values_list("scores", flat=True)
            values = [float(item[JUDGE]) for item in scores]
            if values:
                evaluation.metrics |= {JUDGE: sum(values) / len(values), "judge_rows": len(values)}
                evaluation.save(update_fields=["metrics"])
