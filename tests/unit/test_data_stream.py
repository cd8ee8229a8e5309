"""The order of prompts: a pure function of the seed and the position."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simplerl.data.stream import PromptStream
from simplerl.errors import DataError
from simplerl.seeding import permutation


# Neither counts seconds: the machine may be busy with something else.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=st.integers(1, 20), count=st.integers(1, 45), steps=st.integers(1, 6), seed=st.integers(0, 3))
def test_batches_join_into_shuffled_passes_whatever_their_size(size: int, count: int, steps: int, seed: int) -> None:
    items = [f"p{n}" for n in range(size)]
    taken = list(chain.from_iterable(PromptStream(items, seed).take(step, count) for step in range(steps)))
    passes = (permutation(size, seed, "shuffle", epoch) for epoch in range(steps * count // size + 1))
    assert taken == [items[i] for i in chain.from_iterable(passes)][: steps * count]


def test_a_resume_in_the_middle_of_a_pass_needs_nothing_saved() -> None:
    before, after = PromptStream(range(10), 1), PromptStream(range(10), 1)
    for step in range(3):
        before.take(step, 4)
    assert after.take(3, 4) == before.take(3, 4)


def test_every_pass_has_its_own_order_and_every_item() -> None:
    stream = PromptStream(range(100), 0)
    assert stream.take(0, 100) != stream.take(1, 100)
    assert Counter(stream.take(0, 300)) == Counter(dict.fromkeys(range(100), 3))
    assert stream.take(0, 100) != PromptStream(range(100), 1).take(0, 100)


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], 0)


@pytest.mark.parametrize(("step", "count"), [(-1, 1), (0, 0)])
def test_a_position_that_does_not_exist_is_an_error(step: int, count: int) -> None:
    with pytest.raises(ValueError, match="take"):
        PromptStream([1], 0).take(step, count)
