"""The methods since Flow-GRPO on the bundled flow transformer, at equal reward queries: docs/results/new-methods.md.

    python benchmarks/new_methods.py [--rounds 6] [--seeds 1] [--lanes 1] [--only awm,dgpo] [--work build/new-methods]

Compressibility on bundled-flow, 64 images a round, without guidance and without a divergence in the loss. A run that is
there already is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from methods import plot, table
from running import publish, run_all

BASE = [
    "grpo-compressibility", "model=bundled-flow", "prompts=bundled-single", "algorithm.kl=0",
    "sampling.samples=64", "sampling.per_prompt=8", "sampling.steps=10", "sampling.guidance=1", "evaluation.every=3",
]  # fmt: skip
FAST = [
    "sampling.eta=0.5", "window=random", "window.size=2", "sampling.branches=8", "sampling.noise_outside=false",
    "optimizer.first_share=0.5",
]  # fmt: skip
FORWARD = ["sampling.eta=0", "optimizer.first_share=1", "algorithm.noises=2"]
"""Methods of finished images: the ODE draws them, and each is noised as often as the others have steps."""
DECAY = ["algorithm.sampling_decay=0.5", "algorithm.sampling_decay_rate=0.02"]
SLOW = "optimizer.lr=2e-3"
METHODS: dict[str, list[str]] = {
    "flow-grpo-fast": FAST,
    "tempflow-grpo": [*FAST, "window.size=1", "advantage.step_weights=noise"],
    "grpo-guard": [*FAST, "algorithm.ratio=normalised", "advantage.step_weights=inverse-dt", "algorithm.clip=1e-3"],
    "flow-dppo": [*FAST, "algorithm=dppo", "algorithm.max_divergence=1e-4"],
    "gdpo": [*FAST, "advantage.normalise=decoupled", "reward=jpeg-compressibility + 0.5*judge-score"],
    "nft": ["algorithm=nft", *DECAY, *FORWARD, "optimizer.clip_norm=5"],
    "awm": ["algorithm=awm", *FORWARD, SLOW],
    "dgpo": ["algorithm=dgpo", *FORWARD, SLOW],
    "online-diffusion-dpo": ["algorithm=online-diffusion-dpo", *FORWARD, SLOW],
}
"""Settings of each, over BASE."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", default=",".join(METHODS), help="comma-separated methods")
    parser.add_argument("--work", type=Path, default=Path("build/new-methods"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/new-methods"))
    arguments = parser.parse_args()
    chosen, given = arguments.only.split(","), ["--rounds", str(arguments.rounds)]
    runs = {
        (method, seed): (arguments.work / f"{method}-{seed}", [*BASE, *METHODS[method], *given, "--seed", str(seed)])
        for seed in range(arguments.seeds)
        for method in chosen
    }
    done = run_all(runs, arguments.lanes)
    folders = {method: [done[method, seed] for seed in range(arguments.seeds)] for method in chosen}
    found = table(folders)
    plot(folders, found, arguments.out)
    publish(found, arguments.out)


if __name__ == "__main__":
    main()
