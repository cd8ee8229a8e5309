"""The display of a run: text of responses never controls the terminal, and a broken terminal never stops a run."""

import io
import os
import re
import threading

import pytest
from rich.console import Console

from simplerl.train.console import SFT_COLUMNS, LiveDisplay, PlainDisplay, make_display, make_printable

METRICS = {
    "step": 5,
    "reward/mean": 0.25,
    "reward/accuracy": 0.405,
    "length/mean": 68.4,
    "style/code": 0.5,
    "style/reflection": 0.075,
    "time/total": 3.21,
}
EVAL = {"step": 4, "set": "math500", "temperature": 0.0, "n": 512, "accuracy": 0.4, "code": None}
EVAL |= {"accuracy_low": 0.358, "accuracy_high": 0.443}
HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] [/] \u202erev \ud800 \x9b2J \r over\u2028line"


def drive(display):
    with display:
        display.start_phase("rollout", total=256)
        display.advance(100)
        display.show_step(5, METRICS)
        display.show_evals([EVAL])
        display.show_sample(f"{HOSTILE}?", HOSTILE, HOSTILE, "correct", 1.0)
        display.show_notice(f"checkpoint {HOSTILE} is torn")


def live(width=110, height=40):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=height)
    return LiveDisplay(20, 4, console), file


def test_plain_output_has_one_line_per_step_and_no_control_character():
    file = io.StringIO()
    drive(PlainDisplay(20, steps_done=4, file=file))

    lines = file.getvalue().split("\n")
    start = "step 5/20  reward +0.250  accuracy 40.5%  length 68  code 50.0%  checks 7.5%  seconds 3.2  left "
    assert lines[0].startswith(start)
    assert lines[1] == "eval at step 4: math500 t=0  n 512  accuracy 40.0% (35.8% to 44.3%)  code -"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800]", file.getvalue())
    assert "[bold]x[/bold]" in file.getvalue(), "markup is shown, not interpreted"


def test_a_fine_tuning_run_shows_its_loss():
    metrics = {"loss/sft": 0.12345, "entropy": 0.5, "length/mean": 104.0, "epoch": 1.5, "time/total": 2.0}
    file = io.StringIO()
    with PlainDisplay(20, file=file, columns=SFT_COLUMNS) as display:
        display.show_step(1, metrics)
        display.show_validation(1, 0.25)
    lines = file.getvalue().splitlines()
    assert lines[0].startswith(
        "step 1/20  loss 0.1235  entropy 0.500  norm -  length 104  epoch 1.50  seconds 2.0  left "
    )
    assert lines[1] == "validation at step 1: loss 0.2500 nats per response token"

    page, file = live()
    page._columns = SFT_COLUMNS
    with page:
        page.show_step(1, metrics)
        page.show_validation(1, 0.25)
    for text in ("loss", "0.1235", "validation at step 1: loss 0.2500"):
        assert text in file.getvalue(), text


def test_the_live_page_shows_step_sample_and_notice_without_control_characters():
    display, file = live()
    drive(display)
    shown = file.getvalue()
    for text in ("5/20", "100/256", "40.5%", "math500", "correct, reward +1", "[bold]x[/bold]", "torn"):
        assert text in shown, text
    ours = r"\x1b\[[0-9;]*[mKA]|\x1b\[\?25[lh]"  # colour, erase line, cursor up, cursor off and on
    rest = re.sub(ours, "", shown)
    assert "\x1b[31mred" not in shown and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", rest)
    assert "\r over" not in shown


def test_the_cursor_is_visible_again_after_an_error():
    display, file = live()
    with pytest.raises(KeyboardInterrupt), display:
        raise KeyboardInterrupt
    assert file.getvalue().rstrip("\n").endswith("\x1b[?25h")


def test_the_live_page_is_no_wider_than_its_terminal():
    display, file = live(width=60, height=24)
    drive(display)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-JL-Za-z]", "", file.getvalue())  # all but "erase line", where a redraw begins
    assert max(map(len, re.split(r"[\r\n]|\x1b\[2K", shown))) <= 60


def test_the_live_page_can_be_drawn_while_steps_arrive():
    display, _ = live()
    stop, errors = threading.Event(), []

    def draw():
        while not stop.is_set():
            try:
                display._console.render_lines(display._page())
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    for step in range(300):
        display.show_step(step, METRICS)
        display.start_phase("update", total=step)
    stop.set()
    thread.join()
    assert errors == []


@pytest.mark.parametrize(("plain", "kind"), [(None, PlainDisplay), (True, PlainDisplay), (False, LiveDisplay)])
def test_the_view_is_plain_unless_on_a_terminal(plain, kind):
    assert isinstance(make_display(3, plain, file=io.StringIO()), kind)


def test_the_view_is_live_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    leader, follower = os.openpty()
    with open(follower, "w") as file:
        assert isinstance(make_display(3, file=file), LiveDisplay)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_display(3, file=file), PlainDisplay)
    os.close(leader)


def test_samples_are_shown_at_intervals():
    file = io.StringIO()
    display = PlainDisplay(3, file=file)
    for _ in range(5):
        display.show_sample("q", "4", "text", "wrong", -0.5)
    assert file.getvalue().count("sample") == 1
    assert "sample, wrong, reward -0.5, gold 4" in file.getvalue()


def test_a_long_phase_shows_its_progress():
    file = io.StringIO()
    display = PlainDisplay(3, steps_done=1, file=file, quiet_seconds=0)
    display.start_phase("rollout", total=256)
    display.advance(128)
    assert file.getvalue() == "  step 2 rollout: 128 of 256\n"


def test_no_line_of_a_response_looks_like_a_step():
    file = io.StringIO()
    display = PlainDisplay(3, file=file)
    display.show_sample("q", "4", "x\nstep 9/9  reward +1.000", "wrong", -0.5)
    display.show_notice("x\nstep 9/9")
    assert [line for line in file.getvalue().split("\n") if line.startswith("step")] == []


def test_a_closed_output_does_not_stop_the_run():
    class Gone(io.StringIO):
        writes = 0

        def write(self, text):
            self.writes += 1
            raise BrokenPipeError

    gone, closed = Gone(), io.StringIO()
    closed.close()
    drive(PlainDisplay(3, file=gone))
    drive(PlainDisplay(3, file=closed))
    assert gone.writes == 1


def test_a_signal_handler_may_print_while_a_line_is_being_written():
    class Busy(io.StringIO):
        busy = True

        def write(self, text):
            if self.busy:
                raise RuntimeError("reentrant call inside <_io.BufferedWriter>")
            return super().write(text)

    file = Busy()
    display = PlainDisplay(3, file=file)
    display.show_notice("lost")
    file.busy = False
    display.show_notice("seen")
    assert file.getvalue() == "note: seen\n"


def test_a_resumed_run_starts_at_its_last_step():
    display, file = live()
    with display:
        display.resume(7)
    assert " 7/20" in file.getvalue()


def test_characters_that_the_output_cannot_encode_become_question_marks():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    PlainDisplay(3, file=file).show_notice("größer 🦜")
    assert raw.getvalue() == b"note: gr??er ?\n"


def test_time_left_is_estimated_from_this_session_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("simplerl.train.console.time.monotonic", lambda: now[0])
    file = io.StringIO()
    display = PlainDisplay(100, file=file)
    now[0] += 500  # models are loaded
    display.resume(40)
    now[0] += 20
    display.show_step(42, {})  # 10 s a step, 58 to go
    assert file.getvalue().rstrip().endswith("left 9:40")
    display.show_step(100, {"reward/mean": float("nan")})
    assert file.getvalue().rstrip().endswith("left 0:00") and "reward +nan" in file.getvalue()


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("a\tb\r\nc", None, "a    b\nc"),
        ("\x1b[2J\x07\x9b", None, "\ufffd[2J\ufffd\ufffd"),
        ("a\u200bb\u202ec\u2066d\ud800", None, "a\ufffdb\ufffdc\ufffdd\ufffd"),
        ("x" * 5, 10, "xxxxx"),
        ("a" * 50 + "b" * 50, 10, "aaaaa [... 90 characters ...] bbbbb"),
        ("größer 数 🦜", None, "größer 数 🦜"),
    ],
)
def test_clean(text, limit, shown):
    assert make_printable(text, limit) == shown
