"""The operations that the speed benchmarks count, against a model small enough to count by hand."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("_counting")


@pytest.fixture
def shape(counting):
    return counting.Shape(hidden=4, intermediate=6, layers=1, heads=2, kv_heads=1, vocab=10)


def test_forward_pass_of_three_tokens(counting, shape):
    # Queries 4x4, keys and values 4x2 each, output 4x4: 48; gate, up, down 4x6 each: 72; the head 4x10: 40.
    assert (shape.layer_weights, shape.head_weights) == (120, 40)
    # A prompt token attends to 1, two response tokens to 2 and 3: 6 scores of 2 heads with 2 numbers, used twice.
    matrices, attention, head = 3 * 2 * 120, 6 * 2 * (2 * 2) * 2, 2 * 2 * 40
    assert counting.forward_flop(shape, 1, 2) == matrices + attention + head
    assert counting.forward_flop(shape, 1, 2, head=False) == matrices + attention


def test_responses_share_their_prompt(counting, shape):
    # Two prompt tokens, half of them each: matrices of 1 + 1 tokens; 3 / 2 attended tokens in the prompt, 3 after it.
    assert counting.forward_flop(shape, 2, 1, shared=2) == 2 * 2 * 120 + 16 * 4.5 + 2 * 40


def test_an_update_is_three_forward_passes_of_each_model(counting, shape):
    actor, critic = 3 * counting.forward_flop(shape, 1, 2), 3 * counting.forward_flop(shape, 1, 2, head=False)
    assert counting.training_flop(shape, 1, 2) == actor
    assert counting.training_flop(shape, 1, 2, critic=True) == actor + critic


def test_bytes_of_decoding(counting, shape):
    # Two positions read 160 weights each; a key and a value of 2 numbers for each of 2 + 3 tokens, in 3 responses.
    assert counting.decoding_bytes(shape, 1, 2, batch=3, width=4) == 4 * (160 * 2 + 2 * 2 * 5 * 3)
