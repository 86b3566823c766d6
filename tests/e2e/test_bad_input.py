"""Wrong values in every form and at every endpoint: refused with a sentence, never a fault of the server."""

from __future__ import annotations

import http.client
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import APIResponse, Browser, BrowserContext, Page, expect

from tests.conftest import PASSWORD
from tests.e2e.installation import Answer, Api, Installation, Person

pytestmark = pytest.mark.slow

BINARY = b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)) * 20
LONG_LINE = b'{"prompt": "' + b"a" * 5_000_000 + b'", "completion": "b"}\n'
# Values of `hyperparameters`, and the field that must be named.
WRONG_HYPERPARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"r": 0}, "r"),
    ({"r": -3}, "r"),
    ({"r": 10**9}, "r"),
    ({"r": "eight"}, "r"),
    ({"r": 2.5}, "r"),
    ({"r": True}, "r"),
    ({"lora_alpha": 0}, "lora_alpha"),
    ({"lora_dropout": 1.5}, "lora_dropout"),
    ({"learning_rate": 1e9}, "learning_rate"),
    ({"learning_rate": 0}, "learning_rate"),
    ({"learning_rate": "fast"}, "learning_rate"),
    ({"max_steps": 0}, "max_steps"),
    ({"num_train_epochs": -1}, "num_train_epochs"),
    ({"max_steps": 5, "num_train_epochs": 1}, ""),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
    ({"max_length": 1}, "max_length"),
    ({"seed": -1}, "seed"),
    ({"rank": 8}, "rank"),
]
# Bodies and queries that no endpoint can want.
JUNK: tuple[Any, ...] = (None, [], "text", 5, {"no_such_key": 1}, {"name": {"a": []}, "dataset": "x", "r": 0})
QUERIES = ("?limit=0", "?cursor=%00", "?r=0&base_model=x&name=%F0", "?limit=1e9&since=a", "?state=made-up")
# By whether the method only reads.
ATTEMPTS = {True: [(query, None) for query in QUERIES], False: [("", junk) for junk in JUNK]}


@pytest.fixture(scope="module")
def foreign_dataset(installation: Installation, api: Api) -> int:
    """The id of a dataset in Otto's project, which Mara must not learn of."""
    otto = Person("otto@example.org", PASSWORD, installation.folder / "otto.json")
    token = installation.create_account(otto, project="Elsewhere", role="manager", token=True)
    sent = Api(installation.url, token).upload("a.jsonl", b'{"text": "a"}\n' * 20, name="Secret")
    return int(sent.json()["id"])


def refused(answer: Answer, status: int, field: str | None = None) -> str:
    """The message of an answer that must be a refusal in the API's one shape."""
    assert answer.status == status, (answer.status, answer.body[:500])
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    assert field is None or (error["field"] or "").endswith(field), error
    assert len(error["message"]) > 10
    assert "Traceback" not in error["message"]
    return str(error["message"])


def run_with(dataset: int, **changes: Any) -> dict[str, Any]:
    return {"dataset": dataset, "target_module_config": "efficient", **changes}


# The API


@pytest.mark.parametrize(("values", "field"), WRONG_HYPERPARAMETERS)
def test_the_api_refuses_a_hyperparameter(api: Api, dataset: int, values: dict[str, Any], field: str) -> None:
    answer = api.call("POST", "/runs", run_with(dataset, hyperparameters=values))
    refused(answer, 422, f"hyperparameters.{field}" if field else None)


def test_the_api_refuses_unknown_and_foreign_rows(api: Api, dataset: int, foreign_dataset: int) -> None:
    refused(api.call("POST", "/runs", run_with(foreign_dataset)), 404, "dataset")
    refused(api.call("POST", "/runs", run_with(10**12)), 404, "dataset")
    unknown = run_with(dataset, target_module_config="made-up")
    refused(api.call("POST", "/runs", unknown), 404, "target_module_config")
    refused(api.call("POST", "/runs", run_with(dataset, base_model=999)), 404, "base_model")
    refused(api.call("GET", f"/datasets/{foreign_dataset}"), 404)


def test_the_api_refuses_wrong_types_and_unknown_keys(api: Api, dataset: int) -> None:
    refused(api.call("POST", "/runs", run_with("one")), 422, "dataset")  # type: ignore[arg-type]
    refused(api.call("POST", "/runs", run_with(dataset, colour="red")), 422, "colour")
    refused(api.call("POST", "/runs", {"dataset": dataset}), 422, "target_module_config")
    refused(api.call("POST", "/runs", body=b"{not json"), 422)
    refused(api.call("POST", "/runs", body=b"\xff\xfe\x00"), 422)


def test_the_api_refuses_strangers_and_readers(installation: Installation, api: Api, dataset: int) -> None:
    refused(Api(installation.url, "gw_made-up").call("GET", "/runs"), 401)
    vera = Person("vera@example.org", PASSWORD, installation.folder / "vera.json")
    reader = Api(
        installation.url, installation.create_account(vera, project="Support", role="viewer", token=True)
    )
    refused(reader.call("POST", "/runs", run_with(dataset)), 403)
    assert reader.get("/runs")["data"] is not None


def test_no_endpoint_fails_over_junk(api: Api, finished_run: int) -> None:
    described = api.get("/openapi.json")
    broken = []
    for path, methods in described["paths"].items():
        places = {re.sub(r"{\w+}", number, path.removeprefix("/api/v1")) for number in ("1", "999999", "x")}
        for method, place in product(methods, places):
            if method == "delete" and "/1" in place:
                continue  # it would work, and take away the very token that asks
            for query, junk in ATTEMPTS[method == "get"]:
                answer = api.call(method.upper(), place + query, junk)
                if answer.status >= 500:
                    broken.append((method, place + query, junk, answer.status))
    assert broken == []


# Files


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("empty.jsonl", b""),
        ("program.exe", BINARY),
        ("rows.zip", b"PK\x03\x04" + bytes(100)),
        ("noending", b"a"),
    ],
)
def test_the_api_refuses_a_file_at_once(api: Api, filename: str, content: bytes) -> None:
    refused(api.upload(filename, content, name="Refused"), 422, "file")


BAD_FILES = [
    ("none.jsonl", b"\n\n"),
    ("none.json", b"[]"),
    ("header.csv", b"prompt,completion\n"),
    ("program.csv", BINARY),
    ("program.jsonl", BINARY),
    ("program.parquet", BINARY),
    ("long.jsonl", LONG_LINE),
    ("empty-answers.jsonl", b'{"prompt": "a", "completion": ""}\n' * 3),
    ("broken.json", b'[{"prompt": "a", '),
    ("latin.csv", "prompt,completion\nGr\xfc\xdfe,hallo\n".encode("latin-1")),
]


@pytest.fixture(scope="module")
def failures(api: Api) -> dict[str, dict[str, Any]]:
    """By file name, what the API says of each bad file once it was looked at: at once, or by the import."""
    sent = {name: api.upload(name, content, name=f"Bad {name}") for name, content in BAD_FILES}
    found = {}
    for name, answer in sent.items():
        assert answer.status in (202, 422), (name, answer.status, answer.body[:300])
        if answer.status == 202:
            found[name] = api.wait(f"/datasets/{answer.json()['id']}")
        else:
            found[name] = {"id": None, "state": "failed", "error": answer.json()["error"]}
    return found


@pytest.mark.parametrize("filename", [name for name, _content in BAD_FILES])
def test_a_bad_file_ends_as_a_failure_that_its_page_tells_in_the_same_words(
    failures: dict[str, dict[str, Any]], page: Page, filename: str
) -> None:
    found = failures[filename]
    assert found["state"] == "failed", found
    message = found["error"]["message"]
    assert len(message) > 20, message
    assert not re.search(r"Traceback|Error\(|0x|/tmp|\.py", message), message
    if found["id"]:
        page.goto(f"/datasets/{found['id']}/")
        # The page sets `names` as code, without the marks.
        expect(page.locator("main")).to_contain_text(" ".join(message.replace("`", "").split()))


# Forms in the browser


def test_the_upload_form_refuses_in_place_and_keeps_what_was_typed(page: Page, tmp_path: Path) -> None:
    page.goto("/datasets/new/")
    page.get_by_label(re.compile("^Name")).fill("My name for it")
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_role("alert").first).to_contain_text("File")
    wrong = tmp_path / "program.exe"
    wrong.write_bytes(BINARY)
    page.get_by_label("File", exact=True).set_input_files(wrong)
    page.get_by_role("button", name="Upload and import").click()
    expect(page.get_by_role("alert").first).to_contain_text("program.exe cannot be imported")
    expect(page.get_by_label(re.compile("^Name"))).to_have_value("My name for it")
    (tmp_path / "empty.csv").touch()
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "empty.csv")
    expect(page.locator("[data-problem]")).to_contain_text("This file is empty")


def test_the_fine_tune_form_refuses_beside_the_fields_and_keeps_what_was_typed(
    page: Page, dataset: int
) -> None:
    page.goto(f"/fine-tune/?dataset={dataset}")
    page.get_by_role("heading", name="Expert settings").click()
    page.locator("#id_r").fill("0")
    page.locator("#id_learning_rate").fill("1e9")
    page.locator("#id_max_steps").fill("-5")
    page.get_by_role("button", name="Start fine-tune").click()
    summary = page.locator(".error-summary")
    expect(summary).to_be_focused()
    expect(summary.get_by_role("listitem")).to_have_count(3)
    expect(page.locator("#id_r")).to_have_value("0")
    expect(page.locator("#id_learning_rate")).to_have_value("1e9")
    expect(page.locator("#id_r")).to_have_attribute("aria-invalid", "true")


def test_a_run_that_cannot_learn_says_so_with_the_numbers(api: Api, dataset: int, page: Page) -> None:
    asked = run_with(dataset, hyperparameters={"max_steps": 2, "max_length": 16}, name="Cut off")
    run = api.post("/runs", asked)["id"]
    error = api.wait(f"/runs/{run}")["error"]
    assert re.search(r"\d", error["message"]), error
    page.goto(f"/runs/{run}/")
    expect(page.get_by_role("region", name="This run failed")).to_contain_text(error["message"])


FORMS: list[tuple[str, dict[str, str]]] = [
    (
        "/fine-tune/",
        {"dataset_version": "abc", "base_model": "-1", "target_module_config": "made-up", "r": "x"},
    ),
    ("/datasets/new/", {"name": "x" * 5000}),
    ("/settings/tokens/new/", {"name": "", "scope": "everything", "lifetime": "-1"}),
    ("/team/invitations/", {"email": "not an address", "role": "king"}),
    ("/projects/new/", {"name": ""}),
    ("/account/password/", {"oldpassword": "wrong", "password1": "a", "password2": "b"}),
    ("/settings/base-models/new/", {"kind": "hub", "hub_id": "../../etc/passwd", "revision": "a b"}),
    ("/settings/base-models/new/", {"folder": "../..", "name": "x", "hub_id": ""}),
    ("/adapters/999999/stage/", {"stage": "golden"}),
    ("/datasets/999999/import-again/", {"version": "x", "prompt_column": "nope"}),
    ("/datasets/999999999999999999999999/import-again/", {}),
    ("/runs/999999/cancel/", {}),
    ("/queue/999999/cancel/", {"next": "https://elsewhere.example/"}),
    ("/team/members/999999/role/", {"role": "king"}),
    ("/projects/open/", {"project": "x"}),
]


def sent(context: BrowserContext, path: str, values: dict[str, str]) -> APIResponse:
    """The answer to a form that was tampered with on its way."""
    token = next(one["value"] for one in context.cookies() if one["name"] == "csrf")
    return context.request.post(path, form={**values}, headers={"X-CSRFToken": token}, max_redirects=0)


@pytest.mark.parametrize(("path", "values"), FORMS)
def test_a_form_with_wrong_values_is_refused_with_a_page(
    context: BrowserContext, page: Page, path: str, values: dict[str, str]
) -> None:
    page.goto("/settings/tokens/")
    answer = sent(context, path, values)
    assert 400 <= answer.status < 500, (answer.status, answer.text()[:300])
    assert "<h1" in answer.text()


def test_the_fine_tune_form_does_not_take_another_projects_dataset(
    context: BrowserContext, page: Page, foreign_dataset: int
) -> None:
    page.goto("/fine-tune/")
    answer = sent(context, "/fine-tune/", {"dataset_version": str(foreign_dataset), "length": "steps"})
    assert answer.status == 422
    assert "Choose another" in answer.text()
    assert "Secret" not in answer.text()
    assert page.request.get(f"/datasets/{foreign_dataset}/").status == 404


@pytest.mark.parametrize(
    "address",
    [
        "/runs/?cursor=junk&state=made-up&q=%00",
        "/datasets/?cursor=-1",
        "/adapters/?cursor=1e9",
        "/compare/?runs=abc&runs=999999&runs=-1",
        "/fine-tune/?dataset=x&clone=-1&base_model=999999999999999999999",
        "/fine-tune/forecast/?r=0&max_steps=x&learning_rate=1e9&base_model=x",
        "/fine-tune/presets/?r=1e9&base_model=x",
        "/queue/?cursor=%FF",
    ],
)
def test_no_address_fails_over_junk(page: Page, address: str) -> None:
    assert page.request.get(address).status < 500


def test_a_body_over_the_limit_is_refused_before_it_is_sent(api: Api) -> None:
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/api/v1/runs")
    connection.putheader("Authorization", f"Bearer {api.token}")
    connection.putheader("Content-Length", "2000000")
    connection.endheaders()
    response = connection.getresponse()
    refused(Answer(response.status, dict(response.headers), response.read()), 413)
    connection.close()


def test_a_wrong_password_is_refused_without_saying_whether_the_account_exists(
    installation: Installation, browser: Browser, mara: Person
) -> None:
    page = browser.new_page(base_url=installation.url)
    said = []
    for email in (mara.email, "nobody@example.org"):
        page.goto("/sign-in/")
        page.get_by_label(re.compile("mail")).fill(email)
        page.get_by_label("Password", exact=True).fill("not-the-password")
        with page.expect_response(lambda answer: answer.request.method == "POST") as answer:
            page.get_by_role("button", name="Sign in").click()
        assert answer.value.status == 422
        said.append(page.get_by_role("alert").first.inner_text())
    assert said[0] == said[1]
    page.close()
