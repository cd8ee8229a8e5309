"""The running batch of one thread: continuous batching, where finished rows leave and waiting requests enter.

The live rows are always the first ones. The order of requests and the sampled tokens decide which row a request gets,
never timing, so the same requests and weights give the same rollouts bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simplerl.cpu import RowDraws, kernels_available
from simplerl.engines._causal_model import CausalModel
from simplerl.engines._decoder import KVCache
from simplerl.engines._ends import END, SUSPECT, Ends
from simplerl.engines._sampler import SamplingTensors, draw_tokens
from simplerl.errors import EngineError
from simplerl.types import FinishReason, Request, Rollout

# Added to a row's token code: the row is at its token limit; its log-prob is not finite.
_AT_LIMIT, _NOT_FINITE = 4, 8


@dataclass(slots=True)
class _LiveRequest:
    """A request that has a row. Its next token has the position `position_offset` + the batch's number of steps."""

    request: Request
    position_offset: int


class _Rows:
    """State of the batch slots; every tensor is [slots, ...]."""

    def __init__(self, slots: int, max_tokens: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.token = zeros()
        self.position = zeros()
        self.count = zeros()
        self.limit = zeros()
        self.stop_rule = zeros()
        self.temperature = zeros(dtype=torch.float32)
        self.top_k = zeros()
        self.top_p = zeros(dtype=torch.float32)
        self.greedy = zeros(dtype=torch.bool)
        self.uniforms = zeros(max_tokens, dtype=torch.float32)
        self.ids = zeros(max_tokens)
        self.logprobs = zeros(max_tokens, dtype=torch.float32)

    def write(self, start: int, columns: Mapping[str, Sequence[float] | np.ndarray]) -> None:
        """Set each named tensor on the rows from `start` on."""
        for name, values in columns.items():
            tensor: Tensor = getattr(self, name)
            new = torch.as_tensor(values, dtype=tensor.dtype)
            tensor[start : start + len(new)] = new.to(tensor.device)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows onto others that are no longer live."""
        for tensor in vars(self).values():
            tensor[targets] = tensor[sources]


class RunningBatch:
    """Requests, waiting or live in a batch slot, and the KV cache of the live ones."""

    def __init__(
        self,
        model: CausalModel,
        ends: Ends,
        requests: Sequence[Request],
        cache: KVCache,
        slots: int,
        prefill_tokens: int,
        version: int,
    ) -> None:
        """Decode at most `slots` requests at once, and prefill at most `prefill_tokens` tokens at once."""
        self._model, self._ends, self._cache, self._version = model, ends, cache, version
        self._slots, self._prefill_tokens = slots, prefill_tokens
        self._waiting = deque(requests)
        self._live: list[_LiveRequest] = []
        self._steps = 0
        samplings = [request.sampling for request in requests]
        stops = list(dict.fromkeys(sampling.stop for sampling in samplings))
        self._rule_of_stop = {stop: index for index, stop in enumerate(stops)}
        self._codes = ends.codes(stops).to(model.device)
        self._any_greedy = any(sampling.temperature == 0 for sampling in samplings)
        self._any_filtered = any(sampling.top_k > 0 or sampling.top_p < 1 for sampling in samplings)
        self._max_tokens = max(sampling.max_tokens for sampling in samplings)
        self._rows = _Rows(slots, self._max_tokens, model.device)
        # The kernel draws by temperature alone.
        plain = not self._any_greedy and not self._any_filtered
        use_kernel = plain and model.device.type == "cpu" and kernels_available()
        self._row_draws = RowDraws(self._rows, self._codes, self._max_tokens) if use_kernel else None

    @property
    def unfinished(self) -> bool:
        """True while requests are waiting or live."""
        return bool(self._waiting or self._live)

    @torch.inference_mode()
    def step(self) -> list[Rollout]:
        """Decode one token for every live row; returns the rollouts that it finished."""
        free = self._slots - len(self._live)
        # A prefill for one free slot costs as much as for many: wait until an eighth is free.
        if self._waiting and (not self._live or free * 8 >= self._slots):
            self._admit([self._waiting.popleft() for _ in range(min(free, len(self._waiting)))])
        rows, n = self._rows, len(self._live)
        longest = self._steps + 1 + max(live.position_offset for live in self._live)
        logits = self._model.decode(self._cache, rows.token[:n], rows.position[:n], longest)
        codes = self._draw(logits)
        self._steps += 1
        return self._finish(codes) if any(codes) else []

    def _draw(self, logits: Tensor) -> list[int]:
        """Draw a token for each live row and record it. Returns each row's code; 0: the row continues."""
        if self._row_draws is not None:
            return self._row_draws.draw(logits)
        rows, n = self._rows, len(self._live)
        sampling = SamplingTensors(rows.temperature[:n], rows.top_k[:n], rows.top_p[:n], rows.greedy[:n])
        count = rows.count[:n]
        uniforms = rows.uniforms[:n].gather(1, count[:, None]).squeeze(1)
        tokens, logprobs = draw_tokens(logits, uniforms, sampling, filtered=self._any_filtered, greedy=self._any_greedy)
        rows.ids[:n].scatter_(1, count[:, None], tokens[:, None])
        rows.logprobs[:n].scatter_(1, count[:, None], logprobs[:, None])
        rows.token[:n] = tokens
        rows.position[:n] += 1
        count += 1
        codes = self._codes[rows.stop_rule[:n], tokens]
        return (codes + _AT_LIMIT * (count >= rows.limit[:n]) + _NOT_FINITE * ~logprobs.isfinite()).tolist()

    # --- entering ---------------------------------------------------------------------------------------------------

    def _admit(self, requests: list[Request]) -> None:
        """Give each request a row after the live ones. The last prompt token is left for the next decode step."""
        start = len(self._live)
        self._live += [_LiveRequest(r, len(r.prompt.token_ids) - 1 - self._steps) for r in requests]
        samplings = [request.sampling for request in requests]
        greedy = [sampling.temperature == 0 for sampling in samplings]
        self._rows.write(
            start,
            {
                "token": [request.prompt.token_ids[-1] for request in requests],
                "position": [len(request.prompt.token_ids) - 1 for request in requests],
                "count": [0] * len(requests),
                "limit": [sampling.max_tokens for sampling in samplings],
                "stop_rule": [self._rule_of_stop[sampling.stop] for sampling in samplings],
                "temperature": [sampling.temperature or 1.0 for sampling in samplings],
                "top_k": [0 if g else s.top_k for g, s in zip(greedy, samplings, strict=True)],
                "top_p": [1.0 if g else s.top_p for g, s in zip(greedy, samplings, strict=True)],
                "greedy": greedy,
                "uniforms": np.stack([self._uniforms(request) for request in requests]),
            },
        )
        self._prefill(start, requests)

    def _uniforms(self, request: Request) -> np.ndarray:
        """A request's random numbers, one per token, from its seed alone; zeros after its last token."""
        drawn = np.zeros(self._max_tokens, dtype=np.float32)
        size = request.sampling.max_tokens
        drawn[:size] = np.random.Generator(np.random.Philox(key=request.seed)).random(size, dtype=np.float32)
        return drawn

    def _prefill(self, start: int, requests: list[Request]) -> None:
        """Fill the KV cache of fresh rows from `start` on; equal prompts run through the model once."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, request in enumerate(requests, start):
            rows_of.setdefault(request.prompt.token_ids[:-1], []).append(row)
        for prompts in self._chunks(list(rows_of)):
            self._model.prefill(self._cache, prompts, [rows_of[prompt] for prompt in prompts])

    def _chunks(self, prompts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """The prompts in order, in chunks of at most `prefill_tokens` tokens with padding; a longer one is alone."""
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
        """The rollouts of the rows that ended; the last live rows move into their places.

        Raises `EngineError` if a log-prob is not finite.
        """
        not_finite = [row for row, code in enumerate(codes) if code & _NOT_FINITE]
        if not_finite:
            raise EngineError(self._explain_not_finite(not_finite))
        candidates = [row for row, code in enumerate(codes) if code]
        index = torch.tensor(candidates, device=self._model.device)
        counts = self._rows.count[index].tolist()
        ids = self._rows.ids[index, : max(counts)].tolist()
        logprobs = self._rows.logprobs[index, : max(counts)].tolist()
        finished: dict[int, Rollout] = {}
        for row, count, tokens, values in zip(candidates, counts, ids, logprobs, strict=True):
            request = self._live[row].request
            reason = self._finish_reason(request, codes[row], tokens[:count])
            if reason is not None:
                finished[row] = self._rollout(request, tokens[:count], values[:count], reason)
        self._compact(finished)
        return list(finished.values())

    def _finish_reason(self, request: Request, code: int, tokens: list[int]) -> FinishReason | None:
        """Why a response ends here. None: it continues."""
        if code & END or (code & SUSPECT and self._ends.completes(request.sampling.stop, tokens)):
            return "stop"
        return "length" if code & _AT_LIMIT else None

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
        """Move live rows from the end into the rows that became free."""
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

    def _explain_not_finite(self, rows: list[int]) -> str:
        request = self._live[rows[0]].request
        token = int(self._rows.count[rows[0]]) - 1
        return (
            f"request {request.id}: the logits for token {token} are not finite (NaN or Inf), and those of "
            f"{len(rows) - 1} other rows of {len(self._live)}; the weights of version {self._version} are suspect"
        )
