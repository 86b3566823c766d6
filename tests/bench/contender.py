"""One training of the benchmark in its own process: `python -m tests.bench.contender job.json`.

Prints one line of JSON, for a training: tokens, seconds, CPU seconds, when the steps began and the first one
of the peer ended (monotonic clock), peak memory, and the first rows' tokens and labels.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from tests.bench.shapes import ALL_LINEAR, POOL, RANK, Target

MAX_LENGTH = 256
BATCH, RATE = 8, 1e-3
COMPARED = 64  # rows whose tokens and labels must be equal
ANSWERED_BATCH, ANSWER_TOKENS = 32, 256
GROUPED_STEPS = 50  # whose rows Transformers sorts by length, the longest first


@dataclasses.dataclass
class Clock:
    """Time of the optimizer steps alone: neither imports nor loading nor saving."""

    begun: tuple[float, float] = (0.0, 0.0)
    stepped: float = 0.0  # when the first step of the peer ended
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def start(self) -> None:
        self.begun = time.monotonic(), time.process_time()

    def stop(self) -> None:
        wall, cpu = self.begun
        self.seconds += time.monotonic() - wall
        self.cpu_seconds += time.process_time() - cpu


def peak_memory() -> int:
    """Return this process's peak memory in bytes."""
    from workers.engine import runtime

    return runtime.peak_memory_bytes()


def run_ours(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Train all targets in one call of this engine."""
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
    out, rows = Path(job["out"]), json.loads(Path(job["rows"]).read_text())[:POOL]
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
    data_spec = write_canonical(out / "data", rows, validation=[], test=[])
    specs = [
        TrainSpec(
            name=f"bench {number}",
            base=base,
            data=data_spec,
            target=TargetSpec(
                target_modules=target.modules,
                layers_to_transform=tuple(target.layers),
                modules=len(target.modules) * len(target.layers),
                trainable_parameters=target.trainable_parameters,
            ),
            hyperparameters=learn,
            dtype=job["dtype"],
        )
        for number, target in enumerate(targets(job))
    ]
    ends: list[ArmEnd] = []

    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "training" and not event.step:
            clock.start()
        elif isinstance(event, Progress) and event.phase == "saving" and not clock.seconds:
            clock.stop()
        elif isinstance(event, ArmEnd):
            ends.append(event)

    train(specs, out, report=report)
    peak = peak_memory()
    split = data.Split(data_spec, "train")
    examples = data.encode_rows(
        load_tokenizer(base), split, range(COMPARED), report=lambda _event: None, should_stop=lambda: ""
    )
    samples = []
    for example in examples.values():
        kept = example.truncate(MAX_LENGTH)
        labels = torch.where(torch.from_numpy(kept.loss_mask), torch.from_numpy(kept.ids).long(), -100)
        samples.append([kept.ids.tolist(), labels.tolist()])
    return {
        "tokens": sum(end.summary["tokens"] for end in ends),
        "peak": peak,
        "adapter": str(out / "arm-0/adapter"),
        "samples": samples,
    }


def run_peer(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Train one target after another with PEFT and HF Trainer or TRL: as shipped, or tuned.

    As shipped they draw the rows at random; here they draw those of this engine, so that losses compare.
    Tuned they group rows by length.
    """
    from transformers import AutoTokenizer, TrainerCallback

    from workers.engine.training.data import step_rows

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
    rows, held_out = rows[:POOL], rows[POOL:]
    tokens, peak = 0, 0
    trainer_class, given = peer_trainer(job, rows, tokenizer)

    class CountingTrainer(trainer_class):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *arguments: Any) -> Any:
            if not job["is_tuned"]:
                steps = range(1, job["steps"] + 1)
                return [row for step in steps for row in step_rows(POOL, BATCH, job["seed"], step)]
            # In the first steps alone its rows would all be long ones.
            return spread_steps(list(super()._get_train_sampler(*arguments) or ()), job["steps"])

        def training_step(self, model: Any, inputs: Any, *others: Any, **options: Any) -> Any:
            nonlocal tokens
            tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *others, **options)

    class FirstStep(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_options: Any) -> None:
            clock.stepped = clock.stepped or time.monotonic()

    for target in targets(job):
        model = peft_model(job, target)
        trainer = CountingTrainer(model=model, callbacks=[FirstStep()], **given)
        clock.start()
        trainer.train()
        clock.stop()
        # What remains of the first training would count in the others.
        peak = peak or peak_memory()
    model.save_pretrained(Path(job["out"]) / "adapter")
    return {
        "tokens": tokens,
        "peak": peak,
        "adapter": str(Path(job["out"]) / "adapter"),
        "samples": [[row["input_ids"], row["labels"]] for row in rows[:COMPARED]],
        "held_out": [[row["input_ids"], row["labels"]] for row in held_out],
    }


def peer_trainer(job: dict[str, Any], rows: list[Any], tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the class of HF Trainer or TRL, and what it is given beside the model."""
    settings = {
        "output_dir": job["out"],
        "max_steps": job["steps"],
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "seed": job["seed"],
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if job["is_tuned"]:
        settings["train_sampling_strategy"] = "group_by_length"
    if job["kind"] == "peer":
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        collator = DataCollatorForSeq2Seq(tokenizer)
        return Trainer, {
            "args": TrainingArguments(**settings),
            "train_dataset": rows,
            "data_collator": collator,
        }
    from datasets import Dataset  # type: ignore[import-not-found]
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    if job["is_tuned"]:
        settings["gradient_checkpointing"] = False
    # By default it computes models of either format in bfloat16.
    settings["bf16"] = job["dtype"] == "bfloat16"
    # The rows are cut already. Cutting them, it would drop those without labels, and number the others anew.
    settings["max_length"] = None
    return SFTTrainer, {
        "args": SFTConfig(**settings),
        "train_dataset": Dataset.from_list(rows),
        "processing_class": tokenizer,
    }


def targets(job: dict[str, Any]) -> list[Target]:
    """Return the targets of the job."""
    return [Target(tuple(modules), lowest) for modules, lowest in job["targets"]]


def peft_model(job: dict[str, Any], target: Target) -> Any:
    """Return the base model with an adapter as PEFT makes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    torch.manual_seed(job["seed"])
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=list(target.modules),
        layers_to_transform=target.layers,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    trainable = sum(item.numel() for item in model.parameters() if item.requires_grad)
    assert trainable == target.trainable_parameters
    return model


def spread_steps(order: list[int], steps: int) -> list[int]:
    """Return the rows of `steps` batches, taken evenly from the first `GROUPED_STEPS`."""
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)][:GROUPED_STEPS]
    places = [place * len(batches) // steps for place in range(steps)]
    return [row for place in places for row in batches[place]]


def gradient_differences(job: dict[str, Any]) -> dict[str, float]:
    """Return how far the first step's gradients are from PEFT's own forward in fp64, relative to their norm.

    Every linear layer is adapted. `ours, fp64` shows what this engine computes without what fp32 rounds.
    """
    import numpy as np
    import torch

    from workers.engine.training import fused
    from workers.engine.training.encoding import Example
    from workers.engine.training.loss import make_scorer

    samples = job["samples"][:BATCH]
    longest = max(len(ids) for ids, _ in samples)
    rows = [torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in samples])]
    rows += [torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in samples])]
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in samples])
    examples = [
        Example(number, np.array(ids, dtype=np.int32), np.array(labels) != -100)
        for number, (ids, labels) in enumerate(samples)
    ]

    def gradients(dtype: str, *, is_ours: bool) -> torch.Tensor:
        model = peft_model(job | {"dtype": dtype}, ALL_LINEAR).eval()
        if dtype == "float64":
            model.double()
            for layer in model.modules():
                if type(layer).__name__ == "LlamaRMSNorm":  # which would compute in fp32
                    layer.forward = types.MethodType(exact_norm, layer)
        adapted = [item for item in model.parameters() if item.requires_grad]
        if is_ours:
            fused.fuse(model)
            scorer = make_scorer(model, model.get_base_model(), examples[:2], torch.device("cpu"))
            assert scorer.is_packed
            batch = scorer.collate(examples, torch.device("cpu"))
            loss, _correct = scorer.training_loss(batch, len(batch.targets))
        else:
            loss = model(input_ids=rows[0], labels=rows[1], attention_mask=mask).loss
        found = torch.autograd.grad(loss, adapted)
        return torch.cat([item.double().flatten() for item in found])

    exact = gradients("float64", is_ours=False)
    found = {
        "ours, fp64": gradients("float64", is_ours=True),
        "ours": gradients(job["dtype"], is_ours=True),
        "peer": gradients(job["dtype"], is_ours=False),
    }
    return {name: float((one - exact).norm() / exact.norm()) for name, one in found.items()}


def exact_norm(layer: Any, x: Any) -> Any:
    """Return Llama's norm of x in the format of x."""
    scale = (x.square().mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt()
    return layer.weight * (x * scale)


def answer_rows(job: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Answer every row with an adapter on PEFT's model by greedy decoding, rows of one length together."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model: Any = PeftModel.from_pretrained(base, job["adapter"]).eval()
    rows = json.loads(Path(job["rows"]).read_text())
    prompts = [
        tokenizer.apply_chat_template(row[:-1], add_generation_prompt=True, return_dict=False) for row in rows
    ]
    prompts.sort(key=len)
    clock.start()
    with torch.inference_mode():
        for start in range(0, len(prompts), ANSWERED_BATCH):
            batch = tokenizer.pad({"input_ids": prompts[start : start + ANSWERED_BATCH]}, return_tensors="pt")
            model.generate(**batch, do_sample=False, max_new_tokens=ANSWER_TOKENS)
    clock.stop()
    return {}


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
    from workers.engine import runtime

    runtime.prepare_environment(offline=True)
    import torch

    torch.set_num_threads(runtime.thread_count())
    if job["kind"] == "held out":
        result: Any = held_out_losses(job)
    elif job["kind"] == "gradients":
        result = gradient_differences(job)
    else:
        clock = Clock()
        kinds = {"ours": run_ours, "answers": answer_rows}
        result = kinds.get(job["kind"], run_peer)(job, clock)
        result |= {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
        result |= {"begun": clock.begun[0], "stepped": clock.stepped}
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
