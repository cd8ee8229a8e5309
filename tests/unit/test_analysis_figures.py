import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from synthetic_runs import write_run

from simplerl.analysis.drawing import DARK, LIGHT, Canvas, _spread, render
from simplerl.analysis.figures import describe, diagnostics_figure, dynamics_figure
from simplerl.analysis.run_data import read_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(folder / f"seed-{seed}", seed, steps=20)) for seed in (0, 1)]


def titles(spec):
    return [panel.title for panel in spec.panels]


def test_the_dynamics_have_four_panels_with_bands(runs):
    spec = dynamics_figure(runs[:1])
    assert titles(spec) == ["Accuracy", "Reward", "Response length", "Style"]
    assert [line.label for line in spec.panels[0].lines] == ["greedy", "sampled"]
    assert all(line.low and line.high for line in spec.panels[0].lines)
    assert "500 held-out problems" in spec.caption and "Wilson" in spec.caption


def test_without_evaluations_the_dynamics_are_of_training(runs):
    spec = dynamics_figure([replace(runs[0], evals=())])
    assert titles(spec) == ["Accuracy", "Reward", "Response length", "Style"]
    assert spec.caption == "Measured on training responses."


def test_what_a_run_does_not_record_leaves_no_panel(runs):
    bare = replace(runs[0], metrics=tuple({"step": row["step"], "entropy": 0.1} for row in runs[0].metrics))
    assert titles(diagnostics_figure([bare])) == ["Entropy"]
    assert diagnostics_figure([replace(runs[0], metrics=())]).panels == ()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("figure", [dynamics_figure, diagnostics_figure])
def test_figures_are_drawn_and_repeat_byte_for_byte(runs, figure, count):
    spec = figure(runs[:count])
    svg = render(spec, runs[:count], "svg")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg == render(spec, runs[:count], "svg")


def test_a_canvas_sets_the_size_and_the_colours(runs):
    spec = dynamics_figure(runs)
    png = render(spec, runs, "png", Canvas(DARK, columns=1, panel=(4.0, 2.5)))
    assert struct.unpack(">II", png[16:24]) == (4 * 160, 4 * 2.5 * 160)
    assert LIGHT.surface in render(spec, runs, "svg").decode()
    assert DARK.surface in render(spec, runs, "svg", Canvas(DARK)).decode()


def test_runs_of_different_recipes_are_drawn_without_a_mean(runs):
    other = replace(runs[1], recipe={**runs[1].recipe, "reward": "accuracy"})
    spec = dynamics_figure([runs[0], other])
    assert "dash" in spec.caption
    assert render(spec, [runs[0], other], "svg")
    assert render(diagnostics_figure([runs[0], other]), [runs[0], other], "svg")


def test_one_step_and_constant_numbers_can_be_drawn(runs):
    start = replace(runs[0], evals=runs[0].evals[:3], metrics=())
    assert render(dynamics_figure([start]), [start], "png")
    zero = replace(runs[0], metrics=({"step": 1, "mismatch/mean": 0.0, "mismatch/max": 0.0, "time/rollout": 0.0},))
    assert render(diagnostics_figure([zero]), [zero], "png")


def test_the_words_for_a_figure_tell_its_ends(runs):
    words = describe(dynamics_figure(runs[:1]), runs[:1])
    length = runs[0].evaluation("length").values
    assert f"held-out from {length[0]:.3g} to {length[-1]:.3g}" in words


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.0, 0.0, 0.0], [0.0, 0.1, 0.2]),
        ([0.95, 1.0, 1.0], [0.8, 0.9, 1.0]),
        ([], []),
    ],
)
def test_labels_move_apart(heights, expected):
    assert _spread(heights, 0.1) == pytest.approx(expected)
