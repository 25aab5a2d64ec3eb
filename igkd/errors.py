"""The ways in which a command ends early; each is one line for the reader."""

import argparse
import errno
import os
import sys
from collections.abc import Callable


def first_line(error: Exception) -> str:
    """What a library's error says, as far as it fits into a line of ours; the name of its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class InputError(ValueError):
    """What the reader gave cannot be used: the message says what is wrong and how to mend it.

    Command lines print the message alone and exit with code 2.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows."""
        return [f"{type(self).__name__}: {self}"]


class MissingImages(InputError):
    """No images were named, and none lie where they are looked for."""


class TrainingError(RuntimeError):
    """One run failed (for example a loss that is not finite); other runs go on.

    Nothing is stored as the run's result.
    """


class OneLineParser(argparse.ArgumentParser):
    """Bad usage is one line, like every other error; an option is given by its whole name, as it may delete records."""

    def __init__(self, **options):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str):
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def exit_code(program: str, work: Callable[[], int]) -> int:
    """Do the work of a command line; what ends it early is said in one line.

    Parameters
    ----------
    program : str
        Its name.
    work : callable
        Returns the exit code.

    Returns
    -------
    int
        That of `work`; 1 if something failed, 2 for input or an environment that cannot be used, 130 for Ctrl-C.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, "w"))
        # A log in a file is up to date, and a console may not have every character.
        getattr(sys, name).reconfigure(line_buffering=True, errors="replace")
    try:
        try:
            code = work()
        except SystemExit as end:  # of the parser: bad usage, or --help
            code = end.code
        sys.stdout.flush()  # so that a reader who has gone is noticed here, not when Python ends
        return code
    except InputError as error:
        code, line = 2, str(error)
    except ModuleNotFoundError as error:
        code, line = 2, f"{error.name} is missing in {sys.executable}; run make, then source .venv/bin/activate"
    except BrokenPipeError:
        # Whoever read our output (head, a pager) has closed it; keep Python from flushing into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        code, line = 130, "stopped; finished runs are kept, and the same command goes on"
    except (OSError, RuntimeError, AttributeError) as error:
        code, line = 1, first_line(error) + "; make room" * (getattr(error, "errno", None) == errno.ENOSPC)
        if "torchvision::nms" in line or "circular import" in line:
            code, line = 2, "torchvision does not fit torch; install the pair that pyproject.toml names: make"
        elif not isinstance(error, OSError | TrainingError):
            raise
    print(f"{program}: {line}", file=sys.stderr)
    return code
