"""What a long command shows while it works: one live line on a terminal, now and then a line in a log."""

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import TextIO

SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_LOOKS = 0.5
#: What is being done, where it is a training that tells its epochs.
_EPOCH = re.compile(r"(.+): epoch (\d+)/(\d+)\b")


class Status:
    """Shows the progress that `igkd.engine` writes into a file; a context manager.

    Parameters
    ----------
    file : path
        Read twice a second; holds ``{"done": int, "total": int, "unit": str, "doing": str}`` once there is progress.
    stream : text stream
        Where it is shown.
    """

    def __init__(self, file: Path, stream: TextIO):
        self.file, self.stream, self.live = Path(file), stream, stream.isatty()
        self._heading, self._lock, self._stop = "", threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Status":
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._clear()

    def begin(self, heading: str) -> None:
        """From now on show the progress of something else."""
        with self._lock:
            self.file.unlink(missing_ok=True)
            self._heading, self._shown, self._first, self._unit, self._training = heading, {}, None, None, None
            self._started = self._printed = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._clear()
            print(line, flush=True)

    def _clear(self) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            with self._lock:
                if self._heading:
                    self._show(time.monotonic(), self._read())

    def _read(self) -> dict:
        try:
            return json.loads(self.file.read_text())
        except (OSError, ValueError):  # not there yet
            return {}

    def _show(self, now: float, state: dict) -> None:
        if state and (self._first is None or state["unit"] != self._unit):  # time left is of things of one kind
            self._first, self._unit = (now, state["done"]), state["unit"]
        parts = [self._heading, f"{duration(now - self._started)} gone"]
        if state:
            parts.insert(1, f"{state['done']} of {state['total']} {state['unit']}")
            left = remaining(*self._first, now, state["done"], state["total"])
            parts.append("" if left is None else f"about {duration(left)} left")
            left = self._left_of_training(now, state["doing"])
            parts.append("" if left is None else f"about {duration(left)} left of this run")
            parts.append(state["doing"])  # last, because a narrow terminal cuts it off
        line = "  ".join(filter(None, parts))
        if self.live:
            self.stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()
        elif now - self._printed >= SECONDS_BETWEEN_LINES and state != self._shown:
            print(line, file=self.stream, flush=True)
            self._printed, self._shown = now, state

    def _left_of_training(self, now: float, doing: str) -> float | None:
        """Seconds left of a training that tells its epochs, from the second on that was seen of it."""
        found = _EPOCH.match(doing)
        if not found:
            return None
        name, epoch, epochs = found[1], int(found[2]), int(found[3])
        if self._training is None or self._training[0] != name:
            self._training = name, now, epoch
        return remaining(*self._training[1:], now, epoch, epochs)


def remaining(since: float, done_then: int, now: float, done: int, total: int) -> float | None:
    """Seconds left if it goes on at the pace since then; None before anything was finished, and when all is."""
    if done <= done_then or done >= total:
        return None
    return (now - since) / (done - done_then) * (total - done)


def duration(seconds: float) -> str:
    """``45 s``, ``3:07 min`` or ``2:05 h``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d} h"
