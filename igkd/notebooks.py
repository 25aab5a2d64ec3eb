"""Finding, checking, executing and publishing the notebooks.

Importing this module is cheap: papermill and nbformat are imported where they are needed, so that
``python run_all.py --list`` answers at once.
"""

import ast
import difflib
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from igkd.errors import InputError

#: Tag of the cells that show images or send them through a network, and of those that need what such cells make.
NEEDS_IMAGES = "needs-images"
_SKIPPED = "This cell needs the images, which are not here (section Data of the README says how to get them)"


@dataclass(frozen=True)
class Notebook:
    """One notebook of the paper, ``NN_topic.ipynb``."""

    path: Path

    @property
    def number(self) -> str:
        """The two digits that its name begins with."""
        return self.path.name[:2]

    @property
    def name(self) -> str:
        """File name without the ending."""
        return self.path.stem

    @property
    def title(self) -> str:
        """Its first heading."""
        for cell in _read_json(self.path)["cells"]:
            if cell["cell_type"] == "markdown":
                heading = re.search(r"^#+ +(.+)$", "".join(cell["source"]), re.MULTILINE)
                if heading:
                    return heading[1].strip()
        return ""


@dataclass(frozen=True)
class Execution:
    """What came of executing one notebook.

    Attributes
    ----------
    seconds : float
    figures : int
        Outputs that are images.
    error : str or None
        The last line of what went wrong.
    """

    seconds: float
    figures: int
    error: str | None

    @property
    def status(self) -> str:
        """In a word."""
        return "failed" if self.error else "ok"


def find_notebooks(folder: Path) -> list[Notebook]:
    """The notebooks ``NN_*.ipynb`` of a folder, in the order of their numbers."""
    return [Notebook(path) for path in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))]


def default_parameters(notebook: Notebook) -> dict[str, str]:
    """Names assigned in the cell tagged ``parameters``, each with the source text of its default.

    Raises
    ------
    InputError
        If the file is no notebook, or has not exactly one such cell.
    """
    import nbformat
    import papermill

    content = _read_json(notebook.path)
    tagged = [cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    if len(tagged) != 1:
        raise InputError(f"{notebook.path.name} has {len(tagged)} cells tagged 'parameters'; it must have one")
    # Papermill asks the notebook for its language, which a notebook that was never opened in Jupyter does not name.
    content["metadata"].setdefault("kernelspec", {"name": "python3", "language": "python", "display_name": "Python 3"})
    found = papermill.inspect_notebook(nbformat.from_dict(content))
    return {name: parameter["default"] for name, parameter in found.items()}


def check_parameters(notebook: Notebook, given: Mapping[str, str]) -> dict:
    """Parameters as Python values, after a check that the notebook has them and that they are of the right type.

    Papermill only warns about a name that the notebook does not have, and the run then silently uses the default.

    Parameters
    ----------
    notebook : Notebook
    given : mapping of str to str
        Values as typed on a command line.

    Raises
    ------
    InputError
        For an unknown name, or a value of another type than the notebook's default.
    """
    defaults = default_parameters(notebook)
    values = {}
    for name, text in given.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has: {', '.join(defaults)}"
            raise InputError(f"{notebook.path.name} has no parameter {name!r}{hint}")
        values[name] = _value(notebook, name, text, _evaluated(defaults[name]))
    return values


def execute(
    notebook: Notebook,
    output: Path,
    parameters: Mapping,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    kernels: list | None = None,
    with_images: bool = True,
) -> Execution:
    """Execute a notebook with this interpreter's kernel.

    The executed copy is written after each cell, so it holds the error of a notebook that fails. What the kernel's
    process itself prints (as opposed to the cells) goes to a ``.log`` file beside it.

    Parameters
    ----------
    notebook : Notebook
    output : path
        Where the executed copy is written.
    parameters : mapping
    folder : path
        Working directory of the kernel.
    environment : mapping, optional
        Environment variables to set in the kernel.
    kernels : list, optional
        Holds the process number of the kernel while it runs.
    with_images : bool
        False: cells with the tag `NEEDS_IMAGES` are not executed. Their copies say so and keep the outputs of
        `notebook`, if those are of the same profile.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from igkd.kernels import kernel_manager

    output = Path(output).resolve()
    log = output.with_suffix(".log")
    started, error, figures = time.monotonic(), None, 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        papermill.execute_notebook(
            _literal(notebook.path.resolve()),
            _literal(output),
            dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(folder),
            progress_bar=False,
            kernel_manager_class=kernel_manager(log, environment or {}, kernels),
            **({} if with_images else {"skip_cells_with_tag": NEEDS_IMAGES}),
        )
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {([''] + failure.evalue.strip().splitlines())[-1]}"
    except (DeadKernelError, CellControlSignal, RuntimeError) as failure:
        error = f"{type(failure).__name__}: {failure}; see {log.name}"
    except OSError as failure:  # the copy is written after each cell, and the disk may be full
        error = f"{type(failure).__name__}: {failure}"
    finally:
        if kernels is not None:
            kernels.clear()  # the number of a process that has ended may become another's
    try:
        copy = nbformat.read(output, as_version=4)
        if not with_images:
            _keep_skipped(nbformat.read(notebook.path, as_version=4), copy, parameters.get("profile"))
            nbformat.write(copy, output)
        cells = copy.cells
        figures = sum("image/png" in shown.get("data", ()) for cell in cells for shown in cell.get("outputs", ()))
    except (OSError, ValueError) as failure:  # it is not there, or only half of it
        error = error or f"{type(failure).__name__}: {failure}"
    return Execution(time.monotonic() - started, figures, error)


def _keep_skipped(source, copy, profile: str | None) -> None:
    """Give the cells of an executed copy that were skipped a line that says so, and the outputs they have in `source`."""
    from nbformat.v4 import new_output

    same_profile = source.metadata.get("profile") == profile
    kept = {cell.id: cell.get("outputs", []) for cell in source.cells} if same_profile else {}
    for cell in copy.cells:
        if NEEDS_IMAGES in cell.metadata.get("tags", ()):
            before = kept.get(cell.id, [])
            line = f"{_SKIPPED}{'; these outputs are those in the repository' * bool(before)}.\n"
            cell.outputs = [new_output("stream", name="stdout", text=line), *before]


def execute_all(
    notebooks: list[Notebook],
    build: Path,
    parameters: Mapping[Notebook, Mapping],
    folder: Path,
    at_once: int,
    with_images: bool = True,
) -> Iterator[tuple[Notebook, Execution]]:
    """Execute notebooks side by side; each is returned when it is finished.

    Where the caller stops early (Ctrl-C, or the generator is closed), kernels that still run are ended.

    Parameters
    ----------
    notebooks : list of Notebook
    build : path
        Folder of the executed copies.
    parameters : mapping
        Of each notebook.
    folder : path
        Working directory of the kernels.
    at_once : int
        How many; each gets its share of the processor cores.
    with_images : bool
        See `execute`.
    """
    from joblib import cpu_count

    shared = {"OMP_NUM_THREADS": str(max(1, cpu_count() // at_once))} if at_once > 1 else {}
    kernels: dict[Notebook, list[int]] = {each: [] for each in notebooks}
    with ThreadPoolExecutor(at_once) as pool:
        running = {
            pool.submit(
                execute, each, build / each.path.name, parameters[each], folder, shared, kernels[each], with_images
            ): each
            for each in notebooks
        }
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for pid in chain.from_iterable(kernels.values()):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # a kernel leads a group of its own; its workers are in it
            raise


def with_outputs(source, executed):
    """The notebook `source` with the outputs of its executed copy, and nothing else of it.

    Parameter values, timing and other traces of the execution stay behind: there is one ``parameters`` cell, with
    the defaults.

    Parameters
    ----------
    source, executed : NotebookNode

    Returns
    -------
    NotebookNode
        A new notebook; cells are numbered as if executed in order.

    Raises
    ------
    InputError
        If `executed` holds an error or is not finished, or `source` was edited since it was executed.
    """
    done = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
    if [cell.source for cell in done] != [cell.source for cell in source.cells]:
        raise InputError("it failed, or it was edited after it was executed; execute it again")
    published, number = deepcopy(source), 0
    for cell, ran in zip(published.cells, done):
        if cell.cell_type != "code":
            continue
        if ran.execution_count is None and cell.source.strip():
            raise InputError("it was not executed to its end, or without the images; execute it again")
        if any(shown.output_type == "error" for shown in ran.outputs):
            raise InputError("it holds an error; execute it again")
        number += 1
        cell.execution_count, cell.outputs = number, deepcopy(ran.outputs)
        for shown in cell.outputs:
            if shown.output_type == "execute_result":
                shown.execution_count = number
    return published


def publish(notebook: Notebook, executed: Path, profile: str) -> None:
    """Give a notebook the outputs of its executed copy (see `with_outputs`), and the name of their profile."""
    import nbformat

    if not executed.exists():
        raise InputError(f"{notebook.path.name} has no executed copy {executed.name}; execute it first")
    try:
        result = with_outputs(nbformat.read(notebook.path, as_version=4), nbformat.read(executed, as_version=4))
    except InputError as error:
        raise InputError(f"{notebook.path.name} is not published: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{notebook.path.name} is not published: its copy {executed} is damaged; execute it again"
        ) from error
    result.metadata["profile"] = profile
    part = notebook.path.with_suffix(".part")
    nbformat.write(result, part)
    os.replace(part, notebook.path)


def _literal(path: Path) -> str:
    # Papermill formats paths as templates.
    return str(path).replace("{", "{{").replace("}", "}}")


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "cells" not in content:
            raise ValueError("it has no cells")
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read as a notebook ({error}); get it from the repository") from error
    return content


def _evaluated(source: str):
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return None


def _value(notebook: Notebook, name: str, text: str, default):
    if isinstance(default, str):
        return text
    value = _evaluated(text)
    value = text if value is None and text != "None" else value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise InputError(
            f"{notebook.path.name} takes {name} as {type(default).__name__} (by default {default!r}), not {text!r}"
        )
    return value
