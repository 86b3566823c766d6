"""Scores the base model and adapters on the same rows of a split: `python -m workers.engine evaluate`.

One generator reads the rows of all subjects in mixed steps. The expected answer of a row is scored in the
forward that reads its prompt; the model's own answer goes on where it differs. Answers and scores go to
`items.jsonl`, so that two evaluations can be compared in pairs. Knows nothing of verdicts or pages.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.contract.base_scores import number_format
from workers.contract.errors import DataError, Diverged
from workers.contract.events import Message, Progress, Report, Result, ShouldStop, never_stop, print_event
from workers.contract.specs import EvalSpec
from workers.engine import runtime
from workers.engine.base_models.model import (
    add_stop_hooks,
    check_folder,
    check_max_length,
    end_ids,
    load_base,
    load_tokenizer,
)
from workers.engine.evaluation import questions
from workers.engine.evaluation.latency import BASE, ms_per_token
from workers.engine.evaluation.scores import Scores, answer_kind, score_answer
from workers.engine.generation.adapters import attach, check_adapter
from workers.engine.generation.generator import Generator
from workers.engine.generation.requests import GenerationRequest, Reference, Sampling
from workers.engine.runtime import stop_if_asked
from workers.engine.training.data import Split, encode_rows, epoch_order
from workers.engine.training.encoding import CanonicalRow, Example, Ids, encode

# Rows at a time, as far as their keys and values have room: for so many tokens, and so many rows in any case.
MAX_ROWS, MIN_TOKENS, MIN_ROWS = 64, 4096, 16
# A fixed text that no dataset contains: it shows how an adapter changes the loss on other text.
GENERAL_TEXT = Path(__file__).with_name("general_text.txt")
GENERAL_LENGTH = 256

# Row number -> (summed loss in nats, number of target tokens).
RowLosses = dict[int, tuple[float, int]]


def evaluate(
    spec: EvalSpec, out_dir: Path, *, report: Report = print_event, should_stop: ShouldStop = never_stop
) -> dict[str, Any]:
    """Score every subject; write `out_dir/items.jsonl` and report a Result with the returned values."""
    began = time.monotonic()
    check_folder(spec.base)
    for folder in spec.adapters.values():
        check_adapter(Path(folder))
    device = runtime.pick_device()
    dtype = runtime.pick_dtype(spec.dtype, device)
    torch.set_num_threads(runtime.thread_count())

    # Rows
    tokenizer = load_tokenizer(spec.base)
    split = _open_split(spec)
    examples = _sample_rows(split, spec, tokenizer, report, should_stop)
    chats = [example for example in examples if example.prompt_length]
    kind = answer_kind([example.answer for example in chats])
    general, choices = _general_text(tokenizer), questions.encode_choices(tokenizer)

    # Model
    stop_if_asked(should_stop)
    report(Progress("loading"))
    base = load_base(spec.base, dtype, device, in_4bit=spec.load_in_4bit)
    check_max_length(base, spec.base, spec.max_length)
    add_stop_hooks(base, lambda: stop_if_asked(should_stop))
    longest = max((len(example.ids) - example.prompt_length for example in chats), default=0)
    # A quarter longer than the longest expected answer at most.
    limit = min(spec.max_new_tokens, longest + max(8, longest // 4))
    room = max(len(example.ids) for example in (*examples, *general, *choices)) + limit
    generator = Generator(base, device, max_rows=MAX_ROWS, max_tokens=max(MIN_TOKENS, MIN_ROWS * room))
    for name, folder in spec.adapters.items():
        stop_if_asked(should_stop)
        generator.load_adapter(name, Path(folder))
        if not generator.changes_outputs(name):
            report(Message("The adapter changes nothing: its outputs equal the base model's.", "warning"))

    # Scores
    is_kept = number_format(runtime.dtype_name(dtype), runtime.device_name(device)) in spec.kept_formats
    subjects = [BASE, *spec.adapters] if spec.with_base and not is_kept else [*spec.adapters]
    ends = frozenset(end_ids(base, tokenizer))
    texts: dict[str, list[Example]] = {"rows": examples, "general": general, "choices": choices}
    requests = (
        _request((subject, name, example.row), example, limit if name == "rows" else 0, ends)
        for subject in subjects
        for name, rows in texts.items()
        for example in rows
    )
    total = len(subjects) * len(examples)
    scored = _score(generator, requests, lambda key: key[1] == "rows", total, report, should_stop)
    groups = split.groups()
    items: list[dict[str, Any]] = []
    values: dict[str, Any] = {
        "rows": len(examples),
        "split": spec.split,
        "answers": kind,
        "split_sha256": split.sha256,
    }
    marks: dict[str, list[int]] = {}
    for subject in subjects:
        losses, general_losses, choice_losses = (
            {example.row: scored[subject, name, example.row].loss for example in rows}
            for name, rows in texts.items()
        )
        outputs = {
            example.row: tokenizer.decode(
                scored[subject, "rows", example.row].answer, skip_special_tokens=True
            )
            for example in chats
        }
        marks[subject] = questions.mark_questions(choice_losses)
        subject_items = [
            _item(example, subject, losses, outputs, kind, spec) | {"group": groups[example.row]}
            for example in examples
        ]
        values[subject] = _summarise(subject_items, losses) | {
            "general_loss": _mean_loss(general_losses),
            "general_accuracy": sum(marks[subject]) / len(marks[subject]),
        }
        items += subject_items
    _write_items(out_dir / "items.jsonl", items)
    values["general_questions"] = {
        "version": questions.VERSION,
        "sha256": questions.SHA256,
        "choices": questions.CHOICES,
        "marks": marks,
    }

    # Latency
    for name in spec.adapters:
        generator.unload_adapter(name)
    values["ms_per_token"] = ms_per_token(
        base,
        list(spec.adapters),
        lambda name: attach(base, Path(spec.adapters[name]), name),
        _median_prompt(examples),
        device=device,
        report=report,
        should_stop=should_stop,
    )
    values |= {
        "dtype": runtime.dtype_name(dtype),
        "device": runtime.device_name(device),
        "threads": runtime.thread_count(),
        "seconds": time.monotonic() - began,
    }
    report(Result(values))
    return values


# Rows


def _open_split(spec: EvalSpec) -> Split:
    """Open the split. Raises DataError if its test rows are not those that the import froze."""
    split = Split(spec.data, spec.split)
    if spec.split == "test" and spec.data.test_sha256 and split.sha256 != spec.data.test_sha256:
        raise DataError(
            f"The test rows of {spec.data.name}, version {spec.data.version}, have changed since they were "
            "frozen at import, so nothing is scored. Restore the dataset's folder from a backup, or upload "
            "the file as a new version.",
            code="test_set_changed",
        )
    return split


def _sample_rows(
    split: Split, spec: EvalSpec, tokenizer: Any, report: Report, should_stop: ShouldStop
) -> list[Example]:
    """Return at most `max_rows` rows with an answer, drawn by seed, in the order of the split."""
    drawn = sorted(int(row) for row in epoch_order(len(split), spec.seed, 0)[: spec.max_rows])
    encoded = encode_rows(tokenizer, split, drawn, report=report, should_stop=should_stop)
    examples = [example.truncate_left(spec.max_length) for example in encoded.values()]
    examples = [example for example in examples if example.target_count]
    if not examples:
        raise DataError(f"The {spec.split} split has no row with an answer, so there is nothing to score.")
    return examples


def _general_text(tokenizer: Any) -> list[Example]:
    """Return the general text, one example per paragraph, with every token a target."""
    paragraphs = GENERAL_TEXT.read_text(encoding="utf-8").split("\n\n")
    rows = [CanonicalRow(number, None, text) for number, text in enumerate(paragraphs, 1)]
    return [example.truncate(GENERAL_LENGTH) for example in encode(tokenizer, rows)]


def _median_prompt(examples: list[Example]) -> Ids:
    """Return the prompt of median length. Plain text counts as a prompt as a whole."""
    prompts = [example.ids[: example.prompt_length or len(example.ids)] for example in examples]
    return sorted(prompts, key=len)[len(prompts) // 2]


# Scores


@dataclass
class _Scored:
    """The loss of one row, and the tokens of the answer to its prompt."""

    loss: tuple[float, int] = (0.0, 0)
    answer: list[int] = field(default_factory=list)


def _request(
    key: tuple[str, str, int], example: Example, limit: int, ends: frozenset[int]
) -> GenerationRequest:
    """Return the request to score a row, and with a `limit` to answer its prompt if it has one."""
    subject = key[0]
    targets = example.loss_mask.nonzero()[0].astype(np.int32)
    is_answered = bool(limit and example.prompt_length)
    return GenerationRequest(
        key,
        example.ids[: example.prompt_length] if is_answered else example.ids,
        None if subject == BASE else subject,
        Sampling(limit if is_answered else 0),
        ends,
        Reference(example.ids, targets),
    )


def _score(
    generator: Generator,
    requests: Iterator[GenerationRequest],
    is_counted: Callable[[Any], bool],
    total: int,
    report: Report,
    should_stop: ShouldStop,
) -> dict[Any, _Scored]:
    """Return key -> what was scored; report how many rows are done."""
    scored: dict[Any, _Scored] = defaultdict(_Scored)
    done = running = 0
    while True:
        for request in islice(requests, 3 * MAX_ROWS - running):
            generator.submit(request)
            running += 1
        if generator.is_idle:
            return scored
        stop_if_asked(should_stop)
        before = done
        for token in generator.step():
            row = scored[token.key]
            if token.losses is not None:
                # Float64, so that the sums of long rows do not round.
                row.loss = float(token.losses.double().sum()), len(token.losses)
            if token.id is not None:
                row.answer.append(token.id)
            if token.finish:
                running -= 1
                done += is_counted(token.key)
        if done > before:
            report(Progress("scoring", done, total))


def _item(
    example: Example, subject: str, losses: RowLosses, answers: dict[int, str], kind: str, spec: EvalSpec
) -> dict[str, Any]:
    total, tokens = losses[example.row]
    # A study would compare it, and no comparison with it means anything.
    if not math.isfinite(total):
        raise Diverged(f"The loss of `{subject}` on row {example.row} is not a finite number.")
    output = answers.get(example.row, "")
    scores = {"loss": total / tokens, "tokens": float(tokens)}
    if example.row in answers:
        scores |= score_answer(output, example.answer, kind, metric=spec.metric, pattern=spec.pattern)
    return {
        "row": example.row,
        "system": example.system,
        "prompt": example.prompt,
        "expected": example.answer,
        "subject": subject,
        "output": output,
        "scores": scores,
    }


def _summarise(items: list[dict[str, Any]], losses: RowLosses) -> Scores:
    """Return the mean loss over tokens, its perplexity, and the mean of each text score over rows."""
    loss = _mean_loss(losses)
    summary = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    scored = [item["scores"] for item in items if "exact_match" in item["scores"]]
    for name in scored[0] if scored else ():
        if name not in ("loss", "tokens"):
            summary[name] = sum(scores[name] for scores in scored) / len(scored)
    return summary


def _mean_loss(losses: RowLosses) -> float:
    return sum(total for total, _ in losses.values()) / sum(tokens for _, tokens in losses.values())


def _write_items(path: Path, items: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for item in items:
            stream.write(json.dumps(item, ensure_ascii=False) + "\n")
    path.chmod(0o640)
