"""Bars go to a terminal only; lines always go to stderr."""

import pytest

from edgetune.progress import Progress, Silent, Terminal


@pytest.mark.parametrize("progress", [Silent(), Terminal()])
def test_without_a_terminal_only_lines_are_said(
    progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.begin("epoch 1/2", total=10)
    progress.advance(5, loss=0.5)
    progress.end()
    progress.line("epoch 1/2 [done]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("epoch 1/2 [done]\n" if isinstance(progress, Terminal) else "")


def test_on_a_terminal_the_bar_shows_rate_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    progress = Terminal()
    progress.console = Console(file=stream, force_terminal=True, width=100, highlight=False)
    progress.begin("calibrate", total=4)
    for _ in range(4):
        progress.advance(1, loss=0.25)
    progress.end()
    assert "calibrate" in stream.getvalue()
    assert "loss 0.25" in stream.getvalue()
