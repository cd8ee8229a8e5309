"""The requests of one lane: continuous batching, where finished rows leave and waiting requests enter.

The live rows are always the first ones. Which row a request gets depends on the order of requests and on the tokens
sampled, never on timing, so the same requests and weights give the same rollouts bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simplerl.cpu.decoding import DrawState
from simplerl.cpu.library import library
from simplerl.engines._causal_model import CausalModel
from simplerl.engines._ends import END, SUSPECT, Ends
from simplerl.engines._sampler import Settings, draw
from simplerl.errors import EngineError
from simplerl.types import FinishReason, Request, Rollout

_FULL, _BAD = 4, 8


@dataclass(slots=True)
class _Live:
    """A request that has a row. Its next token goes to position `base` + the batch's clock."""

    request: Request
    base: int


class _Rows:
    """Tensors that belong to rows, each [slots, ...]."""

    def __init__(self, slots: int, max_tokens: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.token = zeros()
        self.position = zeros()
        self.count = zeros()
        self.limit = zeros()
        self.rule = zeros()
        self.temperature = zeros(dtype=torch.float32)
        self.top_k = zeros()
        self.top_p = zeros(dtype=torch.float32)
        self.greedy = zeros(dtype=torch.bool)
        self.uniforms = zeros(max_tokens, dtype=torch.float32)
        self.ids = zeros(max_tokens)
        self.logprobs = zeros(max_tokens, dtype=torch.float32)

    def write(self, start: int, columns: dict[str, Any]) -> None:
        """Sets each named tensor on the rows from `start` on."""
        for name, values in columns.items():
            tensor: Tensor = getattr(self, name)
            values = torch.as_tensor(values, dtype=tensor.dtype)
            tensor[start : start + len(values)] = values.to(tensor.device)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        for tensor in vars(self).values():
            tensor[targets] = tensor[sources]


class RunningBatch:
    """Requests: those waiting, those live in rows, and the cache."""

    def __init__(
        self,
        model: CausalModel,
        ends: Ends,
        requests: list[Request],
        cache: Any,
        slots: int,
        prefill_tokens: int,
        version: int,
    ) -> None:
        self._model, self._ends, self._cache, self._version = model, ends, cache, version
        self._slots, self._prefill_tokens = slots, prefill_tokens
        self._waiting = deque(requests)
        self._live: list[_Live] = []
        self._clock = 0
        samplings = [request.sampling for request in requests]
        stops = list(dict.fromkeys(sampling.stop for sampling in samplings))
        self._rule_of = {stop: index for index, stop in enumerate(stops)}
        self._codes = ends.table(stops).to(model.device)
        self._greedy = any(sampling.temperature == 0 for sampling in samplings)
        self._filtered = any(sampling.top_k > 0 or sampling.top_p < 1 for sampling in samplings)
        self._max_tokens = max(sampling.max_tokens for sampling in samplings)
        self._rows = _Rows(slots, self._max_tokens, model.device)
        plain = not self._greedy and not self._filtered and model.device.type == "cpu" and library() is not None
        self._draws = DrawState(self._rows, self._codes, self._max_tokens) if plain else None

    @property
    def unfinished(self) -> bool:
        return bool(self._waiting or self._live)

    @torch.inference_mode()
    def step(self) -> list[Rollout]:
        """One token for every live row; the rollouts that it finished."""
        free = self._slots - len(self._live)
        # A prefill for one free slot costs as much as for many: wait until an eighth is free.
        if self._waiting and (not self._live or free * 8 >= self._slots):
            self._admit([self._waiting.popleft() for _ in range(min(free, len(self._waiting)))])
        rows, n = self._rows, len(self._live)
        positions = rows.position[:n]
        longest = self._clock + 1 + max(live.base for live in self._live)
        logits = self._model.decode(self._cache, rows.token[:n], positions, longest)
        codes = self._record(logits)
        self._clock += 1
        return self._finish(codes) if any(codes) else []

    def _record(self, logits: Tensor) -> list[int]:
        """Draws a token for each row and stores it; the code of each row says whether it is to be looked at."""
        if self._draws is not None:
            return self._draws.draw(logits)
        rows, n = self._rows, len(self._live)
        settings = Settings(rows.temperature[:n], rows.top_k[:n], rows.top_p[:n], rows.greedy[:n])
        count = rows.count[:n]
        uniforms = rows.uniforms[:n].gather(1, count[:, None]).squeeze(1)
        tokens, logprobs = draw(logits, uniforms, settings, filtered=self._filtered, greedy=self._greedy)
        rows.ids[:n].scatter_(1, count[:, None], tokens[:, None])
        rows.logprobs[:n].scatter_(1, count[:, None], logprobs[:, None])
        rows.token[:n] = tokens
        rows.position[:n] += 1
        count += 1
        codes = self._codes[rows.rule[:n], tokens]
        return (codes + _FULL * (count >= rows.limit[:n]) + _BAD * ~logprobs.isfinite()).tolist()

    # --- entering ---------------------------------------------------------------------------------------------------

    def _admit(self, requests: list[Request]) -> None:
        """Gives each request a row after the live ones. The last prompt token is left for the next decode step."""
        start = len(self._live)
        self._live += [_Live(r, len(r.prompt.token_ids) - 1 - self._clock) for r in requests]
        samplings = [request.sampling for request in requests]
        greedy = [sampling.temperature == 0 for sampling in samplings]
        self._rows.write(
            start,
            {
                "token": [request.prompt.token_ids[-1] for request in requests],
                "position": [len(request.prompt.token_ids) - 1 for request in requests],
                "count": [0] * len(requests),
                "limit": [sampling.max_tokens for sampling in samplings],
                "rule": [self._rule_of[sampling.stop] for sampling in samplings],
                "temperature": [sampling.temperature or 1.0 for sampling in samplings],
                "top_k": [0 if g else s.top_k for g, s in zip(greedy, samplings, strict=True)],
                "top_p": [1.0 if g else s.top_p for g, s in zip(greedy, samplings, strict=True)],
                "greedy": greedy,
                "uniforms": np.stack([self._uniforms(request) for request in requests]),
            },
        )
        self._prefill(start, requests)

    def _uniforms(self, request: Request) -> np.ndarray:
        """The random numbers of a request, one per token, from its seed alone."""
        drawn = np.zeros(self._max_tokens, dtype=np.float32)
        size = request.sampling.max_tokens
        drawn[:size] = np.random.Generator(np.random.Philox(key=request.seed)).random(size, dtype=np.float32)
        return drawn

    def _prefill(self, start: int, requests: list[Request]) -> None:
        """Fills the cache of fresh rows; equal prompts run through the model once."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, request in enumerate(requests, start):
            rows_of.setdefault(request.prompt.token_ids[:-1], []).append(row)
        for prompts in self._chunks(list(rows_of)):
            self._model.prefill(self._cache, prompts, [rows_of[prompt] for prompt in prompts])

    def _chunks(self, prompts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """The prompts in order, in chunks of at most `prefill_tokens` with padding."""
        chunk: list[tuple[int, ...]] = []
        for prompt in prompts:
            longest = max(map(len, [*chunk, prompt]))
            if chunk and longest * (len(chunk) + 1) > self._prefill_tokens:
                yield chunk
                chunk = []
            chunk.append(prompt)
        yield chunk

    # --- leaving ----------------------------------------------------------------------------------------------------

    def _finish(self, codes: list[int]) -> list[Rollout]:
        """The rollouts of the rows that ended; the last live rows move into their places."""
        bad = [row for row, code in enumerate(codes) if code & _BAD]
        if bad:
            raise EngineError(self._not_finite(bad))
        looked_at = [row for row, code in enumerate(codes) if code]
        index = torch.tensor(looked_at, device=self._model.device)
        counts = self._rows.count[index].tolist()
        ids = self._rows.ids[index, : max(counts)].tolist()
        logprobs = self._rows.logprobs[index, : max(counts)].tolist()
        finished: dict[int, Rollout] = {}
        for row, count, tokens, values in zip(looked_at, counts, ids, logprobs, strict=True):
            request = self._live[row].request
            reason = self._reason(request, codes[row], tokens[:count])
            if reason is not None:
                finished[row] = self._rollout(request, tokens[:count], values[:count], reason)
        self._compact(finished)
        return list(finished.values())

    def _reason(self, request: Request, code: int, tokens: list[int]) -> FinishReason | None:
        if code & END or (code & SUSPECT and self._ends.completes(request.sampling.stop, tokens)):
            return "stop"
        return "length" if code & _FULL else None

    def _rollout(self, request: Request, tokens: list[int], logprobs: list[float], reason: FinishReason) -> Rollout:
        return Rollout.single_turn(
            request_id=request.id,
            prompt=request.prompt,
            token_ids=tuple(tokens),
            sampled_logprobs=tuple(logprobs),
            text=self._ends.text(request.sampling.stop, tokens),
            finish_reason=reason,
            policy_version=self._version,
        )

    def _compact(self, finished: dict[int, Rollout]) -> None:
        """Moves live rows from the end into the rows that became free."""
        left = len(self._live) - len(finished)
        holes = [row for row in finished if row < left]
        movers = [row for row in range(left, len(self._live)) if row not in finished]
        if holes:
            sources = torch.tensor(movers, device=self._model.device)
            targets = torch.tensor(holes, device=self._model.device)
            self._rows.move(sources, targets)
            self._cache.move(sources, targets)
            for source, target in zip(movers, holes, strict=True):
                self._live[target] = self._live[source]
        del self._live[left:]

    def _not_finite(self, rows: list[int]) -> str:
        request = self._live[rows[0]].request
        token = int(self._rows.count[rows[0]]) - 1
        return (
            f"request {request.id}: the logits for token {token} are not finite (NaN or Inf), and those of "
            f"{len(rows) - 1} other rows of {len(self._live)}; the weights of version {self._version} are suspect"
        )
