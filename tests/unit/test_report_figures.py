import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from synthetic_responses import response, write_eval
from synthetic_runs import write_run, write_sft_run

from simplerl.report.drawing import Canvas, _draw_panel, _spread, render, render_legend, render_panel
from simplerl.report.figures import (
    benchmarks_figure,
    cost_figure,
    dynamics_figure,
    figures,
    optimisation_figure,
    passes_figure,
    responses_figure,
)
from simplerl.report.panels import Line, Panel, describe, held_out, overlaid
from simplerl.report.run_data import RunData, experiments, read_run
from simplerl.report.themes import DARK, LIGHT, recoloured


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(folder / f"seed-{seed}", seed, steps=20)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return read_run(write_sft_run(tmp_path_factory.mktemp("runs") / "warm-up", steps=30))


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


def test_fine_tuning_shows_its_loss_in_place_of_the_reward_and_nothing_empty(sft):
    found = {spec.name: titles(spec) for spec in figures([sft])}
    assert found == {
        "dynamics": ["Accuracy", "Loss", "Response length", "Style"],
        "benchmarks": ["arithmetic-test"],
        "answers": ["Truncated at the limit", "Program code", "Self-checks", "No boxed answer"],
        "diagnostics": ["Training loss", "Entropy", "Gradient norms", "Learning rates", "Packing"],
        "cost": ["Time", "Tokens", "Throughput", "Memory"],
    }
    training, validation = dynamics_figure([sft]).panels[1].lines
    assert (training.thin, validation.thin, validation.dots) == (True, False, True)
    assert (validation.pick(sft).steps.size, training.pick(sft).steps.size) == (7, 30)
    assert responses_figure([sft]).caption == "Held-out responses of every evaluation."


@pytest.mark.parametrize("left", ["metrics", "evals", "validation"])
def test_fine_tuning_of_which_one_file_is_there_can_be_drawn(sft, left):
    alone = replace(sft, **dict.fromkeys({"metrics", "evals", "validation"} - {left}, ()), path=Path("empty"))
    specs = {spec.name: spec for spec in figures([alone])}
    assert all(render(spec, [alone], "svg") for spec in specs.values())
    dynamics = {"metrics": ["Loss", "Response length"], "validation": ["Loss"]}
    assert titles(specs["dynamics"]) == dynamics.get(left, ["Accuracy", "Response length", "Style"])
    assert left == "evals" or specs["dynamics"].caption == "Measured while training."
    assert left != "metrics" or not specs["dynamics"].panels[0].lines[0].thin


def test_what_a_run_does_not_record_leaves_no_panel(runs):
    bare = replace(runs[0], metrics=tuple({"step": row["step"], "entropy": 0.1} for row in runs[0].metrics))
    assert titles(optimisation_figure([bare])) == ["Entropy"]
    assert optimisation_figure([replace(runs[0], metrics=())]).panels == ()


def test_a_run_has_all_its_figures_and_none_that_is_empty(runs):
    found = {spec.name: titles(spec) for spec in figures(runs)}
    assert list(found) == ["dynamics", "benchmarks", "answers", "diagnostics", "cost"]
    assert found["answers"] == [
        "Verdicts", "Length by verdict", "Truncated at the limit", "Program code", "Self-checks", "No boxed answer"
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


def test_runs_of_different_kinds_are_drawn_together(runs, sft):
    both = [sft, runs[0]]
    found = {spec.name: spec for spec in figures(both)}
    assert titles(found["dynamics"]) == ["Accuracy", "Loss", "Reward", "Response length", "Style"]
    assert "A step is a batch of rollouts" in found["dynamics"].caption
    assert "A step is" not in overlaid(runs)
    for spec in found.values():
        assert render(spec, both, "svg")


def test_lengths_and_styles_are_compared_at_a_temperature_all_runs_have(runs, sft):
    # Fine-tuning was evaluated greedily alone: sampled lengths stand beside no greedy ones.
    assert held_out(runs) == ("arithmetic-test", 500, (0.0, 1.0), 1.0)
    assert held_out([sft, runs[0]]) == ("arithmetic-test", 500, (0.0, 1.0), 0.0)
    greedy, sampled = dynamics_figure([sft, runs[0]]).panels[0].lines
    assert (greedy.pick(sft).steps.size, sampled.pick(sft).steps.size, sampled.pick(runs[0]).steps.size) == (7, 0, 5)
    length = dynamics_figure([sft, runs[0]]).panels[3]
    assert length.subtitle == "mean tokens; held-out: greedy"
    assert length.lines[1].pick(runs[0]).values.tolist() == runs[0].evaluation("length", 0.0).values.tolist()
    only_sampled = replace(runs[0], evals=tuple(row for row in runs[0].evals if row["temperature"] == 1))
    assert held_out([only_sampled, sft]) == ("arithmetic-test", 500, (0.0, 1.0), 1.0)
    assert held_out([replace(sft, evals=())]) is None


def test_an_average_over_other_sets_is_not_drawn_beside_it(runs, sft):
    accuracy = benchmarks_figure([sft, runs[0]]).panels[0].lines[0]
    assert accuracy.pick(runs[0]).steps.size == 5 and accuracy.pick(sft).steps.size == 0


def test_a_panel_ends_where_the_runs_in_it_end(runs, sft):
    longer = replace(runs[0], metrics=(*runs[0].metrics, {"step": 600, "reward/mean": 0.5}))
    loss = dynamics_figure([longer, sft]).panels[1]
    assert axis_end(loss, [longer, sft]) == 30 and axis_end(dynamics_figure([longer]).panels[1], [longer]) == 600


def axis_end(panel, runs):
    axes = Figure().subplots()
    _draw_panel(axes, panel, experiments(runs), LIGHT)
    return axes.get_xlim()[1]


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
    where = "Response length (mean tokens; held-out: temperature 1)"
    assert words == f"{where}: held-out from {length[0]:.3g} to {length[-1]:.3g}."


def test_the_words_for_a_panel_of_several_recipes_tell_the_ends_of_each(sft):
    other = RunData(Path("zero"), metrics=({"step": 1, "a": 3.0},))
    more = RunData(Path("more"), recipe=sft.recipe, metrics=({"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}))
    panel = Panel("A", "unit", (Line("a", lambda run: run.metric("a")),))
    assert describe(panel, [other, sft, more]) == "A (unit): zero: a from 3 to 3."
    assert describe(panel, [other, more]) == "A (unit): zero: a from 3 to 3; more: a from 1 to 2."
    assert describe(panel, [sft]) == "A (unit): no step in common."


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
