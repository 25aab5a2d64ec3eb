"""How trainings share a GPU best, in processes or in threads with a stream each, and what its choices are worth to one.

    python bench/gpu.py --blocks-removed 5 17 --at-once 1 2 4 8 --rounds 2

One training is measured as it is, without a captured step, and without bfloat16; several at once in as many processes,
and in one process.
Images a second are counted while all of them train. Writes bench/gpu.json. Without a GPU it runs on the processor,
where nothing is captured and a thread has no stream, and only prints.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import training

HERE = Path(__file__).resolve().parent
ALONE = ("as it is", "without capture", "without bfloat16")
TOGETHER = ("processes", "streams")


def train_in_threads(blocks_removed: int, seconds: float, device: str, threads: int, without: str) -> list:
    """When the epochs of each of some trainings in this process ended, and the images of an epoch."""
    from igkd.device import Compute, pick_compute

    class Uncaptured(Compute):
        capture = None

    compute = pick_compute(device)
    if without == "capture":
        compute = Uncaptured(compute.device, compute.bfloat16)
    elif without == "bfloat16":
        compute = Compute(compute.device, bfloat16=False)
    with ThreadPoolExecutor(threads) as pool:
        runs = pool.map(lambda seed: training.epoch_ends(blocks_removed, seconds, compute, seed), range(threads))
        return list(runs)


def together(runs: list) -> float:
    """Images a second of all runs, between the first epoch's end of the last to start and the first end of all."""
    start, end = max(ends[0] for ends, _ in runs), min(ends[-1] for ends, _ in runs)
    if end <= start:
        sys.exit("the trainings were not all running at any time; give them more --seconds")
    images = [n * np.diff(np.interp([start, end], ends, np.arange(len(ends))))[0] for ends, n in runs]
    return float(sum(images) / (end - start))


def measure(blocks_removed: int, seconds: float, device: str, way: str, at_once: int) -> float:
    """Images a second of some trainings at once."""
    processes, threads = (at_once, 1) if way == "processes" else (1, at_once)
    command = [sys.executable, __file__, "--blocks-removed", str(blocks_removed), "--seconds", str(seconds)]
    command += ["--device", device, "--threads", str(threads), "--without", way.partition("without ")[2]]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for _ in range(processes)
    ]
    return together([run for process in started for run in json.loads(process.communicate()[0])])


def main() -> None:
    """Measure in turn and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks-removed", type=int, nargs="+", default=[5, 17])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; by default the fastest here")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--without", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        cut, seconds = options.blocks_removed[0], options.seconds
        print(json.dumps(train_in_threads(cut, seconds, options.device, options.threads, options.without)), flush=True)
        # What PyTorch keeps for each thread is given back after Python has joined it, which aborts a process that is
        # just ending.
        os._exit(0)

    import torch

    from igkd.device import pick_compute

    compute, results = pick_compute(options.device), []
    for cut in options.blocks_removed:
        for turn in range(options.rounds):
            for at_once in options.at_once:
                for way in ALONE if at_once == 1 else TOGETHER:
                    speed = measure(cut, options.seconds, compute.device, way, at_once)
                    row = {"blocks_removed": cut, "round": turn, "at_once": at_once, "way": way}
                    results.append(row | {"images_per_second": round(speed, 1)})
                    print(results[-1], flush=True)
    if compute.device.startswith("cuda"):
        content = {"machine": compute.describe(), "torch": torch.__version__, "measured": results}
        (HERE / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
