"""The report of an audit, on one page: the claim, what was attacked, and what the attacks prove."""

from .audit import Audit


def describe_audit(audit: Audit, actual_noise: float, picture: str) -> str:
    """Describe an audit in Markdown.

    Args:
        audit (`Audit`): The outcome.
        actual_noise (`float`): The factor of the noise that the mechanisms really added.
        picture (`str`): The path of the picture, from the report.
    """
    verdict = "**refuted**" if audit.refuted else "not refuted"
    lines = [
        "# Audit of a differentially private run",
        "",
        f"Claim: epsilon is at most {audit.claimed_epsilon:.2f} at delta {audit.delta:g}, for one {audit.unit}. It is "
        f"{verdict}, with a confidence of {audit.confidence:.0%}.",
        "",
    ]
    if actual_noise != 1:
        lines += [f"The mechanisms were broken on purpose: they added {actual_noise:g} of the noise below.", ""]
    lines += [
        "## What was attacked",
        "",
        "| mechanism | noise multiplier | sample rate | steps |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {each.name} | {each.noise_multiplier:.4g} | {each.sample_rate:.4g} | {each.steps} |"
        for each in audit.mechanisms
    ]
    lines += [
        "",
        "## What the attacks prove",
        "",
        "Among the records were canaries, each with probability 1/2. An attack guesses for those with the clearest "
        "traces whether they were there. Epsilon limits how many guesses can be right in one run (Steinke et al. 2023, "
        "arXiv:2305.08846); the last column also uses that the mechanisms are Gaussian (Mahloujifar et al. 2024, "
        "arXiv:2410.22235).",
        "",
        "| attack | canaries | guesses | right | epsilon, any mechanism | epsilon, mechanisms of this kind | claim |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {bound.attack} | {bound.canaries:,} | {bound.guesses:,} | {bound.correct / bound.guesses:.1%} | at least "
        f"{bound.epsilon_any_mechanism:.2f} | at least {bound.epsilon_gaussian:.2f} | at most "
        f"{bound.claimed_epsilon:.2f} |"
        for bound in audit.bounds
    ]
    lines += [
        "",
        "- The white-box attack reads every noisy sum and gradient, of the whole run or of one mechanism. Its canaries "
        "add as much as a record can, in directions of their own: the worst case that the claim has to cover. Its "
        "bounds for mechanisms of this kind decide whether the claim is refuted.",
        "- The black-box attack has the trained network alone, and compares how well it denoises images of noise that "
        "were, or were not, among the records.",
        "",
        f"![scores of canaries, and the epsilon that they prove]({picture})",
        "",
        "An audit finds mistakes. It cannot prove that there are none: only the accounting proves the claim.",
    ]
    return "\n".join(lines) + "\n"
