"""Real Ray on this machine: a run over several processes equals a run in one, and survives the loss of processes."""

import importlib.util
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import direct_transfer
import engine_models as tiny
import pytest
import torch
from learner_cases import make_batch, make_learner, rank_learner
from run_processes import contents, own_processes
from safetensors.torch import load_file

from simplerl.cluster import check
from simplerl.cluster.placement import Placement
from simplerl.cluster.report import node_report
from simplerl.cluster.transfer import ObjectStoreWeights
from simplerl.config import ClusterConfig, validate_recipe
from simplerl.engines.base import generate
from simplerl.errors import ClusterError, EngineError, InputLost, WorkerLost
from simplerl.storage.checkpoint import load_state, load_tensors
from simplerl.storage.records import RunFolder
from simplerl.train.build import services

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"),
    pytest.mark.filterwarnings("ignore"),
]


def cluster_config(**settings):
    return ClusterConfig(ray="auto", **settings)


@pytest.fixture(scope="module")
def cluster():
    """A new cluster, whose processes can import the tests' modules."""
    from simplerl.cluster import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), before]))
    ray.connect(cluster_config())
    yield ray
    import ray as real

    real.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.model(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engines(cluster, folder):
    """Two engines. Tests kill them, and they are restarted."""
    from simplerl.cluster.engines import RemoteEngines

    build = partial(tiny.PacedEngine, folder, seconds=0.05, max_batch=4)
    made = RemoteEngines(build, cluster_config(engines=2), Placement())
    made.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    yield made
    made.close()


def faults(engines):
    """Engines lost and requests moved so far."""
    return tuple(engines.metrics().values())


def shorten_heartbeat_timeout(engines, monkeypatch):
    monkeypatch.setattr(engines, "_config", cluster_config(engines=2, heartbeat_timeout=4.0))
    for worker in engines._workers:
        worker.heartbeat_timeout = 4.0


def answers(rollouts):
    return [(r.request_id, r.token_ids, r.text, r.finish_reason, r.policy_version) for r in rollouts]


@pytest.fixture(scope="module")
def expected(folder):
    """Rollouts of one engine in this process."""
    engine = tiny.engine(folder, max_batch=4)
    engine.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    return answers(generate(engine, REQUESTS))


REQUESTS = [tiny.request(f"r{i}", ids, seed=i, max_tokens=300) for i, ids in enumerate(tiny.prompts(60))]


def process_of(cluster, worker):
    return cluster.get(worker.heartbeat())


def test_several_engines_give_the_rollouts_of_one(engines, expected):
    assert answers(generate(engines, REQUESTS)) == expected
    assert engines.metrics() == {"cluster/engines_lost": 0.0, "cluster/requests_moved": 0.0}


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_other_engines_finish_the_requests_of_a_lost_engine_each_exactly_once(
    cluster, engines, expected, kind, monkeypatch
):
    """The rollouts do not change, because random numbers depend on the request alone."""
    shorten_heartbeat_timeout(engines, monkeypatch)
    victim = process_of(cluster, engines._workers[0])
    seen, before = [], faults(engines)
    for rollout in engines.submit(REQUESTS):
        if not seen:
            os.kill(victim, kind)
        seen.append(rollout)
    order = {request.id: number for number, request in enumerate(REQUESTS)}
    assert answers(sorted(seen, key=lambda r: order[r.request_id])) == expected
    lost, moved = faults(engines)
    assert [text.split(" (")[0] for text in engines.take_events()] == [
        "engine 0 of 2 is lost",
        f"{moved - before[1]:.0f} unfinished requests of engine 0 move to all engines",
    ]
    assert lost == before[0] + 1 and 1 <= moved - before[1] <= 30
    assert answers(generate(engines, REQUESTS)) == expected, "the restarted engine has the weights of the lost one"


def test_an_engine_that_was_killed_is_restarted_at_the_next_weight_sync(cluster, engines, expected):
    before = faults(engines)
    os.kill(process_of(cluster, engines._workers[1]), signal.SIGKILL)
    time.sleep(1)
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    assert answers(generate(engines, REQUESTS)) == expected
    assert faults(engines) == (before[0] + 1, before[1])


def test_an_engine_that_hangs_is_restarted_at_the_next_weight_sync(cluster, engines, expected, monkeypatch):
    shorten_heartbeat_timeout(engines, monkeypatch)
    before = faults(engines)
    os.kill(process_of(cluster, engines._workers[1]), signal.SIGSTOP)
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    assert faults(engines) == (before[0] + 1, before[1])
    assert answers(generate(engines, REQUESTS)) == expected


def test_engines_sleep_until_the_next_weight_sync_and_so_does_a_restarted_one(cluster, engines, expected):
    engines.sleep()
    engines.sleep()
    with pytest.raises(EngineError, match="asleep"):
        generate(engines, REQUESTS[:2])
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    assert answers(generate(engines, REQUESTS)) == expected
    before = faults(engines)
    os.kill(process_of(cluster, engines._workers[1]), signal.SIGKILL)
    time.sleep(1)
    engines.sleep()
    assert faults(engines) == (before[0] + 1, before[1])
    for worker in engines._workers:
        with pytest.raises(EngineError, match="asleep"):
            cluster.get(next(worker.stream("submit", REQUESTS[:1])))
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    assert answers(generate(engines, REQUESTS)) == expected


def test_weights_lost_with_their_learner_do_not_count_as_engine_faults(cluster, engines):
    learner = cluster.Actor(tiny.Storer, cluster_config(), cluster.ANY_NODE)
    weights = ObjectStoreWeights(learner.call("weights"))
    before = faults(engines)
    os.kill(process_of(cluster, learner), signal.SIGKILL)
    with pytest.raises(InputLost, match="lost with the process that made them"):
        for _ in range(120):  # Ray keeps them until it notices that their owner is dead
            engines.load_weights(weights, version=8)
            time.sleep(0.5)
    assert faults(engines) == before
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)


def test_more_lost_engines_than_restarts_are_an_error(cluster, folder):
    from simplerl.cluster.engines import RemoteEngines

    engines = RemoteEngines(partial(tiny.engine, folder), cluster_config(restarts=0), Placement())
    os.kill(process_of(cluster, engines._workers[0]), signal.SIGKILL)
    with pytest.raises(ClusterError, match=r"engine 0 is lost .*cluster\.restarts=0 allows no more"):
        generate(engines, REQUESTS)


def test_an_engine_error_is_raised_unchanged(engines):
    with pytest.raises(EngineError, match=r"^request foreign has token 999") as error:
        generate(engines, [*REQUESTS, tiny.request("foreign", [5, 999])])
    assert type(error.value) is EngineError
    with pytest.raises(EngineError, match="same id"):
        engines.submit([REQUESTS[0], REQUESTS[0]])


def test_an_error_of_building_an_engine_is_raised_unchanged(cluster):
    from simplerl.cluster.engines import RemoteEngines

    with pytest.raises(OSError, match="nowhere"):
        RemoteEngines(partial(tiny.engine, "/nowhere"), cluster_config(engines=2), Placement())


def test_an_engine_that_builds_slowly_does_not_count_as_lost(cluster, folder):
    """Loading a large model takes longer than `heartbeat_timeout`."""
    from simplerl.cluster.engines import RemoteEngines

    engines = RemoteEngines(
        partial(tiny.slow_engine, folder, seconds=15), cluster_config(heartbeat_timeout=4.0), Placement()
    )
    assert len(generate(engines, REQUESTS[:4])) == 4 and faults(engines) == (0, 0)
    engines.close()


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_nodes_report_their_versions_and_whether_they_share_the_folder(cluster, tmp_path, monkeypatch):
    """On one machine every folder is shared, so the test leaves out the token file to imitate another folder."""
    check.check_nodes(Placement(), tmp_path, ("pydantic",), str(tmp_path))
    monkeypatch.setattr(check, "token_file", lambda folder: nullcontext("never-written"))
    with pytest.raises(ClusterError, match=rf"^node {socket.gethostname()} has another folder at {tmp_path}, without"):
        check.check_nodes(Placement(), tmp_path, (), "")
    found = cluster.run_on_nodes(
        cluster.alive_nodes(), node_report, ("nonesuch",), str(tmp_path / "no"), "", "/no", seconds=30
    )
    (one,) = found.values()
    assert {cluster.host_name(node) for node in found} == {socket.gethostname()}
    assert (one["folder"], one["model"], one["versions"]["nonesuch"]) == ("missing", False, None)
    assert cluster.run_on_nodes(["e" * 56], node_report, (), "", "", "", seconds=5) == {}, "this node does not exist"


# --- learners ---------------------------------------------------------------------------------------------------------


def saved_state(learner, folder):
    folder.mkdir()
    return read_state(folder, learner.save(folder))


def read_state(folder, scalars):
    """Tensors and scalars that a learner saved, as lists and numbers that compare exactly."""
    names = ("actor", "critic", "actor_optimizer", "critic_optimizer")
    tensors = {name: {key: t.tolist() for key, t in sorted(load_tensors(folder, name).items())} for name in names}
    return tensors, scalars


def test_a_checkpoint_resumes_with_another_number_of_ranks(cluster, tmp_path):
    """2 ranks, then 1, then 2: the state is exact, and the updates equal those of one uninterrupted process.

    At the end a rank hangs, which raises `WorkerLost`.
    """
    from simplerl.cluster.learner import RemoteLearner

    model = tiny.save(tiny.model(scale=0.1), tmp_path)
    alone, algorithm = make_learner(model, [])
    batch = make_batch()
    credited, _ = algorithm.compute_advantages(alone.score(batch))
    parts = torch.arange(len(batch)).split(4)
    saved, remote = None, None
    for number, (count, rows) in enumerate(zip((2, 1, 2), parts, strict=True)):
        remote = RemoteLearner(partial(rank_learner, model), cluster_config(learners=count), "cpu", Placement())
        if saved is not None:
            remote.restore(*saved)
            assert saved_state(remote, tmp_path / f"again-{number}") == read_state(*saved)
        (found,), (expected,) = (learner.train(credited, [rows], algorithm) for learner in (remote, alone))
        assert found == pytest.approx(expected, abs=1e-6, rel=1e-5)
        folder = tmp_path / str(number)
        folder.mkdir()
        saved = folder, remote.save(folder)
        if rows is not parts[-1]:
            remote.close()
    assert len(list((folder / "actor").glob("*.safetensors"))) == 2, "each rank writes its own shards"
    (tmp_path / "alone").mkdir()
    alone.save(tmp_path / "alone")
    for name in ("actor", "critic", "actor_optimizer", "critic_optimizer"):
        full = load_tensors(folder, name)
        for key, tensor in load_tensors(tmp_path / "alone", name).items():
            assert torch.allclose(full[key], tensor, atol=1e-6), (name, key)
    alone.restore(*saved)
    assert saved_state(alone, tmp_path / "back") == read_state(*saved), "one process reads the shards of two ranks"
    for rank in remote._ranks:
        rank.heartbeat_timeout = 4.0
    os.kill(process_of(cluster, remote._ranks[1]), signal.SIGSTOP)
    with pytest.raises(WorkerLost, match="worker 1 of 2 is lost: no heartbeat within 4 s"):
        remote.logprobs(batch)
    remote.close()


# --- whole runs -------------------------------------------------------------------------------------------------------


AWAKE = {"name": "embedded", "cpu_threads": 1}
ASLEEP = {**AWAKE, "sleep": True}


def make_recipe(tiny_model, engine=AWAKE, lora=None, device="cpu", staleness=0, **cluster):
    return validate_recipe(
        {
            "seed": 3,
            "model": {"path": str(tiny_model), "device": device, **({"lora": lora} if lora else {})},
            "data": {"source": "arithmetic"},
            "rollout": {"prompts_per_step": 6, "samples_per_prompt": 4, "max_tokens": 32},
            "algorithm": {"name": "ppo", "kl_coef": 0.05, "kl_target": 0.1, "kl_horizon": 100},
            "train": {
                "steps": 4,
                "minibatch_size": 8,
                "ppo_epochs": 2,
                "critic_warmup_steps": 1,
                "cpu_threads": 1,
                "staleness": staleness,
            },
            "actor": {"learning_rate": 1e-3},
            "critic": {"learning_rate": 1e-3},
            "engine": engine,
            "checkpoint": {"every": 2},
            **({"cluster": cluster} if cluster else {}),
        }
    )


@pytest.fixture(scope="module")
def spread(cluster, tiny_model, tmp_path_factory):
    """A run over two learners and two engines."""
    from simplerl.train.run import train

    path = tmp_path_factory.mktemp("runs") / "spread"
    return train(make_recipe(tiny_model, ray="auto", learners=2, engines=2), path, plain=True)


def assert_same_metrics(folder, other):
    """Compare two runs of four steps: every metric is equal to rounding.

    Left out are times, memory, fault counts, and log-prob differences, which consist of rounding errors.
    """
    rows, others = (RunFolder(path).read_metrics() for path in (folder, other))
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [1, 2, 3, 4]
    for one, two in zip(rows, others, strict=True):
        for name, value in one.items():
            if not name.startswith(("time/", "memory/", "mismatch/", "sync/", "cluster/")):
                assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_two_learners_and_two_engines_train_like_one_process(spread, tiny_model, tmp_path):
    from simplerl.train.run import train

    assert_same_metrics(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), spread)


def test_adapters_on_two_learners_and_two_engines_train_like_one_process(cluster, tiny_model, tmp_path):
    """Engines and checkpoints receive adapters only. One process resumes from the adapters of two ranks."""
    from simplerl.train.run import train

    lora = {"rank": 4}
    alone = train(make_recipe(tiny_model, lora=lora), tmp_path / "alone", plain=True)
    spread = train(
        make_recipe(tiny_model, lora=lora, ray="auto", learners=2, engines=2), tmp_path / "spread", plain=True
    )
    assert_same_metrics(alone, spread)
    saved = spread / "checkpoints" / "step-000004"
    assert all(".lora_" in name for name in load_tensors(saved, "actor"))
    learner, _ = make_learner(str(tiny_model), ["model.lora.rank=4"])
    learner.restore(saved, load_state(saved)["learner"])
    assert saved_state(learner, tmp_path / "again")[0] == read_state(saved, None)[0]
    learner.export(tmp_path / "export")
    exported = load_file(spread / "exports" / "final" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "export" / "model.safetensors").items():
        assert torch.equal(exported[name], tensor), name


@contextmanager
def no_gpus(*_, **__):
    yield Placement()


def transfer_directly(monkeypatch):
    """Sync weights by vLLM's own transfer, on simulated GPUs."""
    for name, stand_in in (("engine", direct_transfer.build_engine), ("learner", direct_transfer.build_learner)):
        monkeypatch.setattr(services, f"build_{name}", stand_in)
    monkeypatch.setattr(services, "reserve_placement", no_gpus)


def test_remote_engines_prefetch_rollouts_like_one_process(cluster, tiny_model, tmp_path, monkeypatch):
    """Checkpoints hold prefetched rollouts. Weights for a busy engine wait in the object store."""
    from simplerl.train.run import train

    stale = {"device": "auto", "staleness": 2}
    alone = train(make_recipe(tiny_model, **stale), tmp_path / "alone", plain=True)
    transfer_directly(monkeypatch)
    spread = make_recipe(tiny_model, "vllm", ray="auto", engines=2, transfer="direct", **stale)
    assert_same_metrics(train(spread, tmp_path / "spread", plain=True), alone)
    assert (tmp_path / "spread" / "checkpoints" / "step-000002" / "prefetched.safetensors").is_file()


@pytest.mark.parametrize("transfer", ["store", "direct"])
def test_after_losing_a_learner_a_run_repeats_the_steps_since_its_checkpoint(
    cluster, spread, tiny_model, tmp_path, monkeypatch, transfer
):
    """Every number except times equals that of an undisturbed run, with both ways of weight sync."""
    from simplerl.train.run import train

    recipe = make_recipe(tiny_model, ray="auto", learners=2, engines=2)
    if transfer == "direct":
        recipe = make_recipe(tiny_model, "vllm", device="auto", ray="auto", learners=2, engines=2, transfer=transfer)
        transfer_directly(monkeypatch)
    folder = tmp_path / "torn"
    done = threading.Event()

    def kill_a_rank():
        while not done.is_set() and len(RunFolder(folder).read_metrics()) < 3:
            time.sleep(0.02)
        os.kill(own_processes("ray::RankWorker")[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill_a_rank)
    thread.start()
    train(recipe, folder, plain=True)
    done.set()
    thread.join()
    assert contents(folder) == contents(spread)
