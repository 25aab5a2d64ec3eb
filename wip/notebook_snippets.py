import pickle, sys
import numpy as np, pandas as pd
from igkd import experiments, published, statistics
from igkd.engine import Study
from igkd.losses import fitted_loss
study = Study("laptop", device="cpu", log=lambda l: None); full = Study("paper", device="cpu", log=lambda l: None)

def gradient_shares(epochs):
    norms = epochs.filter(like="gradient_norms.").rename(columns=lambda c: c.removeprefix("gradient_norms.").replace("_", "-"))
    shares = norms.div(norms.sum(axis=1), axis=0).assign(key=epochs.key, epoch=epochs.epoch)
    return shares.melt(["key", "epoch"], var_name="term", value_name="share").dropna(subset="share")

ATTENTION_LIMIT = 2 / 64
cats = published.table("confidence").set_index("network").loc["Teacher"]
p_cat = cats.label_probability_sum / cats.images
gap = float(cats.temperature * np.log(9 * p_cat / (1 - p_cat)))

logs, gaps, rows = published.table("training_logs").set_index("arm"), np.linspace(0, 20, 81), {}
for arm, log in logs[logs.alpha > 0].iterrows():
    aligned, permuted = ([fitted_loss(g, log.alpha, log.temperature, permuted=kind)["loss"] for g in gaps] for kind in (False, True))
    least = log.train_loss - logs.train_loss["Student"] - log.gamma * ATTENTION_LIMIT
    near, far = np.interp([least, log.train_loss], permuted, gaps)
    rows[arm] = {"least": least, "most": log.train_loss, "aligned": max(aligned), "gap_from": near, "gap_to": far}
left = pd.DataFrame(rows).T

runs = full.table(experiments.sweep(full.plan)).query("width == 1")
pairs = [(arm, "Student") for arm in full.profile.sweep.arms if arm != "Student"]
gains = pd.concat([statistics.compare(of_cut, pairs).assign(blocks_removed=cut) for cut, of_cut in runs.groupby("blocks_removed")])
gains = gains.query("n >= 2").reset_index(drop=True)

theirs = published.ablation_runs()
their_gain = statistics.compare(theirs, [("KD+IG", "Student")], pair_by=None).iloc[0]
best = theirs.groupby("arm").accuracy.max()
their_best = best["KD+IG"] - best["Student"]

both = pd.concat([study.table(declared(study.plan)).assign(recipe=declared(study.plan)[0].run.recipe.name)
                  for declared in (experiments.arms, experiments.recipe_arms)])
wide = both.pivot(index=["recipe", "seed"], columns="arm", values="accuracy")
rgain = wide.drop(columns="Student").sub(wide.Student, axis=0).dropna().melt(value_name="gain", ignore_index=False).reset_index()
own, paper = both.recipe.unique()
changes = statistics.compare(rgain.assign(arm=rgain.arm + ", " + rgain.recipe),
                             [(f"{arm}, {paper}", f"{arm}, {own}") for arm in rgain.arm.unique()], value="gain")

taught = study.table(experiments.second_teacher_arms(study.plan)).assign(arm=lambda t: t.arm + ", second teacher")
runs2 = pd.concat([study.table(experiments.arms(study.plan)), taught])
second = statistics.compare(runs2, [(a, "Student") for a in taught.arm.unique()] + [(a, a.split(",")[0]) for a in taught.arm.unique()])
ep = study.epochs([i for i in experiments.factorial(study.plan) if i.labels["arm"]=="KD+IG+AT"])
pickle.dump(dict(gap=gap,left=left,gains=gains,tg=(their_gain.difference,their_gain.low,their_gain.high,their_best),changes=changes,second=second,shares=gradient_shares(ep).groupby("term").share.mean()),open('new.pkl','wb'))
