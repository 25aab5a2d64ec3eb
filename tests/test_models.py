"""The paper's published numbers and PyTorch's own convolution are the references."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from igkd import models
from igkd.device import Compute, StridedDepthwiseConv2d
from igkd.models import MobileNetV2, attention_tap, build, load_weights, pack_weights, state_digest
from igkd.published import table
from igkd.runs import Architecture
from small import refusal
from test_images import Bomb

MEAN_STD = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(blocks_removed=15, num_classes=10, mean_std=None):
    """A network whose batch norms are not the identity."""
    generator = torch.Generator().manual_seed(0)
    model = build(Architecture(blocks_removed, mean_std is not None), num_classes, mean_std, generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def outputs(model, x=IMAGES):
    with torch.no_grad():
        return model(x)


def test_parameters_and_compression_factors_are_the_published_ones():
    with torch.device("meta"):
        counted = {cut: models.count_parameters(cut) for cut in (0, *models.BLOCKS_REMOVED)}
    assert counted == table("inference_time").set_index("blocks_removed").parameters.to_dict()
    factors = table("compression_sweep").query("series == 'table13'").groupby("blocks_removed").compression_factor
    assert {cut: round(models.compression_factor(cut), 2) for cut in models.BLOCKS_REMOVED} == factors.first().to_dict()


def test_tap_is_the_output_of_its_block():
    # 16x16 images: the paper's maps of 32x32 images have twice these sides
    published = ((3, 9, 64, 4), (7, 9, 64, 4), (9, 4, 32, 8), (13, 4, 32, 8), (15, 2, 24, 16), (17, 0, 32, 16))
    for cut, tap, channels, side in published:
        assert attention_tap(cut) == tap
        model, seen = network(cut), []
        model.features[tap].register_forward_hook(lambda module, inputs, output: seen.append(output))
        with torch.no_grad():
            logits, activation = model(IMAGES, tap)
        assert torch.equal(activation, seen[0]) and activation.shape == (3, channels, side, side)
        assert torch.equal(logits, outputs(model))
    refusal(attention_tap, 4)  # without a tap
    refusal(MobileNetV2, 10, 19)  # with nothing left


def test_initial_weights_are_he_normal_and_depend_on_the_generator_alone():
    first, again, other = (build(Architecture(5), 10, None, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert state_digest(first) == state_digest(again) != state_digest(other)
    weight = first.features[-1].conv[2].weight.detach()  # 96 x 576 pointwise
    assert float(weight.std()) == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    assert float(first.classifier[1].weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_our_weights_come_back_whole(tmp_path):
    model, path = network(13, 7, MEAN_STD), tmp_path / "a.safetensors"
    path.write_bytes(pack_weights(model, run="abc"))
    loaded, digest = load_weights(path, 7), state_digest(model)
    assert state_digest(loaded) == digest and not loaded.training
    assert models.weights_metadata(path)["run"] == "abc"
    loaded.features[0][1].running_mean[3] += 1e-6
    assert state_digest(loaded) != digest


def test_files_that_are_no_weights_give_one_line_each(tmp_path):
    whole, tensors = pack_weights(network(17)), network(17).state_dict()
    files = {
        "empty.safetensors": b"",
        "truncated.safetensors": whole[:-100],
        "other-classes.safetensors": pack_weights(network(17, num_classes=3)),
        "text.pt": b"no weights",
        "list.pt": ["features.0.0.weight"],
        "scalar.pt": {"features.0.0.weight": torch.tensor(1.0)},
        "scalar-classifier.pt": {**tensors, "classifier.1.weight": torch.tensor(1.0)},
        "too-deep.pt": {**tensors, "features.19.weight": torch.zeros(1)},
        "lacking.pt": {name: tensor for name, tensor in tensors.items() if "classifier" not in name},
    }
    for name, content in files.items():
        with open(tmp_path / name, "wb") as file:
            file.write(content) if isinstance(content, bytes) else torch.save(content, file)
    for name in (*files, "missing.pt"):
        refusal(load_weights, tmp_path / name, match=name)


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.0.weight": Bomb()}, "evil.pt")
    refusal(load_weights, "evil.pt")
    assert not Path("marker").exists()
    torch.load("evil.pt", weights_only=False)
    assert Path("marker").exists()  # the trap works


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_fast_strided_convolution_has_the_gradients_of_the_plain_one(size):
    # whole numbers that bfloat16 holds exactly, so output and input gradient must be equal, not close
    generator = torch.Generator().manual_seed(0)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()

    x, weight, rise = whole(2, 6, *size), whole(6, 1, 3, 3), whole(2, 6, *((side + 1) // 2 for side in size))
    found = []
    for kind in (nn.Conv2d, StridedDepthwiseConv2d):
        convolution = kind(6, 6, 3, 2, 1, groups=6, bias=False)
        convolution.weight.data, leaf = weight.clone(), x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind is StridedDepthwiseConv2d):
            output = convolution(leaf).float()
        output.backward(rise)
        found.append((output, leaf.grad, convolution.weight.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2], rtol=2**-8, atol=0)
    assert torch.equal(convolution(x), F.conv2d(x, weight, None, 2, 1, 1, 6))  # without bfloat16


def test_preparing_a_network_keeps_its_weights_and_outputs():
    model = network(13)
    expected, digest, compute = outputs(model), state_digest(model), Compute("cpu", bfloat16=True)
    prepared = compute.prepare(model)
    assert any(isinstance(module, StridedDepthwiseConv2d) for module in prepared.modules())
    assert state_digest(prepared) == digest
    largest = float(expected.abs().max())
    torch.testing.assert_close(outputs(prepared), expected, rtol=1e-4, atol=1e-4 * largest)
    with compute.autocast():
        torch.testing.assert_close(outputs(prepared).float(), expected, rtol=0, atol=0.05 * largest)
