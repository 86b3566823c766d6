"""The text of an answer that grows token by token, and the stop texts that end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\ufffd"  # what a tokenizer writes for half a character


class AnswerText:
    """Decodes one answer. Text that may be the beginning of a stop text is held back."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        # Decoded from the tokens before the last part, because a tokenizer joins words by their neighbours.
        self.context, self.decoded = 0, 0
        self.held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Return the text that this token makes certain."""
        self.ids.append(token)
        new = self._new_text()
        if not new or new.endswith(INCOMPLETE):
            return ""
        self.context, self.decoded = self.decoded, len(self.ids)
        return self._release(new)

    def finish(self) -> str:
        """Return the rest of the text after the last token."""
        if self.is_stopped:
            return ""
        text = self._release(self._new_text())
        return text if self.is_stopped else text + self.held

    def _new_text(self) -> str:
        known = self._decode(self.ids[self.context : self.decoded])
        return self._decode(self.ids[self.context :])[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _release(self, new: str) -> str:
        self.held += new
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            return self.held[: min(places)]
        kept = max((_overlap(self.held, stop) for stop in self.stops), default=0)
        text, self.held = self.held[: len(self.held) - kept], self.held[len(self.held) - kept :]
        return text


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text begin the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if stop.startswith(text[-length:])), 0)
