"""Pushes of an adapter, or of its export, to the Hugging Face hub, with a token for that push alone.

The token is stored encrypted with a key made from SECRET_KEY, erased when the job ends, and of no use after
a day. No page, spec, log or environment contains it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet, InvalidToken
from django.db import models, transaction
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.adapters.export import check_export
from dashboard.models.jobs.job import Job
from workers.contract.specs import PushSpec, to_dict

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

TOKEN_SECONDS = 24 * 3600


def cipher() -> Fernet:
    """Return the encryption of tokens."""
    return Fernet(base64.urlsafe_b64encode(salted_hmac("hub-token", "", algorithm="sha256").digest()))


class HubPushQuerySet(ProjectQuerySet["HubPush"]):
    """Pushes by job."""

    def start(
        self,
        adapter: Adapter,
        by: User | None,
        *,
        format: str,
        repository: str,
        token: str,
        private: bool = True,
        idempotency_key: str = "",
    ) -> HubPush:
        """Queue a push. Raises ExportRefused for a format that cannot be written, SpecError for a name."""
        if format != HubPush.Format.ADAPTER:
            check_export(adapter, format)
        spec = PushSpec(
            base=adapter.base_model.spec(),
            adapter=str(adapter.path()),
            name=adapter.archive_name().removesuffix(".zip"),
            format=format,
            repository=repository,
            private=private,
        )
        with transaction.atomic():
            job = Job.objects.submit(
                Job.Kind.PUSH, to_dict(spec), project=adapter.project, by=by, idempotency_key=idempotency_key
            )
            return self.create(
                project=adapter.project,
                adapter=adapter,
                job=job,
                format=format,
                repository=repository,
                private=private,
                sealed_token=cipher().encrypt(token.encode()).decode(),
            )

    def token_of(self, job: Job) -> str:
        """Return the token of a job's push; "" for other jobs, and for a token that is too old."""
        if job.kind != Job.Kind.PUSH:
            return ""
        sealed = self.filter(job=job).values_list("sealed_token", flat=True).first() or ""
        try:
            return cipher().decrypt(sealed, ttl=TOKEN_SECONDS).decode()
        except InvalidToken:
            return ""


class HubPush(models.Model):
    """One upload to a repository of the hub. `url` and `commit` are empty until it has succeeded."""

    class Format(models.TextChoices):
        ADAPTER = "adapter", _("The adapter alone")
        FLOAT32 = "float32", _("Merged, safetensors float32")
        BFLOAT16 = "bfloat16", _("Merged, safetensors bfloat16")
        GGUF_F16 = "gguf-f16", _("Merged, GGUF F16")
        GGUF_Q8_0 = "gguf-q8_0", _("Merged, GGUF Q8_0")

    project = models.ForeignKey(Project, models.CASCADE, related_name="hub_pushes")
    adapter = models.ForeignKey(Adapter, models.CASCADE, related_name="hub_pushes")
    job = models.ForeignKey(Job, models.CASCADE, related_name="hub_pushes")
    format = models.CharField(max_length=10, choices=Format.choices)
    repository = models.CharField(max_length=200)
    private = models.BooleanField(default=True)
    sealed_token = models.TextField(blank=True)
    url = models.CharField(max_length=400, blank=True)
    commit = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = HubPushQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.adapter} to {self.repository}"

    def get_absolute_url(self) -> str:
        return f"{self.adapter.get_absolute_url()}#pushes"

    def record(self, url: str, commit: str) -> None:
        """Store where the files are now."""
        self.url, self.commit = url[:400], commit[:64]
        self.save(update_fields=["url", "commit"])
