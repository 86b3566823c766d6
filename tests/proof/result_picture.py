"""Make README's picture: the result of a small study, as `static/img/study_result.png`.

    .venv/bin/python -m tests.proof.result_picture

Starts an installation on the tiny model, trains three presets with three seeds each (minutes on two cores),
and photographs the verdict and the interval plot. Needs Chromium.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from django.conf import settings
from playwright.sync_api import Page

import tests.plugins.environment  # noqa: F401 - before Django reads its settings
from tests.e2e.installation import Api, Installation, Person, run_chromium, run_installation, sign_in
from tests.tiny_model import build_tiny_model

PICTURE = Path(settings.BASE_DIR) / "static" / "img" / "study_result.png"
MOST_BYTES = 300_000
PRESETS = {"Efficient": "efficient", "Attention": "attention", "Quality": "quality"}
COLOURS = ("red", "green", "blue", "grey")
# Too few steps for the small adapter, so that the arms differ.
LEARNING = {"max_steps": 60, "max_length": 64, "learning_rate": 0.02, "per_device_train_batch_size": 16}


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_tiny_model(folder / "tiny")
        with run_installation(folder, model) as installation, run_chromium() as browser:
            mara = Person("mara@example.org", "correct-horse-battery", folder / "mara.json")
            installation.create_account(mara, project="Support", role="manager")
            study = finish_study(installation, mara)
            page = browser.new_page(
                base_url=installation.url, viewport={"width": 1280, "height": 900}, color_scheme="light"
            )
            sign_in(page, mara)
            page.goto(f"/studies/{study}/")
            photograph(page)
    size = PICTURE.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{PICTURE} has {size:,} bytes; at most {MOST_BYTES:,} may be committed.")
    print(f"{PICTURE}: {size:,} bytes")


def finish_study(installation: Installation, person: Person) -> int:
    """Import a small dataset, run the study on it and return the study's id."""
    token = installation.create_account(person, project="Support", role="manager", token=True)
    api = Api(installation.url, token)
    rows = (
        f'{{"prompt": "Ticket {n}: which queue?", "completion": "{COLOURS[n % 4]}"}}\n' for n in range(1000)
    )
    dataset = api.upload("tickets.jsonl", "".join(rows).encode(), name="Support tickets").json()["id"]
    api.wait(f"/datasets/{dataset}")
    study = api.post(
        "/studies",
        {
            "name": "Which layers to adapt",
            "dataset": dataset,
            "arms": [
                {"name": name, "target_module_config": preset, "hyperparameters": LEARNING}
                for name, preset in PRESETS.items()
            ],
            "seeds": [1, 2, 3],
            "metric": "loss",
            "reference": "Quality",
            "margin": 0.2,
        },
    )["id"]
    state = api.wait(f"/studies/{study}", seconds=1800)["state"]
    if state != "succeeded":
        raise SystemExit(f"The study is {state}.\n{installation.log_tail()}")
    return int(study)


def photograph(page: Page) -> None:
    """Save the page from its top to the end of the interval plot."""
    box = page.locator("section[aria-labelledby=study-intervals]").bounding_box()
    assert box is not None
    page.screenshot(
        path=PICTURE,
        full_page=True,
        clip={"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + 8},
    )


if __name__ == "__main__":
    main()
