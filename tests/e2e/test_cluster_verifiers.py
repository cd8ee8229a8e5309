"""Verifiers in processes of a real Ray: the verdicts of one in this process, each exactly once, despite losses."""

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
from test_cluster import assert_same_metrics, cluster_config, make_recipe

from simplerl.cluster.placement import Placement, reserve_gpus
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
    """Makes verifiers, and closes them after the test."""
    from simplerl.cluster.verifiers import RemoteVerifier

    made = []

    def make(build, **config):
        made.append(RemoteVerifier(build, cluster_config(**config), Placement()))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def without_times(futures):
    return [replace(future.result(60), seconds=0.0) for future in futures]


def test_several_verifiers_give_the_verdicts_of_one(remote):
    config = make_recipe("nowhere").verifier
    alone, spread = build_verifier(config), remote(partial(build_verifier, config), verifiers=2)
    expected = without_times([alone.submit(*tiny.question(*each)) for each in QUESTIONS])
    assert without_times([spread.submit(*tiny.question(*each)) for each in QUESTIONS * 20]) == expected * 20
    assert [v.label for v in expected] == ["correct", "correct", "correct", "wrong", "no_answer"]
    assert spread.metrics() == {"cluster/verifiers_lost": 0.0}
    alone.close()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_no_verdict_is_lost_with_a_verifier(cluster, remote, kind):
    spread = remote(tiny.Judge, verifiers=2, heartbeat_timeout=4.0)
    futures = [spread.submit(*tiny.question(str(number), str(number // 2 * 2))) for number in range(500)]
    victim = cluster.get(spread._workers[0].heartbeat())
    wait(futures[:100], 60)
    os.kill(victim, kind)
    verdicts = [future.result(60) for future in futures]
    assert [(v.extracted, v.label) for v in verdicts] == [
        (str(number), "wrong" if number % 2 else "correct") for number in range(500)
    ]
    assert len({v.method for v in verdicts}) == 3, "two processes, and the one that replaces the first"
    assert spread.metrics() == {"cluster/verifiers_lost": 1.0}
    (event,) = spread.take_events()
    assert event.startswith("verifier 0 of 2 is lost (") and event.endswith("; restarting it")


def test_an_exception_of_a_verifier_fails_one_response_only(remote):
    spread = remote(tiny.Judge, verifiers=1)
    futures = [spread.submit(*tiny.question(text, "1")) for text in ("1", "broken", "1")]
    assert [futures[n].result(60).label for n in (0, 2)] == ["correct"] * 2
    with pytest.raises(ValueError, match="this judge is broken"):
        futures[1].result(60)


def test_more_lost_verifiers_than_restarts_are_an_error(cluster, remote):
    spread = remote(tiny.Judge, verifiers=1, restarts=0)
    os.kill(cluster.get(spread._workers[0].heartbeat()), signal.SIGKILL)
    with pytest.raises(ClusterError, match=r"verifier 0 is lost .*cluster\.restarts=0 allows no more"):
        spread.verify(*tiny.question("1", "1"))


def test_closing_cancels_waiting_responses_and_stops_the_processes(remote):
    spread = remote(tiny.Judge, verifiers=1)
    futures = [spread.submit(*tiny.question("1", "1")) for _ in range(2000)]
    futures[0].result(60)
    spread.close()
    assert futures[-1].cancelled() and all(future.done() for future in futures)
    assert not any(thread.is_alive() for thread in spread._threads)


def test_a_run_with_remote_verifiers_trains_like_one_process(cluster, tiny_model, tmp_path, monkeypatch):
    from simplerl.train.run import train

    seen, append = [], RunFolder.append_metrics

    def append_and_record_processes(self, row):
        seen.extend(own_processes("ray::VerifierWorker"))
        append(self, row)

    monkeypatch.setattr(RunFolder, "append_metrics", append_and_record_processes)
    folder = train(make_recipe(tiny_model, ray="auto", verifiers=1), tmp_path / "run", plain=True)
    monkeypatch.setattr(RunFolder, "append_metrics", append)
    assert len(set(seen)) == 1 and RunFolder(folder).read_metrics()[-1]["cluster/verifiers_lost"] == 0
    assert_same_metrics(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), folder)


def test_verifiers_need_a_cluster_with_enough_cores(cluster, tiny_model):
    with pytest.raises(ConfigError, match=r"cluster\.verifiers=2 needs cluster\.ray"):
        make_recipe(tiny_model, verifiers=2)
    many = cluster_config(verifiers=1000)
    with pytest.raises(
        ClusterError, match=r"cluster\.verifiers=1000 need a CPU core each; the cluster has \d+, of which "
    ):
        reserve_gpus(many, "cpu", engines=1).__enter__()
