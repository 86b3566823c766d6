"""The inference engine as a process: streaming, adapters, stops, refusals and clients that go away."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.engine.serving.chats import Engine, run_engine, save_adapter
from tests.tiny_model import build_tiny_model, tiny_base
from workers.contract.chat import (
    HAND_OVER,
    Accepted,
    ChatEvent,
    ChatRequest,
    ChatSettings,
    End,
    Refused,
    Text,
)
from workers.contract.events import Finished, Result, from_line
from workers.contract.specs import ServeSpec

LONG = 400


def without_end_token(base: Path) -> Path:
    """Let every answer last until its limit of tokens."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((base / name).read_text())
        kept = {key: value for key, value in values.items() if key not in ("eos_token_id", "eos_token")}
        (base / name).write_text(json.dumps(kept))
    return base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def spec(folder: Path) -> ServeSpec:
    # One of its limits each is small, so that a test can reach it.
    base = without_end_token(build_tiny_model(folder / "base"))
    for seed in (1, 2, 3):
        save_adapter(folder / "adapters" / (str(seed) * 64), base, seed)
    return ServeSpec(
        base=tiny_base(base),
        socket=str(folder / "run" / ("long" * 40) / "base.sock"),
        adapters=str(folder / "adapters"),
        max_rows=2,
        max_tokens=1024,
        max_adapters=2,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def engine(spec: ServeSpec, folder: Path) -> Iterator[Engine]:
    with run_engine(spec, folder / "out", listen="127.0.0.1", token="key") as running:
        yield running


@pytest.fixture
def another(spec: ServeSpec, tmp_path: Path) -> Iterator[Engine]:
    """Run a second engine, which a test may end."""
    with run_engine(replace(spec, socket=str(tmp_path / "run" / "base.sock")), tmp_path) as running:
        yield running


def text_of(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def refusal(events: list[ChatEvent]) -> str:
    assert isinstance(events[-1], Refused), events
    return events[-1].code


def test_it_streams_an_answer(engine: Engine) -> None:
    first, *texts, last = engine.answer(max_tokens=20)
    assert isinstance(first, Accepted)
    assert first.prompt_tokens > 5
    assert isinstance(last, End)
    assert last.tokens == 20
    assert last.reason == "length"
    counts = [event.tokens for event in texts if isinstance(event, Text)]
    assert all(earlier < later for earlier, later in pairwise(counts))
    assert len(counts) > 3


def test_adapters_answer_beside_the_base_as_they_do_alone(engine: Engine) -> None:
    names = ["", "1" * 64, "2" * 64]
    alone = [text_of(engine.answer("a colour", name, max_tokens=12)) for name in names]
    assert len(set(alone)) == 3
    with (
        engine.chat("a colour", names[0], max_tokens=12) as base,
        engine.chat("a colour", names[1], max_tokens=12) as first,
        engine.chat("a colour", names[2], max_tokens=12) as second,
    ):
        assert [text_of(list(events)) for events in (base, first, second)] == alone


def test_equal_seeds_give_equal_answers(engine: Engine) -> None:
    drawn = [text_of(engine.answer(temperature=1.5, seed=seed, max_tokens=12)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_stop_text_ends_the_answer_before_it(engine: Engine) -> None:
    whole = text_of(engine.answer(max_tokens=20))
    stop = whole[6:9]
    events = engine.answer(max_tokens=20, stop=(stop,))
    assert text_of(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], End)
    assert events[-1].reason == "stop"


def test_a_client_that_leaves_frees_its_slot(engine: Engine) -> None:
    began = time.monotonic()
    engine.answer(max_tokens=LONG)
    seconds = time.monotonic() - began
    # Only two answers run at a time, so that the next one would wait for the end of one of these.
    with engine.chat(max_tokens=LONG) as one, engine.chat(max_tokens=LONG) as two:
        assert isinstance(next(one), Accepted)
        assert isinstance(next(two), Accepted)
    left = time.monotonic()
    assert isinstance(engine.answer(max_tokens=1)[-1], End)
    assert time.monotonic() - left < seconds / 2


def test_a_prompt_beyond_the_context_is_refused(engine: Engine) -> None:
    assert refusal(engine.answer("long " * 300)) == "too_long"


def test_an_answer_ends_with_the_context(engine: Engine) -> None:
    events = engine.answer("x" * 900, max_tokens=5000)
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], End)
    assert events[0].prompt_tokens + events[-1].tokens <= 1024


def test_an_unknown_adapter_is_refused(engine: Engine) -> None:
    assert refusal(engine.answer(adapter="f" * 64)) == "adapter_missing"


def test_an_adapter_whose_files_are_deleted_ends_its_answer_and_begins_no_other(
    engine: Engine, folder: Path
) -> None:
    name = "4" * 64
    shutil.copytree(folder / "adapters" / ("1" * 64), folder / "adapters" / name)
    with engine.chat(adapter=name, max_tokens=LONG) as events:
        assert isinstance(next(events), Accepted)
        assert isinstance(next(events), Text)
        shutil.rmtree(folder / "adapters" / name)
        assert refusal(engine.answer(adapter=name)) == "adapter_missing"
        *_, last = events
    assert isinstance(last, End)
    assert last.tokens == LONG
    assert refusal(engine.answer(adapter=name)) == "adapter_missing"
    assert isinstance(engine.answer(max_tokens=1)[-1], End)


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"[]\n",
        b'{"messages": []}\n',
        b'{"messages": [], "settings": {"stop": []}}\n',
        json.dumps(
            {"messages": [{"role": "user", "content": "x"}], "settings": {"stop": []}, "adapter": "../x"}
        ).encode()
        + b"\n",
        b"x" * 5_000_000 + b"\n",
    ],
)
def test_a_line_that_is_no_request_is_refused(engine: Engine, line: bytes) -> None:
    try:
        with engine.send(line) as events:
            assert refusal(list(events)) == "bad_messages"
    except OSError:
        assert len(line) > 4 * 1024 * 1024, "only a line beyond the limit may be cut off"
    assert isinstance(engine.answer(max_tokens=1)[-1], End)


def test_only_the_owner_reaches_the_socket(engine: Engine) -> None:
    path = Path(engine.spec.socket)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("key", "count"), [("key", 3), ("another", 0), ("", 0)])
def test_another_machine_needs_the_key(engine: Engine, key: str, count: int) -> None:
    messages = [{"role": "user", "content": "hello"}]
    request = ChatRequest(messages=messages, settings=ChatSettings(max_tokens=1))
    try:
        events = engine.send_over_network(key, request.to_line())
    except ConnectionError:
        events = []
    assert len(events) == count


def test_a_further_adapter_replaces_an_unused_one(engine: Engine) -> None:
    for name in ("1", "2", "3", "1"):
        assert isinstance(engine.answer(adapter=name * 64, max_tokens=1)[-1], End)


def test_no_adapter_in_use_is_replaced(engine: Engine) -> None:
    with (
        engine.chat(adapter="1" * 64, max_tokens=LONG) as one,
        engine.chat(adapter="2" * 64, max_tokens=LONG) as two,
    ):
        assert isinstance(next(one), Accepted)
        assert isinstance(next(two), Accepted)
        assert refusal(engine.answer(adapter="3" * 64)) == "busy"


def test_a_stop_ends_answers_with_a_reason(another: Engine) -> None:
    with another.chat(max_tokens=LONG) as events:
        assert isinstance(next(events), Accepted)
        assert another.stop() == 3
        assert refusal(list(events)) == "stopping"


def test_it_ends_by_itself_when_another_model_waits(another: Engine) -> None:
    another.answer(max_tokens=2)
    with another.send(HAND_OVER) as events:
        assert list(events) == []
    assert another.process.wait(timeout=30) == 0
    assert another.process.stdout
    *_, result, finished = [from_line(line) for line in another.process.stdout]
    assert result == Result({"chats": 1, "tokens": 2})
    assert finished == Finished("done")


def test_it_stays_while_it_answers_and_ends_by_itself_afterwards(spec: ServeSpec, tmp_path: Path) -> None:
    idle_seconds = 1.5
    brief = replace(spec, socket=str(tmp_path / "run" / "base.sock"), idle_seconds=idle_seconds)
    with run_engine(brief, tmp_path) as engine, contextlib.ExitStack() as stack:
        # Only one answer of this length fits at a time, so the last request is long past at its end.
        chats = [stack.enter_context(engine.chat(max_tokens=900)) for _number in range(3)]
        began = time.monotonic()
        assert all(isinstance(list(events)[-1], End) for events in chats)
        assert time.monotonic() - began > idle_seconds
        assert engine.process.wait(timeout=30) == 0
        assert engine.process.stdout
        assert from_line(engine.process.stdout.readlines()[-1]) == Finished("done")
