"""Completeness error of rules of quadrature for integrated gradients, by number of nodes.

    python bench/nodes.py --data cifar10.npz

For the shipped teacher and CIFAR-10 training images, the derivative of the label's logit along the path from baseline to image
is computed on a fine grid; every rule then takes its nodes from it by linear interpolation. Writes bench/nodes.json.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TEACHER = HERE.parent / "weights" / "teacher-cifar10.safetensors"
GRID = 256
N_STEPS = (8, 12, 16, 24, 32, 50)
LOOKED_AT = 4  # cells between the points at which the adaptive rule evaluates the network first


def along_the_path(data: str, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Derivatives and values of the logit at the grid's midpoints (images, grid), and its rise over the path (images,)."""
    import torch

    from igkd.attribution import make_baseline
    from igkd.images import load_images
    from igkd.models import load_weights
    from igkd.signals import as_input

    images = load_images("cifar10", data)
    model = load_weights(TEACHER, images.num_classes).eval()
    x, labels = as_input(images.train_images[:num_images]), torch.from_numpy(images.train_labels[:num_images])
    start = make_baseline("mean", x, model).expand_as(x)

    def logit(points):
        return model(points).gather(1, labels[:, None]).squeeze(1)

    derivatives, values = [], []
    for a in (np.arange(GRID) + 0.5) / GRID:
        points = torch.lerp(start, x, float(a)).requires_grad_()
        value = logit(points)
        (gradient,) = torch.autograd.grad(value.sum(), points)
        derivatives.append(((x - start) * gradient).sum((1, 2, 3)))
        values.append(value.detach())
    with torch.no_grad():
        rise = logit(x) - logit(start)
    return torch.stack(derivatives, 1).numpy(), torch.stack(values, 1).numpy(), rise.numpy()


def rules(n: int, values: np.ndarray):
    """Name, nodes and weights of each rule, for every image (images, n)."""
    from igkd.attribution import quadrature

    for method in ("gausslegendre", "riemann_middle", "riemann_trapezoid"):
        nodes, weights = quadrature(method, n)
        yield method, nodes[None], weights[None]
    u, weights = quadrature("riemann_middle", n)
    yield "midpoints of u, at u^1.5", u[None] ** 1.5, weights * 1.5 * u[None] ** 0.5
    # Half of the nodes equally spaced, half where the logit changes between a few points.
    knots = np.linspace(0, 1, LOOKED_AT + 1)
    grid = (np.arange(GRID) + 0.5) / GRID
    change = np.abs(np.diff([np.interp(knots, grid, row) for row in values], axis=1))
    density = 0.5 * change / change.sum(1, keepdims=True) + 0.5 / LOOKED_AT
    reached = np.concatenate([np.zeros((len(values), 1)), density.cumsum(1)], 1)
    nodes = np.array([np.interp(u, row, knots) for row in reached])
    cell = np.minimum((nodes * LOOKED_AT).astype(int), LOOKED_AT - 1)
    yield "where the logit changes", nodes, 1 / (n * LOOKED_AT * np.take_along_axis(density, cell, 1))


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("IGKD_DATA", ""))
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    derivatives, values, rise = along_the_path(options.data, options.images)
    grid = (np.arange(GRID) + 0.5) / GRID
    errors = []
    for n in N_STEPS:
        for name, nodes, weights in rules(n, values):
            nodes = np.broadcast_to(nodes, (len(rise), n))
            seen = np.array([np.interp(at, grid, row) for at, row in zip(nodes, derivatives, strict=True)])
            error = np.abs((seen * weights).sum(1) - rise).mean() / np.abs(rise).mean()
            errors.append({"rule": name, "n_steps": n, "error": round(float(error), 4)})
    tenths = [round(float(np.abs(part).mean()), 2) for part in np.array_split(derivatives, 10, axis=1)]
    content = {"images": options.images, "mean_derivative_by_tenth_of_the_path": tenths, "errors": errors}
    (HERE / "nodes.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
