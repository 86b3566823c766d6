"""A running inference engine, and a client of its socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from tests.tiny_model import tiny_base
from workers.contract.chat import ChatEvent, ChatRequest, ChatSettings, from_line
from workers.contract.chat_connections import address_file, proof_of, short_address
from workers.contract.specs import ServeSpec, to_dict
from workers.engine.base_models.model import load_base

READY_SECONDS = 60.0


def save_adapter(folder: Path, base: Path, seed: int) -> None:
    """Write an adapter with random weights."""
    model = load_base(tiny_base(base), torch.float32, torch.device("cpu"))
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["o_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)


@dataclass
class Engine:
    """A process of `python -m workers.engine serve`."""

    process: subprocess.Popen[bytes]
    spec: ServeSpec

    @contextlib.contextmanager
    def chat(self, text: str = "hello", adapter: str = "", **settings: Any) -> Iterator[Iterator[ChatEvent]]:
        """Send a prompt; yield the events of its answer. The connection closes at the end."""
        request = ChatRequest(
            messages=[{"role": "user", "content": text}], settings=ChatSettings(**settings), adapter=adapter
        )
        with self.send(request.to_line()) as events:
            yield events

    @contextlib.contextmanager
    def send(self, line: bytes) -> Iterator[Iterator[ChatEvent]]:
        """Write a line; yield the events that come back."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            with short_address(Path(self.spec.socket)) as address:
                connection.connect(address)
            connection.sendall(line)
            with connection.makefile("rb") as lines:
                yield (from_line(line) for line in lines)

    def send_over_network(self, key: str, line: bytes) -> list[ChatEvent]:
        """Write a line as another machine does, and return the events that come back."""
        address = json.loads(address_file(Path(self.spec.socket)).read_text())
        with socket.create_connection(address, timeout=60) as connection, connection.makefile("rb") as lines:
            connection.sendall(proof_of(key, lines.readline()) + line)
            return [from_line(event) for event in lines]

    def answer(self, text: str = "hello", adapter: str = "", **settings: Any) -> list[ChatEvent]:
        """Return all events of an answer."""
        with self.chat(text, adapter, **settings) as events:
            return list(events)

    def is_listening(self) -> bool:
        with contextlib.suppress(OSError), self.send(b""):
            return True
        return False

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_listening():
            assert self.process.poll() is None, "the engine has ended"
            assert time.monotonic() < deadline, "the engine does not listen"
            time.sleep(0.02)

    def stop(self) -> int:
        """Ask it to stop, and return its exit status."""
        assert self.process.stdin
        self.process.stdin.write(b'{"stop": "cancel"}\n')
        self.process.stdin.flush()
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def run_engine(spec: ServeSpec, out_dir: Path, **private: str) -> Iterator[Engine]:
    """Run an engine until the end of the block; `private` stands beside its spec."""
    command = [sys.executable, "-m", "workers.engine", "serve", "-", str(out_dir)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdin
    envelope = {"parent": os.getpid(), "spec": to_dict(spec), **private}
    process.stdin.write(json.dumps(envelope).encode() + b"\n")
    process.stdin.flush()
    engine = Engine(process, spec)
    try:
        engine.wait_until_ready()
        yield engine
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
