"""Forms of datasets: the upload, and the columns of a failed import."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from django import forms
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from dashboard.models import DatasetVersion

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
NAME_LENGTH = 120
COLUMN_LENGTH = 200


class UploadForm(forms.Form):
    """A file and the name of its dataset."""

    file = forms.FileField(
        label=_("File"),
        allow_empty_file=True,  # refused in clean_file, with advice
        error_messages={"required": _("Choose a file first.")},
        widget=forms.ClearableFileInput(
            attrs={"accept": ",".join([*EXTENSIONS, *(f"{ending}.gz" for ending in EXTENSIONS)])}
        ),
    )
    name = forms.CharField(
        label=_("Name"),
        max_length=NAME_LENGTH,
        required=False,
        help_text=_(
            "Leave empty to use the file name. The name of an existing dataset adds a new version to it."
        ),
    )
    prompt_column = forms.CharField(
        label=_("Prompt column"),
        max_length=COLUMN_LENGTH,
        required=False,
        help_text=_("The column that the model reads. Leave empty to detect the columns."),
    )
    completion_column = forms.CharField(
        label=_("Answer column"),
        max_length=COLUMN_LENGTH,
        required=False,
        help_text=_("The column that the model learns to write."),
    )
    group_column = forms.CharField(
        label=_("Group column"),
        max_length=COLUMN_LENGTH,
        required=False,
        help_text=_(
            "Rows with the same value, for example a document or a customer, stay in one split. Leave empty "
            "to keep rows with nearly the same prompt together."
        ),
    )
    skip_bad_rows = forms.BooleanField(
        label=_("Skip invalid rows"),
        required=False,
        help_text=_("By default, one invalid row stops the import, and the report lists all of them."),
    )

    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False, initial=uuid.uuid4)

    def clean_file(self) -> UploadedFile[Any]:
        """Refuse an empty file, an unknown extension, or a file above the size limit."""
        file: UploadedFile[Any] = self.cleaned_data["file"]
        name = file.name or ""
        if not _ending(name):
            raise forms.ValidationError(
                _("%(name)s cannot be imported. Choose a JSONL, JSON, CSV or Parquet file, or a .gz of one."),
                params={"name": name[:80]},
            )
        if not file.size:
            raise forms.ValidationError(
                _("%(name)s is empty. Choose a file with rows in it."), params={"name": name[:80]}
            )
        if file.size > settings.UPLOAD_LIMIT_BYTES:
            raise forms.ValidationError(
                _("%(name)s is larger than the limit of %(limit)s."),
                params={"name": name[:80], "limit": filesizeformat(settings.UPLOAD_LIMIT_BYTES)},
            )
        return file

    def clean_name(self) -> str:
        """Collapse white space."""
        return " ".join(str(self.cleaned_data["name"]).split())

    def clean(self) -> dict[str, Any]:
        """Derive an empty name from the file, and check the columns."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        file = values.get("file")
        if file and not values.get("name") and "name" not in self.errors:
            values["name"] = name_from(file.name or "")
        check_columns(self, values)
        return values


class ColumnsForm(forms.Form):
    """The columns of a version whose import failed."""

    prompt_column = forms.ChoiceField(
        label=_("Prompt column"),
        required=False,
        help_text=_("Without a prompt column, the model learns the answer column as plain text."),
    )
    completion_column = forms.ChoiceField(label=_("Answer column"))
    group_column = forms.ChoiceField(
        label=_("Group column"),
        required=False,
        help_text=_(
            "Rows with the same value, for example a document or a customer, stay in one split. Without a "
            "group column, rows with nearly the same prompt stay together."
        ),
    )
    skip_bad_rows = forms.BooleanField(label=_("Skip invalid rows"), required=False)

    def __init__(self, *args: Any, version: DatasetVersion, **kwargs: Any) -> None:
        chosen = {
            "prompt_column": version.prompt_column,
            "completion_column": version.completion_column,
            "group_column": version.group_column,
            "skip_bad_rows": version.skip_bad_rows,
        }
        super().__init__(*args, **{"initial": chosen, **kwargs})
        # Longer names do not fit in the database.
        columns = [name for name in version.report.get("columns", []) if len(name) <= COLUMN_LENGTH]
        # A recognised format needs no prompt and answer column.
        known = bool(version.report.get("shape"))
        self.fields["completion_column"].required = not known
        self._offer("prompt_column", columns, _("Detected") if known else _("No prompt column"))
        self._offer("completion_column", columns, _("Detected") if known else _("Choose a column"))
        repeated = {str(column["name"]): int(column["values"]) for column in version.group_columns}
        self._offer("group_column", columns, _("No group column"), repeated)

    def _offer(
        self, name: str, columns: Iterable[str], nothing: Any, repeated: Mapping[str, int] | None = None
    ) -> None:
        field = self.fields[name]
        if isinstance(field, forms.ChoiceField):
            field.choices = [
                ("", nothing),
                *((column, column_label(column, (repeated or {}).get(column))) for column in columns),
            ]

    def clean(self) -> dict[str, Any]:
        """Check that the columns differ."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        check_columns(self, values)
        return values


def check_columns(form: forms.Form, values: Mapping[str, Any]) -> None:
    """Refuse a prompt column without an answer column, and one column for two purposes."""
    prompt, completion, group = (
        values.get(name) for name in ("prompt_column", "completion_column", "group_column")
    )
    if prompt and not completion:
        form.add_error("completion_column", _("Name the answer column too."))
    if prompt and prompt == completion:
        form.add_error("completion_column", _("Prompt and answer must be two different columns."))
    if group and group in (prompt, completion):
        form.add_error(
            "group_column", _("The prompt or answer column cannot be the group column. Choose another.")
        )


def column_label(column: str, values: int | None) -> str:
    """Return a column's name with its number of different values, if these repeat."""
    if values is None:
        return column
    return gettext("%(column)s (%(values)s different values)") % {"column": column, "values": f"{values:,}"}


def name_from(filename: str) -> str:
    """Derive a dataset's name from a file name: no extension, underscores become spaces."""
    name = Path(filename).name
    stem = name[: -len(_ending(name))] if _ending(name) else name
    return re.sub(r"[\s_]+", " ", stem).strip()[:NAME_LENGTH] or "dataset"


def _ending(filename: str) -> str:
    """Return the known extension of a file name, with its `.gz`; "" for any other."""
    lowered = filename.lower()
    gz = ".gz" if lowered.endswith(".gz") else ""
    plain = lowered.removesuffix(".gz")
    return next((ending + gz for ending in EXTENSIONS if plain.endswith(ending)), "")
