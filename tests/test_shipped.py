"""What the repository ships fits together: weights, records and evaluations are of the same networks."""

import json
from pathlib import Path

from igkd.models import load_weights, state_digest, weights_metadata
from igkd.records import Store

ROOT = Path(__file__).resolve().parent.parent
STORE = Store(ROOT / "records", ROOT / "build", ROOT / "weights")


def test_shipped_weights_are_those_of_their_records():
    for path in STORE.shipped.glob("*.safetensors"):
        record = STORE.find(weights_metadata(path)["run"])
        assert record, f"{path.name} is of a run that has no record"
        network = load_weights(path, len(record.outcome["per_class_accuracy"]))
        assert state_digest(network) == record.outcome["weights"], path.name


def test_students_learned_from_a_teacher_whose_record_is_here():
    for record in STORE.records():  # each file is read, and refused if it is damaged or of other training code
        if record.run.signals:
            teacher = STORE.find(record.run.signals.teacher)
            assert teacher and teacher.outcome["weights"] == record.outcome["teacher_weights"], record.key


def test_evaluations_on_other_images_are_of_the_networks_that_the_records_are_of():
    for path in STORE.root.glob("shift/*/*.json"):
        kept = json.loads(path.read_text())
        record = STORE.find(kept["run"])
        assert record and record.outcome["weights"] == kept["weights"], path.name
