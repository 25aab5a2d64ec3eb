"""Images a second of igkd's training and of a plain loop, in turn, each in processes of its own.

The plain loop is written from the description of the released code: items are PIL images that torchvision's transforms
crop and mirror one by one, a DataLoader with one worker, float32, batches of 64, Adam, `.item()` at each step, all
cores. igkd trains as `run_all.py` does it, a student a core, and one at a time on a GPU, with the study's recipe. From
both speeds follow the minutes that a student takes with the whole machine: 100 epochs of the plain loop, the epochs of
the recipe here. Records tell the accuracy after them; the paper's students have 90.05 % on 80 % of the images.

    python bench/training.py --blocks-removed 5 --rounds 3

Writes bench/training.json, or on a GPU bench/training-cuda.json. Images (32x32 pixels) and signals are random numbers,
which does not matter for the time.
"""

import argparse
import dataclasses
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


def ours(blocks_removed: int, device: str) -> float:
    """Images a second of one training by `igkd.training.train` with the study's recipe, shortened to two epochs."""
    import torch

    from igkd.device import pick_compute
    from igkd.records import Store
    from igkd.runs import ARMS, RECIPES, Architecture, Run, SignalSpec, Subset
    from igkd.signals import Signals
    from igkd.training import train

    images, random = random_images(device), torch.Generator().manual_seed(0)
    n = len(images.train_labels)
    signals = Signals(torch.randn(n, 10, generator=random), None, torch.rand(n, 32, 32, generator=random).half())
    recipe = dataclasses.replace(RECIPES["fast"], num_epochs=2)
    spec = SignalSpec("random signals")
    run = Run(images.fingerprint, Subset(), Architecture(blocks_removed), ARMS["KD+IG"], recipe, spec, 0)
    with tempfile.TemporaryDirectory() as folder:
        record = train(run, images, Store(*[Path(folder)] * 3), pick_compute(device), signals)
    return recipe.num_epochs * n / record.provenance["seconds"]


def measure(side: str, blocks_removed: int, seconds: float, device: str, processes: int, threads: int) -> float:
    """Images a second of one side, summed over processes at once."""
    command = [sys.executable, __file__, "--side", side, "--blocks-removed", str(blocks_removed)]
    command += ["--seconds", str(seconds), "--device", device]
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
    parser.add_argument("--side", choices=("plain", "igkd"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "plain":  # without what `pick_compute` sets for processors
        print(plain(options.blocks_removed[0], options.seconds, options.device))
        return
    if options.side == "igkd":
        print(ours(options.blocks_removed[0], options.device))
        return

    import torch

    from igkd.device import pick_compute
    from igkd.runs import RECIPES

    compute = pick_compute(options.device)
    device, cores, results = compute.device, torch.get_num_threads(), []
    processes = cores if device == "cpu" else 1
    for blocks_removed in options.blocks_removed:
        for turn in range(options.rounds):
            speeds = {
                "plain": measure("plain", blocks_removed, options.seconds, device, 1, cores),
                "igkd": measure("igkd", blocks_removed, options.seconds, device, processes, 1),
            }
            # A student of the study, 40,000 images, with the whole machine.
            minutes = {
                side: RECIPES[recipe].num_epochs * 40_000 / speeds[side] / 60
                for side, recipe in (("plain", "paper"), ("igkd", "fast"))
            }
            results.append(
                {"blocks_removed": blocks_removed, "round": turn, "processes": processes}
                | {side: round(speed, 1) for side, speed in speeds.items()}
                | {f"minutes_{side}": round(each, 1) for side, each in minutes.items()}
            )
            print(results[-1], flush=True)
    content = {"machine": compute.describe(), "torch": torch.__version__, "images_per_second": results}
    name = "training.json" if device == "cpu" else f"training-{device.partition(':')[0]}.json"
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
