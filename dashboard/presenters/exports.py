"""The formats in which an adapter can be exported with its base model, and what there is of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from dashboard.models import Adapter, Export
from dashboard.models.adapters.export import GGUF, export_forecast, gguf_refusal
from dashboard.presenters.stages import PHASES
from workers.forecasting.export_cost import ExportForecast

PUSHES_SHOWN = 5
PURPOSES: dict[str, Promise] = {
    Export.Format.FLOAT32: _("A folder for Transformers, without rounding."),
    Export.Format.BFLOAT16: _("A folder for Transformers and vLLM, rounded to half the size."),
    Export.Format.GGUF_F16: _("For llama.cpp, Ollama and LM Studio."),
    Export.Format.GGUF_Q8_0: _("For llama.cpp, Ollama and LM Studio, at 8 bits. Some answers differ."),
}


@dataclass(frozen=True)
class FormatRow:
    """One format: its forecast, the reason why there is none, and the export, if there is one."""

    format: Export.Format
    purpose: Promise
    forecast: ExportForecast
    refusal: str
    export: Export | None

    @property
    def is_open(self) -> bool:
        """Return whether a job works on it."""
        return self.export is not None and not self.export.job.is_over

    @property
    def phase(self) -> str:
        """Return in words what its job does."""
        return str(PHASES.get(self.export.job.phase, "")) if self.export else ""


def exports_context(adapter: Adapter) -> dict[str, Any]:
    """Return what the cards of an adapter's exports and pushes show."""
    rows = format_rows(adapter)
    pushes = list(adapter.hub_pushes.select_related("job")[:PUSHES_SHOWN])
    is_open = any(row.is_open for row in rows) or any(not push.job.is_over for push in pushes)
    return {"format_rows": rows, "pushes": pushes, "has_open_exports": is_open}


def format_rows(adapter: Adapter) -> list[FormatRow]:
    """Return a row for each format."""
    exports = {export.format: export for export in adapter.exports.select_related("job")}
    no_gguf = gguf_refusal(adapter)
    return [
        FormatRow(
            format=format,
            purpose=PURPOSES[format],
            forecast=export_forecast(adapter, format),
            refusal=no_gguf if format.startswith(GGUF) else "",
            export=exports.get(format),
        )
        for format in Export.Format
    ]
