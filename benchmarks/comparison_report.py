"""Makes the table and the figures of `curriculum_vs_dpsgd.py` from the existing results.

A row is the result of one cell: `arm`, `epsilon` (None without privacy), `seed`, `accuracy`, `frechet_distance`, and in
some rows `curve`, which has both measures at several points of training.
"""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image


# In the order in which they are run and shown. The first one takes minutes, and trains the reference for all others.
ARMS = {
    "real": "real images",
    "curriculum_mean": "curriculum, mean images",
    "curriculum_mode": "curriculum, mode images",
    "dp_sgd_alone": "DP-SGD alone",
    "central_alone": "central images alone",
    "non_private": "same network without privacy",
}


def cell_name(arm: str, epsilon: float | None, seed: int) -> str:
    """The name of a cell in file names."""
    return f"{arm}-{'no' if epsilon is None else f'{epsilon:g}'}-{seed}"


def table(rows: list[dict]) -> str:
    """Render mean and range over the seeds of every arm as a Markdown table."""
    lines = [
        "| epsilon | arm | seeds | accuracy | Frechet distance |",
        "|---|---|---|---|---|",
    ]
    for (arm, epsilon), group in by_arm(rows).items():
        shown = "none" if epsilon is None else f"{epsilon:g}"
        accuracies, distances = ([row[name] for row in group] for name in ("accuracy", "frechet_distance"))
        lines.append(
            f"| {shown} | {ARMS[arm]} | {len(group)} | {np.mean(accuracies):.1%} ({min(accuracies):.1%} to "
            f"{max(accuracies):.1%}) | {np.mean(distances):.2f} ({min(distances):.2f} to {max(distances):.2f}) |"
        )
    return "\n".join(lines)


def by_arm(rows: list[dict]) -> dict[tuple[str, float | None], list[dict]]:
    """Group the rows by arm and epsilon, in the order in which they are shown."""
    key = {arm: number for number, arm in enumerate(ARMS)}
    groups: dict[tuple[str, float | None], list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["epsilon"] or math.inf, key[row["arm"]], row["seed"])):
        groups.setdefault((row["arm"], row["epsilon"]), []).append(row)
    return groups


def gain(rows: list[dict]) -> str:
    """State for each epsilon the Frechet distance of the curriculum relative to DP-SGD alone."""
    means = {key: np.mean([row["frechet_distance"] for row in group]) for key, group in by_arm(rows).items()}
    return "\n".join(
        f"Epsilon {epsilon:g}: the Frechet distance of {ARMS[arm]} is {mean / means['dp_sgd_alone', epsilon]:.2f} "
        "times that of DP-SGD alone."
        for (arm, epsilon), mean in means.items()
        if arm.startswith("curriculum") and ("dp_sgd_alone", epsilon) in means
    )


MEASURES = {"accuracy": "accuracy of a CNN on real images", "frechet_distance": "Frechet distance"}


def plot_against_epsilon(rows: list[dict], path: Path) -> None:
    """Plot mean and range over seeds of both measures; arms without epsilon are horizontal lines."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, (name, label) in zip(axes, MEASURES.items(), strict=True):
        for number, arm in enumerate(ARMS):
            groups = {epsilon: [r[name] for r in group] for (a, epsilon), group in by_arm(rows).items() if a == arm}
            if None in groups:
                axis.axhline(np.mean(groups[None]), color=f"C{number}", linestyle=":", label=ARMS[arm])
            elif groups:
                means = np.array([np.mean(values) for values in groups.values()])
                spread = [means - [min(v) for v in groups.values()], [max(v) for v in groups.values()] - means]
                axis.errorbar(list(groups), means, spread, color=f"C{number}", marker="o", capsize=3, label=ARMS[arm])
        axis.set(xscale="log", xlabel="epsilon", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_against_passes(rows: list[dict], path: Path) -> None:
    """Plot both measures against the passes of training, for the first seed."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, (name, label) in zip(axes, MEASURES.items(), strict=True):
        for row in rows:
            if "curve" in row:
                axis.plot(
                    [point["passes"] for point in row["curve"]],
                    [point[name] for point in row["curve"]],
                    color=f"C{list(ARMS).index(row['arm'])}",
                    linestyle="-" if row["epsilon"] >= 10 else "--",
                    marker="o",
                    label=f"{ARMS[row['arm']]}, epsilon {row['epsilon']:g}",
                )
        axis.set(xlabel="passes (images x noise levels)", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_grids(output: Path, rows: list[dict], path: Path) -> None:
    """Show the samples of the first seed side by side, one line per epsilon; each row of a grid is a class."""
    grids = [(row, output / "grids" / f"{cell_name(row['arm'], row['epsilon'], row['seed'])}.png") for row in rows]
    grids = [(row, grid) for row, grid in grids if row["seed"] == 0 and grid.exists()]
    epsilons = sorted({row["epsilon"] for row, _ in grids if row["epsilon"] is not None}) or [math.inf]
    # Arms without epsilon are at the end of the last line.
    lines = [
        [(row, grid) for row, grid in grids if (row["epsilon"] or epsilons[-1]) == epsilon] for epsilon in epsilons
    ]
    columns = max(map(len, lines))
    figure, axes = plt.subplots(
        len(lines), columns, figsize=(2 * columns, 4.4 * len(lines)), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for line, line_axes in zip(lines, axes, strict=True):
        for (row, grid), axis in zip(line, line_axes, strict=False):
            axis.imshow(Image.open(grid))
            epsilon = "" if row["epsilon"] is None else f"\nepsilon {row['epsilon']:g}"
            axis.set_title(f"{ARMS[row['arm']]}{epsilon}", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def results(output: Path) -> list[dict]:
    """Read the rows of all finished cells, in the order in which they are shown."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in (output / "cells").glob("*.json")]
    return [row for group in by_arm(rows).values() for row in group]


def report(output: Path) -> None:
    """Write the table and the figures of all finished cells."""
    rows = results(output)
    if not rows:
        return
    text = f"{table(rows)}\n\n{gain(rows)}\n"
    (output / "table.md").write_text(text, encoding="utf-8")
    plot_against_epsilon(rows, output / "epsilon.png")
    if any("curve" in row for row in rows):
        plot_against_passes(rows, output / "passes.png")
    if any((output / "grids").glob("*-0.png")):
        plot_grids(output, rows, output / "samples.png")
    print(text)
