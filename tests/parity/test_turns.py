"""Responses of several turns: what the environment wrote is read by the model and never trained on."""

from __future__ import annotations

import engine_models as tiny
import pytest
import torch
from learner_cases import make_learner

from simplerl.batch.batch import Batch, collate
from simplerl.batch.layouts import Packed, Padded, Shared
from simplerl.rollouts.serialise import pack, unpack
from simplerl.types import GradedRollout, Problem, Prompt, Rollout, Turn, Verdict

pytestmark = pytest.mark.parity

PROMPT = Prompt(Problem("p", "q", "1"), "q", (5, 6))
TOOL = Rollout(
    "tool",
    PROMPT,
    (Turn((10, 11), "call ", (-1.0, -2.0)), Turn((20, 21, 22), "output ", None), Turn((12,), "answer", (-3.0,))),
    "stop",
    4,
)
PLAIN = Rollout.single_turn("plain", PROMPT, (13, 14), (-0.5, -0.25), "answer", "length", 4)
GROUPS = [[GradedRollout(TOOL, Verdict("correct"), 1.0), GradedRollout(PLAIN, Verdict("wrong"), -0.5)]]


@pytest.fixture
def folder(tmp_path):
    return tiny.save(tiny.model(scale=0.3), tmp_path)


def test_a_rollout_joins_its_turns():
    assert TOOL.token_ids == (10, 11, 20, 21, 22, 12)
    assert TOOL.loss_mask == (True, True, False, False, False, True)
    assert TOOL.sampled_logprobs == (-1.0, -2.0, -3.0)
    assert TOOL.text == "call output answer"


def test_response_level_tensors_hold_sampled_tokens_alone():
    batch = collate(GROUPS)
    assert batch.tokens.tolist() == [5, 6, 10, 11, 20, 21, 22, 12, 5, 6, 13, 14]
    assert batch.loss_mask.int().tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]
    assert batch.lengths.tolist() == [8, 4] and batch.prompt_lengths.tolist() == [2, 2]
    assert batch.response_lengths.tolist() == [3, 2]
    assert batch.sampled_logprobs.tolist() == [-1.0, -2.0, -3.0, -0.5, -0.25]
    other = batch.select(torch.tensor([1, 0]))
    assert other.loss_mask.int().tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1]
    assert other.sampled_logprobs.tolist() == [-0.5, -0.25, -1.0, -2.0, -3.0]


def test_every_layout_predicts_a_token_from_the_one_before_it():
    batch = collate(GROUPS)
    padded, packed, shared = (layout.lay_out(batch) for layout in (Padded, Packed, Shared))
    assert padded.logit_positions.tolist() == [1, 2, 6, 9, 10]
    assert packed.logit_positions.tolist() == [1, 2, 6, 9, 10]
    # The prompt 5 6 is there once: positions 0 and 1; the responses follow at 2 and at 8.
    assert shared.ids.tolist() == [[5, 6, 10, 11, 20, 21, 22, 12, 13, 14]]
    assert shared.logit_positions.tolist() == [1, 2, 6, 1, 8]
    for layout in (padded, packed, shared):
        assert layout.targets.tolist() == [10, 11, 12, 13, 14]
        before = layout.ids.flatten()[layout.logit_positions].tolist()
        assert before == [6, 10, 22, 6, 13]


@pytest.mark.parametrize("settings", [["model.kernels=torch"], ["model.kernels=torch", "train.packing=true"], []])
def test_log_probs_are_those_of_the_whole_sequence(folder, settings):
    """Padded, packed and with shared prompts: the environment's tokens are context, as in a lone forward pass."""
    learner, _ = make_learner(folder, settings)
    batch = collate(GROUPS)
    expected = []
    for ids, mask in ((batch.tokens[:8], batch.loss_mask[:8]), (batch.tokens[8:], batch.loss_mask[8:])):
        with torch.no_grad():
            logits = learner.actor.causal_lm(ids[None]).logits[0, :-1] / learner.temperature
        logprobs = torch.log_softmax(logits, -1).gather(-1, ids[1:, None])[:, 0]
        expected.append(logprobs[mask[1:]])
    assert torch.allclose(learner.logprobs(batch), torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("settings", [["model.kernels=torch"], ["model.kernels=torch", "train.packing=true"], []])
def test_an_update_does_not_depend_on_the_layout_and_weighs_sampled_tokens_alone(folder, settings):
    """The token mean divides by the five sampled tokens, not by the eight of both responses."""
    learner, algorithm = make_learner(folder, [*settings, "algorithm.aggregation=token-mean", "algorithm.kl_coef=0"])
    batch, _ = algorithm.compute_advantages(learner.score(collate(GROUPS)))
    metrics = learner.backward(batch, algorithm, train_actor=True)
    entropy = metrics["entropy"]
    reference, other = make_learner(folder, ["model.kernels=torch", "algorithm.aggregation=token-mean"])
    layout = Padded.lay_out(collate(GROUPS))
    with torch.no_grad():
        _, entropies = reference.actor(layout, reference.temperature)
    assert entropy == pytest.approx(entropies.sum().item() / 5, abs=1e-5)
    assert other.config.aggregation == "token-mean"


def test_a_checkpoint_keeps_the_turns():
    packed = pack({3: GROUPS}, [PROMPT])
    assert unpack(packed, [PROMPT]) == {3: GROUPS}


def test_one_turn_is_a_response_as_ever():
    batch: Batch = collate([[GradedRollout(PLAIN, Verdict("wrong"), 0.0)]])
    assert (batch.lengths - batch.prompt_lengths).tolist() == batch.response_lengths.tolist() == [2]
