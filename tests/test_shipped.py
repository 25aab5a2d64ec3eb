"""What the repository ships fits together: weights, records and evaluations are of the same networks."""

import json
from pathlib import Path

import pytest

from igkd.models import load_weights, state_digest, weights_metadata
from igkd.runs import Store

ROOT = Path(__file__).resolve().parent.parent


SHIPPED = sorted((ROOT / "weights").glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_are_those_of_their_records(path):
    store = Store(ROOT / "records", ROOT / "build", ROOT / "weights")
    record = store.find(weights_metadata(path)["run"])
    model = load_weights(path, len(record.outcome["per_class_accuracy"]))
    assert state_digest(model) == record.outcome["weights"]


def test_evaluations_on_other_images_are_of_the_networks_that_the_records_are_of():
    store = Store(ROOT / "records", ROOT / "build", ROOT / "weights")
    kept = [json.loads(path.read_text()) for path in (ROOT / "records" / "shift").glob("*/*.json")]
    others = [each["run"] for each in kept if store.find(each["run"]).outcome["weights"] != each["weights"]]
    assert kept and not others
