"""Answers of several adapters against Transformers with PEFT: `python -m tests.bench.serving`.

Both sides answer in one process, forwards and backwards; times are processor time of one thread. Adapters:
attention output, rank 16, random weights. Each count of adapters has a process of its own for its memory.
BENCH_REPEATS (5) measurements of each; ratios are of medians, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.ratios import ratio

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache/bundled/SmolLM2-135M-Instruct"
PROMPT, ANSWER = 40, 32  # tokens
MIXED = 16
ADAPTERS, LOADED = 8, 32
LIMITS = {"max_rows": 16, "max_tokens": 4096}


def load_base() -> Any:
    """Return the bundled model in fp32."""
    import torch

    from workers.contract.specs import BaseSpec
    from workers.engine.base_models import model

    return model.load_base(BaseSpec(path=str(MODEL), name="bundled"), torch.float32, torch.device("cpu"))


def write_adapters(folder: Path, count: int) -> list[Path]:
    """Write adapters with random weights, small enough that answers stay text."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils.save_and_load import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=["o_proj"], init_lora_weights=False
    )
    model = get_peft_model(load_base(), config)
    model.save_pretrained(folder / "0")
    weights = get_peft_model_state_dict(model)
    paths = [folder / str(number) for number in range(count)]
    for number, path in enumerate(paths):
        torch.manual_seed(number)
        path.mkdir(exist_ok=True)
        (path / "adapter_config.json").write_bytes((folder / "0/adapter_config.json").read_bytes())
        drawn = {name: torch.randn(value.shape) * 0.02 for name, value in weights.items()}
        save_file(drawn, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return paths


class Contenders:
    """The generator and a PEFT model, with the same adapters."""

    def __init__(self, paths: Sequence[Path]) -> None:
        import torch
        from peft import PeftModel

        from workers.engine.generation.generator import Generator

        self.names = [f"adapter{number}" for number in range(len(paths))]
        self.peft: Any = PeftModel.from_pretrained(load_base(), paths[0], self.names[0]).eval()
        for name, path in zip(self.names[1:], paths[1:], strict=True):
            self.peft.load_adapter(str(path), name)
        self.generator = Generator(load_base(), torch.device("cpu"), **LIMITS)
        for name, path in zip(self.names, paths, strict=True):
            self.generator.load_adapter(name, path)

    def answer_mixed(self, prompts: Sequence[Any], names: Sequence[str]) -> list[list[int]]:
        """Return the generator's answers to all prompts at once."""
        from workers.engine.generation.requests import GenerationRequest, Sampling

        for key, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
            self.generator.submit(GenerationRequest(key, prompt, name, Sampling(ANSWER)))
        answers: list[list[int]] = [[] for _ in prompts]
        while not self.generator.is_idle:
            for token in self.generator.step():
                answers[int(str(token.key))].append(token.id or 0)
        return answers

    def answer_in_turn(self, prompts: Sequence[Any], names: Sequence[str]) -> list[list[int]]:
        """Return PEFT's answers, one prompt after the other."""
        import torch

        answers = []
        for prompt, name in zip(prompts, names, strict=True):
            self.peft.set_adapter(name, inference_mode=True)
            ids = torch.as_tensor(prompt, dtype=torch.int64)[None]
            output = self.peft.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=ANSWER,
                min_new_tokens=ANSWER,
                pad_token_id=0,
                eos_token_id=-1,
            )
            answers.append(output[0, len(prompt) :].tolist())
        return answers


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return processor seconds and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def write(label: str, ours: Sequence[float], theirs: Sequence[float], rest: str) -> None:
    """Print the ratio of two series of measurements."""
    middle, low, high = ratio(ours, theirs)
    print(f"{label}: {middle:.3f} [{low:.3f}, {high:.3f}], {rest}", flush=True)


def compare(both: Contenders, label: str, prompts: Sequence[Any], names: Sequence[str], repeats: int) -> None:
    """Print how many times as fast mixed answers are, and whether all tokens are equal."""
    sides = {"mixed": both.answer_mixed, "in turn": both.answer_in_turn}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    answers: dict[str, Any] = {}
    for repeat in range(repeats):
        for side in sorted(sides, reverse=bool(repeat % 2)):
            spent, answers[side] = clock(lambda side=side: sides[side](prompts, names))
            seconds[side].append(spent)
    equal = sum(one == other for one, other in zip(answers["mixed"], answers["in turn"], strict=True))
    middle = statistics.median(seconds["mixed"])
    rest = f"mixed {middle:.2f} s; {equal} of {len(prompts)} answers equal"
    write(f"{label}, time in turn to mixed", seconds["in turn"], seconds["mixed"], rest)


def measure_latency(both: Contenders, prompt: Any, repeats: int) -> None:
    """Print the time to the first token of a warm process, and of a change to another loaded adapter."""
    from workers.engine.generation.requests import GenerationRequest, Sampling

    firsts: dict[str, list[float]] = {"same": [], "another": []}
    for repeat in range(repeats):
        for kind in sorted(firsts, reverse=bool(repeat % 2)):
            name = both.names[0 if kind == "same" else 1 + repeat % 7]
            fresh = prompt.copy()
            fresh[0] += repeat * 2 + (kind == "another") + 1  # no prompt shares the first token
            both.generator.submit(GenerationRequest("first", fresh, name, Sampling(1)))
            firsts[kind].append(1000 * clock(both.generator.step)[0])
    middle = {kind: statistics.median(values) for kind, values in firsts.items()}
    rest = f"{middle['same']:.0f} ms, with a change {middle['another'] - middle['same']:+.0f} ms"
    write(f"first token of {len(prompt)}, other adapter to same", firsts["another"], firsts["same"], rest)


def measure_memory(folder: Path, repeats: int) -> None:
    """Print the memory of the base with all adapters, as a multiple of the base alone."""
    found: dict[int, list[float]] = {0: [], LOADED: []}
    for repeat in range(repeats):
        for count in sorted(found, reverse=bool(repeat % 2)):
            found[count].append(resident_bytes(folder, count))
    rest = f"base alone {statistics.median(found[0]) / 1e6:.0f} MB"
    write(f"memory with {LOADED} adapters to base alone", found[LOADED], found[0], rest)


def resident_bytes(folder: Path, count: int) -> int:
    """Return the memory of a process that holds the base and `count` adapters and has answered with them."""
    command = [sys.executable, "-m", "tests.bench.serving", str(folder), str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def hold(folder: Path, count: int) -> None:
    """Load adapters, answer once with as many as fit, and print the resident bytes."""
    import numpy as np
    import torch

    from workers.engine.generation.generator import Generator
    from workers.engine.generation.requests import GenerationRequest, Sampling

    generator = Generator(load_base(), torch.device("cpu"), **LIMITS)
    names = [str(number) for number in range(count)]
    for name in names:
        generator.load_adapter(name, folder / name)
    for key in range(8):
        adapter = names[key % count] if count else None
        generator.submit(GenerationRequest(key, np.arange(100 + key, 140 + key), adapter, Sampling(4)))
    while not generator.is_idle:
        generator.step()
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")))


def main() -> None:
    from workers.engine import runtime

    runtime.prepare_environment(offline=True)
    import numpy as np
    import torch

    torch.set_num_threads(runtime.thread_count())
    if len(sys.argv) > 2:
        return hold(Path(sys.argv[1]), int(sys.argv[2]))
    if not MODEL.is_dir():
        raise SystemExit("The bundled base model is missing. Run `make start` once.")
    repeats = int(os.environ.get("BENCH_REPEATS", "5"))
    random = np.random.default_rng(0)
    prompts = [random.integers(100, 40_000, PROMPT + number % 9) for number in range(MIXED)]
    with tempfile.TemporaryDirectory(prefix="graftworks-bench-") as name:
        paths = write_adapters(Path(name), LOADED)
        both = Contenders(paths[:ADAPTERS])
        same = [prompts[0]] * ADAPTERS
        compare(both, f"one prompt, {ADAPTERS} adapters", same, both.names, repeats)
        mixed = [both.names[number % ADAPTERS] for number in range(MIXED)]
        compare(both, f"{MIXED} prompts, {ADAPTERS} adapters", prompts, mixed, repeats)
        measure_latency(both, prompts[0], 4 * repeats)
        del both
        measure_memory(Path(name), repeats)
    return None


if __name__ == "__main__":
    main()
