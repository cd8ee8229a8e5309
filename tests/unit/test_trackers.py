"""Trackers receive every number, write into the run folder, and never stop a run."""

import sys

import pytest

from simplerl.config import TrackConfig
from simplerl.errors import DependencyError
from simplerl.train.trackers import Trackers


class FakeRecipe:
    def model_dump(self, mode):
        return {"seed": 1}


def trackers(tmp_path, notices=None, **config):
    notice = (notices if notices is not None else []).append
    return Trackers(TrackConfig(**config), tmp_path, FakeRecipe(), notice=notice)


def test_no_tracker_is_loaded_unless_switched_on(tmp_path):
    tracker = trackers(tmp_path)
    tracker.log(1, {"reward/mean": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def read_scalars(folder, name):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.filterwarnings("ignore")  # warnings of tensorboard itself
def test_tensorboard_hides_steps_that_a_killed_session_logged_after_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboard")
    first = trackers(tmp_path, tensorboard=True)
    for step in (1, 2, 3, 4):
        first.log(step, {"step": step, "reward/mean": step / 4, "text": "not a number", "none": None})
    first.close()
    second = trackers(tmp_path, tensorboard=True)
    second.log(3, {"reward/mean": 9.0})
    second.close()
    assert read_scalars(tmp_path / "tensorboard", "reward/mean") == {1: 0.25, 2: 0.5, 3: 9.0}


@pytest.mark.filterwarnings("ignore")  # warnings of wandb itself
def test_wandb_offline_stays_in_the_run_folder_and_keeps_its_id(tmp_path):
    pytest.importorskip("wandb")
    notices = []
    for step in (1, 2):
        tracker = trackers(tmp_path, notices, wandb="offline")
        tracker.log(step, {"reward/mean": 0.5})
        tracker.close()
    assert notices == []
    run_id = (tmp_path / "wandb-id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))) >= 1


@pytest.mark.parametrize(
    ("config", "module", "remedy"),
    [
        (
            {"tensorboard": True},
            "torch.utils.tensorboard",
            "pip install tensorboard`, or --set track.tensorboard=false",
        ),
        ({"wandb": "offline"}, "wandb", "pip install wandb`, or --set track.wandb=off"),
    ],
)
def test_a_tracker_that_is_not_installed_is_an_error_with_the_remedy(tmp_path, monkeypatch, config, module, remedy):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=remedy.replace(".", r"\.")):
        trackers(tmp_path, **config)


class Failing:
    def log(self, step, metrics):
        raise ConnectionError("the network is gone")

    def close(self):
        raise AssertionError("a dropped tracker is not closed")


class Recording:
    def __init__(self):
        self.rows = []

    def log(self, step, metrics):
        self.rows.append((step, metrics))

    def close(self):
        raise OSError("disk")


def test_a_failing_tracker_gives_one_notice_and_the_others_continue(tmp_path):
    notices, good = [], Recording()
    tracker = trackers(tmp_path, notices)
    tracker._active.update({"bad": Failing(), "good": good})
    tracker.log(1, {"x": 1.0})
    tracker.log(2, {"x": 2.0})
    assert good.rows == [(1, {"x": 1.0}), (2, {"x": 2.0})]
    tracker.close()
    assert len(notices) == 2
    assert notices[0].startswith(
        "bad failed and is off for the rest of this session (ConnectionError: the network is gone)"
    )
    assert notices[1].startswith("good failed")
    tracker.close()


def test_a_tracker_that_fails_at_its_start_is_dropped(tmp_path, monkeypatch):
    notices = []
    monkeypatch.setattr("simplerl.train.trackers.TensorBoard", lambda *_: 1 / 0)
    tracker = trackers(tmp_path, notices, tensorboard=True)
    tracker.log(1, {"x": 1.0})
    tracker.close()
    assert len(notices) == 1 and "ZeroDivisionError" in notices[0]
