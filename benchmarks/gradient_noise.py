"""Where DDPO's gradient has a direction and where it is noise: by steps of the chain, and by layers.

    python benchmarks/gradient_noise.py [--preset ddpo-clip] [--blocks 48]

Gradients of the base model's adapters on blocks of 32 images (four prompts of eight), each step of the chain alone,
with many steps and with few.
Each weight is divided by the root of its mean square, as Adam does. With g_i the gradients of the blocks, the mean of
g_i . g_j over pairs of different blocks is an estimate of the squared length of what they have in common, S, without
bias; the mean of g_i . g_i is S + N. S/N is what one block tells: N/S blocks together make a gradient half of which is
signal.
The standard error of S takes the pairs for independent. Writes docs/results/gradient-noise.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from running import publish
from torch import Tensor

from tastemaker.algorithms.advantage import group_relative
from tastemaker.config.presets import PRESETS
from tastemaker.runs.checkpoint import State
from tastemaker.training import setup
from tastemaker.training.draws import draw_round
from tastemaker.training.rounds import sampled
from tastemaker.training.session import Session

SIZE, PER_PROMPT = 32, 8
SETTINGS = ((20, 1.0), (8, 0.7))
"""Steps of the sampler, and its eta."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
"""Of the steps, from the first."""


def started(preset: str, steps: int, eta: float, folder: Path) -> Session:
    """The preset's model before its first round, with the usual adapters on all attention layers."""
    config = PRESETS[preset].config
    usual = PRESETS["ddpo-compressibility"].config.tuning
    config = replace(config, tuning=usual, sampling=replace(config.sampling, steps=steps, eta=eta))
    return setup.start(config, folder, State())


def block(session: Session, number: int) -> Tensor:
    """Gradients [T,P] of one block's loss at each step, over all trained weights in the order of their names."""
    config = session.config
    draw = draw_round(session.prompts, config.seed, number, SIZE, PER_PROMPT, 1, 1)
    with session.inference():
        made = sampled(session, draw, session.task.sde.stochastic())
    reward = made.found[config.reward]
    advantage = group_relative(reward, draw.groups(), "round")
    rollout = replace(
        made.rollout, reward=reward, advantage=advantage, group=torch.tensor(draw.groups()),
        selected=torch.ones(SIZE, dtype=torch.bool),
    )  # fmt: skip
    rows = config.algorithm.prepare(session.task, rollout)
    parameters = session.model.weights.trainable()
    steps = []
    for place in range(rollout.logp.shape[1]):
        loss, _ = config.algorithm.loss(session.task, rows.select((rows.step_index == place).nonzero().flatten()))
        gradients = torch.autograd.grad(loss.mean(), list(parameters.values()))
        steps.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(steps)


def told(gradients: Tensor) -> dict[str, float]:
    """S/N of gradients [n,P], and its standard error."""
    power = gradients.square().mean(0)
    unit = (gradients[:, power > 0] / power[power > 0].sqrt()).double()
    products = unit @ unit.T
    n = len(products)
    pairs = products[~torch.eye(n, dtype=torch.bool)]
    common = pairs.mean()
    noise = products.diag().mean() - common
    error = pairs.std() / (n * (n - 1) / 2) ** 0.5
    return {"weights": unit.shape[1], "S/N": round((common / noise).item(), 4), "+-": round((error / noise).item(), 4)}


def layers(session: Session) -> dict[str, Tensor]:
    """Places of the weights by kind of layer."""
    found: dict[str, list[Tensor]] = {}
    start = 0
    for name, parameter in session.model.weights.trainable().items():
        places = torch.arange(start, start + parameter.numel())
        start += parameter.numel()
        kind = "attn2" if "attn2" in name else "attn1"
        own = next(layer for layer in ("to_q", "to_k", "to_v", "to_out") if layer in name)
        for group in ("all", kind, f"{kind}.{own}"):
            found.setdefault(group, []).append(places)
    return {name: torch.cat(parts) for name, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ddpo-clip")
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("docs/results/gradient-noise.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {"preset": arguments.preset, "blocks": arguments.blocks, "images a block": SIZE}
    for steps, eta in SETTINGS:
        with TemporaryDirectory() as folder:
            session = started(arguments.preset, steps, eta, Path(folder))
            gradients = torch.stack([block(session, number + 1) for number in range(arguments.blocks)])
        power = gradients.double().square().sum(2).mean(0)
        counts = sorted({max(1, round(share * steps)) for share in SHARES})
        result[f"{steps} steps, eta {eta:g}"] = {
            "share of the squared gradient by step": [round(part, 4) for part in (power / power.sum()).tolist()],
            **{
                f"first {count} steps": {
                    name: told(gradients[:, :count, places].sum(1)) for name, places in layers(session).items()
                }
                for count in counts
            },
        }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
