"""Verifiers in processes of a real Ray: the verdicts of one in this process, each once, whatever dies."""

import importlib.util
import os
import signal
from concurrent.futures import wait
from dataclasses import replace
from functools import partial

import engine_models as tiny
import pytest
import test_cluster
from run_processes import own_processes
from test_cluster import assert_alike, make_recipe, spread_over

from simplerl.cluster.placement import Placement, reserved
from simplerl.errors import ClusterError, ConfigError
from simplerl.storage.records import RunFolder
from simplerl.train.build.services import build_verifier

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"),
    pytest.mark.filterwarnings("ignore"),
]
cluster = test_cluster.cluster

QUESTIONS = [
    (r"So it is \boxed{42}.", "42"),
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{7}", "8"),
    ("no box at all", "8"),
]


@pytest.fixture
def remote(cluster):
    """Makes verifiers, and ends them."""
    from simplerl.cluster.verifiers import RemoteVerifier

    made = []

    def make(how, **config):
        made.append(RemoteVerifier(how, spread_over(**config), Placement()))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def timeless(futures):
    return [replace(future.result(60), seconds=0.0) for future in futures]


def test_verdicts_are_those_of_one_process(remote):
    config = make_recipe("nowhere").verifier
    alone, spread = build_verifier(config), remote(partial(build_verifier, config), verifiers=2)
    expected = timeless([alone.submit(*tiny.question(*each)) for each in QUESTIONS])
    assert timeless([spread.submit(*tiny.question(*each)) for each in QUESTIONS * 20]) == expected * 20
    assert [v.label for v in expected] == ["correct", "correct", "correct", "wrong", "no_answer"]
    assert spread.metrics() == {"cluster/verifiers_lost": 0.0}
    alone.close()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_verifier_that_dies_among_500_verdicts_loses_none(cluster, remote, kind):
    spread = remote(tiny.Judge, verifiers=2, heartbeat_timeout=4.0)
    futures = [spread.submit(*tiny.question(str(number), str(number // 2 * 2))) for number in range(500)]
    victim = cluster.get(spread._workers[0].ask())
    wait(futures[:100], 60)
    os.kill(victim, kind)
    verdicts = [future.result(60) for future in futures]
    assert [(v.extracted, v.label) for v in verdicts] == [
        (str(number), "wrong" if number % 2 else "correct") for number in range(500)
    ]
    assert len({v.method for v in verdicts}) == 3, "two processes, and the one in the place of the first"
    assert spread.metrics() == {"cluster/verifiers_lost": 1.0}
    (event,) = spread.take_events()
    assert event.startswith("verifier 0 of 2 is lost (") and event.endswith("; begun anew")


def test_what_a_verifier_raises_is_raised_for_that_question_alone(remote):
    spread = remote(tiny.Judge, verifiers=1)
    futures = [spread.submit(*tiny.question(text, "1")) for text in ("1", "broken", "1")]
    assert [futures[n].result(60).label for n in (0, 2)] == ["correct"] * 2
    with pytest.raises(ValueError, match="this judge is broken"):
        futures[1].result(60)


def test_verifiers_that_die_too_often_end_the_run_in_words(cluster, remote):
    spread = remote(tiny.Judge, verifiers=1, restarts=0)
    os.kill(cluster.get(spread._workers[0].ask()), signal.SIGKILL)
    with pytest.raises(ClusterError, match=r"verifier 0 is lost .*cluster\.restarts=0 allows no more"):
        spread.verify(*tiny.question("1", "1"))


def test_closing_cancels_what_waits_and_ends_the_processes(remote):
    spread = remote(tiny.Judge, verifiers=1)
    futures = [spread.submit(*tiny.question("1", "1")) for _ in range(2000)]
    futures[0].result(60)
    spread.close()
    assert futures[-1].cancelled() and all(future.done() for future in futures)
    assert not any(thread.is_alive() for thread in spread._threads)


def test_a_run_with_verifiers_elsewhere_is_that_of_one_process(cluster, tiny_model, tmp_path, monkeypatch):
    from simplerl.train.run import train

    seen, append = [], RunFolder.append_metrics

    def append_and_look(self, row):
        seen.extend(own_processes("ray::VerifierWorker"))
        append(self, row)

    monkeypatch.setattr(RunFolder, "append_metrics", append_and_look)
    folder = train(make_recipe(tiny_model, ray="auto", verifiers=1), tmp_path / "run", plain=True)
    monkeypatch.setattr(RunFolder, "append_metrics", append)
    assert len(set(seen)) == 1 and RunFolder(folder).read_metrics()[-1]["cluster/verifiers_lost"] == 0
    assert_alike(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), folder)


def test_what_verifiers_need(cluster, tiny_model):
    with pytest.raises(ConfigError, match=r"cluster\.verifiers=2 needs cluster\.ray"):
        make_recipe(tiny_model, verifiers=2)
    many = spread_over(verifiers=1000)
    with pytest.raises(ClusterError, match=r"cluster\.verifiers=1000 take a core each, the cluster has \d+ and "):
        reserved(many, "cpu", engines=1).__enter__()
