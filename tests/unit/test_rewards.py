"""Every reward and its shaping, against values worked by hand.

For a new reward, copy a test below. `@worked("NAME.SETTING")` says which settings a test covers; the last test fails
for a setting that has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from worked import not_worked, worked

from simplerl import plugins
from simplerl.config import SFTRecipe, load_recipe, validate_recipe
from simplerl.errors import ConfigError
from simplerl.http import Endpoint
from simplerl.rewards.base import Reward, RewardConfig
from simplerl.rewards.shaping import clipped, overlong_share
from simplerl.train.build.services import build_reward
from simplerl.types import Problem, Prompt, Rollout, Verdict, VerdictLabel

pytestmark = pytest.mark.unit

LIMIT = 100
"""Response tokens at most."""

TABLE = {"data": {"source": "arithmetic"}, "rollout": {"max_tokens": LIMIT}}
PROMPT = Prompt(Problem("p", "3+4?", "7"), "3+4?", (1, 2))
LABELS: Sequence[VerdictLabel] = ("correct", "wrong", "no_answer", "error")


def build(**settings: Any) -> Reward:
    """A reward as a run builds it, from a recipe."""
    return build_reward(validate_recipe(TABLE | {"reward": settings}))


def value(reward: Reward, label: VerdictLabel = "correct", tokens: int = 1) -> float:
    """The reward of a response of `tokens` tokens."""
    rollout = Rollout.single_turn("r", PROMPT, (5,) * tokens, (-1.0,) * tokens, "7", "stop", 0)
    return reward(rollout, Verdict(label))


def user_file(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_accuracy_rewards_correct_answers_alone() -> None:
    assert [value(build(name="accuracy"), label) for label in LABELS] == [1, 0, 0, 0]


@worked("simplerl.correct", "simplerl.wrong", "simplerl.no_answer", "simplerl.error")
def test_simplerl_has_a_reward_for_each_verdict() -> None:
    assert [value(build(name="simplerl"), label) for label in LABELS] == [1, -0.5, -1, -0.5]
    mine = build(name="simplerl", correct=4, wrong=3, no_answer=2, error=1)
    assert [value(mine, label) for label in LABELS] == [4, 3, 2, 1]


def test_a_service_s_reward_has_its_concurrency_and_closes_its_connections() -> None:
    for shaping in ({}, {"clip": 1}):
        reward: Any = build(name="http", url="http://127.0.0.1:9/", concurrency=5, give_up_seconds=0, **shaping)
        assert reward.concurrency == 5
        reward.close()
        with pytest.raises(RuntimeError, match="closed"):
            value(reward)


@pytest.mark.parametrize("settings", [{"name": "accuracy"}, {"name": "simplerl", "correct": 1}], ids=str)
def test_a_reward_is_recorded_as_a_floating_point_number(settings: dict[str, Any]) -> None:
    assert type(value(build(**settings))) is float


# --- shaping ----------------------------------------------------------------------------------------------------------


@worked("common.clip")
def test_the_clip_bounds_the_reward_on_both_sides() -> None:
    reward = build(name="simplerl", correct=12, wrong=-12, no_answer=-9.5, error=0.5, clip=10)
    assert [value(reward, label) for label in LABELS] == [10, -10, -9.5, 0.5]
    unclipped = build(name="simplerl", correct=1e9)
    assert value(unclipped) == 1e9


def test_a_reward_at_its_bound_stays() -> None:
    assert [clipped(number, 2.0) for number in (2.0, -2.0, 1.5, 0.0)] == [2, -2, 1.5, 0]


@pytest.mark.parametrize(
    "settings", [{"clip": 10}, {"overlong_buffer": 20}, {"clip": 10, "overlong_buffer": 20}], ids=str
)
def test_shaping_hides_no_reward_that_is_not_a_number(settings: dict[str, float]) -> None:
    """min(10.0, nan) is 10.0; the learner refuses an update only if it sees the NaN."""
    assert math.isnan(value(build(name="simplerl", correct=math.nan, **settings), tokens=90))


@pytest.mark.parametrize(
    ("tokens", "share"),
    # Limit 100, buffer 20: free up to 80 tokens, then a twentieth by the token, all of it at the limit and above.
    [(1, 0), (79, 0), (80, 0), (81, 0.05), (90, 0.5), (99, 0.95), (100, 1), (101, 1), (500, 1)],
)
def test_the_overlong_share_rises_over_the_buffer(tokens: int, share: float) -> None:
    assert overlong_share(tokens, limit=100, buffer=20) == pytest.approx(share)
    assert overlong_share(tokens, limit=100, buffer=0) == 0


@worked("common.overlong_buffer", "common.overlong_penalty")
def test_long_responses_lose_reward() -> None:
    # Correct is 1; 95 tokens are 3/4 into the buffer of 20 before the limit of 100, 100 tokens at its end.
    reward = build(name="simplerl", overlong_buffer=20)
    assert [value(reward, tokens=n) for n in (80, 95, 100)] == pytest.approx([1, 0.25, 0])
    # A buffer of one token is the limit alone.
    assert [value(build(name="simplerl", overlong_buffer=1), tokens=n) for n in (99, 100)] == [1, 0]
    # Wrong is -0.5, and the penalty 0.4.
    reward = build(name="simplerl", overlong_buffer=20, overlong_penalty=0.4)
    assert [value(reward, "wrong", n) for n in (80, 95, 100)] == pytest.approx([-0.5, -0.8, -0.9])


def test_the_bound_holds_after_the_penalty() -> None:
    # 5 - 3 = 2 is within 2.5; -2 - 3 = -5 is not.
    reward = build(name="simplerl", correct=5, wrong=-2, overlong_buffer=20, overlong_penalty=3, clip=2.5)
    assert [value(reward, label, 100) for label in ("correct", "wrong")] == [2, -2.5]


def test_the_penalty_is_by_the_limit_of_training() -> None:
    """Of reinforcement learning as of supervised fine-tuning, whose reward is that of its evaluations."""
    table = {"kind": "sft", "data": {"source": "arithmetic"}, "train": {"max_response_tokens": 40}}
    recipe = validate_recipe(table | {"reward": {"name": "accuracy", "overlong_buffer": 10}}, kind=SFTRecipe)
    assert value(build_reward(recipe), tokens=35) == 0.5


# --- plug-ins and users' files ----------------------------------------------------------------------------------------


def test_a_plain_function_is_shaped_like_a_plug_in(tmp_path: Path) -> None:
    path = user_file(tmp_path, "def reward(rollout, verdict):\n    return 7.0 * len(rollout.token_ids)\n")
    assert build(path=path) is plugins.load("rewards", "mine", path).reward, "no shaping, no wrapper"
    assert value(build(path=path), tokens=100) == 700
    assert value(build(path=path, clip=5), tokens=100) == 5
    assert value(build(path=path, overlong_buffer=20, overlong_penalty=2), tokens=90) == 629
    with pytest.raises(ConfigError, match=r"reward\.clipp=5: unknown setting; did you mean 'clip'\?"):
        build(path=path, clipp=5)


SERVICE = """
from simplerl.rewards.base import RewardConfig

class Config(RewardConfig):
    name: str = "mine"
    weight: float = 1.0

class Mine:
    concurrency = 3
    closed = 0

    def __init__(self, config):
        self.config = config

    def __call__(self, rollout, verdict):
        return self.config.weight

    def close(self):
        Mine.closed += 1

build = Mine
"""


def test_a_shaped_reward_keeps_concurrency_and_close(tmp_path: Path) -> None:
    path = user_file(tmp_path, SERVICE)
    reward: Any = build(path=path, weight=8, clip=5)
    assert (value(reward), reward.concurrency) == (5, 3)
    reward.close()
    assert plugins.load("rewards", "mine", path).Mine.closed == 1


def test_a_shaped_function_is_called_by_one_thread_and_has_nothing_to_close(tmp_path: Path) -> None:
    reward: Any = build(path=user_file(tmp_path, "def reward(rollout, verdict):\n    return 1.0\n"), clip=5)
    assert reward.concurrency == 1
    reward.close()


def test_a_user_s_own_settings_may_leave_shaping_out(tmp_path: Path) -> None:
    text = "from simplerl.config import PluginConfig as Config\n\ndef reward(rollout, verdict):\n    return 1.0\n"
    path = user_file(tmp_path, text)
    assert value(build(path=path)) == 1
    with pytest.raises(ConfigError, match=r"reward\.clip=5: unknown setting"):
        build(path=path, clip=5)


def test_a_file_without_a_reward_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"mine\.py defines neither `build\(config\)` nor `reward\(rollout, verdict\)`"
    ):
        build(path=user_file(tmp_path, "rewards = 1\n"))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_buffer_must_be_smaller_than_the_limit() -> None:
    assert value(build(name="accuracy", overlong_buffer=99), tokens=1) == 1
    for buffer in (100, 101):
        message = rf"^reward\.overlong_buffer={buffer} must be below rollout\.max_tokens=100; "
        with pytest.raises(ConfigError, match=message):
            build(name="accuracy", overlong_buffer=buffer)
    table = {"kind": "sft", "data": {"source": "arithmetic"}, "train": {"max_response_tokens": 40}}
    with pytest.raises(ConfigError, match=r"overlong_buffer=40 must be below train\.max_response_tokens=40"):
        validate_recipe(table | {"reward": {"name": "accuracy", "overlong_buffer": 40}}, kind=SFTRecipe)


def test_shaping_s_limits_and_defaults() -> None:
    config: Any = validate_recipe(TABLE | {"reward": "accuracy"}).reward
    assert (config.clip, config.overlong_buffer, config.overlong_penalty) == (None, 0, 1)
    for setting, refused in (("clip", 0), ("overlong_buffer", -1), ("overlong_penalty", -0.1)):
        with pytest.raises(ConfigError, match=rf"^reward\.{setting}="):
            build(name="accuracy", **{setting: refused})
    assert value(build(name="accuracy", clip=0.25, overlong_buffer=1, overlong_penalty=0)) == 0.25


@pytest.mark.parametrize("setting", ["reward_clip", "overlong_buffer", "overlong_penalty"])
def test_settings_that_moved_here_say_so(setting: str) -> None:
    new = {"reward_clip": "reward.clip"}.get(setting, f"reward.{setting}")
    with pytest.raises(ConfigError, match=rf"^algorithm\.{setting} is now called {new}$"):
        load_recipe("quickstart", [f"algorithm.{setting}=1"])


@pytest.mark.parametrize("name", plugins.available("rewards"))
def test_every_setting_has_a_value_worked_by_hand(name: str) -> None:
    # The address and patience of a service: tests/unit/test_http.py.
    config = plugins.load("rewards", name).Config
    missing = not_worked(name, config, common=RewardConfig, elsewhere=Endpoint.model_fields)
    assert not missing, f"add a test to this file, marked @worked, for {sorted(missing)}"
