"""Scores the base model and adapters on the same rows of a split: `python -m workers.engine evaluate`.

The base is the same loaded model with its adapters disabled. The answers and scores of every row go to
`items.jsonl`, so that two evaluations can be compared in pairs. Knows nothing of verdicts or pages.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workers.contract.base_scores import number_format
from workers.contract.errors import DataError, Diverged, ModelError, TargetError
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
from workers.engine.evaluation.latency import BASE, ms_per_token
from workers.engine.evaluation.scores import Scores, answer_kind, score_answer
from workers.engine.training import lora, runtime
from workers.engine.training.data import Split, encode_rows, epoch_order, micro_batches
from workers.engine.training.encoding import CanonicalRow, Example, Ids, encode
from workers.engine.training.loss import Scorer, make_scorer
from workers.engine.training.packed import attention
from workers.engine.training.runtime import stop_if_asked

ROWS_PER_BATCH = 16
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
        _check_adapter(Path(folder))
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
    usual_attention = base.config._attn_implementation
    scorer = make_scorer(base, base, examples[:2], device)
    model = _load_adapters(base, spec.base.name, spec.adapters)
    scorer = replace(scorer, model=model)
    stop_if_asked(should_stop)

    # Scores
    is_kept = number_format(runtime.dtype_name(dtype), runtime.device_name(device)) in spec.kept_formats
    subjects = [BASE, *spec.adapters] if spec.with_base and not is_kept else [*spec.adapters]
    total = len(subjects) * (len(examples) + len(chats))
    run = _EvaluationRun(scorer, base, tokenizer, spec, device, should_stop, report, total)
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
        if subject != BASE:
            model.set_adapter(subject)
            if not run.adapter_changes_outputs(examples[0]):
                report(Message("The adapter changes nothing: its outputs equal the base model's.", "warning"))
        with model.disable_adapter() if subject == BASE else nullcontext():
            losses = run.losses(examples, counts_progress=True)
            with attention(base.config, usual_attention):
                answers = run.answers(chats)
            general_losses = run.losses(general)
            marks[subject] = questions.mark_questions(run.losses(choices))
        subject_items = [
            _item(example, subject, losses, answers, kind, spec) | {"group": groups[example.row]}
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
    base.config._attn_implementation = usual_attention
    values["ms_per_token"] = ms_per_token(
        model.unload(),
        list(spec.adapters),
        lambda name: _load_adapters(base, spec.base.name, {name: spec.adapters[name]}),
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


# Adapters


def _check_adapter(folder: Path) -> None:
    # PEFT silently loads a pickle if the safetensors file is missing.
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"The adapter's folder has no {name}, so it cannot be evaluated.", code="bad_adapter"
            )


def _load_adapters(base: Any, base_name: str, adapters: dict[str, str]) -> Any:
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


# Scores


@dataclass
class _EvaluationRun:
    """The loaded model and the progress over all subjects."""

    scorer: Scorer
    base: Any
    tokenizer: Any
    spec: EvalSpec
    device: torch.device
    should_stop: ShouldStop
    report: Report
    total: int
    done: int = 0

    def _count(self, rows: int) -> None:
        self.done += rows
        self.report(Progress("scoring", self.done, self.total))

    @torch.no_grad()
    def adapter_changes_outputs(self, example: Example) -> bool:
        """Compare the losses with and without the adapter; one that matches no module changes nothing."""
        batch = self.scorer.collate([example], self.device)
        with self.scorer.model.disable_adapter():
            base_losses = self.scorer.token_losses(batch)
        return not torch.equal(base_losses, self.scorer.token_losses(batch))

    @torch.no_grad()
    def losses(self, examples: list[Example], *, counts_progress: bool = False) -> RowLosses:
        losses: RowLosses = {}
        for rows in micro_batches(examples, ROWS_PER_BATCH):
            stop_if_asked(self.should_stop)
            batch = self.scorer.collate(rows, self.device)
            # Float64, so that the sums of long rows do not round.
            token_losses = self.scorer.token_losses(batch).double()
            counts = [example.target_count for example in rows]
            for example, own in zip(rows, torch.split(token_losses, counts), strict=True):
                losses[example.row] = (float(own.sum()), len(own))
            if counts_progress:
                self._count(len(rows))
        return losses

    def answers(self, chats: list[Example]) -> dict[int, str]:
        """Return row number -> generated answer, a quarter longer than the longest expected one at most."""
        if not chats:
            return {}
        longest = max(len(example.ids) - example.prompt_length for example in chats)
        answers = generate_greedily(
            self.scorer.model,
            [example.ids[: example.prompt_length] for example in chats],
            max_new_tokens=min(self.spec.max_new_tokens, longest + max(8, longest // 4)),
            end_ids=end_ids(self.base, self.tokenizer),
            device=self.device,
            share_prefix=self.scorer.shares_prefix,
            should_stop=self.should_stop,
            on_rows=self._count,
        )
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return {example.row: text for example, text in zip(chats, texts, strict=True)}


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
