from pathlib import Path

import pytest

from simplerl.report.run_data import RunData
from simplerl.report.summary import headlines, in_percent, spread, summarise

N = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"


def row(step, temperature, accuracy, low, high, **values):
    base = {"step": step, "set": "test", "temperature": temperature, "n": 500, "length": 50.0}
    shares = {"code": 0.5, "unboxed": 0.25, "reflection": 0.02, "clip_ratio": 0.0}
    return base | shares | {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high} | values


def run(evals=(), metrics=(), name="run", validation=(), **recipe):
    rows = {"evals": tuple(evals), "metrics": tuple(metrics), "validation": tuple(validation)}
    return RunData(Path(name), recipe=recipe, **rows)


def plain(sentences):
    return [sentence.replace(N, " ") for sentence in sentences]


@pytest.mark.parametrize(
    ("share", "words"), [(0.0523, "5.2 %"), (0, "0 %"), (1.0, "100 %"), (0.9996, "100.0 %"), (0.0004, "0.0 %")]
)
def test_percent(share, words):
    assert in_percent(share).replace(N, " ") == words


def test_spread_of_equal_words_is_one_word():
    assert spread([2.01, 1.0, 2.0], "{:.0f}".format) == f"1{DASH}2"
    assert spread([2.01, 2.0], "{:.0f}".format) == "2"


def test_every_sentence_of_a_finished_run():
    lengths = [90, 60, 60, 30, 60, 120, 120]
    checks = [0.02, 0.6, 0.3, 0.5, 0.7, 0.8, 0.9]
    evals = [row(0, 0.0, 0.05, 0.03, 0.07), row(30, 0.0, 0.7, 0.66, 0.74, code=0.0)]
    evals += [
        row(5 * i, 1.0, 0.04 + 0.01 * i, 0.02 + 0.01 * i, 0.06 + 0.01 * i, length=length, reflection=check, code=code)
        for i, (length, check, code) in enumerate(
            zip(lengths, checks, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.0], strict=True)
        )
    ]
    phases = {"time/total": 10.0, "time/rollout": 6.0, "time/score": 1.0, "time/update": 3.0, "time/grade": 0.5}
    metrics = [{"step": step, "verdict/error": 0.0, **phases} for step in range(1, 31)]
    assert plain(summarise([run(evals, metrics, reward="simplerl", train={"steps": 30})])) == [
        "Greedy accuracy on 500 held-out problems (test) rose from 5.0 % [3.0, 7.0] to 70.0 % [66.0, 74.0] "
        "(95 % intervals).",
        "Accuracy at temperature 1 on 500 held-out problems (test) rose from 4.0 % [2.0, 6.0] to 10.0 % [8.0, 12.0] "
        "(95 % intervals).",
        "Held-out responses with program code went from 50.0 % to 0 %.",
        "Held-out responses without a boxed answer went from 25.0 % to 25.0 %.",
        "Held-out responses with a self-check went from 2.0 % to 90.0 %; from step 15 on they were at least half of "
        "all.",
        "Mean response length, over three evaluations at a time, first fell from 70 to 50 tokens (by 29 %, around "
        "step 10), then rose to 100 (by 100 %).",
        "The reward knows only the box and the answer; nothing in it mentions style or length.",
        "Training took 5 min for 30 steps (median 10.0 s a step: 60 % rollout, 10 % score, 30 % update).",
    ]


def test_intervals_that_overlap_are_no_clear_change():
    evals = [row(0, 0.0, 0.05, 0.03, 0.07), row(5, 0.0, 0.06, 0.04, 0.08)]
    assert "did not clearly change: 5.0" in plain(summarise([run(evals)]))[0]


def test_a_fall_is_called_a_fall():
    evals = [row(0, 0.0, 0.5, 0.45, 0.55), row(5, 0.0, 0.1, 0.08, 0.12)]
    assert "fell from 50.0" in plain(summarise([run(evals)]))[0]


def test_several_runs_give_lowest_and_highest():
    runs = [
        run([row(0, 0.0, first, 0, 1), row(5, 0.0, last, 0, 1)], name=name)
        for name, first, last in (("a", 0.05, 0.70), ("b", 0.06, 0.65), ("c", 0.05, 0.80))
    ]
    expected = "Greedy accuracy on 500 held-out problems (test) went from 5.0 %-6.0 % to 65.0 %-80.0 % in 3 runs."
    assert plain(summarise(runs))[0].replace(DASH, "-") == expected
    assert headlines(runs)[0] == ("Greedy accuracy", f"5{N}%", f"72{N}%")


def test_several_sets_have_their_average():
    evals = [row(0, 0.0, 0.05, 0, 1), row(0, 0.0, 0.15, 0, 1, set="hard"), row(0, 1.0, 0.5, 0, 1)]
    evals += [row(5, 0.0, 0.70, 0, 1), row(5, 0.0, 0.30, 0, 1, set="hard"), row(5, 1.0, 0.5, 0, 1)]
    sentences = [sentence for sentence in plain(summarise([run(evals)])) if "average" in sentence]
    assert sentences == ["On average over 2 sets, greedy accuracy went from 10.0 % to 50.0 %."]


def test_an_unfinished_run_says_so():
    running = run(metrics=[{"step": 4, "reward/mean": -0.5}], train={"steps": 60})
    assert summarise([running])[0] == "run is at step 4 of 60: these are its numbers so far."


def test_a_run_without_evaluations_speaks_of_training():
    sentences = summarise([run(metrics=[{"step": 1, "reward/mean": -0.5}, {"step": 2, "reward/mean": 0.25}])])
    assert "No held-out evaluation" in sentences[0]
    assert sentences[1] == "The mean training reward went from -0.50 to 0.25."


def test_the_reward_sentence_needs_the_reward():
    assert not [s for s in summarise([run(reward={"name": "accuracy"})]) if "box" in s]
    assert [s for s in summarise([run(reward={"name": "simplerl"})]) if "box" in s]


def test_verifier_errors_are_told():
    sentences = plain(summarise([run(metrics=[{"step": 1, "verdict/error": 0.0}, {"step": 2, "verdict/error": 0.03}])]))
    assert "The verifier failed on up to 3.0 % of a step's responses; they are counted apart from wrong." in sentences


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def sft(losses=(), kept=(), evals=(), name="run", **train):
    metrics = [{"step": i, "loss/sft": loss, "epoch": i / 2} for i, loss in enumerate(losses, 1)]
    validation = [{"step": 5 * i, "loss": loss, "tokens": 900, "sequences": 1200} for i, loss in enumerate(kept)]
    return run(evals, metrics, name, validation, kind="sft", reward="simplerl", train=train)


def test_every_sentence_of_fine_tuning():
    evals = [row(0, 0.0, 0.05, 0.03, 0.07), row(15, 0.0, 0.7, 0.66, 0.74, code=0.0)]
    assert plain(summarise([sft([2.31, 1.5, 0.5444], [2.3, 0.7, 0.6, 0.65], evals, epochs=3)])) == [
        "run is at step 15 (1.50 of 3 passes): these are its numbers so far.",
        "Training loss went from 2.310 to 0.544 nats per response token.",
        "On 1,200 held-out solutions the validation loss went from 2.300 to 0.650 nats per response token; it was "
        "lowest, 0.600, at step 10.",
        "Greedy accuracy on 500 held-out problems (test) rose from 5.0 % [3.0, 7.0] to 70.0 % [66.0, 74.0] "
        "(95 % intervals).",
        "Held-out responses with program code went from 50.0 % to 0 %.",
        "Held-out responses without a boxed answer went from 25.0 % to 25.0 %.",
        "Held-out responses with a self-check went from 2.0 % to 2.0 %.",
    ]


def test_a_loss_that_still_falls_has_no_lowest_before_its_end():
    assert summarise([sft([2.0, 1.0], [2.5, 1.5])])[1].endswith("from 2.500 to 1.500 nats per response token.")


def test_fine_tuning_that_has_only_been_validated():
    assert summarise([sft(kept=[2.5])]) == [
        "On 1,200 held-out solutions the validation loss is 2.500 nats per response token.",
        "No held-out problem was answered, so the loss is all there is to see.",
    ]
    assert headlines([sft(kept=[2.5])]) == []


def test_several_runs_of_fine_tuning_give_lowest_and_highest():
    runs = [sft([2.0, 1.0], [2.5, 0.5, 0.75], name="a"), sft([2.5, 1.5], [2.5, 1.0, 1.25], name="b")]
    words = [sentence.replace(DASH, "-") for sentence in summarise(runs)]
    assert words[0] == "Training loss went from 2.000-2.500 to 1.000-1.500 nats per response token."
    assert words[1].endswith("went from 2.500 to 0.750-1.250 nats per response token; it was lowest, 0.500-1.000, at "
                             "step 5.")  # fmt: skip
    assert headlines(runs) == [("Validation loss", "2.50", "1.00")]
    assert headlines([sft([2.0, 1.0])]) == [("Training loss", "2.00", "1.00")]


def test_a_run_that_was_evaluated_greedily_alone_has_no_sampled_headline():
    evals = [row(0, 0.0, 0.05, 0, 1), row(5, 0.0, 0.7, 0, 1)]
    assert [fact.label for fact in headlines([run(evals)])][:2] == ["Greedy accuracy", "Program code"]
