"""Rows and steps of a training's validations: engine, forecast and tests ask here.

Validation may cost a tenth of the tokens that are trained on. Rows are counted instead of tokens, because
both splits come from one dataset; rows of another dataset count by their mean length. Few rows make the loss
noisy, and few validations make the curve coarse: three points and the end come first, then the rows, up to
`MOST_ROWS`, then further points. Where not even `FEWEST_ROWS` fit each time, there are fewer validations; the
last is always kept, also above the tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.1
FEWEST_ROWS, MOST_ROWS = 16, 64
USUAL_VALIDATIONS, MOST_VALIDATIONS = 4, 11


@dataclass(frozen=True)
class ValidationPlan:
    """Number of rows to validate on, and the steps after which; step 0 measures the untrained adapter."""

    rows: int
    steps: tuple[int, ...]


def plan_validation(
    total_steps: int, trained_rows: int, available_rows: int, row_cost: float = 1.0
) -> ValidationPlan:
    """Return the plan of a run that reads `trained_rows` rows in all its steps, repeated ones included.

    The last step is always validated, and with two validations the untrained adapter too. `row_cost`: tokens
    of a mean validation row by those of a mean training row.
    """
    budget = SHARE * trained_rows / row_cost
    rows = min(available_rows, max(FEWEST_ROWS, min(MOST_ROWS, int(budget / USUAL_VALIDATIONS))))
    if not rows:
        return ValidationPlan(0, ())
    gaps = min(MOST_VALIDATIONS, int(budget / rows)) - 1
    places = {round(place * total_steps / gaps) for place in range(gaps)} if gaps > 0 else set()
    return ValidationPlan(rows, (*sorted(places - {total_steps}), total_steps))
