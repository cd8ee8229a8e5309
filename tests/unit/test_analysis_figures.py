import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_responses import response, write_eval
from synthetic_runs import write_run

from simplerl.analysis.drawing import Canvas, _spread, render, render_legend, render_panel
from simplerl.analysis.figures import (
    benchmarks_figure,
    cost_figure,
    dynamics_figure,
    figures,
    optimisation_figure,
    passes_figure,
    responses_figure,
)
from simplerl.analysis.panels import Line, Panel, describe, overlaid
from simplerl.analysis.run_data import RunData, read_run
from simplerl.analysis.themes import DARK, LIGHT, recoloured


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
    assert titles(optimisation_figure([bare])) == ["Entropy"]
    assert optimisation_figure([replace(runs[0], metrics=())]).panels == ()


def test_a_run_has_all_its_figures_and_none_that_is_empty(runs):
    found = {spec.name: titles(spec) for spec in figures(runs)}
    assert list(found) == ["dynamics", "benchmarks", "answers", "diagnostics", "cost"]
    assert found["answers"] == [
        "Verdicts", "Length by verdict", "Cut at the limit", "Program code", "Self-checks", "No boxed answer"
    ]  # fmt: skip
    assert found["cost"] == ["Time", "Throughput", "Memory"]
    assert {"KL to the base model", "Entropy", "Clipped", "Critic", "Gradient norms", "Engine against learner"} <= set(
        found["diagnostics"]
    )


def test_every_set_has_twin_axes_and_a_temperature_of_several_sets_their_average(runs):
    spec = benchmarks_figure(runs[:1])
    assert [(panel.title, panel.subtitle) for panel in spec.panels] == [
        ("Average of all sets", "greedy"),
        ("arithmetic-test", "greedy"),
        ("arithmetic-test", "temperature 1"),
        ("arithmetic-hard", "greedy"),
    ]
    assert all([line.right for line in panel.lines] == [False, True] for panel in spec.panels)
    accuracy, tokens = (line.pick(runs[0]) for line in spec.panels[0].lines)
    sets = [runs[0].evaluation("accuracy", 0.0, name).values for name in ("arithmetic-test", "arithmetic-hard")]
    assert accuracy.values == pytest.approx((sets[0] + sets[1]) / 2)
    assert tokens.steps.tolist() == [0, 5, 10, 15, 20]


def test_pass_at_k_is_drawn_where_problems_were_sampled_several_times(tmp_path):
    folder = write_run(tmp_path / "run", steps=5)
    for step, right in ((0, 1), (5, 3)):
        rows = [response("p", sample_index=i, verdict="correct" if i < right else "wrong") for i in range(4)]
        write_eval(folder, step, "aime", 1.0, rows)
    run = read_run(folder)
    spec = passes_figure([run])
    assert [(panel.title, panel.subtitle) for panel in spec.panels] == [("aime", "temperature 1")]
    # 1 of 4 right: 1/4, 1 - C(3,2)/C(4,2) = 1/2, 1. 3 of 4 right: 3/4, 1, 1.
    curves = {line.label: line.pick(run).values.tolist() for line in spec.panels[0].lines}
    assert curves == {"k = 1": [0.25, 0.75], "k = 2": [0.5, 1.0], "k = 4": [1.0, 1.0]}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "figure", [dynamics_figure, benchmarks_figure, responses_figure, optimisation_figure, cost_figure]
)
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


def test_runs_of_different_recipes_are_drawn_without_a_common_mean(runs):
    other = replace(runs[1], recipe={**runs[1].recipe, "reward": "accuracy"})
    assert "dash" in overlaid([runs[0], other]) and "seed" not in overlaid([runs[0], other])
    assert "dash" not in overlaid(runs) and "seed" in overlaid(runs)
    assert "dash" in overlaid([*runs, other]) and "seed" in overlaid([*runs, other])
    assert overlaid(runs[:1]) == ""
    for spec in figures([*runs, other]):
        assert render(spec, [*runs, other], "svg")
    assert b"svg" in render_legend([*runs, other])


def test_runs_of_one_recipe_have_a_band_around_their_mean():
    ends = [
        RunData(path, recipe={"seed": i}, metrics=({"step": 1, "a": low}, {"step": 2, "a": 5.0}))
        for i, (path, low) in enumerate(((Path("a"), 1.0), (Path("b"), 3.0)))
    ]
    panel = Panel("A", "unit", (Line("a", lambda run: run.metric("a")),))
    together = ElementTree.fromstring(render_panel(panel, ends))
    alone = ElementTree.fromstring(render_panel(panel, ends[:1]))
    fills = [[e for e in tree.iter() if "FillBetween" in e.get("id", "")] for tree in (together, alone)]
    assert (len(fills[0]), len(fills[1])) == (1, 0)


def test_a_dark_panel_is_the_light_one_in_other_colours(runs):
    light = render_panel(dynamics_figure(runs).panels[0], runs)
    dark = recoloured(light, LIGHT, DARK).decode()
    assert len(dark) == len(light)
    assert not [colour for colour in LIGHT.colours if colour in dark]
    assert DARK.surface in dark and DARK.accents[0] in dark


def test_one_step_and_constant_numbers_can_be_drawn(runs):
    start = replace(runs[0], evals=runs[0].evals[:3], metrics=())
    assert render(dynamics_figure([start]), [start], "png")
    zero = replace(runs[0], metrics=({"step": 1, "mismatch/mean": 0.0, "mismatch/max": 0.0, "time/rollout": 0.0},))
    assert render(optimisation_figure([zero]), [zero], "png")
    assert render(cost_figure([zero]), [zero], "png")


def test_the_words_for_a_panel_tell_its_ends(runs):
    words = describe(dynamics_figure(runs[:1]).panels[2], runs[:1])
    length = runs[0].evaluation("length").values
    assert words == f"Response length (mean tokens): held-out from {length[0]:.3g} to {length[-1]:.3g}."


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
