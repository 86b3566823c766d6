"""One training of the benchmark in its own process: `python -m tests.bench.contender job.json`.

Prints one line of JSON: tokens, seconds, CPU seconds, peak memory, and the first rows' tokens and labels.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 256
BATCH, RANK, RATE = 8, 8, 1e-3
COMPARED = 64  # rows whose tokens and labels must be equal
# The attention output of all 30 layers of the bundled model, 576 wide.
MODULES, TRAINABLE = 30, 30 * RANK * (576 + 576)


@dataclasses.dataclass
class Clock:
    """Time of the optimizer steps alone: neither imports nor loading nor saving."""

    begun: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def start(self) -> None:
        self.begun = time.monotonic(), time.process_time()

    def stop(self) -> None:
        wall, cpu = self.begun
        self.seconds, self.cpu_seconds = time.monotonic() - wall, time.process_time() - cpu


def peak_memory() -> int:
    """Return this process's peak memory in bytes."""
    from workers.engine.training import runtime

    return runtime.peak_memory_bytes()


def run_ours(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Train with this engine."""
    import torch

    from tests.tiny_model import write_canonical
    from workers.contract.events import ArmEnd, Event, Progress
    from workers.contract.hyperparameters import Hyperparameters
    from workers.contract.specs import BaseSpec, TargetSpec, TrainSpec
    from workers.engine.base_models.model import load_tokenizer
    from workers.engine.training import data
    from workers.engine.training.train import train

    if not job["shares_prefix"]:
        data.SHORTEST_PREFIX = 1 << 30
    out, rows = Path(job["out"]), json.loads(Path(job["rows"]).read_text())
    learn = Hyperparameters(
        r=RANK,
        learning_rate=RATE,
        max_steps=job["steps"],
        per_device_train_batch_size=BATCH,
        max_length=MAX_LENGTH,
        warmup_ratio=0.0,
        seed=job["seed"],
    )
    base = BaseSpec(path=job["model"], name="bundled")
    spec = TrainSpec(
        name="bench",
        base=base,
        data=write_canonical(out / "data", rows, validation=[], test=[]),
        target=TargetSpec(target_modules=("o_proj",), modules=MODULES, trainable_parameters=TRAINABLE),
        hyperparameters=learn,
        dtype=job["dtype"],
    )
    ends: list[ArmEnd] = []

    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "training" and not event.step:
            clock.start()
        elif isinstance(event, Progress) and event.phase == "saving":
            clock.stop()
        elif isinstance(event, ArmEnd):
            ends.append(event)

    train([spec], out, report=report)
    peak = peak_memory()
    split = data.Split(spec.data, "train")
    examples = data.encode_rows(
        load_tokenizer(base), split, range(COMPARED), report=lambda _event: None, should_stop=lambda: ""
    )
    samples = []
    for example in examples.values():
        kept = example.truncate(MAX_LENGTH)
        labels = torch.where(torch.from_numpy(kept.loss_mask), torch.from_numpy(kept.ids).long(), -100)
        samples.append([kept.ids.tolist(), labels.tolist()])
    return {
        "tokens": ends[0].summary["tokens"],
        "peak": peak,
        "adapter": str(out / "arm-0/adapter"),
        "samples": samples,
    }


def run_peer(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Train with HF Trainer and PEFT: as shipped, or with rows grouped by length."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer: Any = AutoTokenizer.from_pretrained(job["model"])

    def encode(row: Any) -> dict[str, list[int]]:
        if isinstance(row, str):
            ids = [*tokenizer(row)["input_ids"], tokenizer.eos_token_id][:MAX_LENGTH]
            return {"input_ids": ids, "labels": [-100, *ids[1:]]}
        render: Any = tokenizer.apply_chat_template
        prompt = render(row[:-1], add_generation_prompt=True, return_dict=False)
        ids = render(row, return_dict=False)
        end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
        labels = [token if len(prompt) <= place < end else -100 for place, token in enumerate(ids)]
        return {"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}

    rows = [encode(row) for row in json.loads(Path(job["rows"]).read_text())]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    torch.manual_seed(job["seed"])
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["o_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    assert sum(item.numel() for item in model.parameters() if item.requires_grad) == TRAINABLE
    tuned = {"train_sampling_strategy": "group_by_length"} if job["is_tuned"] else {}
    arguments = TrainingArguments(
        output_dir=job["out"],
        max_steps=job["steps"],
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        seed=job["seed"],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **tuned,
    )
    tokens = 0

    class CountingTrainer(Trainer):
        def training_step(self, model: Any, inputs: Any, *others: Any, **options: Any) -> Any:
            nonlocal tokens
            tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *others, **options)

    trainer = CountingTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    clock.start()
    trainer.train()
    clock.stop()
    peak = peak_memory()
    model.save_pretrained(Path(job["out"]) / "adapter")
    return {
        "tokens": tokens,
        "peak": peak,
        "adapter": str(Path(job["out"]) / "adapter"),
        "samples": [[row["input_ids"], row["labels"]] for row in rows[:COMPARED]],
    }


def held_out_losses(job: dict[str, Any]) -> list[float]:
    """Return the loss of every adapter on rows that nobody trained on, by PEFT's own forward."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    losses = []
    for folder in job["adapters"]:
        base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(base, folder).eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for ids, labels in job["samples"]:
                found = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
                learned = sum(label != -100 for label in labels[1:])
                total, count = total + float(found.loss) * learned, count + learned
        losses.append(total / count)
    return losses


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    from workers.engine.training import runtime

    runtime.prepare_environment(offline=True)
    import torch

    torch.set_num_threads(runtime.thread_count())
    if job["kind"] == "held out":
        result: Any = held_out_losses(job)
    else:
        clock = Clock()
        result = (run_ours if job["kind"] == "ours" else run_peer)(job, clock)
        result |= {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
