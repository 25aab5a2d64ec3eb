"""What each choice for processors is worth, and how far training is from what the processor could do.

    python bench/cpu.py --blocks-removed 5 17 --rounds 2

Each choice is taken back alone, in a process of its own, in turn with the loop as it is. Beside the images a second
stands the share of the processor's time that the kernel took, which is where memory goes that is given back and asked
for again. PyTorch's profiler says which operations take the time. The floor is the larger of two times: that of the
operations at the rate of a large matrix product, and that of the bytes at the rate of a large copy. What threads that
wait cost beside another program is measured with gradients of a large network on all cores. Writes bench/cpu.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import training

HERE = Path(__file__).resolve().parent
CHOICES = ("bfloat16", "channels last", "own stride-2 gradient", "kept memory", "fused optimizer")


def take_back(choice: str):
    """Undo one choice in this process; how `training.ours` computes then."""
    import torch

    from igkd import device

    if choice == "channels last":
        as_it_is = device.Compute.prepare

        def prepare(self, model):
            model = as_it_is(self, model).to(memory_format=torch.contiguous_format)
            model.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))
            return model

        device.Compute.prepare = prepare
    elif choice == "own stride-2 gradient":
        device._replace_strided_depthwise = lambda model: None
    elif choice == "kept memory":
        device._keep_freed_memory = lambda: None
    elif choice == "fused optimizer":
        fused = torch.optim.SGD
        torch.optim.SGD = lambda groups, **settings: fused(groups, **settings | {"fused": False})
    compute = device.pick_compute("cpu")
    return replace(compute, bfloat16=compute.bfloat16 and choice != "bfloat16")


def measure(choice: str, blocks_removed: int, seconds: float) -> dict:
    """Images a second without one choice (or with all) and the kernel's share of the processor's time."""
    compute = take_back(choice)
    before = resource.getrusage(resource.RUSAGE_SELF)
    speed = training.ours(blocks_removed, seconds, compute)
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"images_per_second": round(speed, 1), "system_share": round(system / (user + system), 3)}


def shares(blocks_removed: int, seconds: float) -> dict[str, float]:
    """Which share of a training's time each kind of operation takes, by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    from igkd.device import pick_compute

    def kind(event) -> str:
        if "convolution" in event.key:
            weight = event.input_shapes[2 if "backward" in event.key else 1]
            return "depthwise convolutions" if weight[1] == 1 else "other convolutions"
        names = {"batch_norm": "batch norm", "hardtanh": "ReLU6", "clamp": "ReLU6"}
        return next((name for part, name in names.items() if part in event.key), "the rest")

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        training.ours(blocks_removed, seconds, pick_compute("cpu"))
    found: dict[str, float] = {}
    for event in seen.key_averages(group_by_input_shape=True):
        found[kind(event)] = found.get(kind(event), 0.0) + event.self_cpu_time_total
    whole = sum(found.values())
    return {name: round(found[name] / whole, 3) for name in sorted(found, key=lambda name: -found[name])}


def waiting(seconds: float) -> float:
    """Gradients a second of the uncut network on all cores, a batch of 64 images each, in this process."""
    from igkd.device import pick_compute
    from igkd.models import MobileNetV2

    import torch  # isort: skip - after igkd, which says how threads wait

    compute = pick_compute("cpu")
    model = compute.prepare(MobileNetV2(10))
    batch = torch.rand(training.BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    count, started = -1, None
    while started is None or time.perf_counter() - started < seconds:
        with compute.autocast():
            model(batch).float().sum().backward()
        count += 1
        started = started or time.perf_counter()  # the first call sets things up
    return count / (time.perf_counter() - started)


def in_a_process(*arguments, env=None):
    """What this script prints, as JSON, in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout)


#: What libgomp does if nothing is set and there are no more threads than cores.
ACTIVE = "300000"


def waited(seconds: float, rounds: int) -> list[dict]:
    """`waiting` with short waits and long ones, alone and beside a program that keeps one core busy."""
    rows = []
    for turn in range(rounds):
        for name, spins in (("short", {}), ("long", {"GOMP_SPINCOUNT": ACTIVE})):
            for busy in (0, 1):
                beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
                try:
                    found = in_a_process("--waiting", "--seconds", seconds, env=os.environ | spins)
                finally:
                    for each in beside:
                        each.kill()
                        each.wait()
                rows.append({"round": turn, "waits": name, "busy": busy, "gradients_per_second": found})
                print(rows[-1], flush=True)
    return rows


def rates(seconds: float = 2.0) -> dict:
    """Operations a second of a matrix product in bfloat16 and float32, and bytes a second of a copy."""
    import torch

    def best(step, amount: float) -> float:
        step()
        found, started = 0.0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            at = time.perf_counter()
            step()
            found = max(found, amount / (time.perf_counter() - at))
        return found

    n = 2048
    found = {}
    for name in ("bfloat16", "float32"):
        a, b = (torch.randn(n, n).to(getattr(torch, name)) for _ in range(2))
        out = torch.empty_like(a)
        found[f"{name}_operations"] = best(lambda: torch.mm(a, b, out=out), 2 * n**3)  # noqa: B023
    source = torch.zeros(2**26)
    target = torch.empty_like(source)
    found["bytes"] = best(lambda: target.copy_(source), 2 * source.nbytes)
    return {name: round(rate / 1e9, 1) for name, rate in found.items()}


def needed(blocks_removed: int) -> dict:
    """Operations and bytes that an image costs in a step of training, at least.

    Three times the operations of the forward pass. What every convolution puts out, in bfloat16, is written and
    read in the forward pass, read again in the backward pass, and so its gradient written and read; everything else is
    counted as if it happened on the way.
    """
    import torch
    from torch import nn

    from igkd.costs import multiply_accumulates
    from igkd.models import MobileNetV2

    model = MobileNetV2(10, blocks_removed)
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    operations = 2 * 3 * multiply_accumulates(model, (32, 32))
    sizes.clear()
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return {"operations": operations, "bytes": 5 * 2 * sum(sizes)}


def main() -> None:
    """Measure in turn and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks-removed", type=int, nargs="+", default=[5, 17])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--without", help=argparse.SUPPRESS)
    parser.add_argument("--shares", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--waiting", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.without is not None:
        print(json.dumps(measure(options.without, options.blocks_removed[0], options.seconds)))
        return
    if options.shares:
        print(json.dumps(shares(options.blocks_removed[0], options.seconds)))
        return
    if options.waiting:
        print(waiting(options.seconds))
        return

    import torch

    from igkd.device import pick_compute

    machine = pick_compute("cpu").describe()
    content = {"machine": machine, "torch": torch.__version__, "billions_a_second": rates()}
    content |= {"needed": {cut: needed(cut) for cut in options.blocks_removed}, "measured": [], "shares": {}}

    for cut in options.blocks_removed:
        for turn in range(options.rounds):
            for choice in ("", *CHOICES):
                found = in_a_process("--without", choice, "--blocks-removed", cut, "--seconds", options.seconds)
                row = {"blocks_removed": cut, "round": turn, "without": choice} | found
                content["measured"].append(row)
                print(row, flush=True)
        content["shares"][cut] = in_a_process("--shares", "--blocks-removed", cut, "--seconds", options.seconds)
    content["waiting"] = waited(options.seconds, options.rounds)
    (HERE / "cpu.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
