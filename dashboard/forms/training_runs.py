"""The fine-tune form: what to learn, on which model, where the adapter sits, how long, and expert settings.

Parses and checks; launching is the view's, and what the choices mean is `dashboard.forms.plan`'s.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Container
from typing import Any

from django import forms
from django.db.models import F, Q, QuerySet
from django.utils.text import format_lazy
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models import (
    BaseModel,
    Caller,
    DatasetVersion,
    Project,
    TargetModuleConfig,
    TrainingRun,
    User,
    WorkerNode,
)
from dashboard.models.dataset import SAMPLE_NAME
from dashboard.models.worker_node import NO_4BIT
from workers.errors import SpecError
from workers.specs import LIMITS, Hyperparameters

DEFAULTS = Hyperparameters()
# Seen to work on the bundled model with the sample; other data starts at the common default.
SAMPLE_LEARNING_RATE = 1e-3
STEPS, EPOCHS = "steps", "epochs"
# SpecError's field -> the form's, where they differ.
FIELDS = {"dataset": "dataset_version"}
EXPERT = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "autocast_adapter_dtype",
    "learning_rate",
    "loraplus_lr_ratio",
    "lr_scheduler_type",
    "warmup_ratio",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "gradient_checkpointing",
    "load_in_4bit",
    "seed",
)
SCHEDULES = (
    ("cosine", gettext_lazy("Falls gently, then fast, then gently (cosine)")),
    ("linear", gettext_lazy("Falls evenly (linear)")),
    ("constant", gettext_lazy("Stays the same (constant)")),
)


def _whole(name: str, label: Any, sentence: Any, **options: Any) -> forms.IntegerField:
    low, high = LIMITS[name]
    say = gettext_lazy("Enter a whole number from %(low)s to %(high)s.") % _span(name)
    return forms.IntegerField(
        label=label,
        help_text=_help(name, sentence),
        min_value=int(low),
        max_value=int(high),
        error_messages=dict.fromkeys(("invalid", "min_value", "max_value"), say),
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
        **options,
    )


def _fraction(name: str, label: Any, sentence: Any, **options: Any) -> forms.FloatField:
    low, high = LIMITS[name]
    say = gettext_lazy("Enter a number from %(low)s to %(high)s.") % _span(name)
    return forms.FloatField(
        label=label,
        help_text=_help(name, sentence),
        min_value=low,
        max_value=high,
        error_messages=dict.fromkeys(("invalid", "min_value", "max_value"), say),
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
        **options,
    )


def _span(name: str) -> dict[str, str]:
    return {"low": plain(LIMITS[name][0]), "high": plain(LIMITS[name][1])}


def _help(name: str, sentence: Any) -> Any:
    span = gettext_lazy("From %(low)s to %(high)s.") % _span(name)
    return format_lazy("{} {} <code>{}</code>", sentence, span, name)


def plain(value: float) -> str:
    """A limit or setting as people write it: 512, 131,072, 0.1, 0.0000001."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.10f}".rstrip("0")


class VersionField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """Choices say how many rows there are."""

    def label_from_instance(self, obj: Any) -> str:
        """Support messages:v2, 600 rows."""
        return _("%(version)s, %(rows)s rows") % {"version": obj, "rows": f"{obj.rows or 0:,}"}


class BaseModelField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """Choices say how large the model is."""

    def label_from_instance(self, obj: Any) -> str:
        """SmolLM2 135M Instruct, 134.5 M parameters."""
        millions = f"{(obj.parameters or 0) / 1e6:,.1f}"
        return _("%(name)s, %(millions)s M parameters") % {"name": obj, "millions": millions}


class TrainingRunForm(forms.Form):
    """Every field has a default, so that a dataset is all one has to choose."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=120,
        required=False,
        help_text=gettext_lazy(
            "The adapter takes this name. Left empty, it is made from dataset and preset."
        ),
    )
    dataset_version = VersionField(
        label=gettext_lazy("What should it learn? (dataset)"),
        queryset=DatasetVersion.objects.none(),
        empty_label=gettext_lazy("Choose a dataset"),
        error_messages={
            "required": gettext_lazy("Choose a dataset."),
            "invalid_choice": gettext_lazy("This dataset is not ready in this project. Choose another."),
        },
    )
    base_model = BaseModelField(
        label=gettext_lazy("Base model"),
        queryset=BaseModel.objects.none(),
        empty_label=None,
        help_text=gettext_lazy("It stays as it is; only the adapter learns."),
        error_messages={
            "required": gettext_lazy("Choose a base model."),
            "invalid_choice": gettext_lazy("This base model is not ready in this project. Choose another."),
        },
    )
    target_module_config = forms.ModelChoiceField(
        label=gettext_lazy("What to train (target modules)"),
        queryset=TargetModuleConfig.objects.none(),
        empty_label=None,
        widget=forms.RadioSelect,
        error_messages={
            "required": gettext_lazy("Choose what to train."),
            "invalid_choice": gettext_lazy("There is no such preset in this project. Choose another."),
        },
    )
    length = forms.ChoiceField(
        label=gettext_lazy("How long"),
        choices=[(STEPS, gettext_lazy("A number of steps")), (EPOCHS, gettext_lazy("Passes over the data"))],
        widget=forms.RadioSelect,
    )
    max_steps = _whole(
        "max_steps",
        gettext_lazy("Steps"),
        gettext_lazy(
            "Each step learns from one group of rows. Too few: little is learned; too many: by heart."
        ),
        required=False,
    )
    num_train_epochs = _fraction(
        "num_train_epochs",
        gettext_lazy("Passes over the data (epochs)"),
        gettext_lazy("How often each row is seen. Too few: little is learned; too many: by heart."),
        required=False,
    )
    r = _whole(
        "r",
        gettext_lazy("Size of the adapter (rank)"),
        gettext_lazy(
            "How much it can hold. Too low: the task does not fit; too high: a larger file for nothing."
        ),
    )
    lora_alpha = _whole(
        "lora_alpha",
        gettext_lazy("How strongly the adapter acts (alpha)"),
        gettext_lazy(
            "Left empty it is twice the rank. Too low: little effect; too high: learning gets unsteady."
        ),
        required=False,
    )
    lora_dropout = _fraction(
        "lora_dropout",
        gettext_lazy("Share switched off while learning (dropout)"),
        gettext_lazy(
            "Can help with few rows. Too low: rows are learned by heart; too high: it learns slowly."
        ),
    )
    use_rslora = forms.BooleanField(
        label=gettext_lazy("Scale by the root of the rank (rsLoRA)"),
        help_text=gettext_lazy(
            "For ranks of 64 and more. Each step acts more strongly, so look for the learning rate anew. "
            "<code>use_rslora</code>"
        ),
        required=False,
    )
    use_dora = forms.BooleanField(
        label=gettext_lazy("Learn length and direction apart (DoRA)"),
        help_text=gettext_lazy(
            "Steps take about a quarter longer; PEFT's own benchmark saw no gain. For linear layers alone, "
            "without dropout, and not in studies. <code>use_dora</code>"
        ),
        required=False,
    )
    autocast_adapter_dtype = forms.TypedChoiceField(
        label=gettext_lazy("Numbers of the adapter"),
        choices=[
            ("True", gettext_lazy("As exact as can be (float32)")),
            ("False", gettext_lazy("As the base model's")),
        ],
        coerce=lambda text: text == "True",
        empty_value=None,
        required=False,
        help_text=gettext_lazy(
            "Where the base is kept as bfloat16, as on a graphics card, that halves file and memory of the "
            "adapter, and steps get coarser. On a CPU both are the same. <code>autocast_adapter_dtype</code>"
        ),
    )
    learning_rate = _fraction(
        "learning_rate",
        gettext_lazy("How strongly to learn (learning rate)"),
        gettext_lazy(
            "A common start, not tuned for your data. Too low: nothing changes; too high: the loss jumps."
        ),
    )
    loraplus_lr_ratio = _fraction(
        "loraplus_lr_ratio",
        gettext_lazy("How much faster the second matrix learns (LoRA+)"),
        gettext_lazy(
            "1 is off; 16 is common with it. Lower the learning rate then: such rates do not compare with "
            "others."
        ),
        required=False,
    )
    lr_scheduler_type = forms.ChoiceField(
        label=gettext_lazy("How the learning rate goes on (schedule)"),
        choices=SCHEDULES,
        help_text=gettext_lazy(
            "A falling rate lets the run settle at its end. <code>lr_scheduler_type</code>"
        ),
    )
    warmup_ratio = _fraction(
        "warmup_ratio",
        gettext_lazy("Gentle start (warm-up)"),
        gettext_lazy(
            "Share of the steps in which the rate rises. Too low: a rough start; too high: time is lost."
        ),
    )
    per_device_train_batch_size = _whole(
        "per_device_train_batch_size",
        gettext_lazy("Rows at once (batch size)"),
        gettext_lazy("Too low: the device idles and steps are noisy; too high: memory runs out."),
    )
    gradient_accumulation_steps = _whole(
        "gradient_accumulation_steps",
        gettext_lazy("Batches per step (accumulation)"),
        gettext_lazy(
            "More rows per step without more memory. Too low: noisy steps; too high: few steps per pass."
        ),
    )
    max_length = _whole(
        "max_length",
        gettext_lazy("Longest row in tokens (maximum length)"),
        gettext_lazy("Longer rows are cut at their end. Too low: answers are lost; too high: more memory."),
    )
    gradient_checkpointing = forms.BooleanField(
        label=gettext_lazy("Compute layers twice to save memory (gradient checkpointing)"),
        help_text=gettext_lazy(
            "Learns the same. Off: quicker; on: far less memory, and each step takes about a quarter longer. "
            "<code>gradient_checkpointing</code>"
        ),
        required=False,
    )
    load_in_4bit = forms.BooleanField(
        label=gettext_lazy("Keep the base model in 4 bits (QLoRA)"),
        help_text=gettext_lazy(
            "Off: exact; on: about a quarter of the base model's memory, and it answers a little "
            "differently, so the adapter is scored on the same 4 bits. <code>load_in_4bit</code>"
        ),
        required=False,
    )
    seed = _whole(
        "seed",
        gettext_lazy("Start of the dice (seed)"),
        gettext_lazy("The same seed gives the same order of rows. Keep it to compare runs fairly."),
    )
    confirmed = forms.CharField(
        label=gettext_lazy("I have read this and want it so"), max_length=64, required=False
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False)

    def __init__(
        self, data: Any = None, *, caller: Caller, project: Project, initial: dict[str, Any]
    ) -> None:
        super().__init__(data, initial={**defaults(), "idempotency_key": uuid.uuid4(), **initial})
        offer_4bit(self.fields["load_in_4bit"], is_on=bool((data or initial).get("load_in_4bit")))
        self.project = project
        self.by = caller if isinstance(caller, User) else None
        self.versions, self.base_models, self.configs = choices(caller, project)
        # A run that is repeated may name an earlier version than those that are offered.
        versions = TargetModuleConfig.objects.visible_to(caller).filter(Q(project=None) | Q(project=project))
        for name, rows in (
            ("dataset_version", self.versions),
            ("base_model", self.base_models),
            ("target_module_config", versions),
        ):
            self.fields[name].queryset = rows  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Build the hyper-parameters; the name, when left empty, from what was chosen."""
        values = self.cleaned_data
        if empty := length_missing(values, self.errors):
            self.add_error(empty, _("Say how long the run shall be."))
        if not self.errors:
            try:
                values["hyperparameters"] = self.hyperparameters()
            except SpecError as error:
                self.refuse(error)
            values["name"] = values["name"] or TrainingRun.default_name(
                values["dataset_version"], values["target_module_config"]
            )
        return values

    def is_confirmed(self) -> bool:
        """Whether the very sentences were ticked that this choice wants accepted. May raise TargetError."""
        values = self.cleaned_data
        resolution = values["target_module_config"].resolve(values["base_model"])
        return bool(values["confirmed"] == resolution.confirmation_key)

    def refuse(self, error: SpecError) -> None:
        """Put what the spec refused beside its field."""
        name = FIELDS.get(error.field, error.field)
        message = _("Read what it says beside this, and tick it.") if name == "confirmed" else error.message
        self.add_error(name if name in self.fields else None, message)

    def hyperparameters(self) -> Hyperparameters:
        """What was entered, for the parts that are valid; defaults for the rest. May raise SpecError."""
        return hyperparameters_of(self.cleaned_data)


def offer_4bit(field: forms.Field, *, is_on: bool) -> None:
    """Where no worker can do it, say why; what is on can still be turned off."""
    if not WorkerNode.objects.packing().exists():
        field.widget.attrs["disabled"] = not is_on
        field.help_text = format_lazy("{} {} {}", field.help_text, gettext_lazy("Not possible now:"), NO_4BIT)


def choices(
    caller: Caller, project: Project
) -> tuple[QuerySet[DatasetVersion], QuerySet[BaseModel], QuerySet[TargetModuleConfig]]:
    """Data, models and target modules that may be chosen in a project."""
    here = Q(project=None) | Q(project=project)
    versions = (
        DatasetVersion.objects.visible_to(caller)
        .filter(project=project, job__state="succeeded")
        .select_related("dataset", "job")
    )
    base_models = (
        BaseModel.objects.visible_to(caller)
        .filter(here, job__state="succeeded")
        .select_related("job")
        .order_by(F("project").asc(nulls_first=True), "pk")
    )
    return versions, base_models, TargetModuleConfig.objects.current().visible_to(caller).filter(here)


def hyperparameters_of(cleaned: dict[str, Any]) -> Hyperparameters:
    """What was entered, for the parts that are valid; defaults for the rest. May raise SpecError."""
    values = {name: cleaned[name] for name in EXPERT if cleaned.get(name) is not None}
    by_epochs = cleaned.get("length") == EPOCHS
    length = "num_train_epochs" if by_epochs else "max_steps"
    values[length] = cleaned.get(length) or (1.0 if by_epochs else DEFAULTS.max_steps)
    return Hyperparameters(**values)


def length_missing(cleaned: dict[str, Any], errors: Container[str]) -> str:
    """The field that says how long, where it was left empty; "" otherwise."""
    chosen = "max_steps" if cleaned.get("length") == STEPS else "num_train_epochs"
    return chosen if cleaned.get("length") and cleaned.get(chosen) is None and chosen not in errors else ""


def defaults() -> dict[str, Any]:
    """The form's defaults: the spec's own, with alpha left to follow the rank."""
    values = {name: getattr(DEFAULTS, name) for name in EXPERT}
    return {
        **values,
        "lora_alpha": None,
        # As the form's choice spells it, for the page's script.
        "autocast_adapter_dtype": str(DEFAULTS.autocast_adapter_dtype),
        "length": STEPS,
        "max_steps": DEFAULTS.max_steps,
        "num_train_epochs": 3.0,
    }


def initial_for(version: DatasetVersion | None) -> dict[str, Any]:
    """Values that a dataset version brings with it."""
    if version is None:
        return {}
    initial: dict[str, Any] = {"dataset_version": version.pk}
    if is_sample(version):
        initial["learning_rate"] = SAMPLE_LEARNING_RATE
    return initial


def initial_from(run: TrainingRun) -> dict[str, Any]:
    """The settings of an earlier run."""
    learned = dataclasses.asdict(Hyperparameters(**run.hyperparameters))
    values = {name: learned[name] for name in EXPERT}
    if values["lora_alpha"] == 2 * (values["r"] or 0):
        values["lora_alpha"] = None
    by_epochs = run.hyperparameters.get("num_train_epochs") is not None
    length = "num_train_epochs" if by_epochs else "max_steps"
    return {
        **values,
        "length": EPOCHS if by_epochs else STEPS,
        length: run.hyperparameters.get(length),
        "name": run.name,
        "dataset_version": run.dataset_version_id,
        "base_model": run.base_model_id,
        "target_module_config": run.target_module_config_id,
    }


def is_sample(version: DatasetVersion) -> bool:
    """Whether the rows are the ones that came with the product."""
    return version.dataset.name == SAMPLE_NAME
