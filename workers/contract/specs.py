"""Specs: the engine's input, as frozen dataclasses that validate themselves.

A spec crosses the process boundary as JSON (`to_dict`, `from_dict`). Once a job is
submitted, only its spec counts: no form, row or setting is read again. Knows nothing of rows or tensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from workers.contract.errors import SpecError
from workers.contract.hyperparameters import Hyperparameters

SpecT = TypeVar("SpecT")

# Raise it when equal specs come to give other adapters, so that earlier runs are not reused.
ENGINE_VERSION = 6
DTYPES = ("auto", "float32", "bfloat16")
SPLITS = ("train", "validation", "test")
# Forms of a base model with its adapter merged in: Transformers' own in two number formats, and GGUF.
EXPORT_FORMATS = ("float32", "bfloat16", "gguf-f16", "gguf-q8_0")
PUSH_FORMATS = ("adapter", *EXPORT_FORMATS)
# The hub's rule for owner and name; neither has `--` or `..` in it.
REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# Actions that the engine takes on its own, and that the forecast counts.
CHUNK_ROWS = 256  # learned positions whose logits exist at one time, at most
# Of logits on a CPU: glibc's malloc has larger blocks cleared anew by the system each time.
CPU_CHUNK_BYTES = 24 << 20
# From so many products of a row's queries and keys, a CPU computes attention faster in bfloat16 than in fp32.
LONG_ROW_PRODUCTS = 64 * 64
CPU_BATCH_TOKENS = 1536  # about as many tokens are computed at a time: more take memory and save no time
# Model types for which the tests show that a shared prefix gives the same losses and gradients.
PREFIX_TYPES = frozenset({"llama", "gpt2", "qwen2", "gpt_neox"})
SHORTEST_PREFIX = 8  # tokens; with fewer, the second forward pass costs more than it saves


def chunk_rows(vocab_size: int, *, on_cuda: bool) -> int:
    """Return how many learned positions have their logits, fp32, in memory at one time."""
    return CHUNK_ROWS if on_cuda else max(16, min(CHUNK_ROWS, CPU_CHUNK_BYTES // (4 * vocab_size)))


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """A frozen pretrained model on local disk. `name` is its public name or hub id, never a path."""

    path: str
    name: str
    revision: str | None = None
    sha256: str = ""
    license: str = ""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A dataset version: `path` is a folder with train.parquet, validation.parquet and test.parquet.

    Each file has the columns `row` (int64, number in the upload, from 1), `messages` (JSON text: a list of
    {role, content, weight?}, null for plain text), `text` (plain text, null for chats) and `group` (int64:
    the first row of its group; missing in older files). `test_sha256` seals the test rows; it is empty until
    their first use.
    """

    path: str
    sha256: str
    name: str = ""
    version: int = 1
    test_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """PEFT's arguments for one base model, and the expected counts.

    `modules` (number of adapted modules) and `trainable_parameters` come from the census; before the first
    step the engine compares them with the attached adapter. If set, `target_regex` is passed to PEFT as
    `target_modules`, and the list of names is only shown.
    """

    target_modules: tuple[str, ...]
    target_regex: str = ""
    target_parameters: tuple[str, ...] = ()
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    exclude_modules: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    modules: int
    trainable_parameters: int
    names_sha256: str = (
        ""  # of the sorted names of the adapted modules, one per line; not compared when empty
    )

    def __post_init__(self) -> None:
        if not self.target_modules and not self.target_parameters:
            raise SpecError("target_modules", "Choose at least one module to adapt.")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One arm: base + data + target modules + hyperparameters. Several arms of one call share a base.

    `validation_data`: all of its rows are the validation rows, in place of those of `data`.
    """

    name: str
    base: BaseSpec
    data: DataSpec
    validation_data: DataSpec | None = None
    target: TargetSpec
    hyperparameters: Hyperparameters
    preset: str = ""
    validation_steps: int = 0  # validate each time after so many; 0: as `plan_validation` decides
    validation_rows: int | None = None  # at most; None: as `plan_validation` decides
    dtype: str = "auto"
    engine_version: int = ENGINE_VERSION

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SpecError("dtype", f"`dtype` must be one of {', '.join(DTYPES)}.")
        if self.target.target_parameters and self.hyperparameters.lora_dropout:
            raise SpecError(
                "lora_dropout",
                "`lora_dropout` must be 0 here: PEFT cannot drop the inputs of experts. Set it to 0, or "
                "choose a preset without MLP layers.",
            )
        if self.target.target_parameters and self.hyperparameters.load_in_4bit:
            raise SpecError(
                "load_in_4bit",
                "`load_in_4bit` must be off here: PEFT cannot adapt experts that are kept in 4 bits. Turn it "
                "off, or choose a preset without MLP layers.",
            )
        if self.validation_steps < 0 or (self.validation_rows or 0) < 0:
            raise SpecError(
                "validation_steps", "`validation_steps` and `validation_rows` must not be negative."
            )


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """Score the base and adapters on the same rows of a split.

    `adapters`: name of each subject -> a folder that PEFT loads. `with_base` is False if another job
    scores the base model on these rows. `kept_formats`: number formats in which its scores are kept
    (`base_scores.number_format`), so that it is scored in other ones only. `load_in_4bit`: as the adapters
    were trained. `metric` replaces the one that the answers suggest; `pattern` is the expression of the
    metric `regex`.
    """

    base: BaseSpec
    data: DataSpec
    adapters: dict[str, str]
    with_base: bool = True
    kept_formats: tuple[str, ...] = ()
    load_in_4bit: bool = False
    metric: str = ""
    pattern: str = ""
    split: str = "test"
    max_rows: int = 200
    max_length: int = 512
    max_new_tokens: int = 256
    seed: int = 42
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not self.adapters or "base" in self.adapters:
            raise SpecError(
                "adapters", "Name at least one adapter in `adapters`, and call none of them `base`."
            )
        if self.split not in SPLITS:
            raise SpecError("split", f"`split` must be one of {', '.join(SPLITS)}.")
        if not 1 <= self.max_rows <= 10_000:
            raise SpecError("max_rows", "`max_rows` must lie between 1 and 10,000.")


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """Turn one uploaded file into canonical Parquet splits.

    `tokenizer` is the model folder whose tokenizer and chat template render the preview. Rows with the same
    value in `group_column` stay in one split.
    """

    upload: str
    filename: str
    tokenizer: str
    prompt_column: str = ""
    completion_column: str = ""
    group_column: str = ""
    skip_bad_rows: bool = False
    seed: int = 42
    validation_share: float = 0.1
    test_share: float = 0.1


@dataclass(frozen=True, kw_only=True)
class InspectSpec:
    """Count a base model's modules: a local folder, or a hub id that is downloaded to `cache` first."""

    path: str = ""
    hub_id: str = ""
    revision: str = ""
    cache: str = ""


@dataclass(frozen=True, kw_only=True)
class ServeSpec:
    """Answer chats with one base model and adapters on it, until no request has come for a while.

    `socket`: where it listens; requests are those of `workers.contract.chat`. `adapters`: the folder that
    holds all adapters, each in a folder named by its content's hash. The limits bound its memory: so many
    answers at a time, tokens of all of them together, and adapters in memory.
    """

    base: BaseSpec
    socket: str
    adapters: str
    max_rows: int = 16
    max_tokens: int = 16_384
    max_adapters: int = 32
    idle_seconds: float = 600.0
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if min(self.max_rows, self.max_tokens, self.max_adapters) < 1:
            raise SpecError("max_rows", "The limits of an inference job must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """Merge an adapter, a folder that PEFT loads, into its base model, and write the result as one file.

    `name`: that of the file, without its ending.
    """

    base: BaseSpec
    adapter: str
    name: str
    format: str
    formats: ClassVar[tuple[str, ...]] = EXPORT_FORMATS

    def __post_init__(self) -> None:
        if self.format not in self.formats:
            raise SpecError("format", f"`format` must be one of {', '.join(self.formats)}.")
        if not re.fullmatch(r"\w[\w.-]{0,199}", self.name):
            raise SpecError("name", "`name` takes letters, digits, `_`, `-` and `.`, up to 200 of them.")


@dataclass(frozen=True, kw_only=True)
class PushSpec(ExportSpec):
    """Upload an export, or the adapter as it is, to a repository of the hub: OWNER/NAME.

    The token is no part of it: specs are stored.
    """

    repository: str
    private: bool = True
    formats: ClassVar[tuple[str, ...]] = PUSH_FORMATS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not REPOSITORY.fullmatch(self.repository):
            raise SpecError("repository", "`repository` must be an owner and a name, such as team/triage.")


SPEC_TYPES: dict[str, type] = {
    "train": TrainSpec,
    "evaluate": EvalSpec,
    "import": ImportSpec,
    "inspect": InspectSpec,
    "serve": ServeSpec,
    "export": ExportSpec,
    "push": PushSpec,
}


def needs_4bit(spec: dict[str, Any]) -> bool:
    """Return whether a job's spec needs a base model in 4 bits, as all or none of its arms do."""
    first = spec["specs"][0] if spec.get("specs") else spec
    return bool(first.get("hyperparameters", first).get("load_in_4bit"))


def digest_spec(spec: dict[str, Any]) -> str:
    """Return the SHA-256 of all in a training's spec that decides its adapter; "" without needed hashes.

    Names and places are left out. The hash of the data covers its test rows, which may be sealed later.
    """
    named = ("base", "data", *(["validation_data"] if spec.get("validation_data") else []))
    hashes = {name: spec[name].get("sha256") for name in named}
    if not all(hashes.values()):
        return ""
    counted = {key: value for key, value in spec.items() if key not in ("name", "preset")}
    text = json.dumps(counted | hashes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def to_dict(spec: Any) -> dict[str, Any]:
    """Return the spec as plain JSON values."""
    return typing.cast("dict[str, Any]", _jsonable(dataclasses.asdict(spec)))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def from_dict(kind: type[SpecT], values: dict[str, Any]) -> SpecT:
    """Return the spec of JSON values. Raises SpecError for an unknown key."""
    known = {item.name for item in dataclasses.fields(typing.cast("Any", kind))}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SpecError(unknown[0], f"Unknown setting `{unknown[0]}`.")
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        nested = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        if nested and isinstance(value, dict):
            arguments[name] = from_dict(typing.cast("type[Any]", nested[0]), value)
        elif typing.get_origin(hint) is tuple and isinstance(value, list):
            arguments[name] = tuple(value)
        else:
            arguments[name] = value
        if isinstance(hint, types.UnionType) and float in typing.get_args(hint) and isinstance(value, int):
            arguments[name] = float(value)
    try:
        return kind(**arguments)
    except TypeError as missing:
        raise SpecError("", f"The spec is incomplete: {missing}.") from missing
