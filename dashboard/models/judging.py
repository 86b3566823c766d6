"""Judgings: answers of a study or a run that were sent to the judge, by whose consent, and what came of it.

A verdict is one more score of an item, so it is compared like any other metric. What people say of the same
answers is `dashboard.models.vote`. Knows nothing of HTTP: a worker asks the judge.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models, transaction
from django.utils.translation import gettext_lazy as _

from dashboard.models.evaluation import Evaluation, EvaluationItem, EvaluationQuerySet
from dashboard.models.job import Job
from dashboard.models.job_state import TERMINAL
from dashboard.models.project import Project, ProjectQuerySet
from dashboard.models.study import Study
from dashboard.models.training_run import TrainingRun
from workers.judge import PROMPT_SHA256, Endpoint, Question

if TYPE_CHECKING:
    from dashboard.models.user import User

# The name of the judge's verdict among the scores of an item.
JUDGE = "judge"
DEFAULT_ROWS, MOST_ROWS = 200, 1000
Scope = Study | TrainingRun


class JudgeBusy(Exception):
    """These answers are being judged already."""


def endpoint() -> Endpoint | None:
    """The judge of this installation; None where none is set up."""
    if not settings.JUDGE_URL:
        return None
    return Endpoint(settings.JUDGE_URL, settings.JUDGE_MODEL, settings.JUDGE_API_KEY)


def evaluations_of(scope: Scope) -> EvaluationQuerySet:
    """The ended evaluations of a study's arms and base, or the newest ones of a run."""
    if isinstance(scope, Study):
        return Evaluation.objects.of_study(scope)
    newest = {one.subject: one.pk for one in scope.evaluations.ended().order_by("pk")}
    return Evaluation.objects.filter(pk__in=newest.values())


def rows_of(evaluations: models.QuerySet[Evaluation], most: int) -> list[int]:
    """At most so many of the rows that they were scored on, drawn by chance: always the same ones.

    Those of a smaller number are among those of a larger one.
    """
    items = EvaluationItem.objects.filter(evaluation__in=evaluations).order_by()
    rows = sorted(set(items.values_list("row", flat=True)))
    drawn = random.Random(0).sample(rows, len(rows))  # noqa: S311 - a draw, no secret
    return sorted(drawn[:most])


def unjudged(
    evaluations: models.QuerySet[Evaluation], rows: Sequence[int]
) -> models.QuerySet[EvaluationItem]:
    """Items of these rows that have no verdict."""
    items = EvaluationItem.objects.filter(evaluation__in=evaluations, row__in=rows)
    return items.exclude(scores__has_key=JUDGE).order_by()


def judged_otherwise(
    evaluations: models.QuerySet[Evaluation], judge: Endpoint
) -> models.QuerySet[Evaluation]:
    """Those whose verdicts are of another model or another prompt than this judge's."""
    same = models.Q(judge_evaluation__model=judge.model, judge_evaluation__prompt_sha256=PROMPT_SHA256)
    return evaluations.exclude(judge_evaluation=None).exclude(same)


class JudgeEvaluationQuerySet(ProjectQuerySet["JudgeEvaluation"]):
    """Judgings by what they are about."""

    def of(self, scope: Scope) -> JudgeEvaluationQuerySet:
        """Those of a study or a run."""
        return self.filter(study=scope) if isinstance(scope, Study) else self.filter(run=scope)

    def working(self) -> JudgeEvaluationQuerySet:
        """Those that wait or work."""
        return self.exclude(job__state__in=TERMINAL).exclude(job=None)

    def submit(self, scope: Scope, *, by: User, judge: Endpoint, rows: int) -> JudgeEvaluation:
        """Queue the job that asks the judge; whoever calls has told `by` what is sent, and `by` has agreed.

        Raises JudgeBusy while an earlier one of the same answers is not over.
        """
        about = {"study": scope} if isinstance(scope, Study) else {"run": scope}
        with transaction.atomic():
            # The row's lock: two clicks at once make one judge evaluation.
            type(scope).objects.select_for_update().get(pk=scope.pk)
            if self.of(scope).working().exists():
                raise JudgeBusy
            evaluations = evaluations_of(scope)
            self._forget_others(evaluations, judge)
            judge_evaluation = self.create(
                project=scope.project, by=by, host=judge.host, model=judge.model, rows=rows,
                prompt_sha256=PROMPT_SHA256, **about,
            )  # fmt: skip
            spec = {"judge_evaluation": judge_evaluation.pk, "model": judge.model, "host": judge.host}
            judge_evaluation.job = Job.objects.submit(Job.Kind.JUDGE, spec, project=scope.project, by=by)
            judge_evaluation.save(update_fields=["job"])
            evaluations.update(judge_evaluation=judge_evaluation)
        return judge_evaluation

    def _forget_others(self, evaluations: models.QuerySet[Evaluation], judge: Endpoint) -> None:
        """Take off what another model, or another prompt, has said: verdicts of two judges do not mix."""
        for evaluation in judged_otherwise(evaluations, judge):
            for name in (JUDGE, "judge_rows"):
                evaluation.metrics.pop(name, None)
            evaluation.save(update_fields=["metrics"])
            items = list(evaluation.items.filter(scores__has_key=JUDGE))
            for item in items:
                item.scores.pop(JUDGE)
            EvaluationItem.objects.bulk_update(items, ["scores"], batch_size=500)


class JudgeEvaluation(models.Model):
    """The answers of a study or of a run, sent to the judge once."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="judge_evaluations")
    study = models.ForeignKey(Study, models.CASCADE, null=True, blank=True, related_name="judge_evaluations")
    run = models.ForeignKey(
        TrainingRun, models.CASCADE, null=True, blank=True, related_name="judge_evaluations"
    )
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="judge_evaluations")
    # Who has agreed that these rows leave this machine, and where they went.
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    host = models.CharField(max_length=255)
    model = models.CharField(_("model"), max_length=200)
    prompt_sha256 = models.CharField(max_length=64)
    rows = models.PositiveIntegerField()
    # Different answers: equal ones to the same row are sent once.
    asked = models.PositiveIntegerField(default=0)
    judged = models.PositiveIntegerField(default=0)
    unreadable = models.PositiveIntegerField(default=0)
    unanswered = models.PositiveIntegerField(default=0)
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
        """The study or run whose answers are judged."""
        found = self.study or self.run
        assert found  # noqa: S101 - the constraint says so
        return found

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.job is None or self.job.is_over

    def evaluations(self) -> models.QuerySet[Evaluation]:
        """What it is to judge."""
        return Evaluation.objects.filter(judge_evaluation=self)

    def open_questions(self) -> list[tuple[Question, list[int]]]:
        """Each different answer that has no verdict yet, with the items that it is the answer of."""
        evaluations = self.evaluations()
        items = unjudged(evaluations, rows_of(evaluations, self.rows))
        facts = items.values_list("pk", "row", "prompt", "expected", "output").iterator(chunk_size=500)
        found: dict[tuple[int, str], tuple[Question, list[int]]] = {}
        for pk, row, prompt, expected, output in facts:
            found.setdefault((row, output), (Question(prompt, expected, output), []))[1].append(pk)
        return list(found.values())

    def note(self, verdicts: Iterable[tuple[bool, Sequence[int]]]) -> None:
        """Write verdicts down: (is it right, items with that answer)."""
        by_item = {pk: float(is_right) for is_right, items in verdicts for pk in items}
        items = list(EvaluationItem.objects.filter(pk__in=by_item))
        for item in items:
            item.scores[JUDGE] = by_item[item.pk]
        EvaluationItem.objects.bulk_update(items, ["scores"], batch_size=500)

    def sum_up(self) -> None:
        """Each evaluation's share of right answers, and of how many."""
        for evaluation in self.evaluations():
            scores = evaluation.items.filter(scores__has_key=JUDGE).values_list("scores", flat=True)
            values = [float(one[JUDGE]) for one in scores]
            if values:
                evaluation.metrics |= {JUDGE: sum(values) / len(values), "judge_rows": len(values)}
                evaluation.save(update_fields=["metrics"])
