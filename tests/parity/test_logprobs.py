"""Log-probs and entropy of a head small enough to work out by hand, in one piece and in chunks, with gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from simplerl.losses.logprobs import MAX_LOGITS, token_logprobs

pytestmark = pytest.mark.parity

# The head is the identity of two tokens, and with T the temperature the hidden states are T (ln 3, 0), T (0, ln 3) and
# T (0, 0), so p = (3/4, 1/4), (1/4, 3/4), (1/2, 1/2).
TEMPERATURE = 2.0
HIDDEN = TEMPERATURE * math.log(3) * torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
TARGETS = torch.tensor([0, 0, 1])
# -(3/4 ln 3/4 + 1/4 ln 1/4) = ln 4 - 3/4 ln 3.
H = math.log(4) - 0.75 * math.log(3)
SLOPE = 0.75 * (math.log(0.75) + H)
"""p (log p + H) of the likelier token; the other's is the negative."""

CHUNKS = pytest.mark.parametrize("max_logits", [10**9, 6, 5, 4, 2, 1], ids=lambda n: f"{n} logits")
"""Of 3 positions and 2 tokens: 6 and more are one piece, 4 and 5 are chunks of 2 and 1, 2 and 1 one position each."""


def computed(max_logits: int, of_logprobs: float, of_entropy: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropies, and the gradients of their weighted sum."""
    hidden, weight = HIDDEN.clone().requires_grad_(), torch.eye(2).requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, TARGETS, temperature=TEMPERATURE, max_logits=max_logits)
    (of_logprobs * logprobs.sum() + of_entropy * entropy.sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    return logprobs.detach(), entropy.detach(), hidden.grad, weight.grad


def close(found: Tensor, expected: list[Any]) -> bool:
    return torch.allclose(found, torch.tensor(expected), atol=1e-6)


@CHUNKS
def test_log_probs_and_entropies(max_logits: int) -> None:
    logprobs, entropy, _, _ = computed(max_logits, 1, 1)
    assert close(logprobs, [math.log(0.75), math.log(0.25), math.log(0.5)])
    assert close(entropy, [H, H, math.log(2)])


@CHUNKS
def test_gradient_of_the_log_probs(max_logits: int) -> None:
    # With respect to the logits over T: 1_target - p; to the hidden state: that over T.
    _, _, of_hidden, of_weight = computed(max_logits, 1, 0)
    slopes = [[0.25, -0.25], [0.75, -0.75], [-0.5, 0.5]]
    assert close(of_hidden, [[number / TEMPERATURE for number in row] for row in slopes])
    # The weight of token v: the sum over positions of slope_v / T x hidden = slope_v ln 3 (1, 0), slope_v ln 3 (0, 1).
    ln3 = math.log(3)
    assert close(of_weight, [[0.25 * ln3, 0.75 * ln3], [-0.25 * ln3, -0.75 * ln3]])


@CHUNKS
def test_gradient_of_the_entropy(max_logits: int) -> None:
    # With respect to the logits over T: -p (log p + H), which is 0 at the uniform distribution.
    _, _, of_hidden, of_weight = computed(max_logits, 0, 1)
    assert close(of_hidden, [[-SLOPE / 2, SLOPE / 2], [SLOPE / 2, -SLOPE / 2], [0.0, 0.0]])
    ln3 = math.log(3)
    assert close(of_weight, [[-SLOPE * ln3, SLOPE * ln3], [SLOPE * ln3, -SLOPE * ln3]])


@CHUNKS
@pytest.mark.parametrize("part", [0, 1], ids=["log-probs alone", "entropy alone"])
def test_one_part_has_the_gradient_it_has_beside_a_weight_of_zero(max_logits: int, part: int) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), torch.eye(2).requires_grad_()
    token_logprobs(hidden, weight, TARGETS, temperature=TEMPERATURE, max_logits=max_logits)[part].sum().backward()
    _, _, of_hidden, of_weight = computed(max_logits, 1 - part, part)
    assert hidden.grad is not None and torch.allclose(hidden.grad, of_hidden, atol=1e-6)
    assert weight.grad is not None and torch.allclose(weight.grad, of_weight, atol=1e-6)


@CHUNKS
def test_a_frozen_head_gets_no_gradient(max_logits: int) -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), torch.eye(2)
    logprobs, _ = token_logprobs(hidden, weight, TARGETS, temperature=TEMPERATURE, max_logits=max_logits)
    logprobs.sum().backward()
    assert hidden.grad is not None and close(hidden.grad[0], [0.125, -0.125])
    assert weight.grad is None


@CHUNKS
def test_a_head_may_be_trained_alone(max_logits: int) -> None:
    weight = torch.eye(2).requires_grad_()
    token_logprobs(HIDDEN, weight, TARGETS, temperature=TEMPERATURE, max_logits=max_logits)[0].sum().backward()
    ln3 = math.log(3)
    assert weight.grad is not None and close(weight.grad, [[0.25 * ln3, 0.75 * ln3], [-0.25 * ln3, -0.75 * ln3]])


@CHUNKS
def test_bfloat16_models_have_float32_log_probs_and_bfloat16_gradients(max_logits: int) -> None:
    # Powers of two are exact in bfloat16. Logits over T (2, 0): p_0 = 1 / (1 + e^-2).
    hidden = torch.tensor([[4.0, 0.0]] * 3, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.eye(2, dtype=torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropy = token_logprobs(hidden, weight, TARGETS, temperature=2.0, max_logits=max_logits)
    logprobs.sum().backward()
    assert (logprobs.dtype, entropy.dtype) == (torch.float32, torch.float32)
    likely = -math.log(1 + math.exp(-2))
    assert close(logprobs.detach(), [likely, likely, likely - 2]), "rounded to bfloat16 they would be off by 1e-3"
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16


def test_the_temperature_is_one_unless_given() -> None:
    logprobs, _ = token_logprobs(HIDDEN / TEMPERATURE, torch.eye(2), TARGETS)
    assert close(logprobs, [math.log(0.75), math.log(0.25), math.log(0.5)])


class Largest(TorchFunctionMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize(("max_logits", "largest"), [(200, 200), (299, 200), (100, 100), (10**6, 2000)])
def test_logits_are_never_whole(max_logits: int, largest: int) -> None:
    """20 positions x 100 tokens are 2,000 logits; the head has 100 elements."""
    hidden, weight = torch.randn(20, 1, requires_grad=True), torch.randn(100, 1, requires_grad=True)
    with Largest() as mode:
        logprobs, entropy = token_logprobs(hidden, weight, torch.arange(20), max_logits=max_logits)
        (logprobs.sum() + entropy.sum()).backward()
    assert mode.elements == largest


def test_a_chunk_s_logits_take_256_mebibytes_unless_set() -> None:
    assert MAX_LOGITS * torch.finfo(torch.float32).bits == 256 * 2**20 * 8
