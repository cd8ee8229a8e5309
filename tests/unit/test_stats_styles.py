import math
import random

import pytest

from simplerl.data import corpus
from simplerl.stats.styles import PUBLISHED_KEYWORDS, has_code, has_reflection, is_unboxed, style_shares

FENCED = "Let us compute.\n```python\nx = 1\n```\n"


@pytest.mark.parametrize(
    "text", [FENCED, "```py\n1", "``` python\n", "so print(3+4) gives 7", "def solve():\n  return 1", "```Python\n"]
)
def test_code_is_found(text):
    assert has_code(text)


@pytest.mark.parametrize(
    "text",
    ["", "```\nplain\n```", "```output\n7\n```", "by definition, (a+b)", "the def of x", "a blueprint(3)", "pyth"],
)
def test_prose_is_not_code(text):
    assert not has_code(text)


@pytest.mark.parametrize("keyword", [*PUBLISHED_KEYWORDS, "re-check", "let me check", "double check", "check again"])
@pytest.mark.parametrize("form", [str.lower, str.upper, str.capitalize])
def test_every_keyword_counts_in_any_case(keyword, form):
    assert has_reflection(f"7*8=54. {form(keyword)}, 7*8=56.")
    assert not has_reflection(f"x{keyword}x")


def test_a_phrase_may_run_over_a_line_end():
    assert has_reflection("I should try\nagain.")


@pytest.mark.parametrize("text", ["", "The waiter awaits.", "7+8=15, so \\boxed{15}.", "waiting", "check the box"])
def test_plain_answers_hold_no_self_check(text):
    assert not has_reflection(text)


@pytest.mark.parametrize(
    ("text", "unboxed"),
    [("", True), ("The answer is 5.", True), ("boxed{5}", True), ("\\boxed", True), ("\\boxed{5}", False),
     ("$\\boxed {5}$", False), ("\\boxed{\\frac{1}{2}", False)],
)  # fmt: skip
def test_unboxed_is_the_absence_of_an_opened_box(text, unboxed):
    assert is_unboxed(text) is unboxed


def test_shares_count_each_style_on_its_own():
    texts = [FENCED, "Wait, \\boxed{1}", FENCED + "wait \\boxed{2}", "\\boxed{3}"]
    assert style_shares(texts) == {"code": 0.5, "reflection": 0.5, "unboxed": 0.25}


def test_shares_of_nothing_are_nan():
    assert all(map(math.isnan, style_shares([]).values()))


def test_the_rules_tell_the_styles_of_the_corpus_apart():
    rng = random.Random(0)
    found = {(page.style, has_code(page.text), has_reflection(page.text)) for page in map(corpus.document, [rng] * 600)}
    assert found == {
        ("code", True, False), ("check", False, True), ("quick", False, False), ("textbook", False, False)
    }  # fmt: skip
