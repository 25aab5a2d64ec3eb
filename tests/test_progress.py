"""What a long command shows while it works, on a terminal and in a log."""

import io
import json
import time

import pytest

from igkd import progress
from igkd.progress import Status, duration, remaining
from igkd.runs import Store
from igkd.training import train
from small import COMPUTE, small_images, small_run


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No test waits for half a minute."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)


def seen(stream, text):
    """What the stream holds once `text` is in it."""
    until = time.monotonic() + 30
    while text not in stream.getvalue():
        assert time.monotonic() < until, stream.getvalue()[-300:]
        time.sleep(0.01)
    return stream.getvalue()


def write(path, **state):
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"done": 0, "total": 1, "unit": "runs", "doing": ""} | state))
    part.replace(path)


def test_a_log_gets_a_line_when_something_else_is_done_and_none_when_nothing_changed(tmp_path):
    log = io.StringIO()
    with Status(tmp_path / "progress", log) as status:
        status.begin("training")
        for epoch in (1, 2):  # of one training, of which no run is finished meanwhile
            write(status.file, doing=f"a teacher: epoch {epoch}/9")
            seen(log, f"epoch {epoch}/9")
        # What was written last is looked at again and again; nothing of it is new.
        write(status.file, done=1, doing="the end")
        seen(log, "the end")
        time.sleep(0.2)
    lines = [line for line in log.getvalue().splitlines() if " of 1 runs" in line]
    assert [line.split()[1] for line in lines] == ["0", "0", "1"]
    assert all(line.startswith("training  ") for line in lines)
    assert "\x1b" not in log.getvalue()


def test_a_log_gets_no_line_before_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 3600)
    log = io.StringIO()
    with Status(tmp_path / "progress", log) as status:
        status.begin("training")
        write(status.file, doing="something")
        time.sleep(0.2)
    assert log.getvalue() == ""


def test_a_terminal_has_one_live_line_that_gives_way_to_lines_that_stay(tmp_path, capsys):
    terminal = Terminal()
    with Status(tmp_path / "progress", terminal) as status:
        assert terminal.getvalue() == ""
        status.begin("training")
        write(status.file, done=0, total=4)
        seen(terminal, "0 of 4 runs")
        write(status.file, done=1, total=4)
        seen(terminal, " left")  # of the runs, at the pace of the first
        before = len(terminal.getvalue())
        status.say("a line that stays")
        assert "\r\x1b[K" in terminal.getvalue()[before:]
        status.begin("another thing")
        shown = seen(terminal, "another thing")
        assert "runs" not in shown[shown.index("another thing") :]
    assert capsys.readouterr().out == "a line that stays\n"
    assert terminal.getvalue().endswith("\r\x1b[K") and "\n" not in terminal.getvalue()


def test_the_time_left_of_one_training_is_known_from_its_epochs(tmp_path):
    """From the lines that a training really writes."""
    images, lines = small_images(), []
    train(small_run(images), images, Store(tmp_path, tmp_path, tmp_path), COMPUTE, log=lines.append)
    terminal = Terminal()
    with Status(tmp_path / "progress", terminal) as status:
        status.begin("training")
        write(status.file, doing=f"arms: Student, seed 0: {lines[0].replace('/2', '/9')}")
        assert " left" not in seen(terminal, "epoch 1/9")
        write(status.file, doing=f"arms: Student, seed 0: {lines[1].replace('/2', '/9')}")
        seen(terminal, " left of this run")
        status.begin("training")  # another one, whose pace is not known yet
        write(status.file, doing="arms: KD, seed 0: epoch 5/9  loss")
        shown = seen(terminal, "KD, seed 0: epoch 5/9")
        assert " left" not in shown[shown.index("KD, seed 0") :]


def test_time_left():
    assert remaining(100.0, 4, 160.0, done=7, total=10) == pytest.approx(60)
    assert remaining(100.0, 4, 160.0, done=4, total=10) is None
    assert remaining(100.0, 4, 160.0, done=10, total=10) is None
    assert [duration(x) for x in (0, 59.4, 59.6, 187, 7500)] == ["0 s", "59 s", "1:00 min", "3:07 min", "2:05 h"]
