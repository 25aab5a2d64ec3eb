"""Images a second of igkd's training loop, of a plain one and of torchdistill, in turn, each in processes of its own.

The plain loop is written from the description of the released code: items are PIL images that torchvision's transforms
crop and mirror one by one, a DataLoader with one worker, float32, batches of 64, Adam, `.item()` at each step.
torchdistill, a framework for distillation (measured if it is installed: pip install torchdistill), has the same items
and loader, and asks the teacher at each step, as it does by default. igkd trains as `run_all.py` does it: large
networks alone with all cores, small ones one a core, and one at a time on a GPU (`bench/gpu.py` measures several).

    python bench/training.py --blocks-removed 5 17 --rounds 3

Writes bench/training.json, or on a GPU bench/training-cuda.json. Images (32x32 pixels) and signals are random numbers,
which does not matter for the time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
BATCH = 64


def random_images(device: str):
    """An image set of noise: 20 batches, and for a GPU as many as an epoch of the study has.

    Its steps are so short that what is done once an epoch would count too much in a short one.
    """
    from igkd.images import ImageSet

    n, random = BATCH * (20 if device == "cpu" else 625), np.random.default_rng(0)
    parts = [(random.integers(0, 256, (k, 32, 32, 3), np.uint8), np.arange(k) % 10) for k in (n, 10)]
    return ImageSet("noise", *parts[0], *parts[1], tuple("0123456789"), flip=True)


def items(device: str):
    """A data set of single images, augmented one by one, with maps laid over a tenth of them, and their labels."""
    import torch
    from PIL import Image
    from torch.utils.data import Dataset
    from torchvision import transforms

    images = random_images(device)
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

    def __init__(self, seconds: float, device: str):
        self.seconds, self.device, self.steps, self.started = seconds, device, -1, None

    def is_up(self) -> bool:
        """Count a step."""
        self.steps += 1
        self.started = self.started or now(self.device)
        return time.perf_counter() - self.started > self.seconds

    def images_per_second(self) -> float:
        """So far."""
        return self.steps * BATCH / (now(self.device) - self.started)


def now(device: str) -> float:
    """Seconds, once the device has done what it was told."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def plain(blocks_removed: int, seconds: float, device: str) -> float:
    """Images a second of the plain loop."""
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, StackDataset

    from igkd.models import MobileNetV2

    augmented = items(device)
    soft = torch.randn(len(augmented), 10, generator=torch.Generator().manual_seed(0))
    model, alpha, temperature = MobileNetV2(10, blocks_removed).to(device), 0.01, 2.5
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    paired = StackDataset(augmented, soft)
    loader = DataLoader(paired, BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True)
    total, clock = 0.0, Clock(seconds, device)
    while True:
        for (batch, labels), teacher_logits in loader:
            batch, labels, teacher_logits = (part.to(device) for part in (batch, labels, teacher_logits))
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


def torchdistill(blocks_removed: int, seconds: float, device: str) -> float:
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
    networks = (MobileNetV2(10).to(device), MobileNetV2(10, blocks_removed).to(device))
    box = get_distillation_box(*networks, {"train": items(device)}, config, torch.device(device), None, False, 1)
    clock = Clock(seconds, device)
    while True:
        box.pre_epoch_process(epoch=0)
        for batch, labels, supplementary in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(batch.to(device), labels.to(device), supplementary)
            box.post_forward_process(loss)
            if clock.is_up():
                return clock.images_per_second()


def epoch_ends(blocks_removed: int, seconds: float, compute, seed: int = 0) -> tuple[list[float], int]:
    """When the epochs of `igkd.training.train` ended, each with the device done, and the images of one."""
    import torch

    from igkd import training
    from igkd.runs import Store
    from igkd.signals import Signals

    images = random_images(compute.device)
    n = len(images.train_labels)
    random = torch.Generator().manual_seed(0)
    signals = Signals(torch.randn(n, 10, generator=random), None, torch.rand(n, 32, 32, generator=random).half())

    class Enough(Exception):
        pass

    ends = []

    def log(line: str) -> None:
        if line.startswith("epoch"):
            ends.append(time.time())  # which processes side by side agree on
            if ends[-1] - ends[0] > seconds and len(ends) > 1:
                raise Enough

    run = the_run(images.fingerprint, blocks_removed, seed)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "records", Path(folder), Path(folder))
        try:
            training.train(run, images, store, compute, signals, log=log)
        except Enough:
            return ends, n


def ours(blocks_removed: int, seconds: float, compute) -> float:
    """Images a second of `igkd.training.train`, from the second epoch on."""
    ends, n = epoch_ends(blocks_removed, seconds, compute)
    return (len(ends) - 1) * n / (ends[-1] - ends[0])


def trained_alone(blocks_removed: int) -> bool:
    """Whether a training gets all cores."""
    from igkd.training import trains_alone

    return trains_alone(the_run("", blocks_removed))


def the_run(fingerprint: str, blocks_removed: int, seed: int = 0):
    """KD+IG for longer than anyone waits."""
    from igkd.images import Subset
    from igkd.methods import ARMS, Recipe
    from igkd.models import Architecture
    from igkd.runs import Run, SignalSpec

    recipe, network = Recipe(num_epochs=10_000, batch_size=BATCH), Architecture(blocks_removed)
    return Run(fingerprint, Subset(), network, ARMS["KD+IG"], recipe, SignalSpec("random signals"), seed)


def measure(side: str, blocks_removed: int, seconds: float, device: str, processes: int, threads: int) -> float:
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
        "--device",
        device,
    ]
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
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; by default the fastest here")
    parser.add_argument("--side", choices=("plain", "torchdistill", "igkd"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side in ("plain", "torchdistill"):  # without what `pick_compute` sets for processors
        side = {"plain": plain, "torchdistill": torchdistill}[options.side]
        print(side(options.blocks_removed[0], options.seconds, options.device))
        return

    import torch

    from igkd.device import pick_compute

    compute = pick_compute(options.device)
    device = compute.device
    if options.side == "igkd":
        print(ours(options.blocks_removed[0], options.seconds, compute))
        return

    others = ("plain", "torchdistill") if find_spec("torchdistill") else ("plain",)
    cores, results = torch.get_num_threads(), []
    for blocks_removed in options.blocks_removed:
        processes = cores if device == "cpu" and not trained_alone(blocks_removed) else 1
        for turn in range(options.rounds):
            speeds = {side: measure(side, blocks_removed, options.seconds, device, 1, cores) for side in others}
            speeds["igkd"] = measure("igkd", blocks_removed, options.seconds, device, processes, cores // processes)
            results.append(
                {"blocks_removed": blocks_removed, "round": turn, "processes": processes}
                | {side: round(speed, 1) for side, speed in speeds.items()}
            )
            print(results[-1], flush=True)
    content = {"machine": compute.describe(), "torch": torch.__version__, "images_per_second": results}
    name = "training.json" if device == "cpu" else f"training-{device.partition(':')[0]}.json"
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
