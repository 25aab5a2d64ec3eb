"""python -m igkd: evaluate measures a network from a file, export writes one as ONNX, cut makes the image set of the
records from CIFAR-10's official files."""

import argparse
import io
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from igkd.errors import InputError, OneLineParser, exit_code


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; see `igkd.errors.exit_code`."""
    return exit_code("igkd", lambda: run(**vars(parse_arguments(arguments))))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; bad usage ends the program with one line and code 2."""
    parser = OneLineParser(prog="python -m igkd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    evaluation = commands.add_parser("evaluate", help="accuracy, balanced accuracy, Cohen's kappa, accuracy per class")
    export = commands.add_parser("export", help="write a network as ONNX and compare it with PyTorch")
    needed, file = {"required": True}, {"required": True, "metavar": "FILE"}
    for command in (evaluation, export):
        command.add_argument("--weights", **file, help="our .safetensors, or a PyTorch state_dict for images in [0, 1]")
        command.add_argument("--data", **needed, help="CIFAR-10 or your own images: a folder or an .npz; or 'digits'")
    evaluation.add_argument("--device", default="auto")
    export.add_argument("--onnx", dest="path", **file, help="where to write it")
    export.add_argument("--int8", action="store_true", help="quantise to 8 bits, with ranges from training images")
    cut = commands.add_parser("cut", help="write the cut of CIFAR-10's training images that the records are of")
    cut.add_argument("--data", **needed, help="the official files: the folder they are in, or 'download'")
    cut.add_argument("--npz", dest="path", **file, help="where to write it")
    return parser.parse_args(arguments)


def run(command: str, **given) -> int:
    """Do what the command line asks for."""
    return {"evaluate": evaluate, "export": export, "cut": write_cut}[command](**given)


def read(weights: str, data: str, test_alone: bool = True):
    """A network and the images that it is asked about."""
    from igkd.images import load_images
    from igkd.models import load_weights

    images = load_images("cifar10", data, test_alone)
    return load_weights(weights, images.num_classes), images


def evaluate(weights: str, data: str, device: str = "auto") -> int:
    """Print the measures of a network on the test images.

    Parameters
    ----------
    weights, data : path
    device : str
    """
    from igkd import training
    from igkd.device import pick_compute

    compute = pick_compute(device)
    model, images = read(weights, data)
    outcome = training.evaluate(model, images.test_images, images.test_labels, compute)
    print(f"weights            {weights}")
    print(f"network            MobileNetV2 for small images, with {len(model.features)} of 19 entries of features")
    print(f"test images        {outcome['n_test']} of {images.name} (fingerprint {images.fingerprint})")
    print(f"accuracy           {outcome['accuracy']:.2%}")
    print(f"balanced accuracy  {outcome['balanced_accuracy']:.2%}")
    print(f"Cohen's kappa      {outcome['kappa']:.4f}")
    width = max(map(len, images.class_names))
    for name, accuracy in zip(images.class_names, outcome["per_class_accuracy"]):
        print(f"  {name:<{width}}  {'no image' if accuracy is None else f'{accuracy:.2%}'}")
    return 0


def export(weights: str, data: str, path: str, int8: bool = False) -> int:
    """Write a network as ONNX, and print its accuracy beside PyTorch's.

    Parameters
    ----------
    weights, data : path
    path : path
        Where the file is written.
    int8 : bool
        In 8 bits, whose ranges are those of training images.
    """
    from igkd.costs import CALIBRATION_IMAGES, export_onnx, predict_onnx, quantize
    from igkd.device import pick_compute
    from igkd.images import spread
    from igkd.records import write_atomically
    from igkd.training import predict

    _check_writable(path)
    model, images = read(weights, data, test_alone=not int8)
    test, labels = images.test_images, images.test_labels
    with TemporaryDirectory() as folder:
        made = Path(folder) / "network.onnx"
        difference = export_onnx(model, made, test[:1000])
        if int8:
            quantize(made, made, images.train_images[spread(images.n_train, CALIBRATION_IMAGES)])
        ours, exported = predict(model, test, pick_compute("cpu")).numpy(), predict_onnx(made, test)
        write_atomically(Path(path), made.read_bytes())
    right = [(logits.argmax(1) == labels).mean() for logits in (exported, ours)]
    print(f"written            {path}, {Path(path).stat().st_size / 1e6:.2f} MB")
    print(f"against PyTorch    largest difference of a float32 logit {difference:.2g}, {len(test[:1000])} images")
    print(f"test images        {len(test)} of {images.name} (fingerprint {images.fingerprint})")
    print(f"accuracy           {right[0]:.2%} by ONNX Runtime{', int8' * int8}; {right[1]:.2%} by PyTorch")
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
        If the official files are not there, or there is no such place for the file.
    """
    import numpy as np

    from igkd.images import load_images
    from igkd.records import write_atomically

    _check_writable(path)
    if not path.endswith(".npz"):
        raise InputError(f"{path} would not be taken for an image set; give it a name that ends in .npz")
    official, n = load_images("cifar10", data), 40_000
    pixels, labels, content = official.train_images, official.train_labels, io.BytesIO()
    if set(labels[:n]) != set(labels[n:]):
        why = f"of {official.n_train:,} training images in this order, those after {n:,} do not have all classes"
        raise InputError(f"{why}; give the official files")
    cut = {"train_images": pixels[:n], "train_labels": labels[:n], "test_images": pixels[n:], "test_labels": labels[n:]}
    np.savez(content, **cut, class_names=np.array(official.class_names))
    write_atomically(Path(path), content.getbuffer())
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


if __name__ == "__main__":
    sys.exit(main())
