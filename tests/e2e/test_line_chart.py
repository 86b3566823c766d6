"""Line charts: each name is readable, also where lines meet, and paper has the curves of a comparison."""

from __future__ import annotations

from itertools import combinations

import pytest
from playwright.sync_api import Page

from tests.e2e.installation import points_of, until

pytestmark = pytest.mark.slow

# The three lines of a run meet at one height; one of them ends earlier than the others.
MEETING_LINES = """async ([height, late, early]) => {
  const written = [];
  const write = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
    if (this.textBaseline === "middle" && this.textAlign === "start")
      written.push({ text, x, y, width: this.measureText(text).width });
    return write.call(this, text, x, y, ...rest);
  };
  const element = document.getElementById("loss-chart");
  const loaded = performance.getEntriesByType("resource").map((one) => one.name);
  const { draw } = await import(loaded.find((name) => name.includes("line_chart")));
  const line = (label, last) => ({ label, points: [[0, 3], [last, height]], colour: 0 });
  draw(element, [line("training", late), line("validation", early), line("base model", late)]);
  CanvasRenderingContext2D.prototype.fillText = write;
  const { height: room } = element.getBoundingClientRect();
  written.forEach((one) => (one.inside = one.y >= 6 && one.y <= room - 6));
  return written.filter(({ text }) => ["training", "validation", "base model"].includes(text));
}"""


@pytest.mark.parametrize(("late", "early"), [(100, 100), (100, 50), (54, 50)])
@pytest.mark.parametrize("height", [0.1, 3.0])
def test_names_at_line_ends_do_not_cover_each_other(
    page: Page, finished_run: int, height: float, late: int, early: int
) -> None:
    page.goto(f"/runs/{finished_run}/")
    until(lambda: points_of(page) > 0, "the first points")
    names = page.evaluate(MEETING_LINES, [height, late, early])
    assert {name["text"] for name in names} == {"training", "validation", "base model"}
    assert all(name["inside"] for name in names), f"not all inside of the chart: {names}"
    for one, other in combinations(names, 2):
        apart = abs(one["y"] - other["y"]) >= 12
        beside = one["x"] + one["width"] < other["x"] or other["x"] + other["width"] < one["x"]
        assert apart or beside, f"{one} and {other} cover each other"


def test_a_printed_comparison_has_its_curves_in_the_light_theme(page: Page, finished_run: int) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(f"/compare/?runs={finished_run}")
    chart = page.locator(".chart canvas")
    assert chart.count() == 0, "they are fetched when somebody scrolls to them"
    theme = "document.documentElement.dataset.bsTheme"
    page.evaluate(f"window.addEventListener('beforeprint', () => (window.printed = {theme}))")
    page.pdf()
    assert chart.count() == 2
    assert page.evaluate(f"[window.printed, {theme}]") == ["light", "dark"]
