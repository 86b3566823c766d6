"""Decisions on the evidence of a study: an append-only log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet, Role
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.studies.study import Study

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User


class DecisionQuerySet(ProjectQuerySet["Decision"]):
    """Queries of decisions; none is ever updated or deleted."""

    def with_facts(self) -> DecisionQuerySet:
        """Fetch everything that a line of the log shows."""
        return self.select_related("study", "decided_by", "adapter__run__study_arm")

    def record(self, study: Study, adapter: Adapter, reason: str, by: User) -> Decision:
        """Record a decision; that of a manager also approves the adapter."""
        with transaction.atomic():
            is_manager = by.has_role(Role.MANAGER, study.project_id)
            if is_manager:
                adapter.set_stage(Adapter.Stage.APPROVED)
            arm = adapter.run.study_arm
            return self.create(
                project=study.project,
                study=study,
                adapter=adapter,
                arm=arm.name if arm else "",
                reason=reason,
                approved=is_manager,
                decided_by=by,
            )


class Decision(models.Model):
    """An adapter that a user decided to ship, and why."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="decisions")
    study = models.ForeignKey(Study, models.CASCADE, related_name="decisions")
    adapter = models.ForeignKey(Adapter, models.CASCADE, related_name="decisions")
    # The name of the arm at that time.
    arm = models.CharField(max_length=120)
    reason = models.TextField(_("reason"))
    approved = models.BooleanField(default=False)
    decided_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    decided_at = models.DateTimeField(auto_now_add=True)

    objects = DecisionQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.arm} of {self.study}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse changes: a log that can be rewritten proves nothing."""
        if not self._state.adding:
            raise TypeError("Decisions are never changed; write another one.")
        super().save(*args, **kwargs)
