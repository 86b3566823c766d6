"""Fields of forms, which are written once per state."""

from __future__ import annotations

from django import forms


class Settings(forms.Form):
    rank = forms.IntegerField(min_value=1, max_value=64, help_text="Of each module.")
    scheduler = forms.ChoiceField(choices=[("linear", "Linear"), ("cosine", "Cosine")])
    dora = forms.BooleanField(required=False)


def html(name: str, form: forms.Form) -> str:
    return str(form[name].as_field_group())


def test_a_field_shows_its_present_value() -> None:
    assert 'value="8"' in html("rank", Settings(initial={"rank": 8}))
    assert 'value="16"' in html("rank", Settings(initial={"rank": 16}))
    assert "checked" not in html("dora", Settings())
    assert "checked" in html("dora", Settings(initial={"dora": True}))
    assert 'value="cosine" selected' in html("scheduler", Settings(initial={"scheduler": "cosine"}))


def test_a_field_shows_its_errors_and_then_none() -> None:
    assert "field-wrong" not in html("rank", Settings(initial={"rank": "99"}))
    assert "field-wrong" in html("rank", Settings({"rank": "99"}))
    assert "field-wrong" not in html("rank", Settings(initial={"rank": "99"}))


def test_a_field_follows_its_definition() -> None:
    assert "Of each module." in html("rank", Settings())
    form = Settings()
    form.fields["rank"].help_text = "Of all modules."
    form.fields["rank"].widget.attrs["disabled"] = True
    form.fields["scheduler"].choices = [("constant", "Constant")]  # type: ignore[attr-defined]
    assert "Of all modules." in html("rank", form)
    assert "disabled" in html("rank", form)
    assert "Constant" in html("scheduler", form)
    assert 'name="second-rank"' in html("rank", Settings(prefix="second"))
