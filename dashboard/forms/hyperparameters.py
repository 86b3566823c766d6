"""The settings of a training as form fields, with limits and defaults: from a form to the spec and back.

A run has them all; a study shares most of them between its arms. Knows nothing of data, models or rows.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from django import forms
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy

from dashboard.models import WorkerNode
from dashboard.models.worker_node import NO_4BIT_WORKER
from workers.specs import LIMITS, Hyperparameters

DEFAULTS = Hyperparameters()
STEPS, EPOCHS = "steps", "epochs"
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


class HyperparametersForm(forms.Form):
    """How long to train, and the expert settings. Every one has a default."""

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


def offer_4bit(field: forms.Field, *, is_on: bool) -> None:
    """Where no worker can do it, say why; what is on can still be turned off."""
    if not WorkerNode.objects.supporting_4bit().exists():
        field.widget.attrs["disabled"] = not is_on
        field.help_text = format_lazy(
            "{} {} {}", field.help_text, gettext_lazy("Not possible now:"), NO_4BIT_WORKER
        )


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


def entered(learn: Hyperparameters) -> dict[str, Any]:
    """Settings as somebody would enter them, with alpha left to follow the rank where it does."""
    values = {name: getattr(learn, name) for name in EXPERT}
    if learn.lora_alpha == 2 * learn.r:
        values["lora_alpha"] = None
    by_epochs = learn.num_train_epochs is not None
    length = "num_train_epochs" if by_epochs else "max_steps"
    return {**values, "length": EPOCHS if by_epochs else STEPS, length: getattr(learn, length)}
