"""GPUs that Ray counts and nobody has: who gets which, what is said where they are taken, what is given back."""

import importlib.util
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import direct_transfer
import engine_models as tiny
import pytest
from learner_cases import make_batch, make_learner
from run_processes import own_processes, wait_for
from test_cluster import ASLEEP, answers, assert_alike, make_recipe, spread_over

from simplerl.cluster.engines import RemoteEngines
from simplerl.cluster.learner import RemoteLearner
from simplerl.cluster.placement import Placement, reserved
from simplerl.cluster.transfer import DirectTransfer
from simplerl.engines.base import generate
from simplerl.errors import ClusterError, InputLost
from simplerl.storage.records import RunFolder
from simplerl.train.build.services import choose_device

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, the first with one GPU, the second with two."""
    import ray as real
    from ray.cluster_utils import Cluster

    from simplerl.cluster import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), before]))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1, num_gpus=2)
    ray.start(spread_over().model_copy(update={"ray": nodes.address}))
    yield ray
    real.shutdown()
    nodes.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def seen(cluster, places):
    """What processes that are begun there see: their node and their GPU."""
    config = spread_over()
    actors = cluster.begun([cluster.Actor(tiny.Seer, config, place) for place in places])
    found = cluster.all_of(actors, "look")
    for actor in actors:
        actor.kill()
    return found


def test_every_process_has_a_gpu_of_its_own_and_learners_are_near_each_other(cluster):
    with reserved(spread_over(learners=2), "cuda", engines=1) as place:
        first, second, engine = seen(cluster, [place.learner(0), place.learner(1), place.engine(0)])
    assert first.node == second.node != engine.node, "the second node has room for both learners"
    assert {first.gpu, second.gpu} == {"0", "1"} and engine.gpu == "0"


def test_colocated_learner_and_engine_share_a_gpu_and_no_two_pairs_do(cluster):
    config = spread_over(learners=3, engines=3, colocated=True)
    with reserved(config, "cuda", engines=3) as place:
        pairs = [(place.learner(i), place.engine(i)) for i in range(3)]
        found = seen(cluster, [where for pair in pairs for where in pair])
    assert found[0::2] == found[1::2] and len(set(found)) == 3
    with (
        pytest.raises(ClusterError, match=r"cluster\.engines=4 \(colocated\): 4 GPUs are needed, the cluster has 3"),
        reserved(spread_over(learners=4, engines=4, colocated=True), "cuda", engines=4, seconds=1),
    ):
        pass


def test_without_cuda_nothing_is_reserved(cluster):
    with reserved(spread_over(learners=2, engines=8), "cpu", engines=8) as place:
        assert place == Placement() and place.learner(1) == place.engine(7) == cluster.ANYWHERE
        wait_for(lambda: cluster.gpus() == (3, 3), 20)


def test_gpus_that_another_run_holds_are_said_within_seconds_and_had_once_it_ends(cluster):
    with ExitStack() as other:
        other.enter_context(reserved(spread_over(learners=2), "cuda", engines=0))
        begun = time.monotonic()
        with pytest.raises(ClusterError) as error, reserved(spread_over(), "cuda", engines=1, seconds=2):
            pass
        assert time.monotonic() - begun < 5
        assert str(error.value).startswith(
            "cluster.learners=1 and cluster.engines=1: 2 GPUs are needed, the cluster has 3 and 1 of them are free; "
        )
    with reserved(spread_over(), "cuda", engines=2):
        pass


def test_more_gpus_than_there_are(cluster):
    with (
        pytest.raises(ClusterError, match=r"^cluster\.learners=4: 4 GPUs are needed, the cluster has 3 and 3 of them"),
        reserved(spread_over(learners=4), "cuda", engines=0, seconds=1),
    ):
        pass


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_an_engine_that_is_begun_anew_takes_the_gpu_of_the_lost_one(cluster, kind):
    """All GPUs are reserved: there is no other."""
    from simplerl.cluster.engines import RemoteEngines

    config = spread_over(engines=2, heartbeat_timeout=4.0)
    requests = [tiny.request(f"r{i}", [5]) for i in range(2)]
    with reserved(config, "cuda", engines=2) as place:
        engines = RemoteEngines(tiny.Seer, config, place)
        before = [rollout.text for rollout in generate(engines, requests)]
        os.kill(cluster.get(engines._workers[1].ask()), kind)
        generate(engines, requests)
        assert engines.metrics()["cluster/engines_lost"] == 1
        assert [rollout.text for rollout in generate(engines, requests)] == before and len(set(before)) == 2
        engines.close()


@contextmanager
def killed_after_two_steps(folder):
    """Kills a rank once the run of a folder has recorded two steps."""
    killed = []

    def kill():
        wait_for(lambda: len(RunFolder(folder).read_metrics()) >= 2)
        killed.append(own_processes("ray::RankWorker")[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert killed


def test_auto_is_cuda_where_the_cluster_has_gpus_and_the_driver_none(cluster, tiny_model):
    recipe = make_recipe(tiny_model, ray="auto")
    auto = recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": "auto"})})
    assert (choose_device(recipe).type, choose_device(auto).type) == ("cpu", "cuda")


def test_learners_that_are_built_anew_get_the_gpus_of_the_lost_ones(cluster, tiny_model, tmp_path, monkeypatch):
    """The run needs every GPU there is, so those of the lost learners must have been given back."""
    from simplerl.cluster import placement
    from simplerl.train.run import train

    asked = []

    def on_gpus(config, device, engines, seconds):
        asked.append(seconds)
        return reserved(config, "cuda", engines, seconds)

    monkeypatch.setattr(placement, "reserved", on_gpus)
    folder = tmp_path / "torn"
    with killed_after_two_steps(folder):
        train(make_recipe(tiny_model, ray="auto", learners=2, engines=1), folder, plain=True)
    assert_alike(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), folder)
    assert asked == [placement.RESERVE, cluster.START], "a node that was lost may come back"
    wait_for(lambda: cluster.gpus() == (3, 3), 20)


def test_a_run_of_colocated_pairs_is_that_of_one_process(cluster, tiny_model, tmp_path, monkeypatch):
    """Engines sleep while learners work; nobody has CUDA, so what a learner frees is noted by nobody."""
    from simplerl.cluster import placement
    from simplerl.train.run import train

    monkeypatch.setattr(placement, "reserved", lambda config, device, *how: reserved(config, "cuda", *how))
    how = {"ray": "auto", "learners": 2, "engines": 2, "colocated": True}
    folder = train(make_recipe(tiny_model, engine=ASLEEP, **how), tmp_path / "pairs", plain=True)
    assert_alike(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), folder)


# --- weights that learners send to engines ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nccl", "ipc"])
def test_weights_go_from_learners_to_engines_by_vllms_own_transfer(cluster, kind, tmp_path):
    """vLLM's code on both sides, and GPUs stood in for; with IPC each engine finds what its own GPU's learner shared.

    Engines answer as one in this process that was handed the same weights, also one that was lost meanwhile.
    """
    model = tiny.save(tiny.model(scale=0.1), tmp_path)
    alone, (_, algorithm) = tiny.engine(model), make_learner(model, [])
    config = spread_over(learners=2, engines=2, colocated=kind == "ipc", heartbeat_timeout=4.0)
    make = partial(direct_transfer.make_engine, model, kind)
    direct = partial(DirectTransfer, kind=kind, dtype="float32", keeps_weights=True)
    requests = [tiny.request(f"r{i}", ids, seed=i, max_tokens=100) for i, ids in enumerate(tiny.prompts(40))]
    with ExitStack() as stack:
        place = stack.enter_context(reserved(config, "cuda", engines=2)) if kind == "ipc" else Placement()
        learner = RemoteLearner(partial(direct_transfer.make_learner, model), config, "cpu", place, direct=direct)
        stack.callback(learner.close)
        engines = RemoteEngines(make, config, place)
        stack.callback(engines.close)
        batch = learner.score(make_batch())
        credited, _ = algorithm.compute_advantages(batch)

        def trained(version):
            learner.train(credited, [None], algorithm)
            engines.load_weights(learner.weights(), version)
            alone.load_weights(iter(learner.weights(snapshot=True)), version)
            return answers(generate(alone, requests))

        expected = trained(version=1)
        assert answers(generate(engines, requests)) == expected
        again = trained(version=2)
        assert again != expected and answers(generate(engines, requests)) == again
        if kind == "ipc":
            return

        found = []
        for rollout in engines.submit(requests):
            if not found:
                os.kill(cluster.get(engines._workers[1].ask()), signal.SIGKILL)
            found.append(rollout)
        assert answers(sorted(found, key=lambda r: int(r.request_id[1:]))) == again
        os.kill(cluster.get(engines._workers[0].ask()), signal.SIGKILL)
        time.sleep(1)
        expected = trained(version=3)
        assert answers(generate(engines, requests)) == expected, "the two met anew"
        assert engines.metrics()["cluster/engines_lost"] == 2

        with pytest.raises(InputLost, match="moved on from its weights of version 3"):
            direct(learner._ranks, keeps_weights=False).resend(engines._workers[1], 3)
        (tmp_path / direct_transfer.STUCK).touch()
        with pytest.raises(InputLost, match="version 4 did not arrive: worker 2 of 4 does not answer"):
            learner.weights().send(engines._workers, 4)
