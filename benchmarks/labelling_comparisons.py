"""How many judgements a task takes, by mode and K: for random orders, with and without ties.

    python benchmarks/labelling_comparisons.py

Prints a table for docs/results/labelling.md.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics

from tastemaker.labelling.ranking import Judgement, State, state, worst_case
from tastemaker.labelling.settings import Labelling, Mode

CASES: list[tuple[Mode, int]] = [
    ("rank", 3), ("rank", 4), ("rank", 5), ("rank", 8), ("best", 5), ("best", 8), ("rate", 5), ("rate", 8),
]  # fmt: skip


def judgements(settings: Labelling, utility: tuple[int, ...]) -> int:
    """The judgements of a labeler who prefers by `utility` (equal ones are ties), without the confirmation."""
    count, log = len(utility), []
    while not (found := state(settings, range(count), log)).complete:
        if settings.mode in ("pair", "rank") and found.question is None:
            break
        log.append(next_judgement(settings, found, utility, len(log)))
    return len(log)


def next_judgement(settings: Labelling, found: State, utility: tuple[int, ...], number: int) -> Judgement:
    """What that labeler says next."""
    if settings.mode == "best":
        return Judgement(str(number), "best", image=max(range(len(utility)), key=utility.__getitem__))
    if settings.mode == "rate":
        return Judgement(str(number), "rate", image=number, outcome="up" if utility[number] > 0 else "down")
    assert found.question is not None
    a, b = found.question
    outcome = "tie" if utility[a] == utility[b] else "left" if utility[a] > utility[b] else "right"
    return Judgement(str(number), "compare", a, b, outcome)


def orders(count: int, sample: int, seed: int) -> list[tuple[int, ...]]:
    """All orders of up to seven images, and a random sample of more."""
    if count <= 7:
        return list(itertools.permutations(range(count)))
    rng = random.Random(seed)
    return [tuple(rng.sample(range(count), count)) for _ in range(sample)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=5000, help="random orders of more than seven images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| mode | K | pairs | mean | most | bound | mean with ties |\n|---|---|---|---|---|---|---|")
    for mode, count in CASES:
        settings = Labelling(mode=mode, images=count)
        plain = [judgements(settings, utility) for utility in orders(count, args.sample, args.seed)]
        rng = random.Random(args.seed)
        tied = [judgements(settings, tuple(rng.choices(range(3), k=count))) for _ in range(args.sample)]
        bound = worst_case(count) if mode == "rank" else 1 if mode == "best" else count
        ties = f"{statistics.mean(tied):.2f}" if mode == "rank" else ""
        pairs = count * (count - 1) // 2
        print(f"| {mode} | {count} | {pairs} | {statistics.mean(plain):.2f} | {max(plain)} | {bound} | {ties} |")


if __name__ == "__main__":
    main()
