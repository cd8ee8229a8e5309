"""Packed sequences give the numbers of sequences alone: no position, no neighbour and no split shows in them."""

from dataclasses import fields, replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from simplerl.algorithms.ppo import PPO, Config
from simplerl.batch.batch import Batch, collate_examples
from simplerl.batch.layouts import Packed, Padded, first_fit
from simplerl.config import SFTRecipe, validate_recipe
from simplerl.errors import ConfigError
from simplerl.learner.learner import LocalLearner
from simplerl.train.sft import LikelihoodLoss
from simplerl.types import Example, Problem, Prompt

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def model_folder(request, tmp_path_factory):
    """Grouped heads, and weights that make a distribution of every context."""
    torch.manual_seed(0)
    if request.param == "qwen2":
        made = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
    else:
        made = LlamaForCausalLM(LlamaConfig(**SIZES))
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    return folder


def examples(count=11, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(size):
        return tuple(torch.randint(3, 101, (size,), generator=generator).tolist())

    sizes = torch.randint(1, 40, (count, 2), generator=generator).tolist()
    return [Example(Prompt(Problem(f"p{i}", "q", "1"), "q", ids(p)), ids(r)) for i, (p, r) in enumerate(sizes)]


def sft_recipe(folder, **train):
    model = {"path": str(folder), **train.pop("model", {})}
    table = {"kind": "sft", "model": model, "data": {"source": "arithmetic"}, "train": train}
    return validate_recipe(table, kind=SFTRecipe)


def sft_learner(folder, **train):
    torch.manual_seed(0)
    return LocalLearner(sft_recipe(folder, **train), LikelihoodLoss(), horizon=10, device=CPU)


def lone_logprobs(learner, batch):
    """One sequence at a time, whole logits, plain attention."""
    model = Qwen2ForCausalLM if "qwen2" in type(learner.actor.causal_lm).__name__.lower() else LlamaForCausalLM
    plain = model(learner.actor.causal_lm.config).eval()
    plain.load_state_dict(learner.actor.causal_lm.state_dict())
    plain.set_attn_implementation("eager")
    result, start = [], 0
    for prompt, response in zip(batch.prompt_lengths.tolist(), batch.response_lengths.tolist(), strict=True):
        ids = batch.tokens[start : start + prompt + response]
        logits = plain(ids[None]).logits[0, prompt - 1 : -1]
        result.append(torch.log_softmax(logits, -1).gather(-1, ids[prompt:, None])[:, 0])
        start += prompt + response
    return torch.cat(result)


def gradients_of(learner, batch, algorithm):
    """Metrics and gradients of one update, caught before any weight moves."""
    caught = {}
    for name, optimiser in learner.optimizers.items():

        def catch(name=name, optimiser=optimiser):
            caught.update({f"{name}/{k}": p.grad.clone() for k, p in optimiser.model.named_parameters()})
            return torch.tensor(1.0)

        optimiser.clip_gradients, optimiser.step = catch, lambda: None
    return learner.update(batch, algorithm), caught


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_packed_log_probs_are_those_of_lone_sequences(model_folder, budget):
    """slime PR 1809: positions and neighbours in a pack."""
    learner = sft_learner(model_folder, packing=True, micro_batch_tokens=budget)
    batch = collate_examples(examples())
    with torch.no_grad():
        expected = lone_logprobs(learner, batch)
    assert torch.allclose(learner.logprobs(batch), expected, atol=1e-5)
    assert expected.std() > 0.5, "the test needs distributions that depend on the context"


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_loss_and_gradients_equal_padded_ones(model_folder, budget, checkpointing):
    batch = collate_examples(examples())
    plain = sft_learner(model_folder, packing=False, micro_batch_tokens=1)
    packed = sft_learner(
        model_folder, packing=True, micro_batch_tokens=budget, model={"gradient_checkpointing": checkpointing}
    )
    (metrics, found), (expected_metrics, expected) = (
        gradients_of(each, batch, LikelihoodLoss()) for each in (packed, plain)
    )
    assert metrics == pytest.approx(expected_metrics, abs=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
    assert max(g.abs().max() for g in expected.values()) > 1e-2


def test_another_neighbour_changes_not_one_bit(model_folder):
    learner = sft_learner(model_folder, packing=True)
    mine = examples()
    others = [
        Example(replace(a.prompt, token_ids=tuple(101 - t for t in a.prompt.token_ids)), a.response_ids)
        for a in mine[1:]
    ]
    first = learner.logprobs(collate_examples(mine))
    second = learner.logprobs(collate_examples([mine[0], *others]))
    size = len(mine[0].response_ids)
    assert torch.equal(first[:size], second[:size])
    assert not torch.equal(first[size:], second[size:])


def test_actor_and_critic_of_reinforcement_learning_pack_too(model_folder):
    """Scores, losses and gradients of PPO with its critic do not depend on the layout."""
    results = []
    for packing in (False, True):
        recipe = validate_recipe(
            {
                "model": {"path": str(model_folder)},
                "data": {"source": "arithmetic"},
                "rollout": {"temperature": 0.7},
                "train": {"packing": packing, "micro_batch_tokens": 100},
                "algorithm": {"name": "ppo", "kl_coef": 0.05},
            }
        )
        algorithm = PPO(Config.model_validate(recipe.algorithm.model_dump()), 64)
        torch.manual_seed(0)
        learner = LocalLearner(recipe, algorithm, horizon=10, device=CPU)
        torch.nn.init.normal_(learner.critic.head.weight, std=0.5)
        given = collate_examples(examples())
        kept = {each.name: getattr(given, each.name) for each in fields(Batch)}
        scored = learner.score(Batch(**kept | {"rewards": torch.linspace(-1, 1, len(given))}))
        credited, _ = algorithm.compute_advantages(scored)
        results.append((scored, *gradients_of(learner, credited, algorithm)))
    (padded, metrics, expected), (packed, packed_metrics, found) = results
    assert torch.allclose(padded.old_logprobs, packed.old_logprobs, atol=1e-5)
    assert torch.allclose(padded.values, packed.values, atol=1e-5)
    assert packed_metrics == pytest.approx(metrics, abs=2e-5)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=2e-5), name


def test_layouts_point_at_the_position_before_each_response_token():
    batch = collate_examples(
        [
            Example(Prompt(Problem("a", "", ""), "", (1, 2)), (3, 4)),
            Example(Prompt(Problem("b", "", ""), "", (5,)), (6,)),
        ]
    )
    packed, padded = Packed.lay_out(batch), Padded.lay_out(batch)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert packed.cu_seqlens.tolist() == [0, 4, 6]
    assert packed.logit_positions.tolist() == [1, 2, 4]
    assert padded.logit_positions.tolist() == [1, 2, 4]
    assert packed.targets.tolist() == padded.targets.tolist() == [3, 4, 6]


def test_first_fit_fills_packs_with_the_longest_first_and_keeps_every_row():
    assert first_fit([3, 9, 4, 2, 20, 1], 10) == [[4], [1, 5], [2, 0, 3]]


def test_a_sequence_beyond_a_sliding_window_is_refused_in_words(tmp_path):
    MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)).save_pretrained(tmp_path)
    learner = sft_learner(tmp_path, packing=True)
    with pytest.raises(ConfigError, match=r"attends to 16 tokens and a sequence has \d+; set model.attention=flash"):
        learner.logprobs(collate_examples(examples()))


def test_eager_attention_cannot_pack_and_says_so(model_folder):
    with pytest.raises(ConfigError, match=r"train.packing=true needs model.attention=sdpa or flash_attention_2"):
        sft_recipe(model_folder, packing=True, model={"attention": "eager"})
