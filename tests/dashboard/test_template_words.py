"""Template filters: states, numbers, sizes, times and form fields."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django import forms
from django.template import Context, Template
from django.utils import timezone

from dashboard.models import Job, State
from dashboard.templatetags.graftworks import (
    STATE_LOOKS,
    about,
    duration,
    filesize,
    number,
    percent,
    prose,
    relative,
    state_word,
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "–"),
        (float("nan"), "–"),
        (0, "0"),
        (1234, "1,234"),
        (276_480, "0.28 M"),
        (134_515_008, "134.5 M"),
        (1_240_000_000, "1.24 B"),
        (0.60417, "0.604"),
        (1234.56, "1,235"),
    ],
)
def test_number(value: float | None, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(None, "–"), (0.0, "0.0 %"), (0.2054, "20.5 %"), (0.0021, "0.21 %"), (1.0, "100.0 %")],
)
def test_percent(share: float | None, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, "–"),
        (1, "1 byte"),
        (900, "900 bytes"),
        (1500, "2 kB"),
        (1_110_000, "1.1 MB"),
        (2.5e9, "2.5 GB"),
    ],
)
def test_filesize(size: float | None, words: str) -> None:
    assert filesize(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.0351, "0.035 s"),
        (0.42, "0.4 s"),
        (3, "3 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (timedelta(minutes=2), "2 min"),
    ],
)
def test_duration(seconds: float | timedelta | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.2, "1 s"),
        (42, "40 s"),
        (400, "7 min"),
        (1510, "25 min"),
        (4900, "1 h 20 min"),
        (9720, "2 h 45 min"),
        (10_900, "3 h"),
        (73_000, "20 h"),
        (170_000, "47 h"),
        (200_000, "2 days"),
    ],
)
def test_forecast_time(seconds: float | None, words: str) -> None:
    assert about(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-10, "just now"),
        (10, "in a moment"),
        (-60, "1 minute ago"),
        (-7200, "2 hours ago"),
        (-86400, "1 day ago"),
        (14 * 86400, "in 14 days"),
        (-400 * 86400, "1 year ago"),
    ],
)
def test_relative_time(seconds: float, words: str) -> None:
    assert relative(timedelta(seconds=seconds)) == words


def test_absolute_time_on_hover_and_in_print() -> None:
    moment = timezone.now() - timedelta(hours=2)
    text = Template("{% load graftworks %}{{ moment|ago }}").render(Context({"moment": moment}))
    assert f'title="{moment:%Y-%m-%d %H:%M:%S} UTC"' in text
    assert "2 hours ago" in text


STATE_WORDS = [
    ("draft", "", "Draft"),
    ("queued", "train", "Waiting"),
    ("starting", "train", "Starting"),
    ("running", "train", "Training"),
    ("running", "evaluate", "Evaluating"),
    ("running", "import", "Importing"),
    ("running", "inspect", "Inspecting"),
    ("running", "judge", "Judging"),
    ("running", "serve", "Answering"),
    ("running", "export", "Exporting"),
    ("running", "push", "Pushing"),
    ("running", "", "Running"),
    ("finalizing", "train", "Saving"),
    ("cancelling", "train", "Stopping"),
    ("interrupted", "train", "Interrupted, will continue by itself"),
    ("succeeded", "train", "Finished"),
    ("stopped_early", "train", "Stopped early, best kept"),
    ("failed", "train", "Failed"),
    ("cancelled", "train", "Stopped"),
]


@pytest.mark.parametrize(("state", "kind", "word"), STATE_WORDS)
def test_state_label(state: str, kind: str, word: str) -> None:
    assert state_word(state, kind) == word


def test_every_state_has_label_and_look_and_only_failure_is_red() -> None:
    assert {*State.values, "draft", "stopped_early"} == {state for state, _kind, _word in STATE_WORDS}
    assert {*Job.Kind.values, ""} == {kind for state, kind, _word in STATE_WORDS if state == "running"}
    cells = {"planned", "left_out", "not_needed", "trained", "scored"}
    assert {*State.values, "draft", "stopped_early"} | cells == set(STATE_LOOKS)
    assert [state for state, (tone, _icon) in STATE_LOOKS.items() if tone == "bad"] == ["failed"]


class ExampleForm(forms.Form):
    """One field of each layout."""

    name = forms.CharField(label="Name", help_text="Any.")
    note = forms.CharField(required=False)
    kind = forms.ChoiceField(choices=[("a", "A")], widget=forms.RadioSelect)
    sure = forms.BooleanField(label="Sure")
    one = forms.ChoiceField(choices=[("a", "A")])
    file = forms.FileField()


def test_field_has_accessible_label_help_and_error() -> None:
    form = ExampleForm({"name": "", "kind": "x"})
    text = str(form["name"].as_field_group())
    assert '<label class="form-label" for="id_name">Name</label>' in text
    assert 'aria-describedby="id_name_helptext id_name_error"' in text
    assert 'aria-invalid="true"' in text
    assert 'id="id_name_error"' in text
    assert "is-invalid" in text
    assert "<script>" not in str(ExampleForm({"name": "<script>"})["name"].as_field_group())


def test_each_kind_of_field_has_its_widget() -> None:
    form = ExampleForm()
    assert "(optional)" in str(form["note"].as_field_group())
    assert "<legend" in str(form["kind"].as_field_group())
    assert 'type="radio"' in str(form["kind"].as_field_group())
    assert "form-check-input" in str(form["sure"].as_field_group())
    assert "form-select" in str(form["one"].as_field_group())
    assert 'type="file"' in str(form["file"].as_field_group())


def test_prose_renders_backticks_as_code_and_escapes_the_rest() -> None:
    assert prose("`max_length` is 9.") == "<code>max_length</code> is 9."
    assert prose("`<b>` <i>") == "<code>&lt;b&gt;</code> &lt;i&gt;"
    assert prose("one ` mark <b>") == "one ` mark &lt;b&gt;"
    assert prose(None) == ""
