"""The HTTP client against a real server on 127.0.0.1, which fails in many ways: retries, refusals, errors."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.utils import formatdate
from typing import Any

import pytest
from http_service import Reply, Service, replies

from simplerl import http
from simplerl.config import validate_recipe
from simplerl.errors import ConfigError, RemoteError
from simplerl.rewards import http as rewards
from simplerl.types import Problem, Prompt, Rollout, Verdict
from simplerl.verifiers import http as verifiers

pytestmark = pytest.mark.unit

GOOD = Reply({"reward": 0.5})
PROBLEM = Problem("p/1", "What is 3+4?", "7")
ROLLOUT = Rollout.single_turn("r", Prompt(PROBLEM, "Q", (1,)), (2,), (-0.5,), "It is \\boxed{7}.", "stop", 0)
RECIPE = {
    "model": {"path": "none"},
    "data": {"source": "arithmetic"},
    "verifier": {"name": "http", "url": "http://127.0.0.1/"},
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.004)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds the client would have slept between attempts."""
    seconds: list[float] = []
    monkeypatch.setattr(http, "sleep_using_event", lambda event: seconds.append)
    return seconds


def client_of(service: Service, **settings: Any) -> http.Client:
    return http.Client(http.Endpoint(url=service.url, **settings))


def post(service: Service, **settings: Any) -> dict[str, Any]:
    client = client_of(service, **settings)
    try:
        return client.post({"n": 1}, dict)
    finally:
        client.close()


# --- requests ---------------------------------------------------------------------------------------------------------


def test_json_is_posted_and_the_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " secret\n")
    with Service(replies(GOOD)) as service:
        client = client_of(service, key_variable="MY_KEY")
        # A lone surrogate cannot be encoded as UTF-8.
        assert client.post({"text": "é\ud800∞"}, lambda answer: answer["reward"]) == 0.5
        client.close()
    assert service.posted == [{"text": "é?∞"}]
    assert service.headers[0]["Authorization"] == "Bearer secret"
    assert service.headers[0]["Content-Type"] == "application/json"


def test_a_missing_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="key_variable=MY_KEY: this environment variable is not set"):
        http.Client(http.Endpoint(url="http://127.0.0.1/", key_variable="MY_KEY"))


@pytest.mark.parametrize(
    "url, fault",
    [
        ("ftp://host/x", "must be http://HOST"),
        ("127.0.0.1:8000", "not an address|must be http://HOST"),
        ("http:///x", "must be http://HOST"),
        ("http://host:port/x", "is not an address"),
        ("https://me:secret@host/x", "use key_variable"),
    ],
)
def test_addresses_are_checked_with_the_recipe(url: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"reward\.url=.*({fault})"):
        validate_recipe(RECIPE | {"reward": {"name": "http", "url": url}})


# --- retries ----------------------------------------------------------------------------------------------------------

TRANSIENT = [
    Reply("busy", 500),
    Reply("busy", 503),
    Reply("slower, please", 429),
    Reply(mode="drop"),
    Reply({"reward": 1}, mode="tear"),
    Reply(mode="stall"),
    Reply(b" ", mode="drip"),
]


@pytest.mark.parametrize("failure", TRANSIENT, ids=lambda reply: f"{reply.status}-{reply.mode}")
def test_failures_that_may_pass_are_retried(failure: Reply) -> None:
    slow = failure.mode in ("stall", "drip")
    with Service(replies(failure, failure, GOOD)) as service:
        assert post(service, timeout_seconds=0.4 if slow else 60) == {"reward": 0.5}
    assert len(service.posted) == 3 or (slow and len(service.posted) > 3)


def test_a_service_that_stays_down_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    endpoint = http.Endpoint(url=f"http://127.0.0.1:{port}/ask", give_up_seconds=0.05)
    with pytest.raises(RemoteError) as caught:
        http.Client(endpoint).post({}, dict)
    assert f"{endpoint.url} gave no answer in " in str(caught.value)
    assert "(give_up_seconds=0.05); the last failure: ConnectError: " in str(caught.value)
    assert "Restart the service, then run the same command again: a run resumes from its last checkpoint" in str(
        caught.value
    )


def test_the_error_counts_attempts_and_quotes_the_last_answer(slept: list[float]) -> None:
    with Service(replies(Reply("overloaded", 503))) as service:
        with pytest.raises(RemoteError, match=r"in 1 attempts .*503 Service Unavailable '\"overloaded\"'"):
            post(service, give_up_seconds=0)
        assert (len(service.posted), slept) == (1, [])
        with pytest.raises(RemoteError, match=r"gave no answer in (\d+) attempts") as caught:
            post(service, give_up_seconds=0.2)
    assert f"in {len(service.posted) - 1} attempts" in str(caught.value)
    assert len(slept) == len(service.posted) - 2 > 1


def test_waits_are_random_below_a_limit_that_doubles(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(http, "LONGEST_WAIT", 5.0)
    with Service(replies(*[Reply(status=500)] * 30, GOOD)) as service:
        post(service, give_up_seconds=1e6)
    assert len(slept) == 30
    assert all(0 <= wait <= min(2**attempt, 5) for attempt, wait in enumerate(slept))
    assert len(set(slept)) == 30, "threads that failed together must not retry together"


def test_retry_after_sets_the_wait(slept: list[float]) -> None:
    with Service(replies(Reply(status=429, headers={"Retry-After": "7"}), GOOD)) as service:
        post(service)
    assert slept == [7.0]


def test_a_retry_after_beyond_the_time_limit_is_an_error_at_once(slept: list[float]) -> None:
    with (
        Service(replies(Reply(status=503, headers={"Retry-After": "601"}))) as service,
        pytest.raises(RemoteError, match="in 1 attempts"),
    ):
        post(service, give_up_seconds=600)
    assert slept == []


def test_retry_after_may_be_a_number_a_date_or_nonsense() -> None:
    assert http._retry_after(" 2.5 ") == 2.5
    assert 3500 < http._retry_after(formatdate(time.time() + 3600, usegmt=True)) <= 3600
    assert http._retry_after(formatdate(time.time() - 3600, usegmt=True)) == 0
    assert [http._retry_after(text) for text in ("", "soon", "nan", "-3")] == [0, 0, 0, 0]


@pytest.mark.parametrize(("quiet", "warnings"), [(60.0, 1), (0.0, 4)])
def test_outages_give_one_warning_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, quiet: float, warnings: int
) -> None:
    """A service that is merely busy refuses every other request: a warning for each would hide other messages."""
    monkeypatch.setattr(http, "QUIET_SECONDS", quiet)
    bad = Reply(status=429)
    with Service(replies(bad, bad, bad, GOOD, GOOD, bad, GOOD)) as service:
        client = client_of(service)
        assert [client.post({}, dict)["reward"] for _ in range(3)] == [0.5, 0.5, 0.5]
        client.close()
    lines = [record.getMessage() for record in caplog.records if record.name == http.__name__]
    assert [line.partition(" (")[0] for line in lines] == [f"{service.url} does not answer"] * warnings


def test_an_error_that_ends_the_client_ends_the_waits_of_other_threads() -> None:
    """The second request is refused while the first waits for a Retry-After of an hour."""
    waiting = threading.Event()

    def answer(question: dict[str, Any]) -> Reply:
        if question["n"] == 1:
            waiting.set()
            return Reply(status=503, headers={"Retry-After": "3600"})
        return Reply(status=400)

    with Service(answer) as service, ThreadPoolExecutor(1) as threads:
        client = client_of(service, give_up_seconds=1e6)
        first = threads.submit(client.post, {"n": 1}, dict)
        assert waiting.wait(30)
        with pytest.raises(RemoteError, match="400"):
            client.post({"n": 2}, dict)
        with pytest.raises(RemoteError, match="503"):
            first.result(30)
        client.close()


# --- failures without a retry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_a_refusal_is_final(status: int) -> None:
    with (
        Service(replies(Reply(b"a" * 200 + b"b" * 200, status))) as service,
        pytest.raises(
            RemoteError,
            match=rf"refused the request with {status} .*'a{{200}}'\. Fix the service or its address, then run",
        ),
    ):
        post(service)
    assert len(service.posted) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with Service(replies(GOOD)) as other:
        moved = Reply(b"", status, {"Location": other.url})
        with Service(replies(moved)) as service, pytest.raises(RemoteError, match=rf"{status} .* to {other.url}"):
            post(service)
    assert (len(service.posted), other.posted) == (1, [])


@pytest.mark.parametrize(
    "content, fault",
    [
        (b"<html>hello</html>", "unexpected character"),
        (b"", "empty"),
        (b'{"reward": 1', "unexpected end"),
        (b'{"reward": NaN}', "unexpected character"),
        (b'{"reward": -Infinity}', "no digit"),
        (b'{"reward": 1e999}', "infinity"),
        (b"[1.0]", "it is a list, not an object"),
        (b"\xff\xfe{}", "UTF-8"),
        (b" " * (1 << 20) + b"{}", "longer than 1,048,576 bytes"),
    ],
)
def test_an_unusable_answer_is_final(content: bytes, fault: str) -> None:
    with Service(replies(Reply(content))) as service, pytest.raises(RemoteError) as caught:
        post(service)
    assert len(service.posted) == 1
    shown = repr(content.decode("utf-8", "replace")[:200])
    assert str(caught.value).startswith(f"{service.url}: unusable answer 200 OK {shown}: ")
    assert fault in str(caught.value)


def test_an_endless_answer_is_read_up_to_the_limit_only() -> None:
    with (
        Service(replies(Reply(b"{", mode="flood"))) as service,
        pytest.raises(RemoteError, match="longer than 1,048,576 bytes"),
    ):
        post(service)
    assert len(service.posted) == 1


# --- retry policies ---------------------------------------------------------------------------------------------------


def client_with(service: Service, policy: http.RetryPolicy) -> closing[http.Client]:
    return closing(http.Client(http.Endpoint(url=service.url), policy))


def test_a_refused_request_leaves_the_client_usable() -> None:
    policy = http.RetryPolicy(refusal_statuses=frozenset({400, 422}))
    with (
        Service(replies(Reply("long", 422), GOOD, Reply(status=503), GOOD)) as service,
        client_with(service, policy) as client,
    ):
        with pytest.raises(http.RefusedError, match=rf"{service.url} refused this request with 422 .*long"):
            client.post({}, dict)
        assert client.post({}, dict) == {"reward": 0.5}
        # It still retries, which a client that has ended does not.
        assert client.post({}, dict) == {"reward": 0.5}
    assert len(service.posted) == 4


def test_a_refusal_that_ends_the_client_names_a_remedy() -> None:
    policy = http.RetryPolicy(remedies={401: "Check the key"}, resume_hint="then resume")
    with Service(replies(Reply("who?", 401), Reply("gone", 404))) as service, client_with(service, policy) as client:
        with pytest.raises(RemoteError, match=r"with 401 Unauthorized '\"who\?\"'\. Check the key, then resume$"):
            client.post({}, dict)
        with pytest.raises(RemoteError, match=r"with 404 .*\. Fix the service or its address, then resume$") as caught:
            client.post({}, dict)
    assert not isinstance(caught.value, http.RefusedError)


@pytest.mark.parametrize("content", [b"<html>bad gateway</html>", b'{"choices": [', b'{"reward": "?"}'])
def test_an_unusable_answer_is_retried_if_the_policy_says_so(content: bytes) -> None:
    answer = replies(Reply(content), Reply(content), GOOD, Reply(content))
    with Service(answer) as service, client_with(service, http.RetryPolicy(unusable_retries=2)) as client:
        assert client.post({}, rewards._number) == 0.5
        with pytest.raises(http.RefusedError, match=r"3 unusable answers, the last: unusable answer 200 OK"):
            client.post({}, rewards._number)
    assert len(service.posted) == 6


def test_the_policy_limits_the_length_of_an_answer() -> None:
    long = Reply({"text": "x" * (1 << 20)})
    with Service(replies(long)) as service:
        with client_with(service, http.RetryPolicy(max_answer_bytes=1 << 21)) as client:
            assert client.post({}, lambda answer: len(answer["text"])) == 1 << 20
        with (
            client_with(service, http.RetryPolicy(max_answer_bytes=4096)) as client,
            pytest.raises(RemoteError, match="it is longer than 4,096 bytes"),
        ):
            client.post({}, dict)


def test_headers_of_a_request_are_sent_in_every_attempt() -> None:
    with Service(replies(Reply(status=500), GOOD)) as service:
        client = client_of(service)
        client.post({}, dict, {"Idempotency-Key": "k1"})
        client.post({}, dict)
        client.close()
    assert [headers.get("Idempotency-Key") for headers in service.headers] == ["k1", "k1", None]


def test_attempts_of_all_threads_are_evenly_spaced() -> None:
    """1,200 a minute are one every 50 ms, retries included."""
    times: list[float] = []

    def answer(question: dict[str, Any]) -> Reply:
        times.append(time.monotonic())
        return Reply(status=503) if len(times) == 2 else GOOD

    policy = http.RetryPolicy(requests_per_minute=1200)
    with Service(answer) as service, ThreadPoolExecutor(4) as threads, client_with(service, policy) as client:
        started = time.monotonic()
        list(threads.map(lambda n: client.post({"n": n}, dict), range(7)))
    assert len(times) == 8
    assert all(moment - started > 0.05 * number - 0.01 for number, moment in enumerate(sorted(times)))


def test_closing_the_client_ends_the_wait_for_a_turn() -> None:
    pace, closed = http._Pace(1.0), threading.Event()
    pace.wait(closed)
    closed.set()
    started = time.monotonic()
    pace.wait(closed)
    assert time.monotonic() - started < 10


# --- the reward -------------------------------------------------------------------------------------------------------


def reward_of(service: Service, verdict: Verdict, **settings: Any) -> float:
    config = validate_recipe(RECIPE | {"reward": {"name": "http", "url": service.url, **settings}}).reward
    reward = rewards.build(config)
    try:
        return reward(ROLLOUT, verdict)
    finally:
        reward.close()


def test_a_reward_request_holds_the_problem_the_response_and_the_verdict() -> None:
    with Service(replies(Reply({"reward": -3, "why": "because"}))) as service:
        assert reward_of(service, Verdict("correct", "7", "string")) == -3.0
        assert type(reward_of(service, Verdict("no_answer"))) is float, "also if the service gives an integer"
    known = {"problem_id": "p/1", "question": "What is 3+4?", "answer": "7", "response": "It is \\boxed{7}."}
    assert service.posted == [
        {**known, "verdict": "correct", "extracted": "7", "finish_reason": "stop"},
        {**known, "verdict": "no_answer", "extracted": None, "finish_reason": "stop"},
    ]


@pytest.mark.parametrize("value", ["0.5", None, True, [1], {}])
def test_a_reward_is_a_number(value: Any) -> None:
    with (
        Service(replies(Reply({"reward": value}))) as service,
        pytest.raises(RemoteError, match=r'200 OK .*"reward" is .*, not a number'),
    ):
        reward_of(service, Verdict("wrong"))


def test_a_reward_without_an_address_is_an_error_of_the_recipe() -> None:
    with pytest.raises(ConfigError, match=r"reward\.url: is required"):
        validate_recipe(RECIPE | {"reward": "http"})


# --- the verifier -----------------------------------------------------------------------------------------------------


def judged_response(response: str) -> tuple[Problem, Rollout]:
    problem = Problem("p", "How many?", "7")
    return problem, Rollout.recorded(problem, response)


def verifier_of(service: Service, **settings: Any) -> verifiers.HttpVerifier:
    return verifiers.build(verifiers.Config(url=service.url, **settings))


def test_verdicts_come_from_the_service() -> None:
    answers = replies(
        Reply({"verdict": "correct", "extracted": "7", "method": "judge"}), Reply({"verdict": "no_answer"})
    )
    with Service(answers) as service:
        verifier = verifier_of(service)
        first, second = verifier.verify(*judged_response("I say 7")), verifier.verify(*judged_response(""))
        verifier.close()
    assert (first.label, first.extracted, first.method) == ("correct", "7", "judge")
    assert (second.label, second.extracted, second.method) == ("no_answer", None, "http")
    assert first.seconds > 0
    known = {"gold": "7", "problem_id": "p", "question": "How many?"}
    assert service.posted == [{"response": "I say 7"} | known, {"response": ""} | known]


@pytest.mark.parametrize(
    "answer, fault",
    [
        ({"verdict": "right"}, "\"verdict\" is 'right', not one of correct, wrong, no_answer, error"),
        ({"verdict": ["correct"]}, '"verdict" is'),
        ({}, '"verdict" is None'),
        ({"verdict": "wrong", "extracted": 7}, '"extracted" is 7, not a string'),
        ({"verdict": "wrong", "method": {}}, '"method" is {}, not a string'),
    ],
)
def test_an_answer_without_a_verdict_is_an_error(answer: dict[str, Any], fault: str) -> None:
    with Service(replies(Reply(answer))) as service:
        verifier = verifier_of(service)
        with pytest.raises(RemoteError, match=fault):
            verifier.submit(*judged_response("x")).result(30)
        verifier.close()


def test_concurrency_requests_are_sent_at_once() -> None:
    """The service answers no request before four have arrived."""
    together = threading.Barrier(4)

    def answer(question: dict[str, Any]) -> Reply:
        together.wait(30)
        return Reply({"verdict": "correct", "extracted": question["response"]})

    with Service(answer) as service:
        verifier = verifier_of(service, concurrency=4)
        verdicts = [verifier.submit(*judged_response(str(n))) for n in range(12)]
        assert [verdict.result(30).extracted for verdict in verdicts] == [str(n) for n in range(12)]
        verifier.close()
