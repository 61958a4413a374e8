"""How well a bundled model follows prompts, by the judge: docs/results/bundled-model.md's tables and images.

python scripts/bundled/measure.py [--model NAME or FOLDER] [--each N] [--guidance G] [--out FILE.json]

Lists of prompts that the model does not take, as a model of classes takes no pairs, are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sde import make_sde
from tastemaker.drawings.judge import Verdict, judge
from tastemaker.errors import PromptError
from tastemaker.evaluation.images import contact_sheet, images, to_pil
from tastemaker.models import load_model
from tastemaker.types import Draw

STEPS, GUIDANCE, ETA = 20, 5.0, 1.0
GUIDANCE_OF = {"bundled-pixel": 2.0}
LISTS = ("bundled-single", "bundled-attributes", "bundled-count", "bundled-pair")
SHOWN = [
    "a red star", "a blue circle", "a yellow fish", "a green house", "a purple heart", "a white square",
    "an orange triangle", "a black tree", "a striped purple star", "a big green heart", "a small red fish",
    "a yellow house on a striped blue background", "a white fish on a checkered red background",
    "two red hearts", "three orange fish", "four blue squares", "a red star on the left of a blue circle",
    "a green tree above a yellow house", "a purple fish below a white heart",
    "a black triangle on the right of an orange star",
]  # fmt: skip


def draw(prompts: Sequence[str], each: int, seed: int = 0) -> Draw:
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


def taken(model: Model, prompts: Sequence[str]) -> bool:
    """Whether the model takes all of these prompts."""
    try:
        model.check(prompts)
    except PromptError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--each", type=int, default=1, help="images of each prompt")
    parser.add_argument("--guidance", type=float, help="5, and 2 of bundled-pixel, when left out")
    parser.add_argument("--out", type=Path, help="a file in docs/results, named after the model, when left out")
    arguments = parser.parse_args()
    name_of_files = "bundled-model" if arguments.model == "bundled" else Path(arguments.model).name
    out = arguments.out or Path("docs/results") / f"{name_of_files}.json"
    guidance = arguments.guidance or GUIDANCE_OF.get(arguments.model, GUIDANCE)
    model = load_model(arguments.model)
    sde, result = make_sde(model, STEPS, ETA), {}
    for name in LISTS:
        chosen = draw(list(load_prompts(name).prompts), arguments.each)
        if not taken(model, chosen.prompts):
            continue
        x = images(model, chosen, sde, guidance, batch=64)
        verdicts = [verdict for verdict in judge(x, chosen.prompts) if verdict is not None]
        result[name] = {"images": len(verdicts), **table(verdicts)}
        print(name, json.dumps(result[name]), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    torch.manual_seed(0)
    shown = draw(SHOWN if taken(model, SHOWN) else load_prompts("bundled-single").prompts[::3], 8, seed=1)
    image_list = to_pil(images(model, shown, sde, guidance, batch=80))
    contact_sheet(image_list, columns=16, cell=64).save(out.with_suffix(".png"))


if __name__ == "__main__":
    main()
