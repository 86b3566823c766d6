"""Regular expressions that people write, in RE2's dialect: the time that one takes grows with the text alone.

No pattern can hold up a worker, and none needs a time limit, under which scores would depend on the machine.
Knows nothing of models or rows.
"""

from __future__ import annotations

import functools
from typing import Any

import re2

from workers.errors import SpecError

PATTERN_LETTERS = 200


def check_pattern(pattern: str) -> None:
    """Refuse what cannot be looked for; the SpecError says why."""
    if not pattern:
        raise SpecError("pattern", "Write the `pattern` that a right answer holds, such as `total: \\d+`.")
    if len(pattern) > PATTERN_LETTERS:
        raise SpecError(
            "pattern", f"`pattern` has {len(pattern):,} characters. At most {PATTERN_LETTERS} are allowed."
        )
    if "\0" in pattern:
        raise SpecError("pattern", "`pattern` holds a NUL character. Remove it.")
    try:
        _compiled(pattern)
    except (re2.error, UnicodeError) as error:
        raise SpecError(
            "pattern",
            f"`pattern` is no regular expression that can be used: {_why(error)}. "
            "Looking ahead or back (`(?=`, `(?<`) and repeating a group (`\\1`) are not possible here.",
        ) from error


def pattern_score(pattern: str, output: str, expected: str) -> float:
    """1.0 where the pattern is found in the answer, else 0.0.

    A pattern with a group must also find the right thing: what its first group holds in the answer has to be
    what it holds in the expected answer, or that whole answer where the pattern is not found in it.
    """
    compiled = _compiled(pattern)
    found = compiled.search(output)
    if not found:
        return 0.0
    if not compiled.groups:
        return 1.0
    wanted = compiled.search(expected)
    return float(_first(found) == (_first(wanted) if wanted else expected.strip()))


def _first(found: Any) -> str:
    return str(found.group(1) or "").strip()


def _why(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return (reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)).rstrip(".")


@functools.lru_cache(maxsize=16)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
