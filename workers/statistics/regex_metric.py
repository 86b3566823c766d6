"""Score answers by a regular expression in RE2's dialect, whose running time is linear in the text.

No pattern can stall a worker, so scores need no time limit and do not depend on the machine.
"""

from __future__ import annotations

import functools
from typing import Any

import re2

from workers.contract.errors import SpecError

PATTERN_LETTERS = 200


def check_pattern(pattern: str) -> None:
    """Raise SpecError for a pattern that cannot be used."""
    if not pattern:
        raise SpecError(
            "pattern", "Write the `pattern` that a correct answer contains, such as `total: \\d+`."
        )
    if len(pattern) > PATTERN_LETTERS:
        raise SpecError(
            "pattern", f"`pattern` has {len(pattern):,} characters. At most {PATTERN_LETTERS} are allowed."
        )
    if "\0" in pattern:
        raise SpecError("pattern", "`pattern` contains a NUL character. Remove it.")
    try:
        _compile(pattern)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0] if error.args else error
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise SpecError(
            "pattern",
            f"`pattern` is not a valid regular expression: {text.rstrip('.')}. "
            "Lookahead, lookbehind (`(?=`, `(?<`) and backreferences (`\\1`) are not supported.",
        ) from error


def pattern_score(pattern: str, output: str, expected: str) -> float:
    """Return 1.0 if the answer matches, else 0.0.

    For a pattern with a group, the first group must also match the same text in the answer as in the expected
    answer; if the expected answer does not match, the group must equal that whole answer.
    """
    compiled = _compile(pattern)
    match = compiled.search(output)
    if not match or not compiled.groups:
        return float(bool(match))
    reference = compiled.search(expected)
    return float(_first_group(match) == (_first_group(reference) if reference else expected.strip()))


def _first_group(match: Any) -> str:
    return str(match.group(1) or "").strip()


@functools.lru_cache(maxsize=16)
def _compile(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
