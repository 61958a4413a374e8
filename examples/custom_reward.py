"""Trains a loaded diffusers pipeline to a reward of your own on prompts of your own.

python examples/custom_reward.py [--rounds 4] [--out FOLDER] [setting=value ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import tastemaker as tm
from tastemaker.models.bundled import bundled_pipeline

PROMPTS = ["a red circle", "a blue square", "a green star", "a yellow heart"]


@tm.reward(differentiable=True)
def darkness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Minus the mean brightness [B] of images [B,3,H,W] in [0,1].

    The mark says that the gradient can be followed, which only algorithms such as DRaFT and AlignProp do; without it,
    any function will do that returns one finite number for each image.
    """
    return -images.mean(dim=(1, 2, 3))


def main(words: Sequence[str] | None = None) -> tm.Run:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="setting=value")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", help="folder of the run (default: the next free runs/ddpo-<n>)")
    args = parser.parse_args(words)

    # transformers keeps the text encoder in the precision of its file, which here is half.
    pipeline = StableDiffusionPipeline.from_pretrained(bundled_pipeline()).to(torch.float32)
    config = tm.preset("ddpo-compressibility", *args.settings)
    run = tm.train(config, pipeline, darkness, PROMPTS, out=args.out, rounds=args.rounds)

    # The pipeline was copied and is still the base model. diffusers loads the adapter:
    pipeline.load_lora_weights(str(run.adapter))
    image = pipeline(PROMPTS[0], num_inference_steps=10).images[0]  # pyright: ignore[reportAttributeAccessIssue]
    image.save(run.folder / "after.png")
    # The same by tastemaker's own sampler, with figures:
    sampling = config.sampling
    found = tm.evaluate("bundled", PROMPTS, [darkness, "jpeg-compressibility"], adapter=run, n=2, steps=sampling.steps)
    print(found.metrics)
    return run


if __name__ == "__main__":
    main()
