"""The teacher behind an address: what is posted, what is read, and what each failure leads to."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from http_service import Reply, Service, replies

from simplerl import http
from simplerl.config import DistillRecipe, DistillSampling, validate_recipe
from simplerl.distill.teachers import openai
from simplerl.distill.teachers.base import Answer, Asked
from simplerl.errors import ConfigError, RemoteError
from simplerl.types import Problem

pytestmark = pytest.mark.unit

SAMPLING = DistillSampling(temperature=0.7, top_p=0.95, max_tokens=100)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.004)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def asked(number: int, sample: int = 0) -> Asked:
    return Asked(f"p{number}#{sample}", Problem(f"p{number}", f"Question {number}", "7"), sample, 2**40 + number)


def completion(text: str | None = "\\boxed{7}", finish: str | None = "stop", **message: Any) -> Reply:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return Reply({"choices": [choice], "usage": {"prompt_tokens": 12, "completion_tokens": 34}})


def teacher_of(service: Service, **settings: Any) -> openai.OpenAITeacher:
    base = service.url.removesuffix("/ask") + "/v1/"
    return openai.OpenAITeacher(openai.Config(url=base, model="m", **settings), SAMPLING)


def answers(service: Service, questions: list[Asked], **settings: Any) -> list[Answer]:
    teacher = teacher_of(service, **settings)
    try:
        return list(teacher.answer(questions))
    finally:
        teacher.close()


# --- asking -----------------------------------------------------------------------------------------------------------


def test_what_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with Service(replies(completion())) as service:
        found = answers(service, [asked(1)], system="Be brief.", prompt="Q: {input}\n{", key_variable="MY_KEY")
    assert service.posted == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: Question 1\n{"}],
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 100,
            "seed": (2**40 + 1) % 2**31,
        }
    ]
    assert found == [Answer("p1#0", "\\boxed{7}", 34, "stop", None, 12)]
    assert service.headers[0]["Authorization"] == "Bearer secret"


def test_the_address_and_the_default_prompt() -> None:
    config = openai.Config(url="http://127.0.0.1:8000/v1/", model="m")
    teacher = openai.OpenAITeacher(config, SAMPLING)
    assert config.address == "http://127.0.0.1:8000/v1/chat/completions"
    assert teacher.question(asked(1))["messages"] == [
        {
            "role": "user",
            "content": "Question 1\nPlease reason step by step, and put your final answer within \\boxed{}.",
        }
    ]
    teacher.close()


def test_a_key_marks_every_attempt_at_a_question_and_no_other_question() -> None:
    questions = [asked(1), asked(1, 1), asked(2)]
    with Service(replies(Reply(status=503), completion())) as service:
        answers(service, questions, concurrency=1)
        answers(service, [asked(1)])
    keys = [headers["Idempotency-Key"] for headers in service.headers]
    assert keys[0] == keys[1] == keys[4]
    assert len(set(keys)) == 3


def test_a_key_depends_on_the_seed_and_on_what_is_posted() -> None:
    one, other_seed = asked(1), Asked("p1#0", asked(1).problem, 0, 5)
    assert openai.idempotency_key(one, {"a": 1, "b": 2}) == openai.idempotency_key(one, {"b": 2, "a": 1})
    assert openai.idempotency_key(one, {"a": 1}) != openai.idempotency_key(one, {"a": 2})
    assert openai.idempotency_key(one, {}) != openai.idempotency_key(other_seed, {})


def test_settings_are_checked() -> None:
    def recipe(**teacher: Any) -> DistillRecipe:
        table = {"kind": "distill", "data": {"source": "arithmetic"}, "teacher": {"name": "openai"} | teacher}
        return validate_recipe(table, kind=DistillRecipe)

    with pytest.raises(ConfigError, match=r"teacher\.model: is required"):
        recipe(url="http://127.0.0.1/v1")
    with pytest.raises(ConfigError, match=r"teacher\.prompt='Solve it': .*has no \{input\}"):
        recipe(url="http://127.0.0.1/v1", model="m", prompt="Solve it")
    with pytest.raises(ConfigError, match=r"teacher\.url=.*use key_variable"):
        recipe(url="http://me:secret@127.0.0.1/v1", model="m")


def test_where_it_comes_from_names_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    config = openai.Config(url="http://127.0.0.1/v1", model="m", key_variable="MY_KEY")
    teacher = openai.OpenAITeacher(config, SAMPLING)
    assert teacher.provenance() == {
        "teacher": "openai",
        "url": "http://127.0.0.1/v1",
        "model": "m",
        "system": None,
        "prompt": "{input}\nPlease reason step by step, and put your final answer within \\boxed{}.",
        "reasoning": "keep",
    }
    teacher.close()


# --- reading ----------------------------------------------------------------------------------------------------------


def read(reply: Reply, reasoning: Any = "keep") -> Answer:
    return openai.read(reply.body, "p#0", reasoning)


@pytest.mark.parametrize(
    "finish, end",
    [("stop", "stop"), ("eos_token", "stop"), ("end_turn", "stop"), ("length", "length"), ("max_tokens", "length")],
)
def test_ends(finish: str, end: str) -> None:
    assert read(completion("x", finish)).finish_reason == end


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_that_comes_apart(name: str) -> None:
    reply = completion("It is 7.", **{name: "\n3+4, wait.\n"})
    kept, dropped = read(reply), read(reply, "drop")
    assert (kept.text, kept.tokens) == ("<think>\n3+4, wait.\n</think>\n\nIt is 7.", 34)
    # The service's 34 tokens are those of reasoning and content together.
    assert (dropped.text, dropped.tokens) == ("It is 7.", None)


def test_reasoning_that_was_cut_before_there_was_any_content() -> None:
    cut = read(completion(None, "length", reasoning_content="3+"))
    assert (cut.text, cut.finish_reason) == ("<think>\n3+\n</think>\n\n", "length")
    assert read(completion(None, "length")).text == ""


def test_an_empty_response_is_one() -> None:
    assert (read(completion("")).text, read(completion("", reasoning=None)).finish_reason) == ("", "stop")


def test_a_content_filter_refuses() -> None:
    answer = read(completion(None, "content_filter"))
    assert (answer.finish_reason, answer.reason) == ("refused", "the service's content filter")


@pytest.mark.parametrize("usage", [None, [], {}, {"completion_tokens": "34"}, {"completion_tokens": True}, 3])
def test_tokens_that_are_not_counted(usage: Any) -> None:
    reply = completion()
    assert read(Reply(reply.body | {"usage": usage})).tokens is None


@pytest.mark.parametrize(
    "body, fault",
    [
        ({}, '"choices" is None, not a list with a choice'),
        ({"choices": []}, r'"choices" is \[\]'),
        ({"error": {"message": "overloaded"}}, '"choices" is None'),
        ({"choices": ["text"]}, r'"choices" is \[\'text\'\]'),
        ({"choices": [{"finish_reason": "stop"}]}, '"message" is None, not an object'),
        (completion(None).body, '"content" is None, not a text'),
        (completion(None, reasoning="thought").body, '"content" is None, not a text'),
        (completion(["x"], "length").body, r'"content" is \[\'x\'\], not a text'),
        (completion("x", "abort").body, "\"finish_reason\" is 'abort', not one of stop, eos, "),
        (completion("x", None).body, '"finish_reason" is None'),
    ],
)
def test_completions_of_no_use(body: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        openai.read(body, "p#0", "keep")


# --- failures ---------------------------------------------------------------------------------------------------------


def by_question(special: dict[int, Reply]) -> Any:
    """`special` for these questions, a completion for all others."""

    def answer(question: dict[str, Any]) -> Reply:
        number = int(question["messages"][-1]["content"].split("\n")[0].split()[1])
        return special.get(number, completion())

    return answer


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_question_is_refused_and_the_others_are_answered(status: int) -> None:
    with Service(by_question({2: Reply("too long", status)})) as service:
        found = {each.id: each for each in answers(service, [asked(n) for n in range(5)], concurrency=2)}
    assert [each.finish_reason for _, each in sorted(found.items())] == ["stop", "stop", "refused", "stop", "stop"]
    reason = found["p2#0"].reason
    assert reason is not None and f"refused this request with {status}" in reason and "too long" in reason
    assert len(service.posted) == 5


@pytest.mark.parametrize("bad", [Reply(b"<html>"), completion(None), Reply({"error": "x"}), Reply(b'{"choices": [{')])
def test_an_answer_of_no_use_is_asked_for_again_and_then_refused(bad: Reply) -> None:
    with Service(replies(bad, bad, completion())) as service:
        assert answers(service, [asked(1)])[0].finish_reason == "stop"
    with Service(by_question({1: bad})) as service:
        found = answers(service, [asked(1), asked(2)])
    assert {each.id: each.finish_reason for each in found} == {"p1#0": "refused", "p2#0": "stop"}
    assert len(service.posted) == 1 + openai.USELESS + 1


@pytest.mark.parametrize(
    "status, remedy",
    [(401, "Check the key"), (403, "Check the key"), (404, r"Check teacher\.url"), (409, "Fix the service")],
)
def test_what_concerns_every_question_ends_the_run(status: int, remedy: str) -> None:
    with (
        Service(replies(Reply("no", status))) as service,
        pytest.raises(RemoteError, match=rf"with {status} .*{remedy}.*the answers that arrived are kept"),
    ):
        answers(service, [asked(n) for n in range(50)], concurrency=1)
    assert len(service.posted) == 1


def test_a_service_that_refuses_everything_ends_the_run_before_a_refusal_is_kept() -> None:
    """Such as one that does not know a parameter: it is not about the problems."""
    found: list[Answer] = []
    with Service(replies(Reply("unknown field seed", 400))) as service:
        teacher = teacher_of(service, concurrency=1, refusals_in_a_row=3)
        questions = [asked(n, sample) for n in range(9) for sample in range(4)]
        with pytest.raises(RemoteError, match=r"3 problems were refused one after the other .*unknown field seed"):
            found.extend(teacher.answer(questions))
        teacher.close()
    # Four samples of one problem are one problem.
    assert (len(service.posted), found) == (9, [])


def test_refusals_between_answers_end_nothing() -> None:
    refused = {n: Reply(status=400) for n in range(20) if n % 3}
    with Service(by_question(refused)) as service:
        found = answers(service, [asked(n) for n in range(20)], concurrency=1, refusals_in_a_row=3)
    assert {each.id for each in found if each.finish_reason == "refused"} == {f"p{n}#0" for n in refused}


def test_a_stalled_question_does_not_hold_up_the_others() -> None:
    with Service(by_question({0: Reply(mode="stall")})) as service:
        teacher = teacher_of(service, concurrency=2)
        found = teacher.answer([asked(n) for n in range(10)])
        assert {next(found).id for _ in range(9)} == {f"p{n}#0" for n in range(1, 10)}
        service.answer = replies(completion())
        teacher.close()


def test_answers_that_arrive_after_a_failure_are_kept_before_it_is_raised() -> None:
    """Question 1 is on its way when the service refuses the key; 2 and later are not asked any more."""
    refused = threading.Event()

    def answer(question: dict[str, Any]) -> Reply:
        if question["messages"][0]["content"].startswith("Question 0"):
            under_way.wait(30)
            refused.set()
            return Reply(status=401)
        under_way.set()
        refused.wait(30)
        # Long enough for the refusal to be read.
        threading.Event().wait(0.2)
        return completion()

    under_way = threading.Event()
    with Service(answer) as service:
        teacher = teacher_of(service, concurrency=2)
        found: list[str] = []
        with pytest.raises(RemoteError, match="401"):
            found.extend(each.id for each in teacher.answer([asked(n) for n in range(20)]))
        teacher.close()
    assert found == ["p1#0"]
    assert len(service.posted) == 2


def test_an_error_of_ours_is_not_lost_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai.OpenAITeacher, "question", lambda self, asked: 1 / 0)
    with Service(replies(completion())) as service, pytest.raises(ZeroDivisionError):
        answers(service, [asked(1), asked(2)])
