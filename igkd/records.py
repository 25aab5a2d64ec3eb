"""What came out of a training (`Record`), and where records are kept (`Store`)."""

import base64
import dataclasses
import json
import os
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from igkd.errors import InputError
from igkd.models import weights_metadata
from igkd.runs import TRAINING_VERSION, Run, digest


@dataclass(frozen=True)
class Record:
    """What came out of one run.

    Attributes
    ----------
    run : Run
    outcome : dict
        Equal for equal runs on the same machine: ``accuracy``, ``balanced_accuracy``, ``kappa``,
        ``per_class_accuracy``, ``loss``, ``n_test``, ``n_train``, ``history`` (one dict an epoch), ``weights``
        (digest), ``teacher_weights`` (digest or None), ``predictions`` (class of every scored image, see
        `unpack_predictions`). Accuracies are fractions, of the last epoch.
    provenance : dict
        ``data`` (name), ``seconds``, ``machine``, ``versions``, ``code`` (see `code_version`): differ from machine to
        machine.
    """

    run: Run
    outcome: dict
    provenance: dict

    @property
    def key(self) -> str:
        """Key of the run."""
        return self.run.key

    def to_json(self) -> str:
        """One JSON object, keys sorted."""
        fields = {"key": self.key, "training_version": TRAINING_VERSION} | dataclasses.asdict(self)
        return json.dumps(fields | {"digest": digest(fields)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Inverse of `to_json`.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the text is no record, was changed, or is of another version of the training code.
        """
        fields = json.loads(text)
        record = cls(Run.from_dict(fields["run"]), fields["outcome"], fields["provenance"])
        if fields.pop("digest") != digest(fields) or fields["key"] != record.key:
            raise ValueError("its digest or key does not fit its content")
        return record


def pack_predictions(classes: np.ndarray) -> str:
    """Predicted classes (N,), below 256, as text: about half a byte an image."""
    return base64.b64encode(zlib.compress(classes.astype(np.uint8).tobytes(), 9)).decode()


def unpack_predictions(text: str) -> np.ndarray:
    """Inverse of `pack_predictions`: (N,) uint8."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


@cache
def code_version() -> dict:
    """``commit`` of the code and whether it was ``dirty`` (changed since); None where there is no git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed.strip())}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees either the whole of it or nothing, even after a kill.

    Parameters
    ----------
    path : path
        Its folder is made if need be; what was there before is replaced.
    content : bytes

    Raises
    ------
    OSError
        If it cannot be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as part:
            part.write(content)
            part.flush()
            os.fsync(part.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Store:
    """Records under ``root/<experiment>/<key>.json``; weights and checkpoints, which are not committed, beside.

    Records made on another machine are merged by copying their files.

    Parameters
    ----------
    root : path
        Folder of the records.
    scratch : path
        Folder for weights, checkpoints and signals.
    shipped : path
        Folder of weights that come with the repository.
    """

    def __init__(self, root: Path, scratch: Path, shipped: Path):
        self.root, self.scratch, self.shipped = Path(root), Path(scratch), Path(shipped)

    def find(self, key: str) -> Record | None:
        """The record of this key, in whichever experiment's folder it lies.

        Parameters
        ----------
        key : str
            See `Run.key`.

        Returns
        -------
        Record or None
            None if it is not here.

        Raises
        ------
        InputError
            If the file of this name is no record, or the record of another run.
        """
        paths = sorted(self.root.glob(f"*/{key}.json"))
        found = [self._read(path) for path in paths]
        for path, twin in zip(paths[1:], found[1:]):
            if twin.outcome != found[0].outcome:
                raise InputError(f"{path} and {paths[0]} are records of one run and differ; delete the wrong one")
        return found[0] if found else None

    def keys(self) -> set[str]:
        """Keys of all records here."""
        return {path.stem for path in self.root.glob("*/*.json")}

    def records(self, experiment: str = "*") -> Iterator[Record]:
        """All records, or those of one experiment, in the order of their keys.

        Parameters
        ----------
        experiment : str
            Name of its folder.

        Raises
        ------
        InputError
            If a file is no record, or does not have the name of its record.
        """
        for path in sorted(self.root.glob(f"{experiment}/*.json"), key=lambda path: path.stem):
            yield self._read(path)

    def add(self, record: Record, experiment: str) -> Path:
        """Keep a record, in place of what was kept of the same run in the same experiment.

        Parameters
        ----------
        record : Record
        experiment : str
            Name of the folder that it goes into.

        Returns
        -------
        Path
            Its file.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        path = self.root / experiment / f"{record.key}.json"
        write_atomically(path, record.to_json().encode())
        return path

    def forget(self, key: str) -> None:
        """Remove what is known of a run, evaluations on other images too, so that it is trained again."""
        known = [*self.root.glob(f"*/{key}.json"), *self.root.glob(f"shift/*/{key}-*.json")]
        for path in [*known, self.weights_path(key), self.checkpoint_path(key)]:
            path.unlink(missing_ok=True)

    def weights_path(self, key: str) -> Path:
        """Where a finished run's weights are written."""
        return self.scratch / "weights" / f"{key}.safetensors"

    def checkpoint_path(self, key: str) -> Path:
        """Where an unfinished run's state is written, after an epoch and at most every few seconds."""
        return self.scratch / "checkpoints" / f"{key}.pt"

    def find_weights(self, key: str) -> Path | None:
        """Weights of a run: made here, or shipped with the repository.

        Parameters
        ----------
        key : str
            See `Run.key`.

        Returns
        -------
        Path or None
            None if they are neither.

        Raises
        ------
        InputError
            If a file among the shipped weights, which are asked for their run, cannot be read.
        """
        if self.weights_path(key).exists():
            return self.weights_path(key)
        for path in sorted(self.shipped.glob("*.safetensors")):
            if weights_metadata(path).get("run") == key:
                return path
        return None

    @staticmethod
    def _read(path: Path) -> Record:
        try:
            record = Record.from_json(path.read_text())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a record ({error}); delete it and it is trained again") from error
        if record.key != path.stem:
            raise InputError(f"{path} holds the record of another run, {record.key}; delete it if it is a copy")
        return record
