"""The end of a response: end tokens, stop strings, and the text that is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

END, SUSPECT = 1, 2
"""Codes of a token: END ends the response; SUSPECT may complete a stop string, so the text must be searched."""


class StopRule(NamedTuple):
    """What ends a response under one `stop` setting of a request."""

    end_ids: frozenset[int]
    strings: tuple[str, ...]
    """Stop strings that are not special tokens."""
    codes: Tensor
    """uint8 [V]: END, SUSPECT, or 0 for a token that never ends a response."""


class Ends:
    """The ends that a tokenizer, a model and a request's stop strings define."""

    def __init__(self, tokenizer: Any, model_end_ids: Iterable[int], vocabulary: int) -> None:
        """`vocabulary` is the number of token ids that the model knows."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        own = tokenizer.eos_token_id
        self.ids = frozenset(model_end_ids) | (frozenset() if own is None else {own})
        self._rules: dict[tuple[str, ...], StopRule] = {}

    def codes(self, stops: Sequence[tuple[str, ...]]) -> Tensor:
        """The code of every token under each of the given stop settings, uint8 [settings, V]."""
        return torch.stack([self._rule(stop).codes for stop in stops])

    def completes(self, stop: tuple[str, ...], token_ids: Sequence[int]) -> bool:
        """True if the text of these tokens contains a stop string. Call it after a SUSPECT token only: it decodes."""
        strings = self._rule(stop).strings
        # A character is at most four byte tokens; a few more for tokens without any text.
        tail = token_ids[-(4 * max(map(len, strings)) + 8) :]
        return (
            _first_stop(self._decode(tail), strings) is not None
            and _first_stop(self._decode(token_ids), strings) is not None
        )

    def text(self, stop: tuple[str, ...], token_ids: Sequence[int]) -> str:
        """The text without its end token, truncated before the first stop string."""
        rule = self._rule(stop)
        if token_ids and token_ids[-1] in rule.end_ids:
            token_ids = token_ids[:-1]
        text = self._decode(token_ids)
        return text[: _first_stop(text, rule.strings)]

    def stops(self, stop: tuple[str, ...]) -> tuple[frozenset[int], tuple[str, ...]]:
        """The end tokens, and the stop strings that are not special tokens, of one stop setting."""
        rule = self._rule(stop)
        return rule.end_ids, rule.strings

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _rule(self, stop: tuple[str, ...]) -> StopRule:
        if stop not in self._rules:
            end_ids = self.ids | {self._special[text] for text in stop if text in self._special}
            strings = tuple(text for text in stop if text and text not in self._special)
            codes = torch.zeros(self._vocabulary, dtype=torch.uint8)
            if strings:
                texts = enumerate(self._token_texts)
                codes[[i for i, text in texts if any(_may_complete(text, string) for string in strings)]] = SUSPECT
            codes[[i for i in end_ids if i < self._vocabulary]] = END
            self._rules[stop] = StopRule(end_ids, strings, codes)
        return self._rules[stop]

    @cached_property
    def _special(self) -> dict[str, int]:
        """Ids of special tokens by their text."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: index for index, token in added if token.special}

    @cached_property
    def _token_texts(self) -> list[str]:
        """The text of each token alone."""
        known = min(self._vocabulary, len(self._tokenizer))
        return [self._decode([index]) for index in range(known)]


def _may_complete(token_text: str, stop: str) -> bool:
    """True if a token may bring the last character of a stop string."""
    last = stop[-1]
    # Some decoders drop or add spaces between tokens, and a byte of a longer character shows as U+FFFD.
    return last == " " or last in token_text or (not last.isascii() and "\ufffd" in token_text)


def _first_stop(text: str, strings: Sequence[str]) -> int | None:
    """Index in `text` where the first stop string begins. None: there is none."""
    found = [index for index in (text.find(string) for string in strings) if index >= 0]
    return min(found, default=None)
