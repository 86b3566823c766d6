"""Scores the base model and adapters on the same held-out rows: `python -m workers.engine evaluate`.

The base is the same loaded model with the adapters switched off. Every row's answers and scores go to
`items.jsonl`, so that two evaluations can be compared in pairs. Knows nothing of verdicts or of pages.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from workers.contract.errors import DataError, ModelError, TargetError
from workers.contract.events import Message, Progress, Report, Result, ShouldStop, never_stop, print_event
from workers.contract.specs import EvalSpec
from workers.engine.base_models.model import (
    add_stop_hooks,
    check_folder,
    check_max_length,
    end_ids,
    load_base,
    load_tokenizer,
)
from workers.engine.evaluation import questions
from workers.engine.evaluation.generate import generate_greedily
from workers.engine.evaluation.scores import Scores, answer_kind, score_answer
from workers.engine.training import lora, runtime
from workers.engine.training.data import (
    CanonicalRow,
    Example,
    Ids,
    Split,
    collate,
    encode,
    encode_rows,
    epoch_order,
    micro_batches,
)
from workers.engine.training.latency import BASE, ms_per_token
from workers.engine.training.loss import Scorer, make_scorer
from workers.engine.training.runtime import stop_if_asked

ROWS_AT_ONCE = 16
# A fixed text that no dataset holds: what an adapter costs elsewhere.
GENERAL_TEXT = Path(__file__).with_name("general_text.txt")
GENERAL_LENGTH = 256


def evaluate(
    spec: EvalSpec, out_dir: Path, *, report: Report = print_event, should_stop: ShouldStop = never_stop
) -> dict[str, Any]:
    """Loss and answers of every subject; writes `out_dir/items.jsonl` and reports a Result."""
    began = time.monotonic()
    check_folder(spec.base)
    for folder in spec.adapters.values():
        _check_adapter(Path(folder))
    device = runtime.pick_device()
    dtype = runtime.pick_dtype(spec.dtype, device)
    torch.set_num_threads(runtime.thread_count())
    tokenizer = load_tokenizer(spec.base)
    split = _frozen(spec)
    examples, groups = _draw(split, spec, tokenizer, report, should_stop)
    general, choices = _general(tokenizer), questions.encode_choices(tokenizer)
    stop_if_asked(should_stop)
    report(Progress("loading"))
    base = load_base(spec.base, dtype, device, in_4bit=spec.load_in_4bit)
    check_max_length(base, spec.base, spec.max_length)
    add_stop_hooks(base, lambda: stop_if_asked(should_stop))
    scorer = make_scorer(base, base, collate(examples[:2], device))
    model = _attach(base, spec.base.name, spec.adapters)
    scorer = Scorer(model, scorer.body, scorer.head, scorer.shares_prefix)
    stop_if_asked(should_stop)

    chats = [example for example in examples if example.prompt_length]
    kind = answer_kind([example.answer for example in chats])
    subjects = [BASE, *spec.adapters] if spec.with_base else [*spec.adapters]
    work = _ScoringProgress(report, total=len(subjects) * (len(examples) + len(chats)))
    items: list[dict[str, Any]] = []
    values: dict[str, Any] = {"rows": len(examples), "split": spec.split, "answers": kind}
    values["split_sha256"] = split.sha256
    marks: dict[str, list[int]] = {}
    for subject in subjects:
        if subject != BASE:
            model.set_adapter(subject)
            if not _differs(model, scorer, examples[0], device):
                report(Message("The adapter changes nothing: its outputs equal the base model's.", "warning"))
        with model.disable_adapter() if subject == BASE else nullcontext():
            losses = _losses(scorer, examples, device, should_stop, work)
            answers = _answers(scorer, base, tokenizer, chats, spec, device, should_stop, work)
            elsewhere = _losses(scorer, general, device, should_stop, lambda _rows: None)
            marks[subject] = questions.mark_questions(
                _losses(scorer, choices, device, should_stop, lambda _rows: None)
            )
        found = [
            _item(example, subject, losses, answers, kind, spec) | {"group": groups[example.row]}
            for example in examples
        ]
        values[subject] = _summary(found, losses) | {
            "general_loss": _mean_loss(elsewhere),
            "general_accuracy": sum(marks[subject]) / len(marks[subject]),
        }
        items += found
    _write_items(out_dir / "items.jsonl", items)
    values["general_questions"] = {
        "version": questions.VERSION,
        "sha256": questions.SHA256,
        "choices": questions.CHOICES,
        "marks": marks,
    }
    values["ms_per_token"] = ms_per_token(
        model.unload(),
        list(spec.adapters),
        lambda name: _attach(base, spec.base.name, {name: spec.adapters[name]}),
        _usual_prompt(examples),
        device=device,
        report=report,
        should_stop=should_stop,
    )
    values |= {
        "dtype": str(dtype).removeprefix("torch."),
        "device": runtime.device_name(device),
        "threads": runtime.thread_count(),
        "seconds": time.monotonic() - began,
    }
    report(Result(values))
    return values


class _ScoringProgress:
    """Counts rows across both subjects and both passes."""

    def __init__(self, report: Report, total: int) -> None:
        self.report, self.total, self.done = report, total, 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        self.report(Progress("scoring", self.done, self.total))


def _check_adapter(folder: Path) -> None:
    # PEFT reads a pickle without a word when the safetensors file is missing.
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"The adapter's folder has no {name}, so it cannot be evaluated.", code="bad_adapter"
            )


def _attach(base: Any, base_name: str, adapters: dict[str, str]) -> Any:
    from peft.peft_model import PeftModelForCausalLM

    loader: Any = PeftModelForCausalLM
    (first, folder), *others = adapters.items()
    try:
        with lora.quiet():
            model = loader.from_pretrained(base, folder, first, is_trainable=False, local_files_only=True)
            for name, folder in others:
                model.load_adapter(folder, name, is_trainable=False, local_files_only=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise TargetError(f"An adapter does not fit {base_name}.") from error
    return model.eval()


def _usual_prompt(examples: list[Example]) -> Ids:
    """A prompt of middle length; plain text has none, so there a whole text stands for it."""
    prompts = [example.ids[: example.prompt_length or len(example.ids)] for example in examples]
    return sorted(prompts, key=len)[len(prompts) // 2]


def _general(tokenizer: Any) -> list[Example]:
    """The fixed general text, one example per paragraph, every token a target."""
    paragraphs = GENERAL_TEXT.read_text(encoding="utf-8").split("\n\n")
    rows = [CanonicalRow(number, None, text) for number, text in enumerate(paragraphs, 1)]
    return [example.truncate(GENERAL_LENGTH) for example in encode(tokenizer, rows)]


def _frozen(spec: EvalSpec) -> Split:
    """The split to score on; test rows must be those that the import has frozen."""
    split = Split(spec.data, spec.split)
    if spec.split == "test" and spec.data.test_sha256 and split.sha256 != spec.data.test_sha256:
        raise DataError(
            f"The test rows of {spec.data.name}, version {spec.data.version}, are not those that were frozen "
            "when the file was imported, so nothing is scored. Restore the dataset's folder from a backup, "
            "or upload the file as a new version.",
            code="test_set_changed",
        )
    return split


def _draw(
    split: Split, spec: EvalSpec, tokenizer: Any, report: Report, should_stop: ShouldStop
) -> tuple[list[Example], dict[int, int]]:
    """At most `max_rows` rows of the split, drawn by seed, in the split's order; each row's group."""
    drawn = sorted(int(row) for row in epoch_order(len(split), spec.seed, 0)[: spec.max_rows])
    encoded = encode_rows(tokenizer, split, drawn, report=report, should_stop=should_stop)
    examples = [example.truncate_left(spec.max_length) for example in encoded.values()]
    examples = [example for example in examples if example.target_count]
    if not examples:
        raise DataError(f"The {spec.split} split has no row with an answer, so there is nothing to score.")
    return examples, split.groups()


@torch.no_grad()
def _differs(model: Any, scorer: Scorer, example: Example, device: torch.device) -> bool:
    """Whether the adapter changes the outputs at all: one that fits nothing would silently serve the base."""
    batch = collate([example], device)
    with model.disable_adapter():
        base = scorer.token_losses(batch)
    return not torch.equal(base, scorer.token_losses(batch))


@torch.no_grad()
def _losses(
    scorer: Scorer,
    examples: list[Example],
    device: torch.device,
    should_stop: ShouldStop,
    on_rows: Callable[[int], None],
) -> dict[int, tuple[float, int]]:
    """(summed loss, labelled tokens) per row number."""
    found: dict[int, tuple[float, int]] = {}
    for part in micro_batches(examples, ROWS_AT_ONCE):
        stop_if_asked(should_stop)
        losses = scorer.token_losses(collate(part, device, share_prefix=scorer.shares_prefix)).double()
        counts = [example.target_count for example in part]
        for example, own in zip(part, torch.split(losses, counts), strict=True):
            found[example.row] = (float(own.sum()), len(own))
        on_rows(len(part))
    return found


def _answers(
    scorer: Scorer,
    base: Any,
    tokenizer: Any,
    chats: list[Example],
    spec: EvalSpec,
    device: torch.device,
    should_stop: ShouldStop,
    on_rows: Callable[[int], None],
) -> dict[int, str]:
    """What the model answers, per row number; at most a little more than the longest expected answer."""
    if not chats:
        return {}
    longest = max(len(example.ids) - example.prompt_length for example in chats)
    prompts = [example.ids[: example.prompt_length] for example in chats]
    found = generate_greedily(
        scorer.model,
        prompts,
        max_new_tokens=min(spec.max_new_tokens, longest + max(8, longest // 4)),
        end_ids=end_ids(base, tokenizer),
        device=device,
        share_prefix=scorer.shares_prefix,
        should_stop=should_stop,
        on_rows=on_rows,
    )
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    return {example.row: text for example, text in zip(chats, texts, strict=True)}


def _item(
    example: Example,
    subject: str,
    losses: dict[int, tuple[float, int]],
    answers: dict[int, str],
    kind: str,
    spec: EvalSpec,
) -> dict[str, Any]:
    total, tokens = losses[example.row]
    output = answers.get(example.row, "")
    scores = {"loss": total / tokens, "tokens": float(tokens)}
    if example.row in answers:
        scores |= score_answer(output, example.answer, kind, metric=spec.metric, pattern=spec.pattern)
    return {
        "row": example.row,
        "prompt": example.prompt,
        "expected": example.answer,
        "subject": subject,
        "output": output,
        "scores": scores,
    }


def _summary(items: list[dict[str, Any]], losses: dict[int, tuple[float, int]]) -> Scores:
    """Loss is the mean over tokens; text scores are means over rows, from 0 to 1."""
    loss = _mean_loss(losses)
    summary = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    scored = [item["scores"] for item in items if "exact_match" in item["scores"]]
    for name in scored[0] if scored else ():
        if name not in ("loss", "tokens"):
            summary[name] = sum(scores[name] for scores in scored) / len(scored)
    return summary


def _mean_loss(losses: dict[int, tuple[float, int]]) -> float:
    return sum(total for total, _ in losses.values()) / sum(tokens for _, tokens in losses.values())


def _write_items(path: Path, items: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for item in items:
            stream.write(json.dumps(item, ensure_ascii=False) + "\n")
    path.chmod(0o640)
