"""python -m igkd: evaluate measures a network from a file, export writes one as ONNX, cut makes the image set of the
records from CIFAR-10's official files."""

import argparse
import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from igkd.errors import InputError, OneLineParser, exit_code


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; see `igkd.errors.exit_code`."""
    return exit_code("igkd", lambda: run(parse_arguments(arguments)))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; bad usage ends the program with one line and code 2."""
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
    export = commands.add_parser("export", help="write a trained network as ONNX and compare it with PyTorch")
    export.add_argument("--run", required=True, metavar="KEY", help="key of its run (file name of the record)")
    export.add_argument("--onnx", required=True, metavar="FILE", help="where to write it")
    export.add_argument("--int8", action="store_true", help="quantise to 8 bits, with ranges from training images")
    export.add_argument("--data", default="", help="CIFAR-10 if the run is of it: a folder or an .npz file")
    cut = commands.add_parser("cut", help="write the cut of CIFAR-10's training images that the records are of")
    cut.add_argument("--data", required=True, help="the official files: the folder they are in, or 'download'")
    cut.add_argument("--npz", required=True, metavar="FILE", help="where to write it")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks for."""
    if options.command == "export":
        return export_run(options.run, options.onnx, options.int8, options.data)
    if options.command == "cut":
        return write_cut(options.data, options.npz)
    return evaluate_file(options.weights, options.data, options.normalize, options.device)


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
    images = load_images("cifar10", data, test_alone=True)
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


def export_run(key: str, path: str, int8: bool = False, data: str = "") -> int:
    """Write the network of a run as ONNX, and print its accuracy beside PyTorch's.

    Parameters
    ----------
    key : str
        Of the run.
    path : path
        Where the file is written.
    int8 : bool
    data : path
        Where the profile of the run takes its images from; empty for the digits, and for CIFAR-10 where it is looked
        for (see `igkd.images.load_images`).

    Raises
    ------
    InputError
        If the weights are not here, or the images are not the run's.
    """
    from igkd.costs import export_onnx, predict_onnx, quantize
    from igkd.device import pick_compute
    from igkd.experiments import PROFILES
    from igkd.models import load_weights
    from igkd.study import Study
    from igkd.training import evaluate

    _check_writable(path)
    # The paper's profile before those that take some of its images: it says what is wrong with the data itself.
    studies = [Study(profile, data, device="cpu") for profile in reversed(PROFILES)]
    weights = studies[0].store.find_weights(key)
    studies = [study for study in studies if study.store.find(key)]
    if weights is None or not studies:
        raise InputError(f"there are no weights of the run {key} in build/weights/ or weights/; train it first")
    record, given = studies[0].store.find(key), studies[0].images
    for study in studies:
        with suppress(InputError):  # a profile may take more images than there are
            if study.fingerprint == record.run.data:
                images = study.images
                break
    else:
        raise InputError(
            f"the run {key} is of {record.provenance['data']} images with the fingerprint {record.run.data}, not of "
            f"{given.name} with {given.fingerprint}; give its own with --data"
        )
    model = load_weights(weights, images.num_classes)
    checked = images.test_images[:1000]
    difference = export_onnx(model, Path(path), checked)
    if int8:
        quantize(Path(path), Path(path), images.train_images[:512])
    accuracy = evaluate(model, images.test_images, images.test_labels, pick_compute("cpu"))["accuracy"]
    exported = (predict_onnx(Path(path), images.test_images).argmax(1) == images.test_labels).mean()
    print(f"written            {path}, {Path(path).stat().st_size / 1e6:.2f} MB")
    print(f"against PyTorch    largest difference of a float32 logit {difference:.2g}, {len(checked)} images")
    print(f"test images        {len(images.test_labels)} of {images.name} (fingerprint {images.fingerprint})")
    print(f"accuracy           {exported:.2%} by ONNX Runtime{', int8' * int8}; {accuracy:.2%} by PyTorch")
    return 0


def write_cut(data: str, path: str) -> int:
    """Write the image set of the records as ``.npz``.

    Parameters
    ----------
    data : path or "download"
        CIFAR-10's official files.
    path : path
        Where the file is written.

    Raises
    ------
    InputError
        If the official files are not there, or the file cannot be written.
    """
    import numpy as np

    from igkd.images import cut_official, load_images
    from igkd.records import write_atomically

    _check_writable(path)
    if not path.endswith(".npz"):
        raise InputError(f"{path} would not be taken for an image set; give it a name that ends in .npz")
    content = io.BytesIO()
    np.savez(content, **cut_official(load_images("cifar10", data)))
    try:
        write_atomically(Path(path), content.getbuffer())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}); make room, or give another file") from error
    images = load_images("cifar10", path)
    print(f"written            {path}, {Path(path).stat().st_size / 1e6:.0f} MB")
    print(f"images             {images.n_train:,} to train on, {images.n_test:,} to test on")
    print(f"fingerprint        {images.fingerprint}")
    return 0


def _check_writable(path: str) -> None:
    """Refuse a file that cannot be written, before anything is computed for it."""
    folder = Path(path).resolve().parent
    locked = Path(path).exists() and not os.access(path, os.W_OK)
    if Path(path).is_dir() or locked or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written; give a file in a folder that is there and may be written to")


def _numbers(values) -> str:
    return ", ".join(f"{value:.4f}" for value in values.tolist())


if __name__ == "__main__":
    sys.exit(main())
