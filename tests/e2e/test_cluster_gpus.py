"""Placement on simulated GPUs, which Ray counts but no machine has: who gets which, and when they are free again."""

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
from test_cluster import ASLEEP, answers, assert_same_metrics, cluster_config, make_recipe

from simplerl.cluster.engines import RemoteEngines
from simplerl.cluster.learner import RemoteLearner
from simplerl.cluster.placement import Placement, reserve_gpus
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
    ray.connect(cluster_config().model_copy(update={"ray": nodes.address}))
    yield ray
    real.shutdown()
    nodes.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def node_and_gpu(cluster, options):
    """Node and GPU that processes with these options see."""
    config = cluster_config()
    actors = [cluster.Actor(tiny.Seer, config, each) for each in options]
    cluster.wait_until_started(actors)
    found = cluster.call_all(actors, "look")
    for actor in actors:
        actor.kill()
    return found


def test_every_process_has_its_own_gpu_and_learners_share_a_node(cluster):
    with reserve_gpus(cluster_config(learners=2), "cuda", engines=1) as placement:
        options = [placement.learner_options(0), placement.learner_options(1), placement.engine_options(0)]
        first, second, engine = node_and_gpu(cluster, options)
    assert first.node == second.node != engine.node, "the second node has room for both learners"
    assert {first.gpu, second.gpu} == {"0", "1"} and engine.gpu == "0"


def test_a_colocated_learner_and_engine_share_a_gpu_which_no_other_pair_uses(cluster):
    config = cluster_config(learners=3, engines=3, colocated=True)
    with reserve_gpus(config, "cuda", engines=3) as placement:
        pairs = [(placement.learner_options(i), placement.engine_options(i)) for i in range(3)]
        found = node_and_gpu(cluster, [options for pair in pairs for options in pair])
    assert found[0::2] == found[1::2] and len(set(found)) == 3
    with (
        pytest.raises(ClusterError, match=r"cluster\.engines=4 \(colocated\) need 4 GPUs; the cluster has 3"),
        reserve_gpus(cluster_config(learners=4, engines=4, colocated=True), "cuda", engines=4, seconds=1),
    ):
        pass


def test_without_cuda_no_gpu_is_reserved(cluster):
    with reserve_gpus(cluster_config(learners=2, engines=8), "cpu", engines=8) as placement:
        assert placement == Placement()
        assert placement.learner_options(1) == placement.engine_options(7) == cluster.ANY_NODE
        wait_for(lambda: cluster.gpu_counts() == (3, 3), 20)


def test_gpus_of_another_run_are_an_error_until_it_ends(cluster):
    with ExitStack() as other:
        other.enter_context(reserve_gpus(cluster_config(learners=2), "cuda", engines=0))
        with pytest.raises(ClusterError) as error, reserve_gpus(cluster_config(), "cuda", engines=1, seconds=2):
            pass
        assert str(error.value).startswith(
            "cluster.learners=1 and cluster.engines=1 need 2 GPUs; the cluster has 3, of which 1 are free; "
        )
    with reserve_gpus(cluster_config(), "cuda", engines=2):
        pass


def test_more_gpus_than_the_cluster_has_are_an_error(cluster):
    with (
        pytest.raises(ClusterError, match=r"^cluster\.learners=4 need 4 GPUs; the cluster has 3, of which 3 are free"),
        reserve_gpus(cluster_config(learners=4), "cuda", engines=0, seconds=1),
    ):
        pass


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_restarted_engine_gets_the_gpu_of_the_lost_one(cluster, kind):
    """Every GPU is reserved, so no other one is free."""
    from simplerl.cluster.engines import RemoteEngines

    config = cluster_config(engines=2, heartbeat_timeout=4.0)
    requests = [tiny.request(f"r{i}", [5]) for i in range(2)]
    with reserve_gpus(config, "cuda", engines=2) as placement:
        engines = RemoteEngines(tiny.Seer, config, placement)
        before = [rollout.text for rollout in generate(engines, requests)]
        os.kill(cluster.get(engines._workers[1].heartbeat()), kind)
        generate(engines, requests)
        assert engines.metrics()["cluster/engines_lost"] == 1
        assert [rollout.text for rollout in generate(engines, requests)] == before and len(set(before)) == 2
        engines.close()


@contextmanager
def kill_a_rank_after_two_steps(folder):
    """Kill a rank once the run of a folder has recorded two steps."""
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


def test_device_auto_is_cuda_if_only_the_cluster_has_gpus(cluster, tiny_model):
    recipe = make_recipe(tiny_model, ray="auto")
    auto = recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": "auto"})})
    assert (choose_device(recipe).type, choose_device(auto).type) == ("cpu", "cuda")


def test_restarted_learners_get_the_gpus_of_the_lost_ones(cluster, tiny_model, tmp_path, monkeypatch):
    """The run needs every GPU of the cluster, so the GPUs of the lost learners must be free again."""
    from simplerl.cluster import placement
    from simplerl.train.run import train

    timeouts = []

    def on_gpus(config, device, engines, seconds):
        timeouts.append(seconds)
        return reserve_gpus(config, "cuda", engines, seconds)

    monkeypatch.setattr(placement, "reserve_gpus", on_gpus)
    folder = tmp_path / "torn"
    with kill_a_rank_after_two_steps(folder):
        train(make_recipe(tiny_model, ray="auto", learners=2, engines=1), folder, plain=True)
    assert_same_metrics(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), folder)
    assert timeouts == [placement.RESERVE_TIMEOUT, cluster.START_TIMEOUT], "a lost node may return"
    wait_for(lambda: cluster.gpu_counts() == (3, 3), 20)


def test_colocated_learners_and_engines_train_like_one_process(cluster, tiny_model, tmp_path, monkeypatch):
    """Engines sleep while learners work. Without CUDA the test cannot see the memory that learners free."""
    from simplerl.cluster import placement
    from simplerl.train.run import train

    monkeypatch.setattr(placement, "reserve_gpus", lambda config, device, *rest: reserve_gpus(config, "cuda", *rest))
    cluster_settings = {"ray": "auto", "learners": 2, "engines": 2, "colocated": True}
    folder = train(make_recipe(tiny_model, engine=ASLEEP, **cluster_settings), tmp_path / "pairs", plain=True)
    assert_same_metrics(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), folder)


# --- direct weight transfer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nccl", "ipc"])
def test_vllms_own_transfer_syncs_weights_from_learners_to_engines(cluster, kind, tmp_path):
    """vLLM's code on both sides, on simulated GPUs. With IPC each engine reads the memory of the learner on its GPU.

    Engines give the rollouts of one in this process with the same weights, and so does a restarted engine.
    """
    model = tiny.save(tiny.model(scale=0.1), tmp_path)
    alone, (_, algorithm) = tiny.engine(model), make_learner(model, [])
    config = cluster_config(learners=2, engines=2, colocated=kind == "ipc", heartbeat_timeout=4.0)
    build = partial(direct_transfer.make_engine, model, kind)
    direct = partial(DirectTransfer, kind=kind, dtype="float32", keeps_weights=True)
    requests = [tiny.request(f"r{i}", ids, seed=i, max_tokens=100) for i, ids in enumerate(tiny.prompts(40))]
    with ExitStack() as stack:
        placement = stack.enter_context(reserve_gpus(config, "cuda", engines=2)) if kind == "ipc" else Placement()
        learner = RemoteLearner(partial(direct_transfer.make_learner, model), config, "cpu", placement, direct=direct)
        stack.callback(learner.close)
        engines = RemoteEngines(build, config, placement)
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
                os.kill(cluster.get(engines._workers[1].heartbeat()), signal.SIGKILL)
            found.append(rollout)
        assert answers(sorted(found, key=lambda r: int(r.request_id[1:]))) == again
        os.kill(cluster.get(engines._workers[0].heartbeat()), signal.SIGKILL)
        time.sleep(1)
        expected = trained(version=3)
        assert answers(generate(engines, requests)) == expected, "learners form a new group with the restarted engine"
        assert engines.metrics()["cluster/engines_lost"] == 2

        with pytest.raises(InputLost, match="moved on from its weights of version 3"):
            direct(learner._ranks, keeps_weights=False).resend(engines._workers[1], 3)
        (tmp_path / direct_transfer.STUCK).touch()
        with pytest.raises(InputLost, match="version 4 did not arrive: worker 2 of 4 is lost: no heartbeat"):
            learner.weights().send(engines._workers, 4)
