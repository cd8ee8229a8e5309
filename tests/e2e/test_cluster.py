"""Real Ray on this machine: a run spread over processes is the run of one, and what dies is made good."""

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
from simplerl.cluster.report import report
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


def spread_over(**how):
    return ClusterConfig(ray="auto", **how)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of its own, whose processes find the tests' modules."""
    from simplerl.cluster import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), before]))
    ray.start(spread_over())
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
    """Two, which are lost and begun anew from test to test."""
    from simplerl.cluster.engines import RemoteEngines

    make = partial(tiny.PacedEngine, folder, seconds=0.05, max_batch=4)
    made = RemoteEngines(make, spread_over(engines=2), Placement())
    made.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    yield made
    made.close()


def faults(engines):
    """Engines lost and requests moved so far."""
    return tuple(engines.metrics().values())


def impatient(engines, monkeypatch):
    monkeypatch.setattr(engines, "_config", spread_over(engines=2, heartbeat_timeout=4.0))
    for worker in engines._workers:
        worker.heartbeat_timeout = 4.0


def answers(rollouts):
    return [(r.request_id, r.token_ids, r.text, r.finish_reason, r.policy_version) for r in rollouts]


@pytest.fixture(scope="module")
def expected(folder):
    """What one engine in this process answers."""
    engine = tiny.engine(folder, max_batch=4)
    engine.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    return answers(generate(engine, REQUESTS))


REQUESTS = [tiny.request(f"r{i}", ids, seed=i, max_tokens=300) for i, ids in enumerate(tiny.prompts(60))]


def process_of(cluster, worker):
    return cluster.get(worker.ask())


def test_engines_answer_as_one_does(engines, expected):
    assert answers(generate(engines, REQUESTS)) == expected
    assert engines.metrics() == {"cluster/engines_lost": 0.0, "cluster/requests_moved": 0.0}


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_what_a_lost_engine_left_unfinished_is_answered_by_others_and_nothing_twice(
    cluster, engines, expected, kind, monkeypatch
):
    """The answers are the same: random numbers belong to requests."""
    impatient(engines, monkeypatch)
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
        f"{moved - before[1]:.0f} requests that engine 0 left unfinished go to all engines",
    ]
    assert lost == before[0] + 1 and 1 <= moved - before[1] <= 30
    assert answers(generate(engines, REQUESTS)) == expected, "the new engine has the weights of the lost one"


def test_an_engine_that_died_between_steps_is_made_good_when_weights_come(cluster, engines, expected):
    before = faults(engines)
    os.kill(process_of(cluster, engines._workers[1]), signal.SIGKILL)
    time.sleep(1)
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    assert answers(generate(engines, REQUESTS)) == expected
    assert faults(engines) == (before[0] + 1, before[1])


def test_an_engine_that_hangs_between_steps_is_made_good_when_weights_come(cluster, engines, expected, monkeypatch):
    impatient(engines, monkeypatch)
    before = faults(engines)
    os.kill(process_of(cluster, engines._workers[1]), signal.SIGSTOP)
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    assert faults(engines) == (before[0] + 1, before[1])
    assert answers(generate(engines, REQUESTS)) == expected


def test_engines_sleep_until_weights_come_and_so_does_one_begun_anew(cluster, engines, expected):
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
            cluster.get(next(worker.stream("answer", REQUESTS[:1])))
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)
    assert answers(generate(engines, REQUESTS)) == expected


def test_weights_that_went_with_their_learner_are_no_fault_of_the_engines(cluster, engines):
    learner = cluster.Actor(tiny.Storer, spread_over(), cluster.ANYWHERE)
    weights = ObjectStoreWeights(cluster.get(learner.call("weights")))
    before = faults(engines)
    os.kill(process_of(cluster, learner), signal.SIGKILL)
    with pytest.raises(InputLost, match="went with the process that made them"):
        for _ in range(120):  # until Ray has seen that their owner is gone they are still there
            engines.load_weights(weights, version=8)
            time.sleep(0.5)
    assert faults(engines) == before
    engines.load_weights(iter(tiny.model(seed=3).state_dict().items()), version=7)


def test_engines_that_die_too_often_end_the_run_in_words(cluster, folder):
    from simplerl.cluster.engines import RemoteEngines

    engines = RemoteEngines(partial(tiny.engine, folder), spread_over(restarts=0), Placement())
    os.kill(process_of(cluster, engines._workers[0]), signal.SIGKILL)
    with pytest.raises(ClusterError, match=r"engine 0 is lost .*cluster\.restarts=0 allows no more"):
        generate(engines, REQUESTS)


def test_an_error_of_an_engine_is_that_error_here(engines):
    with pytest.raises(EngineError, match=r"^request foreign has token 999") as error:
        generate(engines, [*REQUESTS, tiny.request("foreign", [5, 999])])
    assert type(error.value) is EngineError
    with pytest.raises(EngineError, match="same id"):
        engines.submit([REQUESTS[0], REQUESTS[0]])


def test_an_engine_that_cannot_be_made_is_the_error_that_it_is_here(cluster):
    from simplerl.cluster.engines import RemoteEngines

    with pytest.raises(OSError, match="nowhere"):
        RemoteEngines(partial(tiny.engine, "/nowhere"), spread_over(engines=2), Placement())


def test_an_engine_that_takes_long_to_begin_is_not_taken_for_lost(cluster, folder):
    """A large model does."""
    from simplerl.cluster.engines import RemoteEngines

    engines = RemoteEngines(
        partial(tiny.slow_engine, folder, seconds=15), spread_over(heartbeat_timeout=4.0), Placement()
    )
    assert len(generate(engines, REQUESTS[:4])) == 4 and faults(engines) == (0, 0)
    engines.close()


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_a_worker_reports_the_versions_of_this_process_and_whether_it_shares_the_folder(cluster, tmp_path, monkeypatch):
    """On one machine all is shared, so a folder is made to look like another by leaving out what is written there."""
    begun = time.monotonic()
    check.check(Placement(), tmp_path, ("pydantic",), str(tmp_path))
    monkeypatch.setattr(check, "token_in", lambda folder: nullcontext("nobody-wrote-it"))
    with pytest.raises(ClusterError, match=rf"^node {socket.gethostname()} has another folder at {tmp_path}, without"):
        check.check(Placement(), tmp_path, (), "")
    found = cluster.on_each(cluster.nodes(), report, ("nonesuch",), str(tmp_path / "no"), "", "/no", seconds=30)
    (one,) = found.values()
    assert {cluster.host(node) for node in found} == {socket.gethostname()}
    assert (one["folder"], one["model"], one["versions"]["nonesuch"]) == ("missing", False, None)
    assert time.monotonic() - begun < 30
    assert cluster.on_each(["e" * 56], report, (), "", "", "", seconds=5) == {}, "a node that is gone says nothing"


# --- learners ---------------------------------------------------------------------------------------------------------


def written(learner, folder):
    folder.mkdir()
    return written_tensors(folder, learner.save(folder))


def written_tensors(folder, scalars):
    """All that a learner saved, in a form that can be compared exactly."""
    names = ("actor", "critic", "actor_optimizer", "critic_optimizer")
    tensors = {name: {key: t.tolist() for key, t in sorted(load_tensors(folder, name).items())} for name in names}
    return tensors, scalars


def test_a_checkpoint_goes_on_with_another_number_of_ranks(cluster, tmp_path):
    """2, then 1, then 2: the state is exact, and the updates are those of one process that never stopped.

    At last a rank hangs, and is found.
    """
    from simplerl.cluster.learner import RemoteLearner

    model = tiny.save(tiny.model(scale=0.1), tmp_path)
    alone, algorithm = make_learner(model, [])
    batch = make_batch()
    credited, _ = algorithm.compute_advantages(alone.score(batch))
    parts = torch.arange(len(batch)).split(4)
    saved, remote = None, None
    for number, (count, rows) in enumerate(zip((2, 1, 2), parts, strict=True)):
        remote = RemoteLearner(partial(rank_learner, model), spread_over(learners=count), "cpu", Placement())
        if saved is not None:
            remote.restore(*saved)
            assert written(remote, tmp_path / f"again-{number}") == written_tensors(*saved)
        assert remote.update(credited.select(rows), algorithm) == pytest.approx(
            alone.update(credited.select(rows), algorithm), abs=1e-6, rel=1e-5
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        saved = folder, remote.save(folder)
        if rows is not parts[-1]:
            remote.close()
    assert len(list((folder / "actor").glob("*.safetensors"))) == 2, "each rank writes its own part"
    (tmp_path / "alone").mkdir()
    alone.save(tmp_path / "alone")
    for name in ("actor", "critic", "actor_optimizer", "critic_optimizer"):
        whole = load_tensors(folder, name)
        for key, tensor in load_tensors(tmp_path / "alone", name).items():
            assert torch.allclose(whole[key], tensor, atol=1e-6), (name, key)
    alone.restore(*saved)
    assert written(alone, tmp_path / "back") == written_tensors(*saved), "one process reads what ranks wrote"
    for rank in remote._ranks:
        rank.heartbeat_timeout = 4.0
    os.kill(process_of(cluster, remote._ranks[1]), signal.SIGSTOP)
    with pytest.raises(WorkerLost, match="worker 1 of 2 does not answer"):
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


def assert_alike(folder, other):
    """Every metric to rounding but times, faults, and differences that are nothing but rounding."""
    rows, others = (RunFolder(path).read_metrics() for path in (folder, other))
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [1, 2, 3, 4]
    for one, two in zip(rows, others, strict=True):
        for name, value in one.items():
            if not name.startswith(("time/", "memory/", "mismatch/", "sync/", "cluster/")):
                assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_two_learners_and_two_engines_train_as_one_process_does(spread, tiny_model, tmp_path):
    from simplerl.train.run import train

    assert_alike(train(make_recipe(tiny_model), tmp_path / "alone", plain=True), spread)


def test_adapters_on_two_learners_and_two_engines_train_as_in_one_process(cluster, tiny_model, tmp_path):
    """They alone go to engines and into checkpoints; one process goes on from those of two ranks."""
    from simplerl.train.run import train

    lora = {"rank": 4}
    alone = train(make_recipe(tiny_model, lora=lora), tmp_path / "alone", plain=True)
    spread = train(
        make_recipe(tiny_model, lora=lora, ray="auto", learners=2, engines=2), tmp_path / "spread", plain=True
    )
    assert_alike(alone, spread)
    saved = spread / "checkpoints" / "step-000004"
    assert all(".lora_" in name for name in load_tensors(saved, "actor"))
    learner, _ = make_learner(str(tiny_model), ["model.lora.rank=4"])
    learner.restore(saved, load_state(saved)["learner"])
    assert written(learner, tmp_path / "again")[0] == written_tensors(saved, None)[0]
    learner.export(tmp_path / "export")
    exported = load_file(spread / "exports" / "final" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "export" / "model.safetensors").items():
        assert torch.equal(exported[name], tensor), name


@contextmanager
def anywhere(*_, **__):
    yield Placement()


def directly(monkeypatch):
    """Weights go by vLLM's own transfer, on GPUs that are stood in for."""
    for name, stand_in in (("engine", direct_transfer.build_engine), ("learner", direct_transfer.build_learner)):
        monkeypatch.setattr(services, f"build_{name}", stand_in)
    monkeypatch.setattr(services, "reserved", anywhere)


def test_engines_elsewhere_sample_ahead_as_in_one_process(cluster, tiny_model, tmp_path, monkeypatch):
    """Checkpoints hold what they sampled. Weights for an engine at work go through the store, else they are sent."""
    from simplerl.train.run import train

    ahead = {"device": "auto", "staleness": 2}
    alone = train(make_recipe(tiny_model, **ahead), tmp_path / "alone", plain=True)
    directly(monkeypatch)
    spread = make_recipe(tiny_model, "vllm", ray="auto", engines=2, transfer="direct", **ahead)
    assert_alike(train(spread, tmp_path / "spread", plain=True), alone)
    assert (tmp_path / "spread" / "checkpoints" / "step-000002" / "ahead.safetensors").is_file()


@pytest.mark.parametrize("transfer", ["store", "direct"])
def test_a_lost_learner_costs_the_steps_since_the_last_checkpoint_alone(
    cluster, spread, tiny_model, tmp_path, monkeypatch, transfer
):
    """Every number but the time is that of the run without a fault, however weights come to engines."""
    from simplerl.train.run import train

    recipe = make_recipe(tiny_model, ray="auto", learners=2, engines=2)
    if transfer == "direct":
        recipe = make_recipe(tiny_model, "vllm", device="auto", ray="auto", learners=2, engines=2, transfer=transfer)
        directly(monkeypatch)
    folder = tmp_path / "torn"
    done = threading.Event()

    def assassin():
        while not done.is_set() and len(RunFolder(folder).read_metrics()) < 3:
            time.sleep(0.02)
        os.kill(own_processes("ray::RankWorker")[-1], signal.SIGKILL)

    thread = threading.Thread(target=assassin)
    thread.start()
    train(recipe, folder, plain=True)
    done.set()
    thread.join()
    assert contents(folder) == contents(spread)
