"""A run's description: what its key depends on, and which descriptions are refused."""

import dataclasses
import math

import numpy as np
import pytest

from igkd import runs
from igkd.runs import Architecture, Method, Recipe, Run, SignalSpec, Subset
from small import refusal

RUN = Run(
    data="0123456789abcdef",
    subset=Subset(0.8, seed=3, validation=0.1),
    architecture=Architecture(5, normalize=False),
    method=Method(0.01, temperature=2.5, overlay_prob=0.1, gamma=0.8, overlay_weight=0.5, max_exponent=2.0),
    recipe=Recipe(16, 64, "sgd", 0.05, True, 5e-4, padding=4, scales=((0.5, 0.3), (0.75, 0.6)), cutout=8),
    signals=SignalSpec("fedcba9876543210", "described", n_steps=50, baseline="mean"),
    seed=7,
    split="test",
)
PLAIN = dataclasses.replace(RUN, method=Method(), signals=None)

FROM_0, FROM_1, ABOVE_0 = (-1, math.inf, math.nan, "1"), (0, math.inf, math.nan, None), (0, -1, math.inf, math.nan)
NOT_WHOLE = (2.0, 1.5, True, np.int64(2))
COUNT = FROM_0 + NOT_WHOLE
SHARE, PART, BELOW_1 = (-0.1, 1.5, math.nan), (0, -0.1, 1.5, math.nan), (-0.1, 1, math.nan)
NO_SCALES = [((0.5, 0.5), (scale, 1.0)) for scale in PART] + [((0.5, 0),)]
#: For each field some other values than those of `RUN`, and some that are refused.
FIELDS = {
    "subset": {"fraction": ((0.7, 1e-9, 1), PART), "seed": ((0, 4), COUNT), "validation": ((0, 0.2), BELOW_1)},
    "architecture": {"blocks_removed": ((0, 3), COUNT), "normalize": ((True,), ())},
    "method": {
        "alpha": ((0, 0.02, 1), SHARE), "temperature": ((1e-9, 3.0, 1e30), ABOVE_0), "gamma": ((0, 0.9, 1e3), FROM_0),
        "overlay_prob": ((0, 0.2, 1), SHARE), "overlay_weight": ((0, 0.4, 1), SHARE), "max_exponent": ((1, 3), FROM_1),
    },
    "recipe": {
        "num_epochs": ((1, 17), FROM_1 + NOT_WHOLE), "batch_size": ((1, 32), FROM_1 + NOT_WHOLE),
        "optimizer": (("adam", "muon"), ("Adam", None)), "lr": ((1e-9, 0.04, 1e30), ABOVE_0),
        "one_cycle": ((False,), ()), "weight_decay": ((0, 10.0), FROM_0), "padding": ((0, 3), COUNT),
        "cutout": ((0, 4), COUNT), "scales": (((), ((0.5, 1),), ((0.5, 1), (1, 1))), NO_SCALES),
    },
    "signals": {
        "teacher": (("fedcba9876543211",), ()), "variant": (("released",), ()), "baseline": (("black",), ()),
        "n_steps": ((1, 49), FROM_1 + NOT_WHOLE),
    },
    "run": {"data": (("0123456789abcdee",), ()), "seed": ((0, 2**40), COUNT), "split": (("validation",), ("val",))},
}  # fmt: skip


def changed(part, name, value):
    if part == "run":
        return dataclasses.replace(RUN, **{name: value})
    return dataclasses.replace(RUN, **{part: dataclasses.replace(getattr(RUN, part), **{name: value})})


def test_the_key_changes_with_every_field(monkeypatch):
    keys = [RUN.key, PLAIN.key]
    for part, names in FIELDS.items():
        whole = RUN if part == "run" else getattr(RUN, part)
        assert {field.name for field in dataclasses.fields(whole)} - set(FIELDS) == set(names)
        keys += [changed(part, name, value).key for name, (others, _) in names.items() for value in others]
    monkeypatch.setattr(runs, "TRAINING_VERSION", runs.TRAINING_VERSION + 1)
    assert len({*keys, RUN.key}) == len(keys) + 1


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in FIELDS.items() for name in names])
def test_values_out_of_range_are_refused_before_anything_is_trained(part, name):
    for value in FIELDS[part][name][1]:
        refusal(changed, part, name, value, match=name)


def test_a_run_whose_parts_contradict_each_other_is_refused():
    for changes in ({"subset": Subset(), "split": "validation"}, {"signals": None}):  # nothing held out, no teacher
        refusal(dataclasses.replace, RUN, **changes)


def test_the_key_is_this_one():
    # A change here means that every recorded run is trained again: raise TRAINING_VERSION if it is meant.
    assert runs.TRAINING_VERSION == 2
    assert (RUN.key, PLAIN.key) == ("d793fd66b21ec10d", "6f09e7b742ba26af")


def test_equal_runs_have_equal_keys_however_their_numbers_are_written():
    whole, broken = (dataclasses.replace(RUN, method=Method(gamma=one, temperature=2 * one)) for one in (1, 1.0))
    assert whole == broken and whole.key == broken.key
