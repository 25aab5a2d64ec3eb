"""Every picture of the study, the one function that writes them, and the sentences that say the answer.

Plots take tables and arrays and return a matplotlib `Figure`; `save` stamps what it was drawn from into the file, and
`show` puts it into a notebook with its alternative text.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

from igkd import claims
from igkd.runs import ARMS, digest
from igkd.statistics import LEAST_SHOWN, crossed_interval, paired, t_interval

#: One colour for each arm, in all figures.
ARM_COLOURS = dict(zip(ARMS, sns.color_palette("colorblind", len(ARMS)), strict=True))


def use_style() -> None:
    """Set the look of all figures."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    plt.rcParams |= {"figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True}
    plt.rcParams |= {"figure.titlesize": "medium", "axes.formatter.min_exponent": 5}  # 100, not a power of 10


def save(figure: Figure, name: str, study, table: pd.DataFrame | str | None) -> None:
    """Write a figure as PNG and PDF to `Study.figures`, stamped with what it was drawn from, and show it.

    Parameters
    ----------
    figure : Figure
    name : str
        File name without ending.
    study : igkd.study.Study
    table : DataFrame, str or None
        The records behind the figure, one a row (from `Study.ensure`); where it shows what was measured just now, a
        text that says on what; None if it shows published values only. A column ``scored_on`` says in words which
        images the figure is about, if not those of the records.
    """
    keys, stamp = "", f"profile {study.profile.name} · {table}"
    if table is None:
        stamp = "published values only (igkd.published)"
    elif isinstance(table, pd.DataFrame):
        scored = table.scored_on.iloc[0] if "scored_on" in table else f"{_range(table.n_test)} images"
        keys = " ".join(dict.fromkeys(table.key))
        stamp = (
            f"profile {study.profile.name} · {study.data_name}, trained on {_range(table.n_train)}, scored on {scored} "
            f"· {len(table)} run{'s' * (len(table) != 1)} · records {digest(sorted(zip(table.key, table.accuracy)))}"
        )
    # Laid out once: each format, and the notebook's picture, would do it again.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    study.figures.mkdir(parents=True, exist_ok=True)
    # No dates in the files: the same records give the same bytes.
    text = {"Description": stamp, "Records": keys, "Software": "igkd"}
    figure.savefig(study.figures / f"{name}.png", bbox_inches="tight", metadata=text)
    text = {"Subject": stamp, "Creator": "igkd", "CreationDate": None}
    figure.savefig(study.figures / f"{name}.pdf", bbox_inches="tight", metadata=text)
    show(figure)


def show(figure: Figure) -> None:
    """Put a figure into the notebook, with its alternative text in the metadata of the output."""
    display(figure, metadata={"image/png": {"alt": alternative(figure)}})
    plt.close(figure)  # else it is shown again at the end of the cell


def alternative(figure: Figure) -> str:
    """A picture in words, for those who do not see it: titles, axes and the names along them, what is written in it."""
    said = [figure.get_suptitle()]
    for axes in figure.axes:
        said.append(axes.get_title())
        for axis in (axes.xaxis, axes.yaxis):
            names = [tick.get_text() for tick in axis.get_ticklabels() if tick.get_text()[:1].isalpha()]
            said += [axis.get_label_text(), ", ".join(names)]
        if len(axes.texts) <= 20:  # the cells of a heat map are too many
            said += [text.get_text() for text in axes.texts]
    return "; ".join(dict.fromkeys(" ".join(each.split()) for each in said if each.strip()))


def _range(counts: pd.Series) -> str:
    return " to ".join(f"{count:,}" for count in sorted({counts.min(), counts.max()}))


def in_short(study, *sentences: str) -> Markdown:
    """The answer of a notebook: its sentences as bullets, shown under its title and again in its Summary."""
    title = f"**In short**, {study.profile.name} profile ({study.data_name}, {study.images.n_train:,} training images)"
    return Markdown(f"{title}\n\n" + "\n".join(f"- {sentence}" for sentence in sentences))


def claimed(study, number: str) -> str:
    """A claim of the paper in one sentence: the verdict, what came out here, what is published."""
    row, gain = claims.ledger(study).loc[number], claims.GAINS.get(number)
    here = "nothing yet here" if row.here == "–" else f"{row.here} here" + f" (n = {row.n})" * (row.n != "–")
    here = f"{gain.arm} minus {gain.reference}: {here}" if gain else here
    bold = "**" * (row.verdict != "open")
    return f"{number}, {row['the paper says']}: {bold}{row.verdict}{bold}; {here}, published: {row.published}."


def told(found) -> str:
    """A row of `igkd.statistics.compare` in one sentence; with its interval from four pairs on."""
    enough = found.n >= LEAST_SHOWN and found.p_holm >= 0
    bold = "**" * bool(enough)
    said = f"{found.arm} minus {found.reference} is {bold}{100 * found.difference:+.2f} points{bold}"
    if not enough:
        return f"{said} (n = {found.n}; no interval before more pairs are there)."
    word = "gain" if found.difference > 0 else "loss"
    word = f"a clear {word}" if found.p_holm < 0.05 else f"a {word} that is not clear after Holm's correction"
    word = word if found.low * found.high > 0 else "no clear difference"
    return f"{said} [{100 * found.low:+.2f}, {100 * found.high:+.2f}], {word} (n = {found.n})."


def told_with_images(right, reference, groups=None) -> str:
    """The gain of one arm over another, both (pairs, images) right or wrong, its error from other images, and p.

    `groups` as in `igkd.statistics.crossed_interval`.
    """
    found = crossed_interval(100 * (np.asarray(right, float) - reference), groups)
    return (
        f"gain {found['mean']:+.2f} points (n = {len(right)}); standard error: {found.runs:.2f} from seeds, "
        f"{found.images:.2f} from images, {found.both:.2f} from both\n"
        f"95 % interval with both: {found.low:+.2f} to {found.high:+.2f} points, p = {found.p:.2g}"
    )


def answer(gains: pd.DataFrame, line: float) -> Figure:
    """Differences on one axis: a row of `gains` each (index: whose; `difference`, `low`, `high`; NaN: no interval).

    The first of ours that has the paper's constants is in the title.
    """
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.4 * len(gains)))
    points, places = 100 * gains, range(len(gains))
    colours = [ARM_COLOURS["KD+IG"] if name.startswith("here") else "0.45" for name in gains.index]
    axis.hlines(places, points.low, points.high, colors=colours)
    axis.scatter(points.difference, places, c=colours)
    for place, difference in enumerate(points.difference):
        axis.annotate(f"{difference:+.2f}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
    axis.axvline(0, color="0.2", linewidth=1)
    axis.axvline(100 * line, color="0.45", linestyle=":")
    axis.set(yticks=places, yticklabels=gains.index, ylim=(len(gains) - 0.4, -0.8))
    axis.set(xlabel="KD+IG minus Student (percentage points)", xmargin=0.1)
    same = points.difference[points.index.str.contains("paper's constants")]
    said = f"{same.iloc[0]:+.2f}" if len(same) else "nothing yet"
    figure.suptitle(f"Published: {100 * line:+.2f} points; the same constants, our recipe: {said}")
    return figure


def image_rows(rows: dict[str, np.ndarray], titles=()) -> Figure:
    """Rows of small pictures under each other, with titles over the columns.

    Parameters
    ----------
    rows : dict
        Row title -> array (n, H, W, 3) in [0, 1] or uint8, or (n, H, W), each map scaled to its own range.
    titles : list of str

    Examples
    --------
    >>> picture = image_rows({"image": np.zeros((3, 32, 32, 3)), "map": np.zeros((3, 8, 8))}, ["a", "b", "c"])
    >>> picture.axes[0].get_xticks().tolist()  # the middles of three pictures of 32 pixels with gaps of 4
    [15.5, 51.5, 87.5]
    """
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), 1, figsize=(1.15 * columns + 1.2, 1.2 * len(rows)), squeeze=False)
    for axis, (title, pictures) in zip(axes[:, 0], rows.items(), strict=True):
        if pictures.ndim == 3:
            pictures = np.stack(
                [plt.get_cmap("magma")(plt.Normalize()(each), bytes=True)[..., :3] for each in pictures]
            )
        pictures = pictures if pictures.dtype == np.uint8 else np.uint8(255 * pictures.clip(0, 1))
        # One picture a row: axes for each small one take longer to lay out than everything else in a notebook.
        gap = 1 + pictures.shape[2] // 10
        framed = np.pad(pictures, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
        axis.imshow(np.hstack(framed)[:, :-gap])
        names = titles[:columns] if axis is axes[0, 0] else []
        middles = (pictures.shape[2] - 1) / 2 + framed.shape[2] * np.arange(len(names))
        axis.set_xticks(middles, names, fontsize=9)
        axis.tick_params(bottom=False, labeltop=True, labelbottom=False)
        axis.set_yticks([])
        axis.grid(False)
        sns.despine(ax=axis, left=True, bottom=True)
        axis.set_ylabel(title, rotation=0, ha="right", va="center")
    return figure


def arms(table: pd.DataFrame, title: str, published: pd.DataFrame) -> Figure:
    """Accuracy of every run of the arms of `table`, beside the published runs, on axes of the same span.

    Parameters
    ----------
    table : DataFrame
        Columns ``arm``, ``seed``, ``accuracy`` (fraction).
    title : str
        Data and student of `table`.
    published : DataFrame
        As `table`, without ``seed``.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
    panels = {"published: CIFAR-10\nstudent 4.12x smaller": published[published.arm.isin(table.arm)], title: table}
    gains = []
    for axis, (data, frame) in zip(axes, panels.items(), strict=True):
        _runs_of_arms(axis, frame)
        means = paired(frame).mean() if "seed" in frame else frame.groupby("arm").accuracy.mean()
        gains.append(100 * np.subtract(*means.reindex(["KD+IG", "Student"])))
        axis.set(title=f"{data}, {_range(frame.groupby('arm').size())} runs an arm", xlabel="", ylabel="")
    figure.suptitle("KD+IG minus Student: {:+.2f} points published, {:+.2f} here, in the mean".format(*gains))
    half = max(np.ptp(axis.get_ylim()) for axis in axes) / 2
    for axis in axes:
        axis.set_ylim(np.mean(axis.get_ylim()) - half, np.mean(axis.get_ylim()) + half)
    axes[0].set_ylabel("test accuracy (%)")
    return figure


def _runs_of_arms(axis, frame: pd.DataFrame) -> None:
    """Every run as a point and the mean of an arm; two arms have their runs of one seed joined."""
    order = [name for name in ARM_COLOURS if name in set(frame.arm)]
    of = {"data": frame.assign(percent=100 * frame.accuracy), "x": "arm", "y": "percent", "ax": axis}
    sns.stripplot(**of, order=order, hue="arm", palette=ARM_COLOURS, legend=False, alpha=0.6, jitter=False)
    if "seed" in frame and len(order) == 2:
        sns.lineplot(**of, units="seed", estimator=None, color="0.6", lw=0.6, zorder=1)
    _means(**of, order=order, color="0.2", marker="_", markersize=24)
    axis.grid(False, axis="x")


def _means(**of) -> None:
    """Means, not joined, with 95 % t-intervals from four values on."""
    sns.pointplot(errorbar=_interval, linestyle="none", capsize=0.15, err_kws={"lw": 1.5}, **of)


def _interval(values) -> tuple[float, float]:
    return t_interval(values) if len(values) >= LEAST_SHOWN else (np.nan, np.nan)


def gains(runs: pd.DataFrame, published: pd.Series, title: str) -> Figure:
    """Gain of every arm over the plain student of the same seed: pairs and their mean, beside the published gain.

    Parameters
    ----------
    runs : DataFrame
        Columns ``arm`` ("Student" among them), ``seed``, ``accuracy`` (a fraction), maybe ``label``, the arm as it is
        written; in the order to be drawn.
    published : Series
        Label -> published difference of means (fraction).
    title : str
        Data and student.
    """
    student = runs[runs.arm == "Student"].set_index("seed").accuracy
    table = runs[(runs.arm != "Student") & runs.seed.isin(student.index)]
    table = table.assign(label=table.get("label", table.arm), gain=100 * (table.accuracy - table.seed.map(student)))
    labels = list(dict.fromkeys(table.label))
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.35 * len(labels)))
    of = {"data": table, "x": "gain", "y": "label", "hue": "arm", "palette": ARM_COLOURS, "legend": False, "ax": axis}
    sns.stripplot(**of, alpha=0.4, jitter=False)
    _means(**of, order=labels, marker="D", markersize=5)
    axis.plot(100 * published.reindex(labels), range(len(labels)), "|", ms=13, mew=2.2, color="0.15")
    for place, label in enumerate(labels):
        beside = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8}
        axis.annotate(f"n = {(table.label == label).sum()}", (1.01, place), **beside)
    axis.axvline(0, color="0.3", lw=1)
    axis.set(xlabel="test accuracy minus Student, same seed (points)", ylabel="", ylim=(len(labels) - 0.5, -0.5))
    note = "; black bar: published (CIFAR-10, 4.12x)" * bool(published.index.isin(labels).any())
    axis.set_title(f"{' '.join(title.split())}\ndiamond: mean{note}", fontsize=10)
    of_labels = table.groupby("label", sort=False).gain
    clear = [f"{name} {of.mean():+.2f}" for name, of in of_labels if np.prod(_interval(of)) > 0]
    few = of_labels.size().max() < LEAST_SHOWN
    none = "Too few runs for an interval" if few else "No arm differs clearly from Student: 0 is in each 95 % interval"
    figure.suptitle(f"Differ from Student, 95 % interval without 0: {', '.join(clear)}" if clear else none)
    return figure


def surface(table: pd.DataFrame, x: str, y: str, baseline: float, marked: tuple[float, float]) -> Figure:
    """Accuracy over two constants as a heat map, in points above or below `baseline` (a fraction).

    The point (x, y) that is `marked` gets a frame if it is in the table.
    """
    wide = table.pivot_table(index=y, columns=x, values="accuracy").sort_index(ascending=False)
    figure, axis = plt.subplots(figsize=(3 + 0.8 * wide.shape[1], 1.2 + 0.42 * wide.shape[0]))
    gain = 100 * (wide - baseline)
    limit, label = max(gain.abs().to_numpy().max(), 0.1), {"label": "points against\nStudent, same seed"}
    sns.heatmap(gain, annot=True, fmt="+.1f", vmin=-limit, vmax=limit, cmap="vlag", ax=axis, cbar_kws=label)
    if marked[0] in wide.columns and marked[1] in wide.index:
        corner = wide.columns.get_loc(marked[0]), wide.index.get_loc(marked[1])
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor="0.1", lw=2, clip_on=False))
    axis.tick_params(axis="y", rotation=0)
    return figure


def curves(table: pd.DataFrame, x: str, in_the_paper: float, baseline: pd.Series) -> Figure:
    """Validation accuracy over one constant, beside the plain student of the same seed and the range of the others.

    Parameters
    ----------
    table : DataFrame
        One run a point, all of one arm and seed.
    x : str
        Column of the constant.
    in_the_paper : float
        Its value in the paper.
    baseline : Series
        Seed -> accuracy of the plain student, a fraction.
    """
    figure, axis = plt.subplots(figsize=(6, 3))
    student, students = 100 * baseline[table.seed.iloc[0]], f"Student, range of {len(baseline)} seeds"
    axis.axhspan(100 * baseline.min(), 100 * baseline.max(), color="0.85", lw=0, label=students)
    axis.axhline(student, color=ARM_COLOURS["Student"], ls="--", lw=1, label="Student, same seed")
    axis.axvline(in_the_paper, color="0.4", ls=":", lw=1.2, label="the paper's constant")
    arm = table.arm.iloc[0]
    axis.plot(table[x], 100 * table.accuracy, "o", color=ARM_COLOURS[arm], label=f"{arm}, one run a point")
    axis.set(xlabel=x, ylabel="validation accuracy (%)", xscale="log" if table[x].max() > 20 else "linear")
    axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.02, 0.5))
    best = table.loc[table.accuracy.idxmax()]
    axis.set_title(f"{arm}, best: {x} = {best[x]:g}, {100 * best.accuracy - student:+.1f} points against Student")
    return figure


def soft_targets(images: np.ndarray, labels, logits, temperatures: tuple[float, ...], class_names) -> Figure:
    """Images, titled with their labels, over the teacher's output for them at several temperatures.

    Parameters
    ----------
    images : ndarray (n, H, W, 3) uint8
    labels : ndarray (n,)
    logits : Tensor (n, num_classes)
    temperatures : tuple of float
    class_names : sequence of str
    """
    size, shades = (1.9 * len(images) + 0.6, 3.6), sns.color_palette("crest", len(temperatures))
    figure, axes = plt.subplots(2, len(images), figsize=size, squeeze=False, height_ratios=(1, 1.5), sharey="row")
    height, classes = 0.8 / len(temperatures), np.arange(len(class_names))
    for picture, label, values, (above, below) in zip(images, labels, logits, axes.T, strict=True):
        above.imshow(picture)
        above.set(title=class_names[label], xticks=[], yticks=[])
        above.grid(False)
        for number, (t, shade) in enumerate(zip(temperatures, shades, strict=True)):
            below.barh(classes + number * height, (values / t).softmax(0), height, color=shade, label=f"T = {t:g}")
        below.set(xlim=(0, 1), xlabel="probability")
    axes[1, 0].set_yticks(classes + 0.4 - height / 2, class_names, fontsize=8)
    axes[1, 0].invert_yaxis()
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(temperatures))
    return figure


def luck(halves: np.ndarray, simulated: pd.DataFrame, n: int, num_arms: int, observed: dict[str, float]) -> Figure:
    """How often p < 0.05, and how large a gain, comes by luck.

    Parameters
    ----------
    halves : ndarray (m,)
        p-values of halves of one arm against each other; may be empty.
    simulated : DataFrame
        `igkd.statistics.simulate_null`, differences as fractions.
    n, num_arms : int
        Runs per arm and arms of the simulated studies.
    observed : dict
        ``"means"`` and ``"bests"``: the recorded gains of KD+IG over Student, fractions.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), width_ratios=(1, 1.25, 1.1))
    sns.histplot(x=halves, bins=np.linspace(0, 1, 21), stat="percent", color="0.7", ax=left)
    left.axhline(5, color="0.3", ls="--", lw=1)
    detail = f"({n // 2} against {n - n // 2}, {len(halves):,} divisions)" if len(halves) else "(needs four runs)"
    left.set(title=f"recorded runs: halves of one arm\n{detail}", xlabel="p (Welch)", ylabel="share of divisions (%)")
    bars = {
        "paired": "paired test, one arm",
        "welch": "Welch's test, one arm",
        "any_arm_holm": f"one of {num_arms - 1} arms, Holm",
        "any_arm": f"one of {num_arms - 1} arms, uncorrected",
        "any_look": f"one arm, looking after\neach of 2 to {n} pairs",
    }
    shares = 100 * (simulated[list(bars)] < 0.05).mean()
    # red: beyond what a share of 5 % scatters by itself in some thousand studies
    drawn = middle.barh(list(bars.values()), shares, color=["tab:red" if share > 7 else "0.7" for share in shares])
    middle.bar_label(drawn, fmt=" %.1f %%", fontsize=8)
    middle.axvline(5, color="0.3", ls="--", lw=1)
    middle.grid(False)
    middle.invert_yaxis()
    middle.set(title=f"simulated: equal arms, n = {n}", xlabel="studies with p < 0.05 (%)")
    middle.margins(x=0.2)
    for name, column, colour in (("means", "mean_gain", "tab:blue"), ("bests", "best_gain", "tab:red")):
        sns.kdeplot(100 * simulated[column], ax=right, color=colour, fill=True, alpha=0.15, label=f"{name} of {n}")
        right.axvline(100 * observed[name], color=colour, lw=1.5, ls="--", label=f"KD+IG − Student, {name}")
    right.set(title="simulated: gain without any effect", xlabel="arm minus reference (points)", yticks=[])
    said = f"one test {shares.paired:.0f} %, a look after each pair {shares.any_look:.0f} %"
    figure.suptitle(f"p < 0.05 although the arms are equal: {said}")
    right.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def published_monte_carlo(bars: pd.DataFrame, summary: pd.DataFrame, whole: pd.Series) -> Figure:
    """The published Monte Carlo histograms with the normal curves of their means and variances.

    Parameters
    ----------
    bars, summary : DataFrame
        `igkd.published.monte_carlo_histogram` and `monte_carlo_summary`.
    whole : Series
        Arm -> mean accuracy (fraction) of the published runs with all training images.
    """
    size = (8.5, 2.3 * bars.arm.nunique())
    figure, axes = plt.subplots(bars.arm.nunique(), 1, figsize=size, sharex=True, sharey=True)
    for axis, (arm, rows) in zip(axes, bars.groupby("arm", sort=False), strict=True):
        row, inside = summary.set_index("arm").loc[arm], rows.dropna(subset="high")
        beyond = rows[rows.high.isna()].iloc[0]
        width = 100 * (inside.high - inside.low).mean()
        axis.bar(100 * inside.low, inside.runs, width, align="edge", color=ARM_COLOURS[arm])
        if beyond.runs:  # as much area for a run as in the other bars
            look = {"align": "edge", "facecolor": "none", "edgecolor": ARM_COLOURS[arm], "hatch": "///"}
            label = f"{beyond.runs:.0f} runs above the published figure, place unknown"
            axis.bar(100 * beyond.low, beyond.runs / 4, 4 * width, label=label, **look)
        x = np.linspace(88.4, 92.8, 300)
        curve = row.n * width * stats.norm.pdf(x, 100 * row["mean"], row.variance_ddof1**0.5)
        axis.plot(x, curve, color="0.25", lw=1.2, label="normal, published mean and variance")
        axis.axvline(100 * whole[arm], color="0.25", ls="--", lw=1.2, label="ablation, all training images: mean")
        axis.set(ylabel="runs", title=f"{arm}, {row.n} runs on 80 % of the training images")
        axis.legend(fontsize=7.5, loc="upper left")
    axes[-1].set_xlabel("test accuracy (%)")
    return figure


def compression_accuracy(sources: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy of Student and KD+IG over the compression factor, and the difference of the two, ours and published.

    Parameters
    ----------
    sources : dict
        Where from -> table with columns ``arm``, ``compression_factor``, ``accuracy`` (fraction) and maybe ``seed``, by
        which differences are paired.

    Examples
    --------
    >>> two = pd.DataFrame({"arm": ["Student", "KD+IG"], "compression_factor": 4.0, "accuracy": [0.5, 0.6]})
    >>> left, right = (axis.collections[0].get_paths() for axis in compression_accuracy({"z": two, "a": two}).axes)
    >>> np.array_equal(left[0].vertices, right[1].vertices)  # z: one marker in both, last in the differences
    True
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    table = pd.concat([rows.assign(source=name, seed=rows.get("seed", 0)) for name, rows in sources.items()])
    table = table[table.arm.isin(["Student", "KD+IG"])].assign(percent=lambda rows: 100 * rows.accuracy)
    look = {"x": "compression_factor", "style": "source", "style_order": list(sources), "markers": True, "s": 45}
    sns.scatterplot(table, y="percent", hue="arm", palette=ARM_COLOURS, hue_order=["Student", "KD+IG"], ax=left, **look)
    gain = paired(table, by=["source", "compression_factor", "seed"]).eval("100 * (`KD+IG` - Student)").rename("gain")
    colours = {name: ARM_COLOURS["KD+IG"] if name.startswith("here") else "0.45" for name in sources}
    sns.scatterplot(gain.reset_index(), y="gain", hue="source", palette=colours, ax=right, **look)
    right.axhline(0, color=ARM_COLOURS["Student"], lw=1.2)
    left.set(ylabel="test accuracy (%)", title="accuracy")
    means = gain.groupby(["source", "compression_factor"]).mean().groupby("source").agg(["mean", "size"])
    ours = means.reindex([name for name in sources if name.startswith("here")]).dropna().itertuples()
    means = [f"{mean:+.2f}, mean of {size:.0f} factors ({name})" for name, mean, size in ours]
    right.set(ylabel="points", title="\n".join(["KD+IG minus Student", *means]))
    for axis in (left, right):
        axis.set(xscale="log", xlabel="compression factor")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    left.get_legend().remove()
    right.get_legend().remove()
    return figure


def latency(ratios: dict[str, pd.DataFrame], deployed: pd.DataFrame) -> Figure:
    """How much faster students are than the teacher, by several measures, and the time of deployed networks.

    Parameters
    ----------
    ratios : dict
        Name of a measure -> table with columns ``compression_factor``, ``ratio`` and maybe ``ratio_low``,
        ``ratio_high``. What is published is drawn black and dashed.
    deployed : DataFrame
        Columns ``network`` (an arm's begins with its name), ``runtime``, ``batch_size``, ``median``, ``low``, ``high``
        (milliseconds of one call).
    """
    sizes, runtimes = sorted(deployed.batch_size.unique()), list(dict.fromkeys(deployed.runtime))
    figure, axes = plt.subplots(1, 1 + len(sizes), figsize=(13, 4), width_ratios=(1.7, *[1] * len(sizes)))
    ours = iter(sns.color_palette("colorblind"))
    for name, table in ratios.items():
        table = table.sort_values("compression_factor")
        colour, line = ("black", "o--") if name.startswith("published") else (next(ours), "o-")
        axes[0].plot(table.compression_factor, table.ratio, line, ms=3, lw=1.2, color=colour, label=name)
        if "ratio_low" in table:
            axes[0].vlines(table.compression_factor, table.ratio_low, table.ratio_high, color=colour)
    axes[0].axhline(1, color="0.3", lw=1)
    axes[0].set(xscale="log", yscale="log", ylim=(None, 1000))  # the legend has the upper decade
    axes[0].set(xlabel="compression factor", ylabel="teacher's cost / student's cost")
    axes[0].legend(fontsize=7.5, loc="upper left")
    for axis, size in zip(axes[1:], sizes, strict=True):
        for place, (network, rows) in enumerate(deployed[deployed.batch_size == size].groupby("network", sort=False)):
            at = rows.runtime.map(runtimes.index) + 0.3 * place - 0.15
            colour = ARM_COLOURS.get(network.split(",")[0], "0.3")
            axis.plot(rows["median"], at, "sD"[place % 2], ms=6, color=colour, label=network)
            axis.hlines(at, rows.low, rows.high, color=colour)
        axis.set_yticks(range(len(runtimes)), runtimes if axis is axes[1] else [""] * len(runtimes))
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set(title=f"batch of {size}", xlabel="milliseconds a call", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(base=2))  # times span less than a decade
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[-1].legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def published_imagenet(table: pd.DataFrame, on_cifar: pd.Series) -> Figure:
    """The two published bar charts of the ImageNet subset: as published, and with the values that were computed.

    Parameters
    ----------
    table : DataFrame
        `igkd.published.table("imagenet_subset")`.
    on_cifar : Series
        Arm -> published CIFAR-10 accuracy (fraction) of the second chart, in its order, the teacher first.
    """
    students = table[table.metric.isin(["accuracy", "balanced_accuracy"]) & (table.arm != "Teacher")]
    charts = {70: ("accuracy", "balanced accuracy"), 80: ("CIFAR-10, accuracy", "ImageNet, balanced accuracy")}
    columns = {"plotted": "as published", "computed": "values as computed"}
    moved = set(students.arm[(students.plotted - students.computed).abs() > 5e-4])
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.6), sharey="row")
    for line, (bottom, labels) in zip(axes, charts.items(), strict=True):
        for axis, (column, title) in zip(line, columns.items(), strict=True):
            wide = 100 * students.pivot(index="arm", columns="metric", values=column)
            # the teacher is right on every image that it gets right
            balanced = pd.concat([wide.balanced_accuracy, pd.Series({"Teacher": 100.0})])
            first = wide.accuracy if bottom == 70 else 100 * on_cifar
            order = [arm for arm in on_cifar.index if arm in first]
            colours = [ARM_COLOURS.get(arm, "0.2") for arm in order]
            for offset, values, alpha in ((-0.2, first, 0.4), (0.2, balanced, 1.0)):
                bars = axis.bar(np.arange(len(order)) + offset, values[order], 0.38, color=colours, alpha=alpha)
                axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
            axis.set_xticks(range(len(order)), order)
            for tick in axis.get_xticklabels():
                tick.set_color("firebrick" if column == "plotted" and tick.get_text() in moved else "black")
            axis.set(title=f"{title}: {labels[0]} (pale), {labels[1]}", ylim=(bottom, 90 if bottom == 70 else 102))
            axis.title.set_fontsize(9)
            axis.grid(False, axis="x")
        line[0].set_ylabel(f"% (from {bottom})")
    return figure


def shifted_arms(panels: dict[str, pd.DataFrame], teacher: dict[str, float]) -> Figure:
    """Every run of every arm on images of another kind.

    Parameters
    ----------
    panels : dict
        Title, "images: measure" -> table with columns ``arm``, ``seed``, ``accuracy`` (fraction), one row a run.
    teacher : dict
        Title -> the teacher's value (fraction), where there is one to show.
    """
    figure, axes = plt.subplots(-(-len(panels) // 2), 2, figsize=(9.2, 6.2), squeeze=False)
    for axis, (title, frame) in zip(axes.flat, panels.items(), strict=True):
        _runs_of_arms(axis, frame)
        said = f"; teacher: {teacher[title]:.1%}" if title in teacher else ""
        axis.set(title=f"{title}\nn = {_range(frame.arm.value_counts())} seeds an arm{said}", xlabel="", ylabel="%")
    return figure


def robustness(table: pd.DataFrame, found: pd.DataFrame) -> Figure:
    """Accuracy under each corruption, and what the overlay adds to it.

    Parameters
    ----------
    table : DataFrame
        Columns ``arm``, ``seed``, ``condition``, ``accuracy`` (fraction), one row a run and condition, in the order to
        be shown.
    found : DataFrame
        Paired comparisons (`igkd.statistics.compare`), with the kind of corruption as ``shift``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(1.5, 1))
    look = {"hue": "arm", "palette": ARM_COLOURS, "hue_order": [arm for arm in ARM_COLOURS if arm in set(table.arm)]}
    look |= {"errorbar": None, "linestyle": "none", "dodge": 0.5, "markersize": 5}
    sns.pointplot(table.assign(percent=100 * table.accuracy), x="condition", y="percent", ax=left, **look)
    left.set(xlabel="", ylabel="accuracy (%)", title=f"means of an arm, n = {table.seed.nunique()}")
    for offset, (arm, rows) in zip((-0.12, 0.12), found.groupby("arm", sort=False), strict=True):
        at, label = np.arange(len(rows)) + offset, f"{arm} minus {rows.reference.iloc[0]}"
        right.plot(at, 100 * rows.difference, "o", color=ARM_COLOURS[arm], label=label)
        if rows.n.min() >= LEAST_SHOWN:
            right.vlines(at, 100 * rows.low, 100 * rows.high, color=ARM_COLOURS[arm])
        right.set_xticks(range(len(rows)), rows["shift"])
    right.axhline(0, color="0.3", lw=1)
    right.set(ylabel="points", title="what the overlay adds, in pairs of one seed")
    for axis in (left, right):
        axis.tick_params(axis="x", rotation=60)
        axis.legend(fontsize=8)
    return figure
