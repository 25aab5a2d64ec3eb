import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from igkd.costs import multiply_accumulates, sizes
from igkd.device import Compute, StridedDepthwiseConv2d
from igkd.errors import InputError
from igkd.models import (
    BLOCKS_REMOVED,
    Architecture,
    MobileNetV2,
    attention_tap,
    compression_factor,
    count_parameters,
    load_weights,
    pack_weights,
    state_digest,
    weights_metadata,
)
from igkd.published import table

MEAN_STD = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def network(blocks_removed=15, num_classes=10, mean_std=None, width=1.0, seed=0):
    """A network whose batch norms are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    model = Architecture(blocks_removed, width, mean_std is not None).build(num_classes, mean_std, generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def images(n=3, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_parameters_are_those_of_the_released_networks():
    counted = {}
    with torch.device("meta"):
        for blocks_removed in (0, *BLOCKS_REMOVED):
            counted[blocks_removed] = count_parameters(MobileNetV2(10, blocks_removed))
    published = table("inference_time").set_index("blocks_removed").parameters
    assert counted == published.to_dict()
    assert counted[0] == 2_236_682 and counted[5] == 543_498


def test_compression_factors_are_the_published_ones():
    published = (
        table("compression_sweep").query("series == 'table13'").groupby("blocks_removed").compression_factor.first()
    )
    assert {cut: round(compression_factor(cut), 2) for cut in BLOCKS_REMOVED} == published.to_dict()


def test_multiply_accumulates_are_those_worked_out_for_the_paper():
    table = sizes().set_index("blocks removed")
    assert table["million MACs"][0] == pytest.approx(87.98, abs=0.005)
    assert table["million MACs"][5] == pytest.approx(58.7, abs=0.05)
    assert table["MAC ratio"][5] == pytest.approx(1.50, abs=0.005)


def test_multiply_accumulates_of_the_smallest_student_worked_by_hand():
    stem, depthwise, pointwise, linear = 3 * 32 * 9 * 32 * 32, 32 * 9 * 32 * 32, 32 * 16 * 32 * 32, 16 * 10
    assert multiply_accumulates(MobileNetV2(10, 17), (32, 32)) == stem + depthwise + pointwise + linear


@pytest.mark.parametrize(
    "blocks_removed, tap, channels, side",
    [
        (3, 9, 64, 4),
        (5, 9, 64, 4),
        (7, 9, 64, 4),
        (9, 4, 32, 8),
        (11, 4, 32, 8),
        (13, 4, 32, 8),
        (15, 2, 24, 16),
        (17, 0, 32, 16),
    ],
)
def test_tap_is_the_output_of_its_block(blocks_removed, tap, channels, side):
    # 16x16 images: the paper's maps of 32x32 images have twice these sides
    assert attention_tap(blocks_removed) == tap
    model = network(blocks_removed)
    seen = []
    model.features[tap].register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = images(2)
    with torch.no_grad():
        logits, activation = model(x, tap)
        assert torch.equal(activation, seen[0])
        assert activation.shape == (2, channels, side, side)
        assert torch.equal(logits, model(x))


def test_a_cut_that_the_paper_does_not_have_has_no_tap():
    with pytest.raises(InputError, match="4"):
        attention_tap(4)


def test_a_cut_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="19"):
        MobileNetV2(10, 19)


def test_standardising_inside_equals_standardising_outside():
    inside = network(mean_std=MEAN_STD)
    outside = network()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD)
    x = images()
    with torch.no_grad():
        assert torch.equal(inside(x), outside((x - mean) / std))
        assert not torch.equal(inside(x), outside(x))


def test_initial_weights_depend_on_the_generator_alone():
    first, again, other = (Architecture(17).build(10, None, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert state_digest(first) == state_digest(again) != state_digest(other)


def test_initial_convolutions_are_he_normal_by_fan_out():
    model = Architecture(5).build(10, None, torch.Generator().manual_seed(0))
    weight = model.features[-1].conv[2].weight.detach()  # 96 x 576 pointwise
    assert float(weight.std()) == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    assert float(model.classifier[1].weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_residual_branches_can_start_by_adding_nothing():
    network = Architecture(0)
    plain, zero = (network.build(10, None, torch.Generator().manual_seed(0), asked) for asked in (False, True))
    x, handed_on = torch.rand(2, 3, 32, 32), 0
    for block, other in zip(zero.features, plain.features, strict=True):
        out = block(x)
        if out.shape == x.shape and torch.equal(out, x):
            handed_on += 1
            assert not torch.equal(other(x), x)
        x = out
    assert handed_on == 10  # Sandler et al. 2018: all repeats of a stage but the first, 1 + 2 + 3 + 2 + 2
    # All else starts alike.
    pairs = zip(zero.parameters(), plain.parameters(), strict=True)
    assert sum(not torch.equal(one, other) for one, other in pairs) == 10


def test_state_digest_notices_one_number():
    model = network(17)
    before = state_digest(model)
    model.features[0][1].running_mean[3] += 1e-6
    assert state_digest(model) != before


@pytest.mark.parametrize("width", [1.0, 0.35, 0.5, 1.4])
def test_our_weights_come_back_whole(tmp_path, width):
    # 0.35 and 0.5 have the same stem, so the width must be kept with the weights
    model = network(13, 7, MEAN_STD, width)
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack_weights(model, run="abc"))
    loaded = load_weights(path, 7)
    assert state_digest(loaded) == state_digest(model)
    assert not loaded.training
    assert weights_metadata(path)["run"] == "abc"


def released(state: dict, tap: int) -> dict:
    """The names under which the attention variants were released."""
    renamed = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "features":
            index, _, rest = rest.partition(".")
            index = int(index)
            if index < tap:
                name = f"front_layers.{index}.{rest}"
            elif index == tap:
                name = f"middle_layer.{rest}"
            else:
                name = f"end_layers.{index - tap - 1}.{rest}"
        if part not in ("mean", "std"):
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("blocks_removed", [15, 17])
def test_released_attention_checkpoints_give_the_same_outputs(tmp_path, blocks_removed):
    model = network(blocks_removed)
    path = tmp_path / "student.pt"
    names = released(model.state_dict(), attention_tap(blocks_removed))
    assert not any(name.startswith("features") for name in names)
    torch.save(names, path)
    with torch.no_grad():
        assert torch.equal(load_weights(path)(images()), model(images()))


def test_released_teacher_is_standardised_as_asked(tmp_path):
    model = network(15, mean_std=MEAN_STD)
    path = tmp_path / "teacher.pt"
    torch.save({name: tensor for name, tensor in model.state_dict().items() if name not in ("mean", "std")}, path)
    with torch.no_grad():
        assert torch.equal(load_weights(path, mean_std=MEAN_STD)(images()), model(images()))


def damaged_files(folder):
    """Files that are not weights of this family."""
    whole = pack_weights(network(17))
    tensors = network(17).state_dict()
    contents = {
        "empty.safetensors": b"",
        "empty.pt": b"",
        "noise.safetensors": bytes(range(256)),
        "noise.pt": b"hello",
        "truncated.safetensors": whole[:-100],
        "header-only.safetensors": whole[:9],
        "other-classes.safetensors": pack_weights(network(17, num_classes=3)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    states = {
        "list.pt": [1, 2],
        "numbers.pt": {0: torch.zeros(1)},
        "nested.pt": {"state_dict": tensors},
        "letters.pt": {"features.a.weight": torch.zeros(1)},
        "scalar.pt": {"features.0.0.weight": torch.tensor(1.0)},
        "others.pt": {"conv1.weight": torch.zeros(1)},
        "too-deep.pt": {**tensors, "features.19.weight": torch.zeros(1)},
        "lacking.pt": {name: tensor for name, tensor in tensors.items() if "classifier" not in name},
    }
    for name, state in states.items():
        torch.save(state, folder / name)
    return [*contents, *states, "missing.pt"]


def test_files_that_are_no_weights_give_one_line_each(tmp_path):
    for name in damaged_files(tmp_path):
        with pytest.raises(InputError) as caught:
            load_weights(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value), name


class CreatesFile:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, 2))])
def test_a_pickle_is_not_executed(tmp_path, save):
    marker = tmp_path / "marker"
    save({"features.0.0.weight": CreatesFile(marker)}, tmp_path / "evil.pt")
    with pytest.raises(InputError):
        load_weights(tmp_path / "evil.pt")
    assert not marker.exists()
    with open(tmp_path / "control", "wb") as file:
        pickle.dump(CreatesFile(marker), file)
    pickle.loads((tmp_path / "control").read_bytes()).close()
    assert marker.exists()  # the trap works


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_fast_strided_convolution_has_the_gradients_of_the_plain_one(size):
    # whole numbers that bfloat16 holds exactly, so output and input gradient must be equal, not close
    generator = torch.Generator().manual_seed(0)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()

    plain, fast = (kind(6, 6, 3, 2, 1, groups=6, bias=False) for kind in (nn.Conv2d, StridedDepthwiseConv2d))
    plain.weight.data = whole(6, 1, 3, 3)
    fast.weight.data = plain.weight.data.clone()
    x = whole(2, 6, *size)
    gradients = []
    for convolution in (plain, fast):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=convolution is fast):
            output = convolution(leaf)
        output.float().backward(whole_like(output))
        gradients.append((output.float(), leaf.grad, convolution.weight.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert gradients[1][2].dtype == torch.float32
    torch.testing.assert_close(gradients[0][2], gradients[1][2], rtol=2**-8, atol=0)


def whole_like(output):
    return torch.randint(-2, 3, output.shape, generator=torch.Generator().manual_seed(1)).float()


def test_fast_strided_convolution_without_bfloat16_is_the_plain_one():
    fast = StridedDepthwiseConv2d(6, 6, 3, 2, 1, groups=6, bias=False)
    x = torch.rand(2, 6, 8, 8)
    assert torch.equal(fast(x), F.conv2d(x, fast.weight, None, 2, 1, 1, 6))


def test_preparing_a_network_keeps_its_weights_and_outputs():
    model = network(13)
    x = images()
    with torch.no_grad():
        expected, digest = model(x), state_digest(model)
        compute = Compute("cpu", bfloat16=True)
        prepared = compute.prepare(model)
        assert any(isinstance(module, StridedDepthwiseConv2d) for module in prepared.modules())
        assert state_digest(prepared) == digest
        torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        with compute.autocast():
            rounded = prepared(x)
    torch.testing.assert_close(rounded.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
