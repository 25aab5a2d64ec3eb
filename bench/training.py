"""Images a second of igkd's training loop and of a plain one, in turn, each in processes of its own.

The plain loop is written from the description of the released code: items are PIL images that torchvision's transforms
crop and mirror one by one, a DataLoader with one worker, float32, batches of 64, Adam, `.item()` at each step. igkd
trains as `run_all.py` does it: large networks alone with all cores, small ones one a core, and one at a time on a GPU.
For the network of the paper it also prints how long a run would take to the paper's accuracy, estimated from records.

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


def ours(blocks_removed: int, seconds: float, compute) -> float:
    """Images a second of `igkd.training.train`, from the second epoch on."""
    import torch

    from igkd import training
    from igkd.records import Store
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
            ends.append(time.perf_counter())
            if ends[-1] - ends[0] > seconds and len(ends) > 1:
                raise Enough

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "records", Path(folder), Path(folder))
        try:
            training.train(the_run(images.fingerprint, blocks_removed), images, store, compute, signals, log=log)
        except Enough:
            return (len(ends) - 1) * n / (ends[-1] - ends[0])


def estimate_from_records(images_per_second: float, accuracy: float = 0.9005) -> str:
    """Time to the accuracy that the paper reports of its student (90.05 %), reckoned and not measured.

    Records hold the accuracy after the last epoch, so it is the time of the shortest recipe whose runs of 5 blocks
    removed reach it in the mean.
    """
    import pandas as pd

    from igkd.study import Study

    runs = pd.DataFrame(
        [
            (record.run.recipe.num_epochs, record.outcome["n_train"], record.outcome["accuracy"])
            for record in Study("paper", log=lambda line: None).store.records()
            if record.run.architecture.blocks_removed == 5
        ],
        columns=["epochs", "images", "accuracy"],
    )
    means = runs.groupby(["epochs", "images"]).accuracy.agg(["mean", "count"])
    reached = means[means["mean"] >= accuracy]
    if reached.empty:
        return f"no recorded recipe reaches {accuracy:.2%} in the mean"
    (epochs, images), row = min(reached.iterrows(), key=lambda each: each[0][0] * each[0][1])
    minutes = epochs * images / images_per_second / 60
    return (
        f"ESTIMATE from records: {minutes:.1f} min to {accuracy:.2%} ({epochs} epochs of {images:,} images, after which "
        f"{row['count']:.0f} recorded runs have {row['mean']:.2%} in the mean, at {images_per_second:,.0f} images a second)"
    )


def trained_alone(blocks_removed: int) -> bool:
    """Whether a training gets all cores."""
    from igkd.training import trains_alone

    return trains_alone(the_run("", blocks_removed))


def the_run(fingerprint: str, blocks_removed: int):
    """KD+IG for longer than anyone waits."""
    from igkd.images import Subset
    from igkd.models import Architecture
    from igkd.runs import ARMS, Recipe, Run, SignalSpec

    recipe, network = Recipe(num_epochs=10_000, batch_size=BATCH), Architecture(blocks_removed)
    return Run(fingerprint, Subset(), network, ARMS["KD+IG"], recipe, SignalSpec("random signals"), 0)


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

    import torch

    from igkd.device import pick_compute

    compute = pick_compute(options.device)
    device = compute.device
    if options.side == "igkd":
        print(ours(options.blocks_removed[0], options.seconds, compute))
        return

    cores, results = torch.get_num_threads(), []
    for blocks_removed in options.blocks_removed:
        processes = cores if device == "cpu" and not trained_alone(blocks_removed) else 1
        for turn in range(options.rounds):
            speeds = {"plain": measure("plain", blocks_removed, options.seconds, device, 1, cores)}
            speeds["igkd"] = measure("igkd", blocks_removed, options.seconds, device, processes, cores // processes)
            results.append(
                {"blocks_removed": blocks_removed, "round": turn, "processes": processes}
                | {side: round(speed, 1) for side, speed in speeds.items()}
            )
            print(results[-1], flush=True)
            if blocks_removed == 5:
                for side, speed in speeds.items():  # a run has one core where several are trained at once
                    print(f"{side}: {estimate_from_records(speed / (processes if side == 'igkd' else 1))}")
    content = {"machine": compute.describe(), "torch": torch.__version__, "images_per_second": results}
    name = "training.json" if device == "cpu" else f"training-{device.partition(':')[0]}.json"
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
