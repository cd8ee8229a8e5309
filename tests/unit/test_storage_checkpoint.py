"""A checkpoint is there whole or not at all, is believed only while its checksums hold, and comes back bit for bit."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from simplerl.errors import CheckpointError
from simplerl.storage import atomic, checkpoint


def save(folder, step):
    actor = {"w": torch.full((300,), float(step)), "b": torch.arange(4)}
    return checkpoint.save(folder, step, {"actor": actor, "critic": {"v": torch.ones(2)}}, {"step": step, "kl": 0.1})


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor


def flip_byte(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_tensors_and_state_come_back_bit_for_bit(tmp_path):
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, 1 / 3])
    odd.view(torch.int32)[0] = 0x7FC12345  # a NaN with a payload
    actor = {
        "odd": odd,
        "bf16": torch.randn(5, 7).to(torch.bfloat16),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "empty too": torch.zeros(0, 4),
        "int": torch.tensor([2**62 + 1]),
        "flags": torch.tensor([True, False]),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
    }
    state = {"step": 3, "kl": 0.1 + 0.2, "tiny": 5e-324, "text": "naïve", "list": [1, None, True]}
    path = checkpoint.save(tmp_path, 3, {"actor": actor, "none": {}}, state)

    tensors, loaded = checkpoint.load(path)

    assert loaded == state and tensors["none"] == {}
    assert tensors["actor"].keys() == actor.keys()
    for name, value in actor.items():
        found = tensors["actor"][name]
        assert found.dtype == value.dtype and found.shape == value.shape, name
        assert torch.equal(bits(found), bits(value)), name


def test_tied_tensors_are_stored_once_and_come_back_under_every_name(tmp_path):
    weight = torch.randn(1000)
    views = {"whole": weight, "head": weight, "first half": weight[:500], "parameter": torch.nn.Parameter(weight)}
    path = checkpoint.save(tmp_path, 1, {"actor": views}, {})
    actor = checkpoint.load(path)[0]["actor"]

    assert all(torch.equal(actor[name], value) for name, value in views.items())
    assert actor["head"] is actor["whole"] is actor["parameter"]
    assert 6000 <= (path / "actor.safetensors").stat().st_size < 7000  # 4000 of the whole, 2000 of the half


def test_files_are_readable_by_safetensors_alone(tmp_path):
    from safetensors.torch import load_file

    path = save(tmp_path, 1)
    assert sorted(p.name for p in path.iterdir()) == [
        "actor.safetensors",
        "critic.safetensors",
        "manifest.json",
        "state.json",
    ]
    assert load_file(path / "actor.safetensors")["w"].tolist() == [1.0] * 300


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": torch.tensor(1.0)}, {"x": object()}])
def test_state_that_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(CheckpointError, match="plain JSON"):
        checkpoint.save(tmp_path, 1, {}, bad)
    assert not (tmp_path / "checkpoints").exists()


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 4)
    checkpoint.save(tmp_path, 4, {"actor": {}}, {"again": 1})
    path, notices = checkpoint.latest(tmp_path)
    assert checkpoint.load(path) == ({"actor": {}}, {"again": 1}) and notices == []
    assert os.listdir(tmp_path / "checkpoints") == ["step-000004"]


# --- torn checkpoints -------------------------------------------------------------------------------------------------


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert checkpoint.latest(tmp_path) is None


def test_newest_is_by_number_not_by_name(tmp_path):
    for step in (999_999, 1_000_000, 8):
        save(tmp_path, step)
    assert checkpoint.latest(tmp_path)[0].name == "step-1000000"


TEARS = {
    "actor.safetensors has sha256": lambda p: flip_byte(p / "actor.safetensors", -1),
    "critic.safetensors has sha256": lambda p: flip_byte(p / "critic.safetensors", 0),
    "state.json has sha256": lambda p: flip_byte(p / "state.json", 12),
    "bytes but the manifest says": lambda p: os.truncate(p / "actor.safetensors", 700),
    "actor.safetensors cannot be read": lambda p: (p / "actor.safetensors").unlink(),
    "has no manifest.json": lambda p: (p / "manifest.json").unlink(),
    "manifest.json cannot be read": lambda p: os.truncate(p / "manifest.json", 60),
    "manifest.json does not list its files": lambda p: (p / "manifest.json").write_text('{"files": {}}'),
    "manifest.json is of step 8": lambda p: shutil.copytree(p.with_name("step-000008"), p, dirs_exist_ok=True),
}


@pytest.mark.parametrize("fault", TEARS)
def test_a_torn_checkpoint_is_passed_over_and_said_aloud(tmp_path, fault):
    good, torn = save(tmp_path, 8), save(tmp_path, 12)
    TEARS[fault](torn)

    path, notices = checkpoint.latest(tmp_path)

    assert path == good
    assert len(notices) == 1
    assert notices[0].startswith("checkpoint step-000012 is torn: ") and notices[0].endswith("; using step-000008")
    assert fault in notices[0]


def test_no_single_flipped_byte_goes_unnoticed(tmp_path):
    path = save(tmp_path, 1)
    # Of the manifest: what it says. A flip in its white space or in "format" changes nothing that is read.
    for name in ("state.json", "critic.safetensors"):
        for offset in range((path / name).stat().st_size):
            flip_byte(path / name, offset)
            assert checkpoint.find_fault(path) is not None, (name, offset)
            flip_byte(path / name, offset)
    said = json.loads((path / "manifest.json").read_text())["files"]
    for offset in range((path / "manifest.json").stat().st_size):
        flip_byte(path / "manifest.json", offset)
        fault = checkpoint.find_fault(path)
        assert fault or json.loads((path / "manifest.json").read_text())["files"] == said, offset
        flip_byte(path / "manifest.json", offset)
    assert checkpoint.find_fault(path) is None


def test_when_every_checkpoint_is_torn_the_run_does_not_start_over_by_itself(tmp_path):
    for step in (4, 8):
        flip_byte(save(tmp_path, step) / "actor.safetensors", -1)
    with pytest.raises(
        CheckpointError, match=r"(?s)complete.*step-000008 is torn.*step-000004 is torn.*delete that folder"
    ):
        checkpoint.latest(tmp_path)


def test_loading_a_torn_checkpoint_is_an_error_in_words(tmp_path):
    path = save(tmp_path, 1)
    os.truncate(path / "actor.safetensors", 5)
    with pytest.raises(CheckpointError, match=r"actor\.safetensors cannot be read"):
        checkpoint.load(path)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="has no manifest"):
        checkpoint.load(path)


def test_prune_keeps_the_newest_whole_ones(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "checkpoints/step-000004/actor.safetensors").unlink()
    (tmp_path / "checkpoints/.tmp-1-aa-step-000005").mkdir()
    (tmp_path / "checkpoints/.old-step-000003").mkdir()
    (tmp_path / "checkpoints/note.txt").write_text("the user's own")

    deleted = checkpoint.prune(tmp_path, keep=2)

    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["note.txt", "step-000002", "step-000003"]
    assert set(deleted) == {"step-000004", "step-000001", ".old-step-000003", ".tmp-1-aa-step-000005"}


def test_prune_never_deletes_the_last_one(tmp_path):
    save(tmp_path, 1)
    assert checkpoint.prune(tmp_path, keep=0) == []
    assert checkpoint.latest(tmp_path)[0].name == "step-000001"


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    path = save(tmp_path, 4)
    path.rename(path.with_name(".old-step-000004"))
    found, notices = checkpoint.latest(tmp_path)
    assert checkpoint.load(found)[1]["step"] == 4 and notices == []
    checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.latest(tmp_path)[0] == found
    save(tmp_path, 4)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000004"]


KILL_SAVERS = """
    import os, pathlib, random, signal, sys, time, torch
    from simplerl.storage import checkpoint

    folder, rng, kills, mid_save = pathlib.Path(sys.argv[1]), random.Random(0), int(sys.argv[2]), 0

    def save(step):
        tensors = {name: {"w": torch.full((40_000,), float(step))} for name in ("actor", "critic", "optimiser")}
        checkpoint.save(folder, step, tensors, {"step": step})

    def save_forever(announce):
        step = checkpoint.step_of(checkpoint.latest(folder)[0])
        checkpoint.prune(folder, keep=2)
        os.write(announce, b"r")  # ready
        while True:
            step += 1
            save(step)
            checkpoint.prune(folder, keep=2)
            os.write(announce, b"%d " % step)

    begun = time.monotonic()
    save(1)
    seconds = time.monotonic() - begun
    reached = 1
    for _ in range(kills):
        reader, writer = os.pipe()
        child = os.fork()  # torch is imported once, for all children
        if child == 0:
            save_forever(writer)
        os.read(reader, 1)
        time.sleep(rng.uniform(0.0, 4 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writer)
        announced = [int(step) for step in os.read(reader, 1 << 16).split()]
        assert announced == list(range(reached + 1, reached + 1 + len(announced))), (reached, announced)
        reached += len(announced)
        mid_save += any(p.name.startswith(".tmp-") for p in folder.glob("checkpoints/*"))
        path, notices = checkpoint.latest(folder)
        tensors, state = checkpoint.load(path)
        assert notices == [], notices
        assert reached <= state["step"] <= reached + 1, (reached, state)
        assert all((t["w"] == state["step"]).all() for t in tensors.values())
        reached = state["step"]
    checkpoint.prune(folder, keep=2)
    print(reached, mid_save, len(list(folder.glob("checkpoints/*"))))
"""


def test_sigkill_at_any_moment_of_saving_leaves_the_last_announced_checkpoint(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILL_SAVERS), str(tmp_path), "24"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    assert done.returncode == 0, done.stderr
    reached, mid_save, left = map(int, done.stdout.split())
    assert reached >= 6 and mid_save >= 3, "too few saves, or none was hit half-way"
    assert left == 2


@pytest.mark.parametrize("step", [1, 2], ids=["replacing", "new"])
@pytest.mark.parametrize("fail_at", range(12))
def test_an_error_at_any_system_call_of_saving_leaves_a_checkpoint(tmp_path, monkeypatch, fail_at, step):
    """Each rename and each sync of a save fails in turn; the run can go on from what is there."""
    save(tmp_path, 1)
    calls = [0]

    def failing(real):
        def call(*arguments, **options):
            calls[0] += 1
            if calls[0] == fail_at + 1:
                raise OSError(5, "Input/output error")
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "fsync"):
            patch.setattr(os, name, failing(getattr(os, name)))
        try:
            save(tmp_path, step)
            assert calls[0] <= fail_at
        except OSError:
            pass
    path, notices = checkpoint.latest(tmp_path)
    assert notices == [] and checkpoint.load(path)[1]["step"] in (1, step)
    assert atomic.remove_leftovers(tmp_path / "checkpoints") == []


# --- imports ---------------------------------------------------------------------------------------------------------


def test_importing_checkpoints_loads_no_torch():
    light = ("storage.checkpoint", "storage.records", "train.console", "environment", "train.trackers")
    code = f"import sys, {', '.join(f'simplerl.{name}' for name in light)}\n"
    code += "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
