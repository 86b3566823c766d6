"""Prompt sets: a project's own prompts, and the answers of its models to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.catalog.base_model import BaseModel

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

MOST_PROMPTS, MOST_SETS = 100, 100
LONGEST_SAVED_PROMPT = 10_000
# Answers are greedy, so that the same model gives the same answer again.
ANSWER_TOKENS = 300


class PromptRefused(Exception):
    """A prompt that is not saved. Its text is for the user."""


class PromptSetQuerySet(ProjectQuerySet["PromptSet"]):
    """Prompt sets of projects."""

    def save_prompt(self, project: Project, by: User, name: str, system: str, prompt: str) -> PromptSet:
        """Add a prompt to the set of this name, which is created if there is none. Raises PromptRefused."""
        with transaction.atomic():
            # The lock makes the limits hold when two people save at once.
            project.hold()
            found = self.filter(project=project, name=name).first()
            if found is None and self.filter(project=project).count() >= MOST_SETS:
                raise PromptRefused(
                    _("This project has %(most)d prompt sets. Delete one first.") % {"most": MOST_SETS}
                )
            found = found or self.create(project=project, name=name, created_by=by)
            if found.prompts.count() >= MOST_PROMPTS:
                raise PromptRefused(
                    _("A prompt set holds at most %(most)d prompts.") % {"most": MOST_PROMPTS}
                )
            if found.prompts.filter(system=system, prompt=prompt).exists():
                raise PromptRefused(_("“%(name)s” has this prompt already.") % {"name": name})
            found.prompts.create(system=system, prompt=prompt, created_by=by)
        return found


class PromptSet(models.Model):
    """A named list of prompts that can be sent to any model of the project."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="prompt_sets")
    name = models.CharField(gettext_lazy("name"), max_length=80)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PromptSetQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="prompt_set_once_per_project")
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("prompt-set-detail", args=[self.pk])


class SavedPrompt(models.Model):
    """One prompt of a set."""

    prompt_set = models.ForeignKey(PromptSet, models.CASCADE, related_name="prompts")
    system = models.TextField(blank=True)
    prompt = models.TextField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.prompt[:80]

    def messages(self) -> list[dict[str, str]]:
        """Return the chat that is sent."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, {"role": "user", "content": self.prompt}]


class PromptAnswerQuerySet(models.QuerySet["PromptAnswer"]):
    """Answers of models to saved prompts."""

    def of_models(
        self, prompt_set: PromptSet, base: BaseModel, adapters: Iterable[Adapter | None]
    ) -> dict[tuple[int, int | None], PromptAnswer]:
        """Return the answers of a base model (None) and adapters on it, by prompt and adapter."""
        wanted = {adapter and adapter.pk for adapter in adapters}
        answers = self.filter(prompt__prompt_set=prompt_set, base_model=base)
        chosen = models.Q(adapter__in=wanted - {None})
        chosen |= models.Q(adapter=None) if None in wanted else models.Q()
        found = answers.filter(chosen) if wanted else answers.none()
        return {(answer.prompt_id, answer.adapter_id): answer for answer in found}


class PromptAnswer(models.Model):
    """The answer of a base model, or of an adapter on it, to a saved prompt."""

    prompt = models.ForeignKey(SavedPrompt, models.CASCADE, related_name="answers")
    base_model = models.ForeignKey(BaseModel, models.CASCADE, related_name="+")
    adapter = models.ForeignKey(Adapter, models.CASCADE, null=True, related_name="+")
    text = models.TextField(blank=True)
    is_cut = models.BooleanField(default=False)  # ended at the longest answer
    created_at = models.DateTimeField(auto_now_add=True)

    objects = PromptAnswerQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["prompt", "adapter"], name="prompt_answer_once_per_adapter"),
            models.UniqueConstraint(
                fields=["prompt", "base_model"],
                condition=models.Q(adapter=None),
                name="prompt_answer_once_per_base_model",
            ),
        ]

    def __str__(self) -> str:
        return self.text[:80]
