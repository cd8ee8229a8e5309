"""Where a step's time goes, and its largest waste as a sentence. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

KINDS = ("matrix products", "attention", "other kernels", "elementwise", "copies", "rest")
_WORDS = {
    "matrix products": ("::mm", "addmm", "bmm", "::linear", "matmul", "::product", "decode_layers", "baddbmm"),
    "attention": ("attention",),
    "other kernels": ("simplerl::",),
    "copies": ("copy_", "::cat", "index_select", "index_put", "::clone", "fill_", "zero_", "gather", "scatter",
        "::index"),
    "elementwise": (
        "::mul", "::add", "::sub", "::div", "silu", "softmax", "::exp", "::log", "::pow", "rsqrt", "::sum", "::mean",
        "::neg", "clamp", "where", "cumsum", "::max", "::min", "norm", "adamw",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operator:
    """Self time of an operator in a phase, over all threads, in seconds."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the step. `seconds` is wall time, `flop` counted work, `tokens` the tokens of that work."""

    name: str
    seconds: float
    tokens: int = 0
    flop: float = 0.0
    operators: tuple[Operator, ...] = ()

    def share_of(self, kind: str) -> float:
        """Share of the operators' time that is of this kind."""
        whole = sum(operator.seconds for operator in self.operators)
        return sum(o.seconds for o in self.operators if kind_of(o.name) == kind) / whole if whole else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """One measured step. `peak` is the machine's rate of matrix products in FLOP/s."""

    phases: tuple[Phase, ...]
    peak: float
    threads: int
    padding: float = 0.0
    """Share of the learner's tokens that are padding."""

    live: float = 1.0
    """Mean length of a response as a share of the longest: the utilization of batch slots in a rollout."""

    updates: int = 1
    scored: bool = True
    """True if the policy scores its responses before the update."""

    kernels: str | None = None
    """Why this CPU has no fused kernels. None: it has them, or a GPU computes."""

    memory: dict[str, float] = field(default_factory=dict)
    """High-water marks in GiB."""

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def phase(self, name: str) -> Phase:
        return next((phase for phase in self.phases if phase.name == name), Phase(name, 0.0))

    def share(self, name: str) -> float:
        return self.phase(name).seconds / self.seconds if self.seconds else 0.0


def kind_of(name: str) -> str:
    """Kind of an operator, by its name."""
    for kind in ("attention", "matrix products", "other kernels", "copies", "elementwise"):
        if any(word in name.lower() for word in _WORDS[kind]):
            return kind
    return "rest"


Rule = Callable[[Profile], tuple[float, str] | None]
"""Seconds that could be saved at best, and a sentence. None: nothing to save."""


def _peak(profile: Profile, name: str) -> tuple[float, str] | None:
    phase = profile.phase(name)
    if not phase.seconds or not phase.flop:
        return None
    share = phase.flop / phase.seconds / profile.peak
    parts = {kind: phase.share_of(kind) for kind in KINDS if kind != "matrix products"}
    worst = max(parts, key=lambda kind: parts[kind])
    return phase.seconds * (1 - min(1.0, share)), (
        f"the {name} reaches {share:.0%} of the matrix products' peak and is {profile.share(name):.0%} of the step; "
        f"{parts[worst]:.0%} of its operators' time is {worst}"
    )


def _scoring(profile: Profile) -> tuple[float, str] | None:
    if not profile.scored:
        return None
    seconds = profile.phase("score").seconds
    return seconds, (
        f"scoring is {profile.share('score'):.0%} of the step and comes before {profile.updates} updates; with one "
        "update per batch (train.minibatch_size = all of it) the policy would not be scored on its own"
    )


def _padding(profile: Profile) -> tuple[float, str] | None:
    if profile.padding < 0.02:
        return None
    seconds = profile.padding * (profile.phase("score").seconds + profile.phase("update").seconds)
    return seconds, f"{profile.padding:.0%} of the tokens that the learner computes are padding: train.packing=true"


def _tail(profile: Profile) -> tuple[float, str] | None:
    if profile.live > 0.7:
        return None
    return profile.phase("rollout").seconds * (1 - profile.live) / 2, (
        f"the mean response has {profile.live:.0%} of the longest one's tokens: at the end of the rollout few rows "
        "are left, and a step costs nearly the same for few as for many; a lower rollout.max_tokens or more "
        "responses than engine.max_batch fill it"
    )


def _kernels(profile: Profile) -> tuple[float, str] | None:
    if profile.kernels is None:
        return None
    return profile.seconds / 3, f"no fused kernels: {profile.kernels}"


RULES: tuple[Rule, ...] = (
    lambda profile: _peak(profile, "rollout"),
    lambda profile: _peak(profile, "update"),
    _scoring,
    _padding,
    _tail,
    _kernels,
)


def wastes(profile: Profile) -> list[str]:
    """Possible savings as sentences, the largest first."""
    found = [each for rule in RULES if (each := rule(profile)) is not None]
    return [text for _, text in sorted(found, key=lambda each: -each[0])]


def text(profile: Profile) -> str:
    """Tables and sentences of a profile, as plain text."""
    head = ("phase", "seconds", "share", "tokens", "tokens/s", "GFLOP", "GFLOP/s", "of peak")
    rows = [head, *(_row(profile, phase) for phase in profile.phases)]
    lines = [*_aligned(rows), ""]
    lines.append(
        f"{profile.seconds:.3f} s on {profile.threads} threads; peak {profile.peak / 1e9:.0f} GFLOP/s; "
        + ", ".join(f"{name} {gib:.2f} GiB" for name, gib in profile.memory.items())
    )
    for phase in profile.phases:
        if phase.operators:
            lines += ["", f"{phase.name}, operators' own time", *_operators(phase)]
    found = wastes(profile)
    return "\n".join(
        [*lines, "", *(f"largest waste: {found[0]}" for _ in found[:1]), *(f"then: {each}" for each in found[1:])]
    )


def _row(profile: Profile, phase: Phase) -> tuple[str, ...]:
    rate = phase.flop / phase.seconds if phase.seconds else 0.0
    counted = (
        (f"{phase.flop / 1e9:.1f}", f"{rate / 1e9:.0f}", f"{rate / profile.peak:.0%}") if phase.flop else ("", "", "")
    )
    speed = (
        (f"{phase.tokens:,}", f"{phase.tokens / phase.seconds:,.0f}") if phase.tokens and phase.seconds else ("", "")
    )
    return (phase.name, f"{phase.seconds:.3f}", f"{profile.share(phase.name):.0%}", *speed, *counted)


def _operators(phase: Phase, most: int = 6) -> list[str]:
    kinds = ", ".join(f"{kind} {share:.0%}" for kind in KINDS if (share := phase.share_of(kind)) >= 0.005)
    whole = sum(operator.seconds for operator in phase.operators)
    top = sorted(phase.operators, key=lambda operator: -operator.seconds)[:most]
    return [
        f"  {kinds}",
        *_aligned([("  " + o.name, f"{o.calls}x", f"{o.seconds:.3f} s", f"{o.seconds / whole:.0%}") for o in top]),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
