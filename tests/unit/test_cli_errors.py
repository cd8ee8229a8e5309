"""Every mistake in a recipe or an override is one message that names the key, the value and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from simplerl.cli.main import run

pytestmark = pytest.mark.unit

MINE = "or your own file named by `path`."
CASES = {
    "unknown key of a plug-in": (
        "algorithm.gama=0.9",
        "algorithm.gama=0.9: unknown setting; did you mean 'gamma'?",
    ),
    "unknown key of a source": (
        "data.source.sise=10",
        "data.source.sise=10: unknown setting; did you mean 'size'?",
    ),
    "unknown key in a list": (
        "eval.sets=[{name='math500', limt=3}]",
        "eval.sets.0.limt=3: unknown setting; did you mean 'limit'?",
    ),
    "a value is no table": ("seed.x=3", "--set 'seed.x=3': seed=0 is a value and has no settings of its own"),
    "unknown key": ("train.stepz=3", "train.stepz=3: unknown setting; did you mean 'steps'?"),
    "unknown table": ("trian.steps=3", "trian={'steps': 3}: unknown setting; did you mean 'train'?"),
    "not a number": (
        "train.steps=many",
        "train.steps='many': Input should be a valid integer, unable to parse string as an integer",
    ),
    "too small": ("train.steps=0", "train.steps=0: Input should be greater than or equal to 1"),
    "too large": ("algorithm.lam=1.5", "algorithm.lam=1.5: Input should be less than or equal to 1"),
    "not one of": ("model.dtype=fp16", "model.dtype='fp16': Input should be 'float32' or 'bfloat16'"),
    "one of a pair": ("actor.betas=[0.9]", "actor.betas.1: is required"),
    "in a plug-in": (
        "reward.correct=high",
        "reward.correct='high': Input should be a valid number, unable to parse string as a number",
    ),
    "in a list": ("data.source.levels=[3, 9]", "data.source.levels.1=9: Input should be less than or equal to 5"),
    "minibatch": (
        "train.minibatch_size=200",
        "train.minibatch_size=200 does not divide the 256 rollouts of a step (rollout.prompts_per_step=32 x "
        "rollout.samples_per_prompt=8); 128 and 256 do",
    ),
    "unknown algorithm": (
        "algorithm=gpro",
        "algorithms: no 'gpro'; did you mean 'grpo'? Available: grpo, ppo. "
        f"A new one is a new file in simplerl/algorithms/, {MINE}",
    ),
    "unknown reward": (
        "reward=simplrl",
        "rewards: no 'simplrl'; did you mean 'simplerl'? Available: accuracy, http, simplerl. "
        f"A new one is a new file in simplerl/rewards/, {MINE}",
    ),
    "unknown engine": (
        "engine=vlm",
        "engines: no 'vlm'; did you mean 'vllm'? Available: embedded, vllm. "
        f"A new one is a new file in simplerl/engines/, {MINE}",
    ),
    "unknown template": (
        "data.template=qwen-box",
        "no template 'qwen-box'; did you mean 'qwen-boxed'? "
        "Available: qwen25-math-cot, qwen25-math-cot-v0, qwen-boxed, abel, chat",
    ),
    "neither name nor table": ("reward=3", "rewards: wants a name or a table with `name`, got 3"),
    "no such file": ("reward.path=my.py", "rewards: path=my.py is not a file; looked in {cwd}"),
    "no value": ("train.steps", "--set 'train.steps' is not key=value, for example --set train.steps=3"),
    "no key": ("=3", "--set '=3' is not key=value, for example --set train.steps=3"),
    "kl target without kl": (
        "algorithm.kl_target=0.1",
        "algorithm.kl_target needs a start: algorithm.kl_coef=0 cannot adapt; set kl_coef > 0",
    ),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must fail, without the word before it."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(("override", "message"), CASES.values(), ids=CASES)
def test_override(override: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["train", "quickstart", "--dry-run", "--set", override]
    if "minibatch" in override:
        arguments += ["--set", "rollout.prompts_per_step=32", "--set", "rollout.samples_per_prompt=8"]
    if "kl_target" in override:
        arguments += ["--set", "algorithm.kl_coef=0"]
    assert failure(capsys, *arguments) == message.replace("{cwd}", str(tmp_path))


def test_unknown_source_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(capsys, "train", "quickstart", "--set", "data.source=mathh")
    assert message.startswith("data: no 'mathh'; did you mean 'math'? Available: arithmetic, ")
    assert message.endswith(f" A new one is a new file in simplerl/data/sources/, {MINE}")


def test_unknown_benchmark_is_named_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(capsys, "train", "quickstart", "--set", "eval.sets=[{name='math-500'}]")
    assert message.startswith("benchmarks: no 'math-500'; did you mean 'math500'? Available: aime24, ")


def test_combinations(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = ("--set", "model.attention=flash_attention_2", "--set", "model.device=cpu")
    assert failure(capsys, "train", "quickstart", *kernel) == (
        "model.attention=flash_attention_2 needs CUDA but model.device=cpu; use sdpa"
    )
    alone = ("--set", "algorithm=grpo", "--set", "rollout.samples_per_prompt=1", "--set", "train.minibatch_size=1")
    assert failure(capsys, "train", "quickstart", *alone) == (
        "grpo compares responses to one prompt; rollout.samples_per_prompt=1 leaves none to compare with, 8 is usual"
    )
    buffer = ("--set", "reward.overlong_buffer=64", "--set", "rollout.max_tokens=64")
    assert failure(capsys, "train", "quickstart", *buffer) == (
        "reward.overlong_buffer=64 must be below rollout.max_tokens=64; a fifth of it is usual, 0 turns the penalty off"
    )


def test_all_mistakes_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(capsys, "train", "quickstart", "--set", "train.steps=0", "--set", "rollout.top_p=2")
    assert message.splitlines() == [
        "train.steps=0: Input should be greater than or equal to 1",
        "rollout.top_p=2: Input should be less than or equal to 1",
    ]


def test_recipe_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_text("seed = = 1\n")
    Path("empty.toml").write_text("seed = 1\n")
    assert failure(capsys, "train", "missing.toml") == "recipe missing.toml does not exist"
    assert failure(capsys, "train", "bad.toml") == (
        "recipe bad.toml is not valid TOML: Invalid value (at line 1, column 8)"
    )
    assert failure(capsys, "train", "empty.toml") == "data: is required"
    message = failure(capsys, "train", "quikstart")
    assert message.startswith("no recipe 'quikstart'; did you mean 'quickstart'? Shipped: ")
    assert failure(capsys, "train", "quickstart-sft") == (
        "quickstart-sft is a recipe for `simplerl sft`, not for `simplerl train`"
    )
    assert failure(capsys, "sft", "quickstart") == "quickstart is a recipe for `simplerl train`, not for `simplerl sft`"
    assert message.endswith("Your own is a path that ends in .toml")


def test_json_is_for_dry_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "train", "quickstart", "--json") == (
        "--json goes with --dry-run; a run's numbers are in its folder, metrics.jsonl"
    )


def test_a_missing_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train"]) == 2
    assert "Missing argument" in capsys.readouterr().err
