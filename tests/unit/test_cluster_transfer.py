"""`cluster.transfer=direct`: where it is refused, and what learners and engines are told of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from simplerl import plugins
from simplerl.cluster import learner as cluster_learner
from simplerl.cluster import ray
from simplerl.cluster.placement import Placement
from simplerl.cluster.transfer import CHUNK, DirectTransfer
from simplerl.config import Recipe, SFTRecipe, validate_recipe
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
        ({"model": {"lora": {"rank": 4}}}, r"model\.lora hands over adapters alone"),
        ({"model": {"device": "cpu"}}, r"model\.device=cpu"),
        ({"transfer": "nccl"}, r"cluster\.transfer"),
    ],
)
def test_it_is_refused_where_it_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(**change)


def test_without_gpus_it_is_refused_before_anything_is_reserved(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(services, "choose_device", lambda recipe: services.torch.device("cpu"))
    with (
        pytest.raises(ConfigError, match="made for GPUs, and the cluster has none"),
        services.reserved(recipe(), tmp_path),
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
def test_learners_and_engines_agree_on_how(
    kind: str, engine: Any, cluster: dict[str, Any], transfer: str | None, monkeypatch: Any
) -> None:
    made = recipe(kind=kind, engine=engine, model={"dtype": "bfloat16"}, **cluster)
    told: dict[str, Any] = {}

    class Engines:
        @staticmethod
        def build(*_: Any, transfer: str | None = None, **others: Any) -> Any:
            told["engine"] = transfer
            return Engines()

        can_sleep = True

    class Learner:
        def __init__(self, *_: Any, direct: Any, **others: Any) -> None:
            told["learner"] = direct

    monkeypatch.setattr(plugins, "load", lambda *_: Engines)
    monkeypatch.setattr(services, "resolve_model_path", lambda path: path)
    monkeypatch.setattr(cluster_learner, "RemoteLearner", Learner)
    cuda = services.torch.device("cuda")
    services.build_engine(made, None, cuda)  # type: ignore[arg-type]
    services.placed_learner(made, None, 1, cuda, Placement())  # type: ignore[arg-type]
    assert told["engine"] == transfer
    if transfer is None:
        assert told["learner"] is None
    else:
        direct: partial[Any] = told["learner"]
        assert (direct.func, direct.keywords) == (
            DirectTransfer,
            {"kind": transfer, "dtype": "bfloat16", "keeps_weights": True},
        )


def test_with_rollouts_ahead_the_learner_does_not_wait(monkeypatch: Any) -> None:
    kept: dict[str, Any] = {}
    monkeypatch.setattr(cluster_learner, "RemoteLearner", lambda *_, direct, **others: kept.update(direct.keywords))
    ahead = Recipe.model_validate(recipe().model_dump() | {"train": {"staleness": 1}})
    services.placed_learner(ahead, None, 1, services.torch.device("cuda"), Placement())  # type: ignore[arg-type]
    assert kept["keeps_weights"] is False


def test_a_chunk_has_room_for_the_largest_weight(monkeypatch: Any) -> None:
    """IPC copies every weight into one buffer. 152,064 x 3,584 in bfloat16 are 1,089,994,752 bytes."""
    for shapes, size in (({"a": (4, 4)}, CHUNK), ({"a": (4, 4), "embed": (152_064, 3_584)}, 1_089_994_752)):
        monkeypatch.setattr("simplerl.cluster.ray.answer", lambda actor, reference, shapes=shapes: shapes)
        monkeypatch.setattr("simplerl.cluster.ray.Actor.call", lambda *_: None)
        direct = DirectTransfer([object.__new__(cluster_learner.Actor)], "ipc", "bfloat16", keeps_weights=True)
        assert direct._ipc_buffer_bytes == size


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        (
            "nccl",
            [
                "rank init_transfer",
                "engine init_transfer",
                "engine begin_update",
                "rank send",
                "engine receive_weights",
                "engine finish_update",
            ],
        ),
        (
            "ipc",
            [
                "rank init_transfer",
                "engine init_transfer",
                "rank free_cached_memory",
                "engine begin_update",
                "rank send",
                "engine finish_update",
            ],
        ),
    ],
)
def test_who_is_told_what_and_when(kind: Any, order: list[str], monkeypatch: Any) -> None:
    """On a GPU of both the learner gives memory back before the engine wakes; IPC's chunks come from the learner."""
    told: list[str] = []

    class Process:
        def __init__(self, name: str) -> None:
            self.name = name

        def call(self, method: str, *_: Any) -> str:
            told.append(f"{self.name} {method}")
            return method

    def all_of(actors: list[Process], method: str, *_: Any) -> None:
        for actor in actors:
            actor.call(method)

    monkeypatch.setattr(ray, "answer", lambda actor, reference: {"run": {"w": (2, 2)}, "address": "h:1"}[reference])
    monkeypatch.setattr(ray, "answers", lambda actors, references: None)
    monkeypatch.setattr(ray, "all_of", all_of)
    engine: Any = Process("engine")
    direct = DirectTransfer([Process("rank")], kind, "float32", keeps_weights=True)  # type: ignore[list-item]
    direct.send([engine], 1)
    assert [each for each in told if each not in ("rank run", "rank address")] == order
    told.clear()
    direct.send([engine], 2)
    assert told == [each for each in order if "init_transfer" not in each], "they have met"
