"""Where a response ends, and the text that is left."""

import engine_models as tiny
import pytest

from simplerl.engines._ends import END, SUSPECT, Ends, _may_complete


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def ends(tokenizer):
    return Ends(tokenizer, {0}, tiny.VOCABULARY)


def encode(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(list(text))


def test_end_tokens_of_tokenizer_and_model(ends):
    codes = ends.codes([(), ("<end>",)])
    assert codes[0].nonzero().flatten().tolist() == [0, 1]
    assert codes[1].nonzero().flatten().tolist() == [0, 1, 2]
    assert codes[1][2] == END


def test_only_tokens_with_its_last_character_can_complete_a_stop_string(ends, tokenizer):
    codes = ends.codes([("stop", "x#")])[0]
    suspects = [index for index, code in enumerate(codes.tolist()) if code == SUSPECT]
    assert tokenizer.convert_ids_to_tokens(suspects) == ["p", "#"]


def test_a_stop_string_completes_and_is_cut_from_the_text(ends, tokenizer):
    ids = encode(tokenizer, "abc stop")
    assert ends.completes(("stop",), ids)
    assert not ends.completes(("stop",), ids[:-1])
    assert ends.text(("stop",), ids) == "abc "


def test_the_first_of_several_stop_strings_cuts(ends, tokenizer):
    assert ends.text(("cd", "b"), encode(tokenizer, "abcd")) == "a"


def test_the_text_has_no_end_token_but_shows_other_special_tokens(ends, tokenizer):
    assert ends.text((), [*encode(tokenizer, "ab"), 2, *encode(tokenizer, "c"), 1]) == "ab<end>c"
    assert ends.text(("<end>",), [*encode(tokenizer, "ab"), 2]) == "ab"
    assert ends.text((), []) == ""


@pytest.mark.parametrize(
    ("piece", "stop", "may"),
    [
        ("ab>c", "</s>", True),
        ("abc", "</s>", False),
        ("abc", "x ", True),
        ("\ufffd", "é", True),
        ("\ufffd", "e", False),
    ],
)
def test_what_may_complete_a_stop_string(piece, stop, may):
    assert _may_complete(piece, stop) is may
