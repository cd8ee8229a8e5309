"""`cluster.transfer=direct`: the recipes that it refuses, how services are built for it, and the order of its calls."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from simplerl import plugins
from simplerl.cluster import learner as cluster_learner
from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.transfer import CHUNK, DirectTransfer
from simplerl.config import Recipe, SFTRecipe, validate_recipe
from simplerl.engines.base import Engine
from simplerl.errors import ConfigError
from simplerl.train.build import services

pytestmark = pytest.mark.unit


def recipe(*, kind: str = "train", engine: Any = "vllm", model: Any = None, **cluster: Any) -> Any:
    table = {
        "kind": kind,
        "model": {"path": "nowhere", **(model or {})},
        "data": {"source": "arithmetic"},
        "engine": engine,
        "cluster": {"ray": "auto", "transfer": "direct", **cluster},
    }
    return validate_recipe(table, kind=SFTRecipe if kind == "sft" else Recipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ray": None}, r"cluster\.transfer=direct: cluster\.ray is not set"),
        ({"engine": "embedded"}, r"engine\.name=embedded cannot receive them; vllm can; leave it at store"),
        ({"model": {"lora": {"rank": 4}}}, r"model\.lora sends adapters only"),
        ({"model": {"device": "cpu"}}, r"model\.device=cpu"),
        ({"transfer": "nccl"}, r"cluster\.transfer"),
    ],
)
def test_a_recipe_that_cannot_transfer_directly_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(**change)


def test_a_cluster_without_gpus_is_refused_before_any_reservation(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(services, "choose_device", lambda recipe: services.torch.device("cpu"))
    with (
        pytest.raises(ConfigError, match=r"cluster\.transfer=direct needs GPUs, but the cluster has none"),
        services.reserve_placement(recipe(), tmp_path),
    ):
        pass


@pytest.mark.parametrize("kind", ["train", "sft"])
@pytest.mark.parametrize(
    ("engine", "cluster", "transfer"),
    [
        ("vllm", {}, "nccl"),
        ({"name": "vllm", "sleep": True}, {"colocated": True}, "ipc"),
        ("vllm", {"transfer": "store"}, None),
    ],
)
def test_engine_and_learner_are_built_for_the_same_transfer(
    kind: str, engine: Any, cluster: dict[str, Any], transfer: str | None, monkeypatch: Any
) -> None:
    """NCCL by default, CUDA IPC if a learner and an engine share a GPU. None: through the object store."""
    made = recipe(kind=kind, engine=engine, model={"dtype": "bfloat16"}, **cluster)
    built: dict[str, Any] = {}

    class FakeEngine(Engine):
        can_sleep = True

    class FakeEngineModule:
        @staticmethod
        def build(*_: Any, transfer: str | None = None, **others: Any) -> Engine:
            built["engine"] = transfer
            return FakeEngine()

    monkeypatch.setattr(plugins, "load", lambda *_: FakeEngineModule)
    monkeypatch.setattr(services, "resolve_model_path", lambda path: path)
    monkeypatch.setattr(
        cluster_learner, "RemoteLearner", lambda *_, direct, **others: built.setdefault("learner", direct)
    )
    cuda = services.torch.device("cuda")
    services.build_engine(made, None, cuda)  # type: ignore[arg-type]
    services.place_learner(made, None, 1, cuda, Placement())  # type: ignore[arg-type]
    assert built["engine"] == transfer
    if transfer is None:
        assert built["learner"] is None
    else:
        direct: partial[Any] = built["learner"]
        assert (direct.func, direct.keywords) == (
            DirectTransfer,
            {"kind": transfer, "dtype": "bfloat16", "keeps_weights": True},
        )


def test_a_learner_with_stale_rollouts_does_not_keep_the_weights_it_sent(monkeypatch: Any) -> None:
    """It updates while engines still sample, so a restarted engine cannot get the same weights again."""
    built: dict[str, Any] = {}
    monkeypatch.setattr(cluster_learner, "RemoteLearner", lambda *_, direct, **others: built.update(direct.keywords))
    stale = Recipe.model_validate(recipe().model_dump() | {"train": {"staleness": 1}})
    services.place_learner(stale, None, 1, services.torch.device("cuda"), Placement())  # type: ignore[arg-type]
    assert built["keeps_weights"] is False


@pytest.mark.parametrize(
    ("shapes", "size"),
    [({"a": (4, 4)}, CHUNK), ({"a": (4, 4), "embed": (152_064, 3_584)}, 1_089_994_752)],
    ids=["small", "Qwen2.5-7B"],
)
def test_the_ipc_buffer_holds_the_largest_weight(shapes: dict[str, tuple[int, ...]], size: int) -> None:
    """IPC copies every weight into one buffer. 152,064 x 3,584 in bfloat16 are 1,089,994,752 bytes."""
    rank: Any = SimpleNamespace(call=lambda *_: shapes)
    assert DirectTransfer([rank], "ipc", "bfloat16", keeps_weights=True)._ipc_buffer_bytes == size


GROUP = ["rank init_transfer", "engine init_transfer"]
NCCL = ["engine begin_update", "rank send", "engine receive_weights", "engine finish_update"]
IPC = ["rank free_cached_memory", "engine begin_update", "rank send", "engine finish_update"]


@pytest.mark.parametrize(("kind", "sync"), [("nccl", NCCL), ("ipc", IPC)])
def test_the_calls_of_a_weight_sync_and_their_order(kind: Any, sync: list[str], monkeypatch: Any) -> None:
    """The order is the contract of `Receiver`, and engines that keep it are other people's plug-ins.

    With IPC the rank must free memory before `begin_update`, which wakes the engine on the same GPU, and it calls
    `receive_weights` itself while it sends. The group is formed once, and again for a restarted engine.
    """
    calls: list[str] = []

    class FakeActor:
        def __init__(self, name: str) -> None:
            self.name = name

        def submit(self, method: str, *_: Any) -> None:
            calls.append(f"{self.name} {method}")

        def call(self, method: str, *_: Any) -> Any:
            return {"run": {"w": (2, 2)}, "address": "h:1"}[method]

    def call_all(actors: list[FakeActor], method: str, *_: Any) -> None:
        for actor in actors:
            actor.submit(method)

    monkeypatch.setattr(ray, "results_of", lambda actors, references: None)
    monkeypatch.setattr(ray, "call_all", call_all)
    rank, engine, restarted = (FakeActor(name) for name in ("rank", "engine", "engine"))
    direct = DirectTransfer([rank], kind, "float32", keeps_weights=True)  # type: ignore[list-item]
    for engines in ([engine], [engine], [restarted]):
        direct.send(engines, 1)  # type: ignore[arg-type]
    assert calls == [*GROUP, *sync, *sync, *GROUP, *sync]
