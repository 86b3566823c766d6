"""Compare the API's answers to a fixed list of requests with those of an earlier release.

    python -m tests.proof.api_recording check     print every difference from the recording
    python -m tests.proof.api_recording record    write the recording anew

Starts a real installation with a tiny base model and asks it over HTTP. Values that depend on the clock, the
machine or the wording (times, bytes, hashes, messages, forecasts) are compared by type, all others by value.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.installation import Answer, Api, Installation, Person, launch
from tests.servers import free_port
from tests.tiny_model import build_tiny_model

RECORDING = Path(__file__).with_name("api_recording.json")
OVER = ("succeeded", "failed", "cancelled", "stopped_early")
# Keys whose values change from one machine, minute or wording to the next.
VARIES = re.compile(
    r"(^|_)(at|until|seconds|bytes|ms|sha256|digest|versions?|folder|path|host|pid|device|memory|eta|text|texts|message"
    r"|sentence|sentences|note|notes|label|description|title|who|name_of_device|forecast|measured|token|secret|url"
    r"|prefix|log|month|expires|spread|low|high|expected|starts|ratio|per_second|warnings|problems|report|worker|evidence"
    r"|tokens_per_second|license|commit|revision|key|explanation|reason|values|points|last|metrics|help|value|origin"
    r"|difference|p|p_value|mean|scores|losses|interval|verdict|latency|size|words|loss|rows_cut|step|link)($|_)"
)
# A process: its name has its host and number.
PROCESS = re.compile(r"@\S+/[0-9a-f]{8}")
ROWS = "".join(
    json.dumps({"prompt": f"{text} {number}", "completion": answer}) + "\n"
    for number in range(12)
    for text, answer in (
        ("stop at", "red"),
        ("walk at", "green"),
        ("the sea is", "blue"),
        ("the fog is", "grey"),
    )
).encode()
HYPERPARAMETERS = {"r": 2, "max_steps": 6, "per_device_train_batch_size": 2, "max_length": 64, "seed": 3}
ROLES = ("manager", "viewer")


def requests(api: Api, nobody: Api, viewer: Api) -> Iterator[tuple[str, Answer]]:
    """Yield each request of the list, by name, with its answer."""

    def ask(
        method: str, path: str, payload: Any = None, caller: Api = api, **headers: str
    ) -> tuple[str, Answer]:
        name = f"{method} {path} {json.dumps(payload) if payload is not None else ''} {headers or ''}".strip()
        who = {id(nobody): " (no token)", id(viewer): " (viewer)"}.get(id(caller), "")
        return name + who, caller.call(method, path, payload, **headers)

    def upload(filename: str, content: bytes, **fields: str) -> tuple[str, Answer]:
        return f"UPLOAD {filename} {fields or ''} {len(content)} B", api.upload(filename, content, **fields)

    lists = (
        "base-models",
        "target-module-configs",
        "datasets",
        "runs",
        "studies",
        "adapters",
        "jobs",
        "workers",
    )
    # The installation inspects its bundled base model after it has started.
    yield ("WAIT bundled base model", finished(api, "/base-models/1"))
    everything = (*lists, "me", "compute-budget", "members", "invitations", "tokens")
    for path in everything:
        yield ask("GET", f"/{path}")
        yield ask("GET", f"/{path}", caller=nobody)
        yield ask("DELETE", f"/{path}")
    for path in lists:
        yield ask("GET", f"/{path}/9999")
        yield ask("GET", f"/{path}?limit=0")
        yield ask("GET", f"/{path}?limit=x")
        yield ask("GET", f"/{path}?after=nonsense")
    yield ask("GET", "/nothing-here")
    yield ask("POST", "/datasets/sample", caller=viewer)

    # Datasets
    yield upload("empty.jsonl", b"")
    yield upload("data.exe", b"MZ")
    yield upload("few.csv", b"prompt,completion\na,b\n", name="Few")
    yield upload("colours.jsonl", ROWS, name="Colours")
    yield upload("colours.jsonl", ROWS, name="Colours", dataset="9999")
    yield ("WAIT imports", finished(api, "/datasets/2"))
    for tail in ("", "/versions", "/preview"):
        yield ask("GET", f"/datasets/2{tail}")
    yield ask("GET", "/datasets/1")
    yield ask("POST", "/datasets/2/import-again", {})
    yield ask("POST", "/datasets/1/import-again", {"prompt_column": "no_such"})
    yield ask("GET", "/datasets?limit=1")

    # Base models and target modules
    yield ("WAIT base model", finished(api, "/base-models/1"))
    for tail in ("", "/modules", "/presets"):
        yield ask("GET", f"/base-models/1{tail}")
    yield ask("POST", "/base-models", {})
    yield ask("POST", "/base-models", {"hub_id": "not a hub id"})
    yield ask("POST", "/base-models", {"folder": "../etc"})
    yield ask("POST", "/target-module-configs", {})
    own = {"name": "Own", "base_model": 1, "target_modules": ["o_proj"]}
    yield ask("POST", "/target-module-configs", own)
    yield ask("POST", "/target-module-configs", {**own, "name": "None", "target_modules": ["no_such_layer"]})
    yield ask("GET", "/target-module-configs")

    # Forecast and runs
    run = {
        "name": "First",
        "dataset": 2,
        "target_module_config": "efficient",
        "hyperparameters": HYPERPARAMETERS,
    }
    plan = {key: value for key, value in run.items() if key != "name"}
    yield ask("POST", "/forecast", plan)
    yield ask("POST", "/forecast", {**plan, "dataset": 9999})
    wrong: tuple[dict[str, Any], ...] = (
        {},
        {**run, "dataset": 9999},
        {**run, "target_module_config": "no-such"},
        {**run, "base_model": 9999},
        {**run, "name": "x" * 500},
        {**run, "hyperparameters": {"r": 0}},
        {**run, "hyperparameters": {"r": "many"}},
        {**run, "hyperparameters": {"learning_rate": 1000}},
        {**run, "hyperparameters": {"no_such": 1}},
        {**run, "hyperparameters": {"max_steps": -1}},
        {**run, "hyperparameters": {"lr_scheduler_type": "zigzag"}},
        {**run, "unknown": 1},
    )
    for body in wrong:
        yield ask("POST", "/runs", body)
    yield ask("POST", "/runs", run, caller=viewer)
    yield ask("POST", "/runs", run, Idempotency_Key="first")
    yield ask("POST", "/runs", run, Idempotency_Key="first")
    yield ask("POST", "/runs", {**run, "name": "Other"}, Idempotency_Key="first")
    yield ("WAIT run", finished(api, "/runs/1"))
    yield ("WAIT scores", scored(api, "/runs/1"))
    for tail in ("", "/metrics", "/metric-series", "/evaluations", "/samples", "/events"):
        yield ask("GET", f"/runs/1{tail}")
    yield ask("GET", "/runs/1/metrics?name=train/loss")
    yield ask("GET", "/runs/1/metrics?name=no/such")
    for verb in ("cancel", "resume", "score"):
        yield ask("POST", f"/runs/1/{verb}")
    yield ask("POST", "/runs/1/cancel", {"keep": "everything"})
    yield ask("GET", "/runs?state=succeeded")
    yield ask("GET", "/runs?state=nonsense")
    yield ask("GET", "/runs?limit=1")

    # Adapters
    yield ask("GET", "/adapters")
    yield ask("GET", "/adapters/1")
    yield ask("POST", "/adapters/1/stage", {"stage": "shipped"})
    yield ask("POST", "/adapters/1/stage", {"stage": "approved"}, caller=viewer)
    yield ask("POST", "/adapters/1/stage", {"stage": "approved"})

    # Studies
    arms = [
        {"target_module_config": slug, "hyperparameters": HYPERPARAMETERS}
        for slug in ("efficient", "quality")
    ]
    study = {"name": "Placement", "dataset": 2, "arms": arms, "seeds": [1, 2], "metric": "exact_match"}
    wrong = (
        {},
        {**study, "arms": []},
        {**study, "arms": arms[:1]},
        {**study, "arms": [arms[0], arms[0]]},
        {**study, "seeds": [1]},
        {**study, "seeds": [1, 1]},
        {**study, "seeds": list(range(99))},
        {**study, "metric": "applause"},
        {**study, "metric": "regex"},
        {**study, "metric": "regex", "pattern": "("},
        {**study, "reference": "nobody"},
        {**study, "budget": "unequal"},
        {**study, "margin": -1},
        {**study, "learning_rates": [0]},
        {**study, "unknown": 1},
    )
    for body in wrong:
        yield ask("POST", "/studies", body)
    yield ask("POST", "/studies", study, caller=viewer)
    yield ask("POST", "/studies", study, Idempotency_Key="study")
    yield ask("POST", "/studies", study, Idempotency_Key="study")
    yield ("WAIT study", finished(api, "/studies/1"))
    yield ask("GET", "/studies/1")
    yield ask("GET", "/studies/1/export")
    yield ask("POST", "/studies/1/cancel")
    yield ask("POST", "/studies/1/score")
    yield ask("POST", "/studies/1/seeds", {"seeds": []})
    yield ask("POST", "/studies/1/seeds", {"seeds": [1]})
    yield ask("GET", "/studies?limit=1")

    # Jobs, workers, budget
    yield ask("GET", "/jobs?limit=3")
    yield ask("GET", "/jobs/1")
    yield ask("GET", "/jobs/1/events")
    yield ask("PATCH", "/jobs/1", {"priority": "urgent"})
    yield ask("PATCH", "/jobs/1", {"priority": "high"})
    yield ask("POST", "/jobs/1/cancel")
    yield ask("POST", "/jobs/9999/cancel")
    yield ask("GET", "/workers")
    yield ask("POST", "/workers/1/pause", caller=viewer)
    yield ask("PATCH", "/compute-budget", {"hours": -1})
    yield ask("PATCH", "/compute-budget", {"hours": "many"})
    yield ask("PATCH", "/compute-budget", {"hours": 1000}, caller=viewer)
    yield ask("PATCH", "/compute-budget", {"hours": 1000})
    yield ask("GET", "/compute-budget")

    # People
    yield ask("POST", "/members/1/role", {"role": "viewer"})
    yield ask("POST", "/members/1/role", {"role": "emperor"})
    yield ask("DELETE", "/members/1")
    yield ask("POST", "/invitations", {"email": "nonsense", "role": "editor"})
    yield ask("POST", "/invitations", {"email": "ed@example.org", "role": "emperor"})
    yield ask("POST", "/invitations", {"email": "ed@example.org", "role": "editor"})
    yield ask("POST", "/invitations", {"email": "ed@example.org", "role": "editor"}, caller=viewer)
    yield ask("GET", "/invitations")
    yield ask("DELETE", "/invitations/1")
    yield ask("POST", "/tokens", {"name": "", "scope": "read"})
    yield ask("POST", "/tokens", {"name": "CI", "scope": "everything"})
    yield ask("POST", "/tokens", {"name": "CI", "scope": "read"})
    yield ask("GET", "/tokens")
    yield ask("DELETE", "/tokens/3")
    yield ask("DELETE", "/tokens/9999")
    for path in everything:
        yield ask("GET", f"/{path}")
        yield ask("HEAD", f"/{path}")
    yield ("OPENAPI", described(api))


def finished(api: Api, path: str) -> Answer:
    """Wait until the object is over; return it."""
    api.wait(path, (*OVER, "ready", "invalid"), seconds=240)
    return api.call("GET", path)


def scored(api: Api, path: str) -> Answer:
    """Wait until its evaluations are over; return them."""
    for _ in range(300):
        found = api.get(f"{path}/evaluations")["data"]
        if found and all(each["state"] in OVER for each in found):
            break
        time.sleep(0.5)
    return api.call("GET", f"{path}/evaluations")


def described(api: Api) -> Answer:
    """Return the paths, verbs, operations and field names of the OpenAPI document, without its prose."""
    document = json.loads(api.call("GET", "/openapi.json").body)
    operations = {
        f"{verb} {path}": [each["operationId"], sorted(each.get("responses", {}))]
        for path, verbs in document["paths"].items()
        for verb, each in verbs.items()
    }
    schemas = {
        name: sorted(schema.get("properties", {}))
        for name, schema in document["components"]["schemas"].items()
    }
    return Answer(200, {}, json.dumps({"operations": operations, "schemas": schemas}).encode())


def comparable(value: Any, key: str = "") -> Any:
    """Replace what varies by its type."""
    if isinstance(value, dict):
        return {name: comparable(each, name) for name, each in value.items()}
    if isinstance(value, list):
        if VARIES.search(key) and not any(isinstance(each, dict) for each in value):
            return f"<{key}>"
        compared = [comparable(each, key) for each in value]
        # Processes register in any order.
        if compared and isinstance(compared[0], dict) and "processes" in compared[0]:
            compared = sorted((each | {"id": "<number>"} for each in compared), key=lambda each: each["name"])
        return compared
    if VARIES.search(key) and value is not None and not isinstance(value, bool):
        return "<number>" if isinstance(value, int | float) else f"<{type(value).__name__}>"
    is_process = isinstance(value, str) and PROCESS.search(value)
    return "<number>" if isinstance(value, float) else "<process>" if is_process else value


def answers(installation: Installation) -> dict[str, Any]:
    """Ask everything once; return status and comparable body by request."""
    people = {
        role: Person(f"{role}@example.org", "correct-horse-battery", installation.folder / role)
        for role in ROLES
    }
    tokens = {
        role: installation.create_account(person, project="Support", role=role, token=True)
        for role, person in people.items()
    }
    api, viewer = (Api(installation.url, tokens[role]) for role in ROLES)
    recorded: dict[str, Any] = {}
    for name, answer in requests(api, Api(installation.url, "gw_nonsense"), viewer):
        text = answer.body.decode(errors="replace")
        body = json.loads(text) if text[:1] in ("{", "[") else f"<{len(text) > 0}>"
        number = sum(each.partition(" #")[0] == name for each in recorded) + 1
        recorded[name if number == 1 else f"{name} #{number}"] = [answer.status, comparable(body)]
    return recorded


def run() -> dict[str, Any]:
    """Start an installation of this source, ask it, stop it."""
    with tempfile.TemporaryDirectory(prefix="graftworks-recording-") as name:
        folder = Path(name)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": name,
            "LANG": "C.UTF-8",
            "PORT": str(free_port()),
            "DATA_DIR": str(folder / "data"),
            "BUNDLED_MODEL_DIR": str(build_tiny_model(folder / "model")),
            "OMP_NUM_THREADS": "1",
            "API_READS_PER_MINUTE": "100000",
            "API_WRITES_PER_MINUTE": "100000",
        }
        installation = launch(environment, folder / "start.log")
        try:
            return answers(installation)
        except BaseException:
            print(installation.log_tail(), file=sys.stderr)
            raise
        finally:
            installation.process.send_signal(signal.SIGTERM)
            installation.process.wait(timeout=90)


def differences(before: Any, after: Any, place: str) -> Iterator[str]:
    """Yield each place at which two answers differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            missing = object()
            yield from differences(before.get(key, missing), after.get(key, missing), f"{place} > {key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{place} [{index}]")
    elif before != after:
        yield f"{place}: {shortened(before)} -> {shortened(after)}"


def shortened(value: Any) -> str:
    """Return a value for one line, or say that there is none."""
    return "(absent)" if type(value) is object else json.dumps(value)[:200]


def main(verb: str) -> int:
    """Record, or compare and return 1 where anything differs."""
    found = run()
    if verb == "record":
        lines = (f"{json.dumps(name)}: {json.dumps(found[name], sort_keys=True)}" for name in sorted(found))
        RECORDING.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{len(found)} requests recorded")
        return 0
    changes = list(differences(json.loads(RECORDING.read_text()), found, ""))
    print("\n".join(changes))
    print(f"{len(found)} requests, {len(changes)} differences")
    return int(bool(changes))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
    sys.exit(main(sys.argv[1]))
