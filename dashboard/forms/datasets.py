"""What people may type about datasets: an upload, and the answer to an import's question."""

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
    """A file with rows, and the name under which its project keeps them."""

    file = forms.FileField(
        label=_("File"),
        allow_empty_file=True,  # refused below, in words that say what to do
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
            "Left empty, the file's name is used. The name of an existing dataset adds its next version."
        ),
    )
    prompt_column = forms.CharField(
        label=_("Prompt column"),
        max_length=COLUMN_LENGTH,
        required=False,
        help_text=_("The column the model reads. Leave it empty and the columns are recognised."),
    )
    completion_column = forms.CharField(
        label=_("Answer column"),
        max_length=COLUMN_LENGTH,
        required=False,
        help_text=_("The column the model learns to write."),
    )
    group_column = forms.CharField(
        label=_("Column that says which rows belong together"),
        max_length=COLUMN_LENGTH,
        required=False,
        help_text=_(
            "A document, a customer, a thread. Its rows stay in one split. Left empty, rows that ask nearly "
            "the same stay together."
        ),
    )
    skip_bad_rows = forms.BooleanField(
        label=_("Keep the good rows when some are bad"),
        required=False,
        help_text=_("Otherwise one bad row stops the import, and the report names every one of them."),
    )

    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False, initial=uuid.uuid4)

    def clean_file(self) -> UploadedFile[Any]:
        """A file with something in it, of a kind that the import reads, no larger than the limit."""
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
        """One line, its spaces tidied."""
        return " ".join(str(self.cleaned_data["name"]).split())

    def clean(self) -> dict[str, Any]:
        """A name from the file where none was typed; a mapping that can mean something."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        file = values.get("file")
        if file and not values.get("name") and "name" not in self.errors:
            values["name"] = name_from(file.name or "")
        prompt, completion = values.get("prompt_column"), values.get("completion_column")
        if prompt and not completion:
            self.add_error("completion_column", _("Name the answer column too."))
        if prompt and prompt == completion:
            self.add_error("completion_column", _("Prompt and answer must be two different columns."))
        check_group_column(self, values)
        return values


class ColumnsForm(forms.Form):
    """Which column is prompt, answer, and what rows share: the question that a failed import asked."""

    prompt_column = forms.ChoiceField(
        label=_("Prompt: what the model reads"),
        required=False,
        help_text=_("Without a prompt column, the answer column is learned as plain text."),
    )
    completion_column = forms.ChoiceField(label=_("Answer: what the model learns to write"))
    group_column = forms.ChoiceField(
        label=_("Rows that belong together"),
        required=False,
        help_text=_("A document, a customer, a thread: its rows stay in one split."),
    )
    skip_bad_rows = forms.BooleanField(label=_("Keep the good rows when some are bad"), required=False)

    def __init__(self, *args: Any, version: DatasetVersion, **kwargs: Any) -> None:
        chosen = {
            "prompt_column": version.prompt_column,
            "completion_column": version.completion_column,
            "group_column": version.group_column,
            "skip_bad_rows": version.skip_bad_rows,
        }
        super().__init__(*args, **{"initial": chosen, **kwargs})
        # Longer names could not be stored, and nobody could tell them apart in a list.
        columns = [name for name in version.report.get("columns", []) if len(name) <= COLUMN_LENGTH]
        # Prompt and answer of a known shape need no choice; only what rows share was unclear then.
        known = bool(version.report.get("shape"))
        self.fields["completion_column"].required = not known
        self._offer("prompt_column", columns, _("As recognised") if known else _("No prompt column"))
        self._offer("completion_column", columns, _("As recognised") if known else _("Choose a column"))
        repeated = {str(one["name"]): int(one["values"]) for one in version.group_columns}
        self._offer("group_column", columns, _("Rows that ask nearly the same"), repeated)

    def _offer(
        self, name: str, columns: Iterable[str], nothing: Any, repeated: Mapping[str, int] | None = None
    ) -> None:
        field = self.fields[name]
        if isinstance(field, forms.ChoiceField):
            field.choices = [
                ("", nothing),
                *((column, repeats_in_words(column, (repeated or {}).get(column))) for column in columns),
            ]

    def clean(self) -> dict[str, Any]:
        """Two different columns."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if values.get("prompt_column") and values["prompt_column"] == values.get("completion_column"):
            self.add_error("completion_column", _("Prompt and answer must be two different columns."))
        if values.get("prompt_column") and not values.get("completion_column"):
            self.add_error("completion_column", _("Name the answer column too."))
        check_group_column(self, values)
        return values


def check_group_column(form: forms.Form, values: Mapping[str, Any]) -> None:
    """Refuse what is read or learned as the name of what rows share."""
    group = values.get("group_column")
    if group and group in (values.get("prompt_column"), values.get("completion_column")):
        form.add_error(
            "group_column",
            _("What is read or learned cannot say which rows belong together. Choose another."),
        )


def repeats_in_words(column: str, values: int | None) -> str:
    """A column's name, with how many different values were seen where they repeat."""
    if values is None:
        return column
    return gettext("%(column)s (repeats %(values)s values)") % {"column": column, "values": f"{values:,}"}


def name_from(filename: str) -> str:
    """A dataset's name made from its file's: without ending, underscores as spaces."""
    name = Path(filename).name
    stem = name[: -len(_ending(name))] if _ending(name) else name
    return re.sub(r"[\s_]+", " ", stem).strip()[:NAME_LENGTH] or "dataset"


def _ending(filename: str) -> str:
    """The known ending of a file name, with its `.gz`; "" for any other."""
    lowered = filename.lower()
    gz = ".gz" if lowered.endswith(".gz") else ""
    plain = lowered.removesuffix(".gz")
    return next((ending + gz for ending in EXTENSIONS if plain.endswith(ending)), "")
