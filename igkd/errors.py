"""The ways in which a command ends early; each carries one line for the reader."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


def first_line(error: Exception) -> str:
    """What a library's error says, as far as it fits into a line of ours; the name of its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class InputError(ValueError):
    """What the reader gave cannot be used: the message says what is wrong and how to mend it.

    Command lines print the message alone and exit with code 2.
    """


class MissingImages(InputError):
    """No images were named, and none lie where they are looked for."""


class TrainingError(RuntimeError):
    """One run failed (for example a loss that is not finite); other runs go on.

    Nothing is stored as the run's result.
    """


@contextmanager
def ctrl_c_for_us_alone() -> Iterator[None]:
    """Processes that are started meanwhile do not get Ctrl-C: the program, which does, ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    # What multiprocessing starts along with them unblocks Ctrl-C behind itself, so it goes first.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
