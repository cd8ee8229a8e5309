"""Templates letter by letter, and their tokens.

Qwen's tokenizer is not at hand: a small BPE with Qwen2's pre-tokeniser and special tokens stands in for it.
"""

from __future__ import annotations

from typing import Any

import pytest

from simplerl.data.templates import NAMES, build_prompts, render, tokenize, tokenize_all
from simplerl.errors import DataError
from simplerl.types import Problem

QUESTION = "Find {input} if $\\frac{1}{x}=2$."


@pytest.fixture(scope="module")
def qwen() -> Any:
    from simplerl.pretrain import train_tokenizer

    return train_tokenizer(["Please reason step by step, and put your final answer within \\boxed{}."] * 5, 320)


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tokenizer that puts <s> in front of everything and </s> behind, with a chat template that writes <s> too."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "1": 4, "+": 5}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{{ bos_token }} [INST] {{ messages[0].content }}",
    )


def test_qwen25_math_cot() -> None:
    assert render("qwen25-math-cot", QUESTION) == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nFind {input} if $\\frac{1}{x}=2$.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_v0_lacks_the_last_newline_and_nothing_else() -> None:
    assert render("qwen25-math-cot-v0", QUESTION) + "\n" == render("qwen25-math-cot", QUESTION)


def test_qwen_boxed() -> None:
    assert render("qwen-boxed", "Q") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_abel() -> None:
    assert render("abel", "Q") == "Question:\nQ\nAnswer:\nLet's think step by step.\n"


def test_chat_is_the_tokenizers_own(qwen: Any) -> None:
    assert render("chat", "Q", qwen) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


def test_chat_without_a_chat_template_names_the_others() -> None:
    with pytest.raises(DataError, match=r"set data.template to one of qwen25-math-cot"):
        render("chat", "Q", object())


def test_a_template_that_does_not_exist() -> None:
    with pytest.raises(DataError, match="did you mean 'qwen-boxed'"):
        render("qwen-box", "Q")


@pytest.mark.parametrize("template", NAMES)
def test_special_tokens_are_single_and_the_text_comes_back(qwen: Any, template: str) -> None:
    text = render(template, "1+1", qwen)
    ids = tokenize(text, qwen)
    assert qwen.decode(ids) == text
    assert ids.count(qwen.convert_tokens_to_ids("<|im_end|>")) == text.count("<|im_end|>")


@pytest.mark.parametrize("template", NAMES)
def test_one_bos_where_the_tokenizer_adds_one_never_two_and_no_end(llama: Any, template: str) -> None:
    ids = tokenize(render(template, "1 + 1", llama), llama)
    assert ids[0] == 1 and ids.count(1) == 1 and 2 not in ids


def test_a_doubled_bos_is_what_the_plain_call_would_give(llama: Any) -> None:
    assert llama(render("chat", "1", llama))["input_ids"][:2] == [1, 1]


def test_tokens_do_not_depend_on_the_neighbours(llama: Any) -> None:
    texts = ["1", "<s> 1 + 1", ""]
    assert tokenize_all(texts, llama) == [tokenize(text, llama) for text in texts] == [[1, 4], [1, 4, 5, 4], [1]]
    assert tokenize_all([], llama) == []


def test_prompts_over_the_limit_are_dropped_and_counted(llama: Any) -> None:
    problems = [Problem(str(n), " ".join("1" * n), "1") for n in range(1, 5)]
    prompts, dropped = build_prompts(problems, "chat", llama, max_prompt_tokens=4)
    assert [prompt.problem.id for prompt in prompts] == ["1", "2"] and dropped == 2
    assert prompts[1].token_ids == (1, 3, 4, 4) and prompts[1].text == "<s> [INST] 1 1"


def test_a_limit_that_leaves_nothing_says_how_long_the_shortest_is(llama: Any) -> None:
    with pytest.raises(DataError, match=r"all 1 prompts .*max_prompt_tokens=2; the shortest has 3 tokens"):
        build_prompts([Problem("a", "1", "1")], "chat", llama, 2)
