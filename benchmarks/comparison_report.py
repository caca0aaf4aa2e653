"""Makes the tables and the figures of `curriculum_vs_dpsgd.py` from the existing results.

A row is the result of one cell: `arm`, `epsilon` (None without privacy), `seed`, `trial` (None but for trials),
`accuracy`, `forest_accuracy`, `frechet_distance`, `precision`, `recall` and, of arms that train, `epsilon_spent` and
`core_minutes`. Results of versions before 0.2.0 lack the forest's accuracy, precision and recall.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from comparison_profiles import Profile


# In the order in which they are run and shown. The first one takes minutes, and trains the reference for all others.
ARMS = {
    "real": "real images",
    "three_stages": "central images, frequency features, DP-SGD",
    "longer": "central images, frequency features, DP-SGD, longer",
    "without_dp_sgd": "central images, frequency features",
    "two_stages": "central images, DP-SGD",
    "dp_sgd_alone": "DP-SGD alone",
    "non_private": "same network without privacy",
    "random_users": "users with 5 random images each",
    "users_of_a_class": "users with 5 images of one class each",
    "users_without_dp_sgd": "users with 5 random images each, without DP-SGD",
}
GRIDS_IN_A_ROW = 6
MEASURES = {"accuracy": "accuracy of a CNN on real images", "frechet_distance": "Frechet distance"}


@dataclass(frozen=True)
class Cell:
    """One arm with one epsilon (None without privacy) and one seed, or one of the trials of its settings."""

    arm: str
    epsilon: float | None
    seed: int
    trial: int | None = None

    @classmethod
    def parse(cls, arm: str, epsilon: str, seed: str, trial: str) -> "Cell":
        """The cell that these words of a command line name."""
        numbers = (None if epsilon == "None" else float(epsilon), int(seed), None if trial == "None" else int(trial))
        return cls(arm, *numbers)

    @property
    def name(self) -> str:
        """The name of the cell in file names."""
        which = self.seed if self.trial is None else f"trial{self.trial}"
        return f"{self.arm}-{'no' if self.epsilon is None else f'{self.epsilon:g}'}-{which}"

    def result_file(self, output: Path) -> Path:
        """The path of the cell's result."""
        return output / "cells" / f"{self.name}.json"

    def write(self, output: Path, result: dict) -> None:
        """Write the cell's result."""
        text = json.dumps(asdict(self) | result, indent=2) + "\n"
        self.result_file(output).write_text(text, encoding="utf-8")


def results(output: Path) -> list[dict]:
    """Read the rows of all finished cells, in the order in which they are shown."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in (output / "cells").glob("*.json")]
    arms = list(ARMS)
    return sorted(
        rows, key=lambda row: (row["epsilon"] or math.inf, arms.index(row["arm"]), row["seed"], row["trial"] or 0)
    )


def by_arm(rows: Iterable[dict]) -> dict[tuple[str, float | None], list[dict]]:
    """Group the rows by arm and epsilon, in the order in which they are shown; trials are left out."""
    groups: dict[tuple[str, float | None], list[dict]] = {}
    for row in rows:
        if row["trial"] is None:
            groups.setdefault((row["arm"], row["epsilon"]), []).append(row)
    return groups


def table(rows: list[dict]) -> str:
    """Render mean and range over the seeds of every arm as a Markdown table."""
    lines = [
        "| epsilon | arm | seeds | accuracy | forest | Frechet distance | precision | recall | core-minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (arm, epsilon), group in by_arm(rows).items():
        shown = "none" if epsilon is None else f"{epsilon:g}"
        accuracies, distances = ([row[name] for row in group] for name in MEASURES)
        lines.append(
            f"| {shown} | {ARMS[arm]} | {len(group)} | {np.mean(accuracies):.1%} ({min(accuracies):.1%} to "
            f"{max(accuracies):.1%}) | {mean(group, 'forest_accuracy', '.1%')} | {np.mean(distances):.1f} "
            f"({min(distances):.1f} to {max(distances):.1f}) | {mean(group, 'precision', '.2f')} | "
            f"{mean(group, 'recall', '.2f')} | {mean(group, 'core_minutes', '.1f')} |"
        )
    return "\n".join(lines)


def mean(rows: list[dict], name: str, form: str) -> str:
    """The mean of a measure over the rows that have it, or nothing."""
    values = [row[name] for row in rows if name in row]
    return f"{np.mean(values):{form}}" if values else ""


def trials_table(rows: list[dict], profile: Profile) -> str:
    """Render the trials of every arm, with the settings that were tried, as a Markdown table."""
    lines = ["| arm | settings | accuracy | Frechet distance | core-minutes |", "|---|---|---|---|---|"]
    for row in rows:
        if row["trial"] is None:
            continue
        settings = profile.settings(row["arm"], row["trial"])
        tried = dict.fromkeys(name for trial in profile.trials[row["arm"]] for name in trial)
        shown = ", ".join(f"`{name}` {settings[name]}" for name in tried)
        lines.append(
            f"| {ARMS[row['arm']]} | {shown} | {row['accuracy']:.1%} | {row['frechet_distance']:.1f} | "
            f"{row['core_minutes']:.1f} |"
        )
    return "\n".join(lines)


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


def plot_grids(output: Path, rows: list[dict], path: Path) -> None:
    """Show the samples of the first seed side by side; each row of a grid is a class."""
    grids = {
        (arm, epsilon): output / "grids" / f"{Cell(arm, epsilon, 0).name}.png"
        for arm, epsilon in by_arm(rows)
        if "users" not in arm
    }
    shown = {key: grid for key, grid in grids.items() if grid.exists()}
    columns = min(len(shown), GRIDS_IN_A_ROW)
    lines = math.ceil(len(shown) / columns)
    size = (2 * columns, 4.8 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for ((arm, epsilon), grid), axis in zip(shown.items(), axes.flat, strict=False):
        axis.imshow(Image.open(grid))
        title = ARMS[arm].split(", ") + ([] if epsilon is None else [f"epsilon {epsilon:g}"])
        axis.set_title("\n".join(title), fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def report(output: Path, profile: Profile) -> None:
    """Write the tables and the figures of all finished cells."""
    rows = results(output)
    if not rows:
        return
    text = f"{table(rows)}\n\n{trials_table(rows, profile)}\n"
    (output / "table.md").write_text(text, encoding="utf-8")
    plot_against_epsilon(rows, output / "epsilon.png")
    if any((output / "grids").glob("*-0.png")):
        plot_grids(output, rows, output / "samples.png")
    print(text)
