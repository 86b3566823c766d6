"""Reads a folder's config and tokenizer and counts the layers in a child process with limits: `read_census`.

No list of checks is complete: an unusual type may build a layer a million times, and a tokenizer may be a
regular expression that never ends or a rule that doubles every letter. Knows nothing of weights.
"""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

from workers.contract.errors import ModelError, memory_error
from workers.contract.specs import BaseSpec
from workers.engine.base_models import census
from workers.engine.base_models.model import load_tokenizer, model_errors, read_config
from workers.engine.limited_process import TIME, LimitedProcess, LimitExceeded
from workers.engine.training.encoding import check_chat_template
from workers.target_modules.census import Census

# The largest vocabularies (262,000 tokens) take 2.5 s and 420 MB, the largest censuses 6 s and 40 MB.
TOKENIZER_SECONDS, CENSUS_SECONDS = 10.0, 30.0
MAX_BYTES = 700_000_000
# Every printable character, and runs over which a bad regular expression takes exponential time.
PROBE = string.printable + "".join(f"{letter * 200}! " for letter in "alA0 .\n")
MAX_TOKENS_PER_CHARACTER = 4


def read_census(folder: Path) -> Census:
    """Return the census of a checked folder.

    Raises ModelError for a config or tokenizer that cannot be used, or that exceeds the limits.
    """
    with LimitedProcess(_answer, MAX_BYTES, has_children=True) as process:
        has_chat_template = _ask(process, folder, "tokenizer", TOKENIZER_SECONDS, None)
        counted = _ask(process, folder, "layers", CENSUS_SECONDS, has_chat_template)
    return Census.from_dict(counted)


def _ask(process: LimitedProcess, folder: Path, part: str, seconds: float, value: Any) -> Any:
    try:
        reply = process.ask([part, str(folder), value], seconds)
    except LimitExceeded as error:
        limit = f"{seconds:g} s" if error.limit == TIME else f"{MAX_BYTES / 1e6:g} MB of memory"
        raise ModelError(
            f"Reading the {part} of {folder.name} needs more than {limit}. Choose another model."
        ) from error
    if "refused" in reply:
        raise ModelError(reply["refused"])
    return reply["value"]


def _answer(request: list[Any]) -> dict[str, Any]:
    """Return the value that the request asks for as JSON, or the sentence that refuses the folder."""
    part, path, value = request
    # The tokenizer's threads would reserve address space for each core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        if part == "tokenizer":
            return {"value": _check_tokenizer(Path(path))}
        with model_errors("The model's layers cannot be counted"):
            counted = census.count(read_config(Path(path)), has_chat_template=value)
        return {"value": counted.to_dict()}
    except ModelError as error:
        if memory_error(error):
            raise MemoryError from error
        return {"refused": error.message}


def _check_tokenizer(folder: Path) -> bool:
    """Return whether the tokenizer has a chat template; raise ModelError if either cannot be used."""
    tokenizer = load_tokenizer(BaseSpec(path=str(folder), name=folder.name))
    with model_errors("The model's tokenizer cannot be used"):
        tokens = len(tokenizer(PROBE)["input_ids"])
        if tokens > MAX_TOKENS_PER_CHARACTER * len(PROBE):
            raise ModelError(
                f"The tokenizer of {folder.name} makes {tokens:,} tokens of {len(PROBE):,} characters. "
                "Choose another model."
            )
        check_chat_template(tokenizer)
    return bool(tokenizer.chat_template)
