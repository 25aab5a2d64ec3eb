"""A recipe trial: python trial.py --epochs 8 --opt muon ...   prints one JSON line at the end."""
import argparse, json, math, os, sys, time
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
sys.path.insert(0, "OLD_CHECKOUT")
from igkd.models import MobileNetV2
from igkd.device import pick_compute
from igkd.augment import draw, pad, crop_mirror
from igkd.runs import stream
from sklearn.model_selection import train_test_split

a = argparse.ArgumentParser()
a.add_argument("--name", default="")
a.add_argument("--epochs", type=float, default=8)
a.add_argument("--batch", type=int, default=64)
a.add_argument("--opt", default="sgd")
a.add_argument("--lr", type=float, default=0.05)
a.add_argument("--muon_lr", type=float, default=0.02)
a.add_argument("--muon_wd", type=float, default=0.0)
a.add_argument("--wd", type=float, default=5e-4)
a.add_argument("--res", type=str, default="")  # "20:0.6,24:0.8" fraction of steps until which this size is used
a.add_argument("--mode", default="area")  # area or crop
a.add_argument("--ema", type=float, default=0.0)
a.add_argument("--altflip", type=int, default=0)
a.add_argument("--cutout", type=int, default=0)
a.add_argument("--pct", type=float, default=0.2)
a.add_argument("--final", type=float, default=0.0)
a.add_argument("--seed", type=int, default=0)
a.add_argument("--cut", type=int, default=5)
a.add_argument("--ls", type=float, default=0.0)
a.add_argument("--smoke", type=int, default=0)
a.add_argument("--split", default="val")
a.add_argument("--padding", type=int, default=4)
a.add_argument("--normalize", type=int, default=0)
a.add_argument("--act", default="relu6")
o = a.parse_args()
torch.set_num_threads(1)
compute = pick_compute("cpu")
d = np.load("DATA/cifar10.npz")
X, Y = d["train_images"], d["train_labels"].astype(np.int64)
if o.split == "val":
    tr, va = train_test_split(np.arange(len(Y)), test_size=0.2, stratify=Y, random_state=1)
    VX, VY = X[va], Y[va]; X, Y = X[np.sort(tr)], Y[np.sort(tr)]
else:
    VX, VY = d["test_images"], d["test_labels"].astype(np.int64)
ms = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)) if o.normalize else None
model = MobileNetV2(10, o.cut, 1.0, ms)
model.reset_parameters(stream(o.seed, 0))
model = compute.prepare(model)
params = list(model.named_parameters())
pw = [p for n, p in params if p.dim() == 4 and p.shape[2:] == (1, 1)] if o.opt.startswith("muon") else []
ids = {id(p) for p in pw}
dec = [p for n, p in params if p.dim() > 1 and id(p) not in ids]
oth = [p for n, p in params if p.dim() <= 1]
groups = [dict(params=dec, weight_decay=o.wd), dict(params=oth, weight_decay=0.0)]
opts, views = [], []
opts.append(torch.optim.SGD(groups, lr=o.lr, momentum=0.9, nesterov=True, fused=True) if o.opt != "muonadam" and o.opt != "adam" else torch.optim.AdamW(groups, lr=o.lr, fused=True))
if pw:
    views = [nn.Parameter(p.data.view(p.shape[0], p.shape[1])) for p in pw]
    opts.append(torch.optim.Muon(views, lr=o.muon_lr, weight_decay=o.muon_wd, momentum=0.95, nesterov=True))
n, B = len(Y), o.batch
spe = n // B
total = int(round(o.epochs * spe))
if o.smoke: total = min(total, o.smoke)
phases = [(int(s.split(":")[0]), float(s.split(":")[1])) for s in o.res.split(",") if s]
def res_at(step):
    for r, f in phases:
        if step < f * total: return r
    return 32
def lr_at(step):
    x = step / total
    return x / o.pct if x < o.pct else o.final + (1 - o.final) * (1 - x) / (1 - o.pct)
base = [[g["lr"] for g in op.param_groups] for op in opts]
P = pad(torch.from_numpy(X), o.padding); L = torch.from_numpy(Y)
ema = None
flip0 = torch.rand(n, generator=stream(o.seed, 9)) < 0.5
t0 = time.process_time(); w0 = time.time(); step = 0; epoch = 0; hist = []
rest = {}
while step < total:
    order = torch.randperm(n, generator=stream(o.seed, 1, epoch))
    drawn = draw(n, stream(o.seed, 2, epoch), padding=o.padding, mirror=not o.altflip)
    if o.altflip:
        import dataclasses
        drawn = dataclasses.replace(drawn, mirror=(flip0 ^ bool(epoch % 2))[order])
    tot = 0.0; cor = 0.0; k = 0
    model.train()
    for at in range(0, n - B + 1, B):
        if step >= total: break
        rows = order[at:at + B]; dr = drawn[at:at + B]; r = res_at(step); ts = time.process_time()
        if r < 32 and o.mode == "crop":
            x = crop_mirror(P, rows, dr, (32, 32)).permute(0, 3, 1, 2)
            i, j = np.random.default_rng(step).integers(0, 32 - r + 1, 2)
            x = x[:, :, i:i + r, j:j + r].float() / 255
        else:
            x = crop_mirror(P, rows, dr, (32, 32)).permute(0, 3, 1, 2).float() / 255
            if r < 32: x = F.interpolate(x, size=(r, r), mode="area") if o.mode == "area" else F.interpolate(x, size=(r, r), mode="bilinear", antialias=True)
        x = x.contiguous(memory_format=torch.channels_last)
        if o.cutout:
            s = max(1, o.cutout * r // 32); g = torch.Generator().manual_seed(step)
            cy = torch.randint(0, r, (B, 1), generator=g); cx = torch.randint(0, r, (B, 1), generator=g); ar = torch.arange(r)
            m = ((ar - cy + s // 2 >= 0) & (ar - cy + s // 2 < s))[:, :, None] & ((ar - cx + s // 2 >= 0) & (ar - cx + s // 2 < s))[:, None, :]
            x = x.masked_fill(m[:, None], 0.0)
        with compute.autocast(): out = model(x)
        loss = F.cross_entropy(out.float(), L[rows], label_smoothing=o.ls)
        for op in opts: op.zero_grad()
        for p in pw: p.grad = None
        loss.backward()
        f = lr_at(step + 1)
        for op, bl in zip(opts, base):
            for g, b in zip(op.param_groups, bl): g["lr"] = b * f
        for v, p in zip(views, pw): v.grad = p.grad.view_as(v)
        for op in opts: op.step()
        tot += loss.detach(); cor += (out.argmax(1) == L[rows]).float().mean(); k += 1; step += 1
        rest.setdefault(r, []).append(time.process_time() - ts)
        if o.ema and step > 0.5 * total:
            st = model.state_dict()
            if ema is None: ema = {q: v.clone().float() for q, v in st.items()}
            elif step % 5 == 0:
                for q, v in st.items():
                    if v.is_floating_point(): ema[q].lerp_(v.float(), 1 - o.ema ** 5)
                    else: ema[q] = v.clone()
    epoch += 1
    print(f"{o.name} epoch {epoch} loss {float(tot)/k:.3f} acc {float(cor)/k:.4f} cpu {time.process_time()-t0:.0f}", flush=True)
cpu = time.process_time() - t0
def ev():
    model.eval()
    with torch.no_grad():
        lg = torch.cat([model(torch.from_numpy(b).permute(0, 3, 1, 2).float() / 255) for b in np.array_split(VX, 80)])
    return round(float((lg.argmax(1).numpy() == VY).mean()) * 100, 2), round(float(F.cross_entropy(lg, torch.from_numpy(VY))), 4)
acc = ev() if not o.smoke else 0
e = None
if ema is not None and not o.smoke:
    model.load_state_dict(ema); e = ev()
print("RESULT", json.dumps(dict(args={k: v for k, v in vars(o).items() if v != a.get_default(k)}, acc=acc, ema_acc=e, cpu=round(cpu), wall=round(time.time() - w0), ms={r: round(1000 * float(np.median(t)), 1) for r, t in rest.items()})), flush=True)
