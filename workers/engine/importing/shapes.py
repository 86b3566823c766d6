"""Detects the shape of a table and converts each row to chat messages or plain text.

Canonical chats hold the roles system, user and assistant; `developer` becomes `system`, which every chat
template knows. A row that does not fit raises InvalidRow. Knows no files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workers.contract.errors import ColumnsUnclear, DataError
from workers.engine.importing.json_rows import parse_json
from workers.engine.importing.rows import MAX_FIELD_BYTES, OtherValue, UploadRow

MAX_MESSAGES = 20_000
MAX_ROW_BYTES = 1_000_000

Message = dict[str, Any]
Canonical = list[Message] | str

# Columns that may stand beside plain text, because they are not training content.
METADATA_COLUMNS = {
    "id",
    "_id",
    "idx",
    "source",
    "url",
    "meta",
    "metadata",
    "timestamp",
    "date",
    "lang",
    "language",
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    **ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TOOL_ROLES = {"tool", "function", "function_call", "observation"}


class InvalidRow(Exception):
    """The row cannot be used. `message` tells the user why and what to do."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.message = message


@dataclass(frozen=True)
class Shape:
    """A known table layout: its name in reports, its columns and the function that converts a row."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[dict[str, Any]], Canonical]
    optional_columns: tuple[str, ...] = ()


def detect_shape(columns: Sequence[str]) -> Shape:
    """Return the shape of these columns. Raises ColumnsUnclear if there is none."""
    present = set(columns)
    if {"chosen", "rejected"} <= present:
        raise DataError(
            "These rows hold a chosen and a rejected answer. Preference training is not supported. To "
            "train on the chosen answers, keep `prompt` and rename `chosen` to `completion`."
        )
    for shape in SHAPES:
        if set(shape.columns) <= present:
            return shape
    for shape in SHAPES:
        if set(shape.columns) <= set(names := _columns_by_lower_name(columns)):
            return _with_column_names(shape, names)
    if "text" in present and present - {"text"} <= METADATA_COLUMNS:
        return Shape("text", ("text",), lambda values: _required_text(values, "text"))
    named = ", ".join(f"`{name[:50]}`" for name in list(columns)[:20])
    if len(columns) > 20:
        named += f" and {len(columns) - 20:,} more"
    raise ColumnsUnclear(
        f"The columns {named} match no known format. Choose the prompt column and the answer column, then "
        "import again."
    )


def _columns_by_lower_name(columns: Sequence[str]) -> dict[str, str]:
    """Return lower-case name -> column, without names that two columns share."""
    alike: dict[str, list[str]] = {}
    for column in columns:
        alike.setdefault(column.strip().casefold(), []).append(column)
    return {name: found[0] for name, found in alike.items() if len(found) == 1}


def _with_column_names(shape: Shape, names: dict[str, str]) -> Shape:
    """Return the shape with the file's own spelling of its columns: `Prompt` for `prompt`."""
    own = {name: names[name] for name in (*shape.columns, *shape.optional_columns) if name in names}

    def read(values: dict[str, Any]) -> Canonical:
        try:
            return shape.read({name: values.get(column) for name, column in own.items()})
        except InvalidRow as error:
            column = own.get(error.column, error.column)
            raise InvalidRow(column, error.message.replace(f"`{error.column}`", f"`{column}`")) from error

    more = tuple(own[name] for name in shape.optional_columns if name in own)
    return Shape(shape.name, tuple(own[name] for name in shape.columns), read, more)


def shape_from_columns(columns: Sequence[str], prompt: str, completion: str) -> Shape:
    """Return the shape of the columns that the user chose. Without a prompt column it is plain text."""
    for name in (prompt, completion):
        if name and name not in columns:
            raise ColumnsUnclear(
                f"The file has no column `{name[:50]}`. Choose one of {', '.join(list(columns)[:20])}."
            )
    if not completion:
        raise ColumnsUnclear("Choose the answer column, then import again.")
    if prompt == completion:
        raise ColumnsUnclear("Prompt and answer must be two different columns.")
    if not prompt:
        return Shape("text", (completion,), lambda values: _text_or_number(values, completion))
    return Shape(
        "columns",
        (prompt, completion),
        lambda values: [
            _message("user", _text_or_number(values, prompt)),
            _message("assistant", _text_or_number(values, completion)),
        ],
    )


def to_canonical(row: UploadRow, shape: Shape) -> Canonical:
    """Return the row as messages or text. Raises InvalidRow."""
    if row.problem:
        raise InvalidRow(row.column, row.problem)
    for key in ("tools", "tool_calls", "functions"):
        if row.values.get(key):
            raise InvalidRow(key, f"This row uses tools (`{key}`), which are not supported. Remove the row.")
    for column in shape.columns:
        if isinstance(text := row.values.get(column), str):
            _check_text(text, column)
    value = shape.read(row.values)
    texts = [message["content"] for message in value] if isinstance(value, list) else [value]
    size = sum(_check_text(text, shape.columns[0]) for text in texts)
    if size > MAX_ROW_BYTES:
        raise InvalidRow(
            shape.columns[0],
            f"The texts of this row have {size / 1000:,.0f} kB. At most 1 MB is read; split it.",
        )
    return value


def _chat(values: dict[str, Any]) -> Canonical:
    return _conversation(values.get("messages"), "messages")


def _sharegpt(values: dict[str, Any]) -> Canonical:
    return _conversation(values.get("conversations"), "conversations")


def _prompt_completion(values: dict[str, Any]) -> Canonical:
    """Read two texts, or two lists of messages of which only the completion is learned."""
    prompt, completion = values.get("prompt"), values.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        before = [
            {**message, "weight": 0} if message["role"] == "assistant" else message
            for message in _read_messages(prompt, "prompt")
        ]
        after = _read_messages(completion, "completion")
        _check_learnable(after, "completion")
        return [*before, *after]
    return [
        _message("user", _required_text(values, "prompt")),
        _message("assistant", _required_text(values, "completion")),
    ]


def _instruction(values: dict[str, Any]) -> Canonical:
    """Read an Alpaca row: `input` follows the instruction after a blank line."""
    instruction = _required_text(values, "instruction")
    more = values.get("input")
    if more is not None and not isinstance(more, str):
        raise InvalidRow("input", f"`input` is {describe_type(more)} here. It must be text, or left out.")
    question = f"{instruction}\n\n{more}" if more and more.strip() else instruction
    return [_message("user", question), _message("assistant", _required_text(values, "output"))]


SHAPES = (
    Shape("messages", ("messages",), _chat),
    Shape("sharegpt", ("conversations",), _sharegpt),
    Shape("prompt_completion", ("prompt", "completion"), _prompt_completion),
    Shape("instruction", ("instruction", "output"), _instruction, optional_columns=("input",)),
)


def _conversation(value: Any, column: str) -> list[Message]:
    messages = _read_messages(value, column)
    _check_learnable(messages, column)
    return messages


def _read_messages(value: Any, column: str) -> list[Message]:
    """Read a list of messages; a CSV or Parquet cell may hold it as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise InvalidRow(column, str(error).replace("This row", f"`{column}`", 1)) from error
    if value is None:
        raise InvalidRow(column, f"This row has no `{column}`. Add it or remove the row.")
    if not isinstance(value, list):
        raise InvalidRow(column, f"`{column}` is {describe_type(value)} here. It must be a list of messages.")
    if not value:
        raise InvalidRow(column, f"`{column}` is an empty list. Add messages or remove the row.")
    if len(value) > MAX_MESSAGES:
        raise InvalidRow(
            column,
            f"`{column}` has {len(value):,} messages. At most {MAX_MESSAGES:,} are read; split the row.",
        )
    return [_read_message(item, place, column) for place, item in enumerate(value, start=1)]


def _read_message(item: Any, place: int, column: str) -> Message:
    if not isinstance(item, dict):
        raise InvalidRow(
            column, f"Message {place} is {describe_type(item)}. It must be an object with role and content."
        )
    field = "role" if "role" in item else "from"
    speaker = item.get(field)
    if speaker is not None and not isinstance(speaker, str):
        raise InvalidRow(
            column,
            f"The {field} of message {place} is {describe_type(speaker)}. Use system, user or assistant.",
        )
    if speaker in TOOL_ROLES or item.get("tool_calls") or item.get("function_call"):
        raise InvalidRow(column, f"Message {place} uses tools, which are not supported. Remove the row.")
    known = ROLES if field == "role" else SHAREGPT_ROLES
    if speaker is None or speaker not in known:
        described = f"the role `{speaker[:30]}`" if speaker else "no role"
        raise InvalidRow(column, f"Message {place} has {described}. Use system, user or assistant.")
    content = item.get("content") if "content" in item else item.get("value")
    if not isinstance(content, str):
        raise InvalidRow(
            column, f"The content of message {place} is {describe_type(content)}. It must be text."
        )
    message = _message(known[speaker], content)
    weight = item.get("weight")
    if weight is not None:
        if isinstance(weight, bool) or weight not in (0, 1):
            raise InvalidRow(column, f"The weight of message {place} must be 0 (not learned) or 1 (learned).")
        message["weight"] = int(weight)
    return message


def _check_learnable(messages: list[Message], column: str) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(message["content"].strip() and message.get("weight", 1) for message in answers):
        raise InvalidRow(
            column, "This row has no assistant message to learn from. Add one or remove the row."
        )
    empty = next((place for place, one in enumerate(messages, 1) if not one["content"].strip()), 0)
    if empty and messages[empty - 1]["role"] != "system":
        raise InvalidRow(column, f"Message {empty} is empty. Fill it or remove the row.")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _required_text(values: dict[str, Any], column: str) -> str:
    """Return the text of a column. Raises InvalidRow if it is missing or blank."""
    value = values.get(column)
    if value is None:
        raise InvalidRow(column, f"This row has no `{column}`. Add it or remove the row.")
    if not isinstance(value, str):
        raise InvalidRow(column, f"`{column}` is {describe_type(value)} here. It must be text.")
    if not value.strip():
        raise InvalidRow(column, f"`{column}` is empty. Fill it or remove the row.")
    return value


def _text_or_number(values: dict[str, Any], column: str) -> str:
    """Return a required text or a number written out: a chosen column may hold numeric labels."""
    value = values.get(column)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return _required_text(values, column)


def _check_text(text: str, column: str) -> int:
    """Return the size of a text in bytes. Raises InvalidRow if it is too large."""
    size = len(text.encode())
    if size > MAX_FIELD_BYTES:
        raise InvalidRow(
            column, f"A text of this row has {size / 1000:,.0f} kB. At most 256 kB are read; split it."
        )
    return size


def describe_type(value: Any) -> str:
    """Return the JSON type of a value in words for a message."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, OtherValue):
        return f"of the type {value.type[:50]}"
    return "an object" if isinstance(value, dict) else f"of the type {type(value).__name__}"
