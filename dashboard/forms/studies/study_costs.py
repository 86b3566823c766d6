"""The costs and the statistical power of a study, while its form is being filled in.

Estimates from the census, the frozen rows and earlier evaluations alone; starts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _

from dashboard.forms.studies.studies import POINTS, StudyForm
from dashboard.forms.training.plan import ChosenNumbers, PresetCard, preset_cards
from dashboard.models import ArmPlan, BaseModel, DatasetVersion
from dashboard.models.catalog.metrics import metric_label
from dashboard.models.studies.plan import DEFAULT_MARGIN, TEST_ROWS, with_equal_parameters
from dashboard.models.studies.planning.costs import Costs, plan_costs
from dashboard.models.studies.planning.power import PlanPower, power_of
from dashboard.models.studies.study import Study
from workers.contract.errors import SpecError, TargetError
from workers.target_modules.resolution import Resolution


@dataclass(frozen=True)
class StudyPlan:
    """The plan of the form, and the choices that are missing."""

    cards: tuple[PresetCard, ...]
    ticked: frozenset[str]
    metric: str = ""
    seeds: int = 0
    max_hours: float | None = None
    rates: tuple[float, ...] = ()
    costs: Costs | None = None
    power: PlanPower | None = None
    refusal: str = ""
    missing: str = ""
    to_confirm: Resolution | None = None
    confirmed: str = ""  # key of the accepted warnings

    @property
    def chosen(self) -> ChosenNumbers | None:
        """Return learning rate and length in numbers, with the time of the slowest arm."""
        if self.costs is None:
            return None
        seconds = max(arm.forecast.main.seconds["expected"] for arm in self.costs.arms)
        return ChosenNumbers.of(self.costs.learn, self.costs.train_rows, seconds)


def plan_study(form: StudyForm) -> StudyPlan:
    """Return the plan of a form whose fields have been cleaned, valid or not."""
    values = form.cleaned_data
    base_model, version = values.get("base_model"), values.get("dataset_version")
    metric = values.get("metric") or (version.main_metric if version else "")
    seeds, rates = values.get("seeds") or 1, tuple(values.get("learning_rates") or ())
    test_rows, margin = values.get("test_rows") or TEST_ROWS, values.get("margin")
    margin = DEFAULT_MARGIN if margin is None else margin / POINTS
    arms: list[ArmPlan] = []
    refusal, costs, to_confirm = "", None, None
    cards = tuple(preset_cards(form.offered, base_model)) if base_model else ()
    try:
        refused = {card.config.pk for card in cards if card.resolution.refusal}
        arms = [arm for arm in form.arms() if arm.config.pk not in refused]
        if values.get("budget") == Study.Budget.EQUAL_PARAMETERS and base_model:
            arms = with_equal_parameters(arms, base_model)
        to_confirm = form.to_confirm()
        if base_model and len(arms) > 1:
            costs = plan_costs(
                form.project,
                form.by,
                base_model,
                version,
                arms,
                seeds=seeds,
                rates=len(rates),
                test_rows=test_rows,
                max_hours=values.get("max_hours"),
                metric=values.get("metric") or (version.main_metric if version else ""),
                pattern=values.get("pattern") or "",
                runs=form.forecaster,
            )
    except (SpecError, TargetError) as error:
        refusal = error.message
    return StudyPlan(
        cards=cards,
        ticked=frozenset(str(value) for value in form["configs"].value() or ()),
        metric=metric_label(metric),
        seeds=seeds,
        max_hours=values.get("max_hours"),
        rates=rates,
        costs=costs,
        power=power_of(
            form.project,
            base_model,
            version,
            metric,
            arms=len(arms),
            seeds=seeds,
            test_rows=test_rows,
            margin=margin,
            costs=costs,
        )
        if version and len(arms) > 1
        else None,
        refusal=refusal,
        missing=missing(base_model, version, arms),
        to_confirm=to_confirm,
        confirmed=values.get("confirmed") or "",
    )


def missing(base_model: BaseModel | None, version: DatasetVersion | None, arms: Sequence[ArmPlan]) -> str:
    """Return the choice that the primary button asks for; "" when the study can start."""
    if base_model is None:
        return _("Choose a base model")
    if version is None:
        return _("Choose a dataset")
    return _("Tick at least two arms") if len(arms) < 2 else ""
