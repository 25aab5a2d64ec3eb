"""``python -m igkd evaluate`` measures a network from a file; ``python -m igkd readme`` renews README.md."""

import argparse
import sys
from pathlib import Path

from igkd.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 2 for input that cannot be used."""
    parser = OneLineParser(prog="python -m igkd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    evaluation = commands.add_parser("evaluate", help="accuracy, balanced accuracy, Cohen's kappa, accuracy per class")
    evaluation.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="our .safetensors, or a released checkpoint (a PyTorch state_dict)",
    )
    evaluation.add_argument("--data", required=True, help="CIFAR-10 or your own images: a folder or an .npz file")
    evaluation.add_argument(
        "--normalize",
        choices=("none", "cifar10"),
        help="how images in [0, 1] are standardised for weights that do not say so themselves "
        "(default: none, as the paper's students; its teacher takes cifar10)",
    )
    evaluation.add_argument("--device", default="auto")
    commands.add_parser("readme", help="make the generated parts of README.md anew")
    options = parser.parse_args(arguments)
    if options.command == "readme":
        return renew_readme()
    try:
        return evaluate_file(options.weights, options.data, options.normalize, options.device)
    except InputError as error:
        print(f"igkd: {error}", file=sys.stderr)
        return 2


def renew_readme() -> int:
    """Write README.md with its generated parts made anew."""
    from igkd.readme import rendered

    root = Path(__file__).resolve().parent.parent
    path = root / "README.md"
    path.write_text(rendered(path.read_text(), root))
    return 0


class OneLineParser(argparse.ArgumentParser):
    """Bad usage is one line, like every other error."""

    def error(self, message: str):
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def evaluate_file(weights: str, data: str, normalize: str | None = None, device: str = "auto") -> int:
    """Print the measures of a network on the test images.

    Parameters
    ----------
    weights, data : path
    normalize : {"none", "cifar10"}, optional
    device : str

    Raises
    ------
    InputError
        If a file cannot be used, or `normalize` contradicts what the weights carry.
    """
    from igkd.device import pick_compute
    from igkd.images import CIFAR10_MEAN_STD, load_images
    from igkd.models import load_weights
    from igkd.training import evaluate

    compute = pick_compute(device)
    images = load_images("cifar10", data)
    asked = {"none": ((0.0,) * 3, (1.0,) * 3), "cifar10": CIFAR10_MEAN_STD, None: None}[normalize]
    model = load_weights(weights, images.num_classes, asked)
    mean, std = model.mean.flatten(), model.std.flatten()
    plain = not mean.any() and bool((std == 1).all())
    used = "none" if plain else f"mean {_numbers(mean)}, std {_numbers(std)}"
    # Weights that carry a standardisation keep it whatever was asked for.
    if asked and not (mean.allclose(mean.new_tensor(asked[0])) and std.allclose(std.new_tensor(asked[1]))):
        raise InputError(
            f"{weights} carries its own standardisation ({used}), which the network applies; leave out --normalize"
        )
    outcome = evaluate(model, images.test_images, images.test_labels, compute)
    print(f"weights            {weights}")
    print(f"network            MobileNetV2 with {len(model.features)} of 19 entries of features")
    print(f"test images        {outcome['n_test']} of {images.name} (fingerprint {images.fingerprint})")
    print(f"standardisation    {used}")
    print(f"accuracy           {outcome['accuracy']:.2%}")
    print(f"balanced accuracy  {outcome['balanced_accuracy']:.2%}")
    print(f"Cohen's kappa      {outcome['kappa']:.4f}")
    width = max(map(len, images.class_names))
    for name, accuracy in zip(images.class_names, outcome["per_class_accuracy"]):
        print(f"  {name:<{width}}  {'no image' if accuracy is None else f'{accuracy:.2%}'}")
    return 0


def _numbers(values) -> str:
    return ", ".join(f"{value:.4f}" for value in values.tolist())


if __name__ == "__main__":
    sys.exit(main())
