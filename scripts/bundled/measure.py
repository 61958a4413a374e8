"""How well the bundled model follows prompts, by the judge: docs/results/bundled-model.md's table and images.

python scripts/bundled/measure.py [--model FOLDER] [--each N] [--out docs/results/bundled-model.json]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.sde import DDIM
from tastemaker.drawings.judge import Verdict, judge
from tastemaker.evaluation.images import contact_sheet, images, to_pil
from tastemaker.models import load_model
from tastemaker.types import Draw

STEPS, GUIDANCE, ETA = 20, 5.0, 1.0
LISTS = ("bundled-single", "bundled-attributes", "bundled-count", "bundled-pair")
SHOWN = [
    "a red star", "a blue circle", "a yellow fish", "a green house", "a purple heart", "a white square",
    "an orange triangle", "a black tree", "a striped purple star", "a big green heart", "a small red fish",
    "a yellow house on a striped blue background", "a white fish on a checkered red background",
    "two red hearts", "three orange fish", "four blue squares", "a red star on the left of a blue circle",
    "a green tree above a yellow house", "a purple fish below a white heart",
    "a black triangle on the right of an orange star",
]  # fmt: skip


def draw(prompts: list[str], each: int, seed: int = 0) -> Draw:
    rows = [(place, sample) for place in range(len(prompts)) for sample in range(each)]
    return Draw(seed, 0, tuple(prompts[p] for p, _ in rows), tuple(p for p, _ in rows), tuple(s for _, s in rows))


def table(verdicts: list[Verdict]) -> dict[str, float]:
    """Shares by attribute (of the prompts that name it), everything right, and right but for the relation."""
    attributes: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        for name, right in verdict.attributes.items():
            attributes[name].append(right)
        attributes["everything"].append(verdict.correct)
        attributes["everything but relation"].append(verdict.objects)
    return {name: round(float(np.mean(values)), 4) for name, values in attributes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--each", type=int, default=1, help="images of each prompt")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bundled-model.json"))
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    grid, result = model.process.grid(STEPS), {}
    for name in LISTS:
        chosen = draw(list(load_prompts(name).prompts), arguments.each)
        x = images(model, chosen, DDIM(grid, ETA), GUIDANCE, batch=64)
        verdicts = [verdict for verdict in judge(x, chosen.prompts) if verdict is not None]
        result[name] = {"images": len(verdicts), **table(verdicts)}
        print(name, json.dumps(result[name]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    torch.manual_seed(0)
    shown = draw(SHOWN, 8, seed=1)
    image_list = to_pil(images(model, shown, DDIM(grid, ETA), GUIDANCE, batch=80))
    contact_sheet(image_list, columns=16, cell=64).save(arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
