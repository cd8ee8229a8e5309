"""Every command is run, at least once, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import simplerl
from simplerl.cli.main import run
from simplerl.config import KINDS, load_recipe, shipped_recipes

pytestmark = pytest.mark.unit


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must succeed prints on stdout."""
    code = run(arguments)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("start", ["import simplerl", "from simplerl.cli.main import run; run(['--help'])"])
def test_start_up_loads_nothing_heavy(start: str) -> None:
    """Half a second is what is asked for; the packages that cost more than that are what is looked for."""
    heavy = {"torch", "transformers", "pydantic", "numpy", "pyarrow", "matplotlib", "rich.console", "datasets"}
    done = python(f"import sys; {start}; print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)")
    assert done.returncode == 0
    # `--help` is drawn by rich.
    assert set(json.loads(done.stderr.splitlines()[-1].replace("'", '"'))) <= {"rich.console"}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "--help")
    for command in (
        "train",
        "sft",
        "distill",
        "pipeline",
        "recipes",
        "sample",
        "report",
        "profile",
        "doctor",
        "data",
        "base",
    ):
        assert f" {command} " in shown


@pytest.mark.parametrize(
    "command",
    ["train", "sft", "distill", "pipeline", "recipes", "sample", "report", "profile", "doctor", "data", "data list",
     "data prepare", "data show", "data overlap", "data export", "base", "base build"],
)  # fmt: skip
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage:" in output(capsys, *command.split(), "--help")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--version") == f"simplerl {simplerl.__version__}\n"


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "recipes").splitlines()
    assert [line.split()[2] for line in lines] == list(shipped_recipes())
    listed = json.loads(output(capsys, "recipes", "--json"))
    for line, each in zip(lines, listed, strict=True):
        recipe = load_recipe(each["name"], kind=KINDS[each["kind"]])
        assert line.startswith(f"simplerl {each['kind']} {each['name']} ")
        assert each["description"] == recipe.description and line.endswith(recipe.description)


# --- other kinds, --dry-run -------------------------------------------------------------------------------------------


def test_dry_run_of_sft_says_how_much_there_is_to_learn(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "sft", "quickstart-math-sft", "--dry-run").splitlines()
    assert lines[0] == 'description = "SFT of the embedded base on brief worked solutions of generated arithmetic: ' + (
        'the baseline in miniature"'
    )
    assert "8,000 of 8,000 problems have a solution" in lines[-2]
    assert lines[-1].split() == ["#", "optimiser", "steps", "250", "of", "64", "sequences", "at", "most"]


def test_dry_run_of_a_pipeline_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "pipeline", "quickstart-simplerl", "--dry-run").splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "zero", "math-sft", "distill", "sft", "simplerl",
        "eval-base", "eval-math-sft", "eval-sft", "eval-zero", "eval-simplerl", "report",
    ]  # fmt: skip
    assert all("to do" in line for line in lines[1:])
    assert not Path("runs").exists()


# --- train --dry-run --------------------------------------------------------------------------------------------------


def test_dry_run_prints_toml_that_is_the_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = output(capsys, "train", "quickstart", "--dry-run", "--set", "train.steps=7")
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert load_recipe(str(again)) == load_recipe("quickstart", ["train.steps=7"])
    assert tomllib.loads(printed)["train"]["steps"] == 7


def test_dry_run_says_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    printed = output(capsys, "train", "simplerl-zero-qwen2.5-math-7b", "--dry-run")
    words = " ".join(printed.split())
    for fact in (
        "sequences 8,192 = 1,024 prompts x 8 responses",
        "optimiser steps 64 of 128 sequences (16 prompts' worth), 1 pass over the batch",
        "response tokens at most 24,576,000",
        "problems 8,521; prompts longer than",
        "steps 166",
        "optimiser steps 10,624",
        "an incomplete last batch of a pass is filled from the next pass",
        "unused prompts 436 of the last pass",
        "actor 7,615,616,512 parameters",
        "critic 7,070,622,721 parameters",
        "reference 7,615,616,512 parameters",
        "engine copy 7,615,616,512 parameters",
        "moments 109.42 109.42 109.42 109.42",
    ):
        assert fact in words


def test_dry_run_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(output(capsys, "train", "zero-qwen2.5-1.5b-1gpu", "--dry-run", "--json"))
    assert told["recipe"]["train"]["minibatch_size"] == 256
    assert told["plan"]["steps"] == 199
    assert told["plan"]["models"] == ["actor", "critic", "reference", "engine copy"]


def test_dry_run_of_a_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    printed = output(capsys, "train", "quickstart", "--dry-run", "--set", "model.path=somebody/some-model")
    assert "size unknown until the model is downloaded" in printed
    assert "GiB" not in printed


# --- commands that run a model ----------------------------------------------------------------------------------------

SMALL = {
    "train.steps": 1,
    "rollout.prompts_per_step": 4,
    "rollout.samples_per_prompt": 2,
    "rollout.max_tokens": 16,
    "train.minibatch_size": 4,
    "eval.sets": "[{name='arithmetic-test', limit=4}]",
    "eval.every": 1,
    "data.max_prompt_tokens": 1000,
}


@pytest.mark.e2e
def test_train_leaves_a_run_and_a_report_and_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # A recipe of one's own, by a relative path; its name is the run's.
    Path("mine.toml").write_text(Path(shipped_recipes()["quickstart"]).read_text())
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    command = ["train", "mine.toml", "--plain", "--set", f"model.path={tiny_model}", *sets]
    run_folder = tmp_path / "runs" / "mine"
    assert str(run_folder.relative_to(tmp_path) / "report.html") in output(capsys, *command)
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert (run_folder / "exports" / "final" / "config.json").is_file()
    (run_folder / "report.html").unlink()
    output(capsys, *command)
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert (run_folder / "report.html").is_file()

    shown = output(capsys, "sample", str(run_folder), "What is 3+4?", "--n", "1", "--max-tokens", "4")
    assert "--- 1 of 1: " in shown
    assert run([*command, "--set", "seed=9"]) == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.e2e
def test_sample(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", str(tiny_model), "What is 3+4?", "--n", "2", "--max-tokens", "5", "--gold", "7"]
    told = json.loads(output(capsys, *command, "--json"))
    assert told["prompt"] == "<|im_start|>user\nWhat is 3+4?<|im_end|>\n<|im_start|>assistant\n"
    assert [response["verdict"]["label"] for response in told["responses"]] == ["no_answer", "no_answer"]
    assert all(1 <= response["tokens"] <= 5 for response in told["responses"])
    shown = output(capsys, *command)
    assert shown.startswith(told["prompt"])
    for number, response in enumerate(told["responses"], 1):
        truncated = ", truncated" if response["finish_reason"] == "length" else ""
        head = f"--- {number} of 2: no answer (no box), no_answer, {response['tokens']} tokens{truncated}"
        assert f"{head}\n{response['text']}" in shown


@pytest.mark.e2e
def test_greedy_samples_are_all_the_same(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("sample", str(tiny_model), "3+4", "--temperature", "0", "--n", "3", "--max-tokens", "6", "--json")
    told = json.loads(output(capsys, *arguments))
    assert len({response["text"] for response in told["responses"]}) == 1


def test_sample_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text("")
    assert run(["sample", str(tmp_path), "3+4"]) == 2
    assert capsys.readouterr().err == (
        f"error: run {tmp_path} has no exported model yet; it has one at its end, or set checkpoint.export_every\n"
    )


@pytest.mark.e2e
def test_base_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "base"
    shown = output(capsys, "base", "build", "--out", str(out), "--documents", "12")
    assert shown.splitlines()[-1] == f"model: {out}"
    assert AutoModelForCausalLM.from_pretrained(out).config.model_type == "qwen2"
    assert AutoTokenizer.from_pretrained(out).chat_template
    capsys.readouterr()
    assert run(["base", "build", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {out} already holds a model; name another folder with --out\n"


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert code == any(finding["state"] == "missing" for finding in findings.values())
    assert findings["simplerl"]["detail"] == simplerl.__version__
    for what in ("python", "cpu", "instructions", "disk", "tiny-math-base", "SIMPLERL_DATA", "data math-lvl3to5"):
        assert findings[what]["detail"]
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] == "missing")


def test_doctor_names_what_is_missing_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from simplerl.cli import doctor

    absent = doctor.optional("no-such-package", "track", "curves")
    assert (absent.state, absent.remedy) == ("note", "pip install 'simplerl[track]'")
    assert absent.detail == "not installed; needed for curves"
    old = doctor.installed("pydantic", ">=99", lambda version: False)
    assert (old.state, old.remedy) == ("missing", 'pip install "pydantic>=99"')
    assert "is outside >=99" in old.detail
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "this torch is a CPU build" in doctor.no_gpu(None).detail


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simplerl.config.shipped_recipes", interrupted)
    assert run(["recipes"]) not in (0, 2)
    assert capsys.readouterr().err in ("", "Aborted!\n", "Aborted.\n")


def test_tables_are_aligned() -> None:
    from simplerl.formatting import table

    assert table([("a", "b"), ("ccc", "d")], indent="  ") == "  a    b\n  ccc  d"
