import pytest

from simplerl.progress import ProgressBars

pytestmark = pytest.mark.unit


def drive(plain: bool | None) -> None:
    with ProgressBars(plain) as bars:
        bars.show("answers", 2, 5)
        bars.show("answers", 3, 5)
        bars.show("verdicts", 0, 7)


def test_a_terminal_gets_a_bar_per_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    drive(plain=None)
    out, err = capsys.readouterr()
    assert out == ""
    assert all(text in err for text in ("answers", "3/5", "verdicts", "0/7"))


@pytest.mark.parametrize(("terminal", "plain"), [("", None), ("1", True)])
def test_without_a_terminal_or_when_plain_nothing_is_written(
    terminal: str, plain: bool | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", terminal)
    drive(plain)
    assert capsys.readouterr() == ("", "")
