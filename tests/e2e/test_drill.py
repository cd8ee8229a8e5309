"""The drill: its choice of faults, its accounts, and one real fault."""

import importlib.util
from collections import Counter

import pytest
import tomli_w
from test_cluster import make_recipe

from simplerl.cli.drill import _chosen, check_accounts, compared
from simplerl.cli.main import run
from simplerl.errors import ClusterError, ConfigError
from simplerl.storage.records import RunFolder
from simplerl.tools.drill import Drill

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray"),
    pytest.mark.filterwarnings("ignore"),
]


def test_thirty_faults_have_every_kind_in_a_seeded_order():
    kinds = _chosen(None, Drill.kinds(), 30, seed=0)
    assert len(Drill.kinds()) >= 6 and set(Counter(kinds).values()) <= {
        30 // len(Drill.kinds()),
        30 // len(Drill.kinds()) + 1,
    }
    assert kinds == _chosen(None, Drill.kinds(), 30, seed=0) != _chosen(None, Drill.kinds(), 30, seed=1)
    assert _chosen("engine-hung,node-lost", Drill.kinds(), 3, 0).count("engine hung") == 2
    with pytest.raises(ConfigError, match="no 'engine lost'; there are checkpoint torn, driver killed"):
        _chosen("engine-lost", Drill.kinds(), 1, 0)


def test_a_checkpoint_is_torn_only_if_another_exists(tmp_path, monkeypatch):
    def write(step):
        (folder := tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        (folder / "actor.safetensors").write_bytes(bytes(8))

    drill = Drill([], tmp_path, seed=0)
    monkeypatch.setattr(drill, "_keep_driver_running", lambda: True)
    monkeypatch.setattr(drill, "_wait_for_step", lambda: write(2))
    write(1)
    drill.break_checkpoint_torn()
    assert [file.stat().st_size for file in sorted(tmp_path.rglob("*.safetensors"))] == [8, 4]


def test_a_torn_checkpoint_changes_no_response(tiny_model, tmp_path, capsys):
    """The driver is killed and its newest checkpoint torn; the run ends with the numbers of an undisturbed run."""
    recipe = make_recipe(tiny_model)
    (tmp_path / "small.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    command = [
        "drill",
        str(tmp_path / "small.toml"),
        "--faults",
        "1",
        "--kinds",
        "checkpoint-torn",
        "--set",
        "train.steps=16",
    ]
    assert run([*command, "--run-dir", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert "16 steps, 384 responses: each asked for once and there once" in output
    assert "384 of 384 responses are the same" in output
    broken, undisturbed = tmp_path / "runs" / "broken", tmp_path / "runs" / "whole"
    kinds = [event["kind"] for event in RunFolder(broken).read_events()]
    assert kinds == ["torn checkpoint", "resumed"]

    other, rows = RunFolder(undisturbed), rows_of(undisturbed, 2)
    other.write_rollouts(2, [*rows[:-1], {**rows[-1], "text": "another"}])
    assert "383 of 384 responses are the same; they part in step 2" in compared(broken, undisturbed)
    other.write_rollouts(2, [*rows[:-1], rows[0]])
    with pytest.raises(ClusterError, match="step 2 has 24 responses, 24 were requested; 2 differ"):
        check_accounts(broken, undisturbed)
    other.write_rollouts(2, rows[:-1])
    with pytest.raises(ClusterError, match="step 2 has 24 responses, 23 were requested; 1 differ"):
        check_accounts(broken, undisturbed)
    assert run([*command, "--run-dir", str(tmp_path / "runs")]) == 2
    capsys.readouterr()
    assert run([*command, "--set", "checkpoint.keep=1", "--run-dir", str(tmp_path / "none")]) == 2
    assert "leaves nothing of checkpoint.keep=1" in capsys.readouterr().err


def rows_of(folder, step):
    import pyarrow.parquet as pq

    return pq.read_table(dict(RunFolder(folder).rollout_files())[step]).to_pylist()
