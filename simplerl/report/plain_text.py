"""Model text made fit to show: nothing invisible, nothing endless."""

from __future__ import annotations

# control characters as pictures of themselves; none may change the direction of the text after it
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {13: None, 127: 0x2421}
_CONTROLS |= dict.fromkeys([*range(0x80, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def visible(text: str, most: int) -> str:
    """The text with control characters made visible; of a long one the beginning and the end (the answer)."""
    if len(text) > most:
        left_out = len(text) - most
        text = f"{text[: most - most // 3]}\n[{left_out:,} characters left out]\n{text[-(most // 3) :]}"
    return text.translate(_CONTROLS)
