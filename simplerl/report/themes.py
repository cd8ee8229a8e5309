"""Colours of the figures, light and dark."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; the accents differ in lightness too, for people who do not see red and green apart."""

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    accents: tuple[str, ...]

    @property
    def colours(self) -> tuple[str, ...]:
        return (self.surface, self.ink, self.muted, self.grid, *self.accents)


LIGHT = Theme(
    "light", "#ffffff", "#16202e", "#5d6b7e", "#e6eaf0", ("#2563c9", "#d4660b", "#0b8a75", "#8248c7", "#c2315b")
)
DARK = Theme(
    "dark", "#151b24", "#eef2f7", "#9aa7b8", "#2a3442", ("#6ea8ff", "#f5a04b", "#43c9ae", "#bd93f5", "#f47a9b")
)


def recoloured(svg: bytes, old: Theme, new: Theme) -> bytes:
    """A drawn figure in the colours of another theme, which takes a thousandth of drawing it again."""
    colours = {a.encode(): b.encode() for a, b in zip(old.colours, new.colours, strict=True)}
    return re.sub(b"|".join(colours), lambda match: colours[match.group()], svg)


def settings(theme: Theme) -> dict[Any, Any]:
    """Settings for matplotlib."""
    return {
        "svg.hashsalt": "simplerl",
        "font.size": 9.5,
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
        "axes.facecolor": theme.surface,
        "axes.edgecolor": theme.muted,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.9,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "ytick.left": False,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
    }
