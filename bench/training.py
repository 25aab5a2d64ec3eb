"""Images a second of igkd's training loop, of a plain one and of torchdistill, in turn, each in processes of its own.

The plain loop is written from the description of the released code: items are PIL images that torchvision's transforms
crop and mirror one by one, a DataLoader with one worker, float32, batches of 64, Adam, `.item()` at each step.
torchdistill, a framework for distillation (pip install torchdistill), has the same items and loader, and asks the teacher at
each step, as it does by default. igkd trains as `run_all.py` does it: large networks alone with all cores, small ones one a
core.

    python bench/training.py --blocks-removed 5 17 --rounds 3

Writes bench/training.json. Images (32x32 pixels) and signals are random numbers, which does not matter for the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
BATCH = 64


def random_images(n: int = 20 * BATCH):
    """An image set of noise."""
    from igkd.images import ImageSet

    random = np.random.default_rng(0)
    parts = [(random.integers(0, 256, (k, 32, 32, 3), np.uint8), np.arange(k) % 10) for k in (n, 10)]
    return ImageSet("noise", *parts[0], *parts[1], tuple("0123456789"), flip=True)


def items():
    """A data set of single images, augmented one by one, with maps laid over a tenth of them, and their labels."""
    import torch
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import transforms

    images = random_images()
    n = len(images.train_labels)
    maps = torch.rand(n, 32, 32, generator=torch.Generator().manual_seed(0))

    class Items(Dataset):
        augment = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])
        to_tensor = transforms.ToTensor()

        def __len__(self):
            return n

        def __getitem__(self, row):
            image = self.to_tensor(self.augment(Image.fromarray(images.train_images[row])))
            if np.random.rand() < 0.1:
                shaped = maps[row] ** float(np.exp(np.random.rand() * np.log(2)))
                image = 0.5 * image + 0.5 * (shaped - shaped.min()) / (shaped.max() - shaped.min())
            return image, int(images.train_labels[row])

    return Items()


class Clock:
    """Images a second from the second step on."""

    def __init__(self, seconds: float):
        self.seconds, self.steps, self.started = seconds, -1, None

    def is_up(self) -> bool:
        """Count a step."""
        self.steps += 1
        self.started = self.started or time.perf_counter()
        return time.perf_counter() - self.started > self.seconds

    def images_per_second(self) -> float:
        """So far."""
        return self.steps * BATCH / (time.perf_counter() - self.started)


def plain(blocks_removed: int, seconds: float) -> float:
    """Images a second of the plain loop."""
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, StackDataset

    from igkd.models import MobileNetV2

    augmented = items()
    soft = torch.randn(len(augmented), 10, generator=torch.Generator().manual_seed(0))
    model, alpha, temperature = MobileNetV2(10, blocks_removed), 0.01, 2.5
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    paired = StackDataset(augmented, soft)
    loader = DataLoader(paired, BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)
    total, clock = 0.0, Clock(seconds)
    while True:
        for (batch, labels), teacher_logits in loader:
            optimizer.zero_grad()
            logits = model(batch)
            distilled = F.kl_div(
                F.log_softmax(logits / temperature, 1),
                F.softmax(teacher_logits / temperature, 1),
                reduction="batchmean",
            )
            loss = alpha * temperature**2 * distilled + (1 - alpha) * F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            if clock.is_up():
                return clock.images_per_second()


def torchdistill(blocks_removed: int, seconds: float) -> float:
    """Images a second of torchdistill's `DistillationBox`, the teacher being the uncut network."""
    import logging

    import torch
    from torch.utils.data import RandomSampler
    from torchdistill.core.distillation import get_distillation_box

    from igkd.models import MobileNetV2

    logging.disable(logging.INFO)
    loader = {"num_workers": 1, "batch_size": BATCH, "drop_last": True, "persistent_workers": True}
    logits = {
        "student_module_path": ".",
        "teacher_module_path": ".",
        "student_module_io": "output",
        "teacher_module_io": "output",
    }
    distilled = {
        "key": "KDLoss",
        "kwargs": logits | {"temperature": 2.5, "alpha": 0.99},
    }  # their alpha is of the labels
    whole = {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": []}}
    config = {
        "num_epochs": 10**6,
        "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": RandomSampler}, "kwargs": loader},
        "teacher": whole | {"requires_grad": False},
        "student": whole,
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": distilled, "weight": 1.0}}},
        },
    }
    networks = (MobileNetV2(10), MobileNetV2(10, blocks_removed))
    box = get_distillation_box(*networks, {"train": items()}, config, torch.device("cpu"), None, False, 1)
    clock = Clock(seconds)
    while True:
        box.pre_epoch_process(epoch=0)
        for batch, labels, supplementary in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(batch, labels, supplementary)
            box.post_forward_process(loss)
            if clock.is_up():
                return clock.images_per_second()


def ours(blocks_removed: int, seconds: float, alone: bool, compute=None) -> float:
    """Images a second of `igkd.training.train`, from the second epoch on."""
    import torch

    from igkd import training
    from igkd.device import pick_compute
    from igkd.runs import Store
    from igkd.signals import Signals

    images = random_images()
    n = len(images.train_labels)
    random = torch.Generator().manual_seed(0)
    signals = Signals(torch.randn(n, 10, generator=random), None, torch.rand(n, 32, 32, generator=random).half())
    # whether it trains alone and is compiled depends on the size of the study, not of this measurement
    training.COMPILE_ABOVE_MACS = 0 if alone else float("inf")

    class Enough(Exception):
        pass

    ends = []

    def log(line: str) -> None:
        if line.startswith("epoch"):
            ends.append(time.perf_counter())
            if ends[-1] - ends[0] > seconds and len(ends) > 1:
                raise Enough

    run = the_run(images.fingerprint, blocks_removed)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "records", Path(folder), Path(folder))
        try:
            training.train(run, images, store, compute or pick_compute(), signals, log=log)
        except Enough:
            return (len(ends) - 1) * (n // BATCH) * BATCH / (ends[-1] - ends[0])


def trained_alone(blocks_removed: int) -> bool:
    """Whether a training of the paper profile gets all cores."""
    from igkd.cost import multiply_accumulates
    from igkd.experiments import PROFILES
    from igkd.models import MobileNetV2
    from igkd.training import trains_alone

    macs = multiply_accumulates(MobileNetV2(10, blocks_removed), (32, 32))
    return trains_alone(the_run("", blocks_removed), macs * 40_000 * PROFILES["paper"].recipe.num_epochs)


def the_run(fingerprint: str, blocks_removed: int):
    """KD+IG for longer than anyone waits."""
    from igkd.images import Subset
    from igkd.methods import ARMS, Recipe
    from igkd.models import Architecture
    from igkd.runs import Run, SignalSpec

    recipe, network = Recipe(num_epochs=10_000, batch_size=BATCH), Architecture(blocks_removed)
    return Run(fingerprint, Subset(), network, ARMS["KD+IG"], recipe, SignalSpec("random signals"), 0)


def measure(side: str, blocks_removed: int, seconds: float, processes: int, threads: int) -> float:
    """Images a second of one side, summed over processes at once."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--blocks-removed",
        str(blocks_removed),
        "--seconds",
        str(seconds),
    ]
    command += ["--alone"] * (processes == 1)
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in started)


def main() -> None:
    """Measure in turn and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks-removed", type=int, nargs="+", default=[5, 17])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--side", choices=("plain", "torchdistill", "igkd"), help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side in ("plain", "torchdistill"):
        side = {"plain": plain, "torchdistill": torchdistill}[options.side]
        print(side(options.blocks_removed[0], options.seconds))
        return
    if options.side == "igkd":
        print(ours(options.blocks_removed[0], options.seconds, options.alone))
        return

    import torch

    from igkd.device import pick_compute

    cores, results = torch.get_num_threads(), []
    for blocks_removed in options.blocks_removed:
        processes = 1 if trained_alone(blocks_removed) else cores
        for turn in range(options.rounds):
            speeds = {
                side: measure(side, blocks_removed, options.seconds, 1, cores) for side in ("plain", "torchdistill")
            }
            speeds["igkd"] = measure("igkd", blocks_removed, options.seconds, processes, cores // processes)
            results.append(
                {"blocks_removed": blocks_removed, "round": turn, "processes": processes}
                | {side: round(speed, 1) for side, speed in speeds.items()}
            )
            print(results[-1], flush=True)
    content = {"machine": pick_compute("cpu").describe(), "torch": torch.__version__, "images_per_second": results}
    (HERE / "training.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
