"""The smoke tests of servers, run against a server that behaves like each."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from workers.serving.smoke_test import Question, llama_cpp_program, ollama_program, vllm_program

QUESTION = Question('Be brief.\nAnswer "yes".', "Say “ä”\n\\ and {braces}", "Yes, it i", "No.")
PROGRAMS = {
    "vllm": (vllm_program(QUESTION, "org/base", "triage-v1"), 8000),
    "llama-cpp": (llama_cpp_program(QUESTION), 8080),
    "ollama": (ollama_program(QUESTION, "triage-v1"), 11434),
}
Request = dict[str, Any]


def names_the_adapter(server: str, request: Request) -> bool:
    """Return whether this server has to apply the adapter to a request."""
    if server == "llama-cpp":
        return bool(request["lora"] == [{"id": 0, "scale": 1.0}])
    assert request["model"] in ("triage-v1", "org/base" if server == "vllm" else "triage-v1-base")
    return bool(request["model"] == "triage-v1")


@contextmanager
def serve(reply: Callable[[Request], str]) -> Iterator[int]:
    """Serve OpenAI's chat completions on the port that is returned."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            text = reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield http.server_port
    finally:
        http.shutdown()
        http.server_close()


def run(server: str, reply: Callable[[Request], str]) -> list[Request]:
    """Run the program of a server against `reply`, and return the requests."""
    requests: list[Request] = []

    def record(request: Request) -> str:
        requests.append(request)
        return reply(request)

    code, port = PROGRAMS[server]
    with serve(record) as served:
        exec(code.replace(f"localhost:{port}/", f"127.0.0.1:{served}/"), {})  # noqa: S102
    return requests


@pytest.mark.parametrize("server", PROGRAMS)
def test_a_server_that_applies_the_adapter_passes(server: str) -> None:
    answers = {False: "Yes, it is.", True: "No."}
    requests = run(server, lambda request: answers[names_the_adapter(server, request)])
    assert [names_the_adapter(server, request) for request in requests] == [False, True]
    for request in requests:
        assert request["messages"] == [
            {"role": "system", "content": QUESTION.system},
            {"role": "user", "content": QUESTION.prompt},
        ]
        assert request["temperature"] == 0


@pytest.mark.parametrize("server", PROGRAMS)
def test_a_server_that_answers_with_the_base_model_fails(server: str) -> None:
    with pytest.raises(SystemExit, match=r"The adapter is not applied: its answer is the base model's\."):
        run(server, lambda _request: "Yes, it is.")


def test_the_base_models_answer_in_other_words_fails() -> None:
    words = iter(["Yes, it is.", "Yes, it really is."])
    with pytest.raises(SystemExit):
        run("vllm", lambda _request: next(words))


def test_an_adapter_in_another_number_format_passes() -> None:
    words = iter(["Yes, it surely is.", "Not at all."])
    assert len(run("vllm", lambda _request: next(words))) == 2


def test_the_program_asks_for_enough_tokens_to_see_a_difference() -> None:
    def tokens(same: str) -> int:
        return Question("", "p", f"{same}a", f"{same}b").max_tokens

    assert [tokens(""), tokens("ä" * 40), tokens("x" * 1000)] == [64, 96, 256]
