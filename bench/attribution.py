"""IG maps a second: Captum with its defaults, and igkd at the same nodes and at others, each in its own process.

    python bench/attribution.py --data cifar10.npz --rounds 3

Writes bench/attribution.json, or on a GPU bench/attribution-cuda.json: maps a second, and the mean absolute
completeness error as a share of the mean rise of the logit. The network is the shipped teacher, the images are CIFAR-10
test images, baseline as in the paper.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEACHER = HERE.parent / "weights" / "teacher-cifar10.safetensors"
AT_ONCE = 16  # images of a call of Captum's: with 50 steps 800 go through the network at once


#: Side, rule of quadrature, steps.
MEASURED = (
    ("captum", "gausslegendre", 50),
    ("igkd", "gausslegendre", 50),
    ("igkd", "riemann_middle", 24),
    ("igkd", "gausslegendre", 16),
    ("igkd", "gausslegendre", 8),
)


def captum_maps(model, x, target, baseline, method: str, n_steps: int, device: str):
    """Completeness errors of the attributions of `x`, as a user of Captum gets them."""
    import torch
    from captum.attr import IntegratedGradients

    explained = IntegratedGradients(model)
    parts = [
        explained.attribute(
            images, baseline.expand_as(images), labels, n_steps=n_steps, method=method, return_convergence_delta=True
        )
        for images, labels in zip(x.split(AT_ONCE), target.split(AT_ONCE), strict=True)
    ]
    return torch.cat([delta for _, delta in parts])


def our_maps(model, x, target, baseline, method: str, n_steps: int, device: str):
    """The same of igkd, as `igkd.signals` calls it."""
    from igkd.attribution import integrated_gradients
    from igkd.device import pick_compute

    compute = pick_compute(device)
    compute.prepare(model)
    with compute.autocast():
        return integrated_gradients(model, x, target, baseline=baseline, n_steps=n_steps, method=method).delta


def measured(side: str, data: str, method: str, n_steps: int, num_images: int, device: str) -> dict:
    """Maps a second, without the first call, and the completeness error."""
    import torch

    from igkd.attribution import make_baseline
    from igkd.images import as_input, load_images
    from igkd.models import load_weights

    images = load_images("cifar10", data)
    model = load_weights(TEACHER, images.num_classes).to(device).eval()
    x = as_input(images.test_images[:num_images], device)
    target = torch.from_numpy(images.test_labels[:num_images]).to(device)
    baseline = make_baseline("mean", x, model)
    maps = {"captum": captum_maps, "igkd": our_maps}[side]
    with torch.no_grad():
        at = torch.arange(len(x), device=device)
        rise = (model(x) - model(baseline.expand_as(x)))[at, target].abs().mean()
    float(maps(model, x[:AT_ONCE], target[:AT_ONCE], baseline, method, n_steps, device).sum())
    started = time.perf_counter()
    # Both clocks are read after a value was, so a GPU has done its work.
    error = float(maps(model, x, target, baseline, method, n_steps, device).abs().mean() / rise)
    return {"maps_per_second": round(len(x) / (time.perf_counter() - started), 2), "error": round(error, 4)}


def main() -> None:
    """Measure in turn and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("IGKD_DATA", ""))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64, help="a GPU needs some thousands to be busy")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; by default the fastest here")
    parser.add_argument("--side", nargs=3, metavar=("NAME", "METHOD", "N_STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, method, n_steps = options.side
        print(json.dumps(measured(side, options.data, method, int(n_steps), options.images, options.device)))
        return

    import torch

    from igkd.device import pick_compute

    compute, results = pick_compute(options.device), []
    for turn in range(options.rounds):
        for side, method, n_steps in MEASURED:
            command = [sys.executable, __file__, "--data", options.data, "--images", str(options.images)]
            command += ["--device", compute.device]
            done = subprocess.run(
                [*command, "--side", side, method, str(n_steps)], stdout=subprocess.PIPE, text=True, check=True
            )
            results.append(
                {"round": turn, "side": side, "method": method, "n_steps": n_steps} | json.loads(done.stdout)
            )
            print(results[-1], flush=True)
    content = {"machine": compute.describe(), "torch": torch.__version__, "images": options.images}
    name = "attribution.json" if compute.device == "cpu" else f"attribution-{compute.device.partition(':')[0]}.json"
    (HERE / name).write_text(json.dumps(content | {"measured": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
