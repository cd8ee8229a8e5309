"""Examples of supervised fine-tuning: prompts as in reinforcement learning, whole responses, and their end token."""

import os

import pytest
from transformers import AutoTokenizer

from simplerl.data.base import load_problems, load_source, source_config
from simplerl.data.examples import build_examples, end_token
from simplerl.data.templates import build_prompts
from simplerl.errors import DataError
from simplerl.types import Problem

pytestmark = pytest.mark.unit

needs_data = pytest.mark.skipif("SIMPLERL_DATA" not in os.environ, reason="needs the real sets: set SIMPLERL_DATA")


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def problem(number, solution="The answer is \\boxed{4}."):
    return Problem(f"p/{number}", f"What is {number}+2?", str(number + 2), solution=solution)


def build(problems, tokenizer, **changes):
    settings = {"max_prompt_tokens": 100, "max_response_tokens": 100, **changes}
    return build_examples(problems, "chat", tokenizer, **settings)


def test_a_response_is_its_tokens_and_the_end_token_and_the_prompt_that_of_reinforcement_learning(tokenizer):
    problems = [problem(1), problem(2, "  Two and two.\n")]
    examples = build(problems, tokenizer).training
    prompts, _ = build_prompts(problems, "chat", tokenizer, 100)
    assert [e.prompt for e in examples] == prompts
    assert [tokenizer.decode(e.response_ids) for e in examples] == [
        "The answer is \\boxed{4}.<|im_end|>",
        "Two and two.<|im_end|>",
    ]


def test_what_is_too_long_or_has_no_solution_is_counted_and_never_cut(tokenizer):
    problems = [problem(1), problem(2, None), problem(3, "word " * 200), problem(4, " ")]
    problems.append(Problem("long", "what? " * 200, "1", solution="1"))
    found = build(problems, tokenizer)
    assert [e.prompt.problem.id for e in found.training] == ["p/1"]
    assert (found.without_response, found.long_prompts, found.long_responses) == (2, 1, 1)


def test_a_response_fits_with_its_end_token_or_not_at_all(tokenizer):
    size = len(tokenizer("The answer is \\boxed{4}.", add_special_tokens=False)["input_ids"])
    assert len(build([problem(1)], tokenizer, max_response_tokens=size + 1).training) == 1
    with pytest.raises(DataError, match=rf"of 1 problems 1 have a solution.*train.max_response_tokens={size}"):
        build([problem(1)], tokenizer, max_response_tokens=size)


def test_nothing_to_learn_is_said_with_the_numbers(tokenizer):
    with pytest.raises(DataError, match=r"of 2 problems 0 have a solution"):
        build([problem(1, None), problem(2, "")], tokenizer)


def test_validation_is_a_share_of_questions_the_same_for_the_same_seed(tokenizer):
    problems = [problem(number) for number in range(400)]
    found = build(problems, tokenizer, validation=0.25, seed=1)
    assert 70 <= len(found.validation) <= 130
    assert len(found.training) + len(found.validation) == 400
    again = build(problems[::-1], tokenizer, validation=0.25, seed=1)
    assert {e.prompt.problem.id for e in again.validation} == {e.prompt.problem.id for e in found.validation}
    other = build(problems, tokenizer, validation=0.25, seed=2)
    assert {e.prompt.problem.id for e in other.validation} != {e.prompt.problem.id for e in found.validation}


def test_two_answers_to_one_question_are_on_one_side(tokenizer):
    problems = [problem(number % 100, f"Answer number {number}.") for number in range(200)]
    found = build(problems, tokenizer, validation=0.3)
    assert not {e.prompt.text for e in found.training} & {e.prompt.text for e in found.validation}


@pytest.mark.parametrize("template", ["chat", "qwen25-math-cot", "qwen-boxed"])
def test_a_turn_ends_with_the_token_of_turns(tokenizer, template):
    assert tokenizer.convert_ids_to_tokens(end_token(template, tokenizer)) == "<|im_end|>"


def test_the_end_of_a_turn_is_not_the_end_token_of_a_base_tokenizer(tokenizer, tiny_model):
    base = AutoTokenizer.from_pretrained(tiny_model, eos_token="<|endoftext|>")
    assert base.eos_token == "<|endoftext|>"
    assert base.convert_ids_to_tokens(end_token("chat", base)) == "<|im_end|>"
    assert base.convert_ids_to_tokens(end_token("qwen-boxed", base)) == "<|im_end|>"
    assert base.convert_ids_to_tokens(end_token("abel", base)) == "<|endoftext|>"


def test_a_tokenizer_without_an_end_is_refused(tokenizer, tiny_model):
    endless = AutoTokenizer.from_pretrained(tiny_model)
    endless.eos_token = None
    with pytest.raises(DataError, match="cannot learn to end"):
        end_token("abel", endless)


# --- the sets ---------------------------------------------------------------------------------------------------------


def test_arithmetic_has_brief_right_solutions():
    from simplerl.types import Rollout
    from simplerl.verifiers import math

    problems = load_source(source_config("arithmetic", ["size=200"]))
    verifier = math.build(math.Config())
    verdicts = [verifier.verify(p, Rollout.recorded(p, p.solution)).label for p in problems]
    verifier.close()
    assert set(verdicts) == {"correct"}
    assert "Wait" not in "".join(p.solution for p in problems)


@needs_data
def test_math_solutions_are_those_of_the_8k_problems():
    problems, notices = load_problems(source_config("math-solutions"))
    assert len(problems) == 8521
    assert all(p.solution for p in problems)
    assert any("repaired 2 answers" in text for text in notices)
    boxed = sum(f"\\boxed{{{p.answer}}}".replace(" ", "") in p.solution.replace(" ", "") for p in problems)
    assert boxed > 8000


@needs_data
def test_math_solutions_are_joined_where_the_8k_problems_come_without(monkeypatch):
    from dataclasses import replace

    from simplerl.data.sources import math_lvl3to5, math_solutions

    whole = math_solutions.load(math_solutions.Config())
    real = math_solutions.stored_problems

    def bare(stored, path):
        return [replace(p, solution=None) if stored is math_lvl3to5.SET else p for p in real(stored, path)]

    monkeypatch.setattr(math_solutions, "stored_problems", bare)
    joined = math_solutions.load(math_solutions.Config())
    # MATH holds a few questions twice, with two solutions; either will do.
    assert sum(a.solution != b.solution for a, b in zip(whole, joined, strict=True)) <= 4
    assert all(p.solution for p in joined)


@needs_data
def test_longcot_is_the_2027_responses():
    problems, _ = load_problems(source_config("longcot"))
    assert len(problems) == 2027
    assert max(len(p.solution) for p in problems) == 52_891
    boxed, _ = load_problems(source_config("longcot", ["boxed=true"]))
    assert len(boxed) == 1510
    assert all("\\boxed" in p.solution for p in boxed)
