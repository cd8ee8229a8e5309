"""Where a response ends: end tokens, stop strings and the text that is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

END, SUSPECT = 1, 2
"""Codes of a token: it ends the response; it may complete a stop string, so the text must be looked at."""


class Ends:
    """The ends a tokenizer, a model and a request's stop strings define."""

    def __init__(self, tokenizer: Any, model_ends: Iterable[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        own = tokenizer.eos_token_id
        self.ids = frozenset(model_ends) | (frozenset() if own is None else {own})
        self._rules: dict[tuple[str, ...], tuple[frozenset[int], tuple[str, ...], Tensor]] = {}

    def table(self, stops: Sequence[tuple[str, ...]]) -> Tensor:
        """The code of every token under each of the given stop settings, uint8 [settings, V]."""
        return torch.stack([self._rule(stop)[2] for stop in stops])

    def completes(self, stop: tuple[str, ...], token_ids: Sequence[int]) -> bool:
        """Whether the text of these tokens contains a stop string; called after a suspect token only."""
        _, strings, _ = self._rule(stop)
        # A character is at most four byte tokens; a few more for tokens that show as nothing.
        tail = token_ids[-(4 * max(map(len, strings)) + 8) :]
        return _cut(self._decode(tail), strings) is not None and _cut(self._decode(token_ids), strings) is not None

    def text(self, stop: tuple[str, ...], token_ids: Sequence[int]) -> str:
        """The text without its end token, cut before the first stop string."""
        ends, strings, _ = self._rule(stop)
        if token_ids and token_ids[-1] in ends:
            token_ids = token_ids[:-1]
        text = self._decode(token_ids)
        cut = _cut(text, strings)
        return text if cut is None else text[:cut]

    def stops(self, stop: tuple[str, ...]) -> tuple[frozenset[int], tuple[str, ...]]:
        """The end tokens and the plain stop strings of one stop setting."""
        return self._rule(stop)[:2]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _rule(self, stop: tuple[str, ...]) -> tuple[frozenset[int], tuple[str, ...], Tensor]:
        """End ids, plain stop strings and token codes of one stop setting."""
        if stop not in self._rules:
            ends = self.ids | {self._special[text] for text in stop if text in self._special}
            strings = tuple(text for text in stop if text and text not in self._special)
            codes = torch.zeros(self._vocabulary, dtype=torch.uint8)
            if strings:
                pieces = self._pieces
                codes[[i for i, piece in enumerate(pieces) if any(_may_complete(piece, s) for s in strings)]] = SUSPECT
            codes[[i for i in ends if i < self._vocabulary]] = END
            self._rules[stop] = ends, strings, codes
        return self._rules[stop]

    @cached_property
    def _special(self) -> dict[str, int]:
        """Special tokens by their text."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: index for index, token in added if token.special}

    @cached_property
    def _pieces(self) -> list[str]:
        """The text of each token alone."""
        known = min(self._vocabulary, len(self._tokenizer))
        return [self._decode([index]) for index in range(known)]


def _may_complete(piece: str, stop: str) -> bool:
    """Whether a token may bring the last character of a stop string."""
    last = stop[-1]
    # Some decoders drop or add spaces between tokens, and a byte of a longer character shows as U+FFFD.
    return last == " " or last in piece or (not last.isascii() and "\ufffd" in piece)


def _cut(text: str, strings: Sequence[str]) -> int | None:
    """Where the first stop string begins."""
    found = [place for place in (text.find(string) for string in strings) if place >= 0]
    return min(found, default=None)
