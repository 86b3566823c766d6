"""The protocol between engine and supervisor: events, one JSON object per line.

The engine writes events to standard output and reads requests on standard input: `{"stop": reason}`, see
`STOPS`. A line that is too long or unknown is a ProtocolError, never a crash. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

MAX_LINE = 4 * 1024 * 1024
# The reasons to stop, the strongest last. `drain`: write a checkpoint, another attempt continues.
# `finish`: publish the best of each arm that still trains. `park`: write a checkpoint, the job ends.
# `cancel`: write nothing.
STOPS = ("drain", "finish", "park", "cancel")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class ProtocolError(Exception):
    """The engine wrote a line that is not an event."""


@dataclass(frozen=True)
class Started:
    """First line: process and device. `versions` maps package to version; `threads` is the OpenMP count."""

    pid: int
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 1


@dataclass(frozen=True)
class Progress:
    """Progress within a phase, which is one word: loading, tokenizing, training, validating, scoring…

    `step` of `total` in the phase's own unit (optimizer steps while training); total 0 when unknown.
    """

    phase: str
    step: int = 0
    total: int = 0
    eta_seconds: float | None = None


@dataclass(frozen=True)
class Metrics:
    """Values of one step of one arm, for example {"train/loss": 1.2, "train/tokens_per_second": 180.0}."""

    arm: int
    step: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class KeepAlive:
    """Progress within a long step, before there is anything to count or to measure."""


@dataclass(frozen=True)
class Message:
    """A sentence for the job's history."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Artifact:
    """A finished folder under the out dir (`path` is relative), with the SHA-256 of each file in it."""

    arm: int
    path: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint after `step`. `path` is its name in the checkpoint folder."""

    step: int
    path: str


@dataclass(frozen=True)
class ArmEnd:
    """The end of an arm at `step`: `succeeded`, `stopped_early`, `failed` or `cancelled`.

    `summary`: final metrics and costs; `published_step` is the step whose weights the adapter holds.
    """

    arm: int
    outcome: str
    step: int
    code: str = ""
    message: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The result of a job without arms: a census, an import report, or evaluation metrics."""

    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """The failure of the job. `code` is a RunError's; `message` is for the user."""

    code: str
    message: str


@dataclass(frozen=True)
class Finished:
    """Last line. `reason`: done, failed, a stop (cancel, park or drain), or taken_over.

    `taken_over` means that a later attempt works on the same training.
    """

    reason: str


Event = (
    Started
    | Progress
    | Metrics
    | KeepAlive
    | Message
    | Artifact
    | Checkpoint
    | ArmEnd
    | Result
    | Failure
    | Finished
)
Report = Callable[[Event], None]
ShouldStop = Callable[[], str]  # "" to go on, else one of STOPS

_TYPES: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}


def to_line(event: Event) -> str:
    """Return the event as one line of JSON with its newline. NaN and Infinity become null."""
    return json.dumps({"event": type(event).__name__, **finite(dataclasses.asdict(event))}) + "\n"


def finite(value: Any) -> Any:
    """Replace NaN and Infinity by None: JSON knows neither."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def storable(value: Any) -> Any:
    """Replace the characters that databases refuse: NUL and halves of surrogate pairs."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value


def from_line(line: str | bytes) -> Event:
    """Parse one line. Raises ProtocolError unless it is exactly one known event."""
    if len(line) > MAX_LINE:
        raise ProtocolError(f"a line of {len(line)} bytes")
    try:
        values = storable(json.loads(line))
        kind = _TYPES[values.pop("event")]
        event: Event = kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"{error!r} in {line[:200]!r}") from error
    return event


def print_event(event: Event) -> None:
    """Print the event as one line: the default reporter."""
    print(to_line(event), end="", flush=True)


def never_stop() -> str:
    """Return no reason to stop: the default `should_stop`."""
    return ""


def stronger(first: str, second: str) -> str:
    """Return the stronger of two reasons to stop; "" is none."""
    return max(first, second, key=("", *STOPS).index)
