"""Trains the bundled class-conditional pixel U-Net on the bundled drawings of single objects.

    python scripts/bundled/build.py draw --work build/bundled
    python scripts/bundled/pixel.py all --work build/bundled [--until HH:MM]

A class is a colour and an object ("red circle"); a 65th stands for none, so that the model can be guided. Training
begins with the weights of benchmarks/models/drawn32 (scripts/digits/train.py), which knows the objects in muted
colours. While it is trained, the embedding of a class is the sum of one for its object, drawn32's at first, and one for
its colour. Each stage continues where it stopped, so an interrupted training is started again with the same command.
What it cost and what it reached: docs/results/bundled-model.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor, nn

from build import DRAWINGS, SIZE, load_images, sheet, to_unit
from tastemaker.drawings import sample_scene
from tastemaker.drawings.scene import COLOURS, KINDS, Request, Wanted
from training import Training

STEPS, COOL_STEPS, BATCH, LR = 7_000, 2_000, 16, 1e-3
CLASS_DROPOUT, EMA_DECAY, MIN_SNR = 0.12, 0.998, 5.0
CHANNELS = (16, 32, 64, 96)
DRAWN32 = Path(__file__).parents[2] / "benchmarks/models/drawn32"
DOWN = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
CLASSES = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
PREVIEW = [
    "red star", "blue circle", "yellow fish", "green house", "purple heart", "white square", "orange triangle",
    "black tree", "green star", "orange fish", "white heart", "blue house", "purple tree", "yellow circle",
    "red triangle", "black square",
]  # fmt: skip


def choose(work: Path) -> dict[str, Tensor]:
    """Rows of the drawings of one solid object, of medium size or big, on a plain ground, and their classes."""
    path = work / "pixel-rows.pt"
    if not path.exists():
        rows, labels = [], []
        for seed in range(DRAWINGS):
            scene = sample_scene(random.Random(seed))[0]
            things = scene.things
            plain = scene.pattern == "plain" and things[0].texture == "solid"
            if len(things) == 1 and plain and things[0].size != "small":
                rows.append(seed)
                labels.append(CLASSES.index(f"{things[0].colour} {things[0].kind}"))
        torch.save({"rows": torch.tensor(rows), "labels": torch.tensor(labels)}, path)
    return torch.load(path, weights_only=True)


def new_unet() -> UNet2DModel:
    torch.manual_seed(4)
    return UNet2DModel(
        sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=CHANNELS,
        down_block_types=DOWN, up_block_types=UP, norm_num_groups=8, attention_head_dim=8,
        num_class_embeds=len(CLASSES) + 1,
    )  # fmt: skip


class SumOfEmbeddings(nn.Module):
    """The embedding of a class while it is trained: of its object plus of its colour, each with one more for none."""

    def __init__(self, kinds: Tensor) -> None:
        super().__init__()
        self.kinds = nn.Parameter(kinds.clone())
        self.colours = nn.Parameter(0.5 * torch.randn(len(COLOURS) + 1, kinds.shape[1]))

    def forward(self, labels: Tensor) -> Tensor:
        none = labels == len(CLASSES)
        kind = torch.where(none, len(KINDS), labels % len(KINDS))
        colour = torch.where(none, len(COLOURS), labels // len(KINDS))
        return self.kinds[kind] + self.colours[colour]


def new_network() -> UNet2DModel:
    """The U-Net as it is trained, with the weights of the model of muted drawings."""
    network = new_unet()
    weights = UNet2DModel.from_pretrained(DRAWN32 / "unet").float().state_dict()
    network.class_embedding = SumOfEmbeddings(weights.pop("class_embedding.weight"))
    network.load_state_dict(weights, strict=False)
    return network


def without_sum(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of training as those of the U-Net, with one embedding a class."""
    weights = dict(weights)
    embeddings = SumOfEmbeddings(weights.pop("class_embedding.kinds"))
    embeddings.colours.data = weights.pop("class_embedding.colours")
    return weights | {"class_embedding.weight": embeddings(torch.arange(len(CLASSES) + 1)).detach()}


def new_scheduler() -> DDIMScheduler:
    """A cosine schedule and predicted velocities; predicted images stay within [-1, 1]."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=True,
        set_alpha_to_one=True, steps_offset=0, timestep_spacing="trailing",
    )  # fmt: skip


def training(work: Path, path: Path) -> tuple[Training, Callable[[int], Tensor]]:
    """Velocity prediction (Salimans and Ho 2022) with min-SNR weights (Hang et al. 2023) and dropped classes."""
    network, scheduler = new_network().to(memory_format=torch.channels_last), new_scheduler()
    images, chosen = load_images(work), choose(work)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight = snr.clamp(max=MIN_SNR) / (snr + 1)

    def loss(step: int) -> Tensor:
        place = torch.randint(0, len(chosen["rows"]), (BATCH,))
        x0 = to_unit(images[chosen["rows"][place]])
        labels = torch.where(torch.rand(BATCH) < CLASS_DROPOUT, len(CLASSES), chosen["labels"][place])
        # Times spread evenly over the schedule in each batch: less noise in the gradient.
        t, noise = ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * 1000).long(), torch.randn(x0.shape)
        xt = scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        velocity = network(xt, t, labels, return_dict=False)[0]
        error = (velocity - scheduler.get_velocity(x0, noise, t)).square().mean(dim=(1, 2, 3))
        return (weight[t] * error).mean()

    embeddings = list(network.class_embedding.parameters())
    rest = [p for name, p in network.named_parameters() if not name.startswith("class_embedding")]
    groups = [{"params": rest}, {"params": embeddings, "lr": 10 * LR, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), weight_decay=1e-2, fused=True)
    return Training(path, network, [optimizer], EMA_DECAY, every=25), loss


def train(work: Path, until: str | None) -> None:
    """At a constant rate to step STEPS, or until a time of day."""
    run, loss = training(work, work / "pixel.pt")
    run.run(loss, STEPS, until)


def cool(work: Path, steps: int) -> None:
    """From where training stands, over `steps` further steps to a rate of zero."""
    path = work / "pixel-cooled.pt"
    if not path.exists():
        shutil.copyfile(work / "pixel.pt", path)
    run, loss = training(work, path)
    run.run(loss, STEPS, cool=steps)


def caption(name: str) -> str:
    """The caption of a class, another name of it, so that the prompts of the other bundled models serve this one."""
    colour, kind = name.split()
    return Request((Wanted(kind, colour),)).caption()


def export(work: Path, path: Path) -> Path:
    """The averaged weights as a DDIMPipeline in float16 with the classes' names, under work/pixel-pipeline."""
    network = new_unet()
    network.load_state_dict(without_sum(torch.load(path, weights_only=True)["average"]))
    folder = work / "pixel-pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    DDIMPipeline(network.half(), new_scheduler()).save_pretrained(folder, safe_serialization=True)
    index = json.loads((folder / "model_index.json").read_text())
    names = {str(number): f"{name}, {caption(name)}" for number, name in enumerate(CLASSES)}
    index["id2label"] = names
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


@torch.no_grad()
def preview(folder: Path, out: Path, each: int = 4, guidance: float = 2.0) -> None:
    """A grid of images by diffusers' own scheduler, a class after the other, for the eye."""
    unet = UNet2DModel.from_pretrained(folder / "unet").float().eval()
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(20)
    labels = torch.tensor([CLASSES.index(name) for name in PREVIEW for _ in range(each)])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(labels), 3, SIZE, SIZE, generator=generator)
    for t in scheduler.timesteps:
        with_class, without = unet(x, t, labels).sample, unet(x, t, torch.full_like(labels, len(CLASSES))).sample
        x = scheduler.step(without + guidance * (with_class - without), t, x, eta=1.0, generator=generator).prev_sample
    shown = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    sheet([Image.fromarray(image) for image in shown], each).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "cool", "export", "all"])
    parser.add_argument("--work", type=Path, default=Path("build/bundled"))
    parser.add_argument("--until", help="time of day, HH:MM, at which to stop training")
    parser.add_argument("--cool-steps", type=int, default=COOL_STEPS)
    arguments = parser.parse_args()
    work, stage = arguments.work, arguments.stage
    if stage in ("train", "all"):
        train(work, arguments.until)
    if stage in ("cool", "all"):
        cool(work, arguments.cool_steps)
    if stage in ("export", "all"):
        cooled = work / "pixel-cooled.pt"
        path = cooled if cooled.exists() else work / "pixel.pt"
        step = torch.load(path, weights_only=True)["step"]
        preview(export(work, path), work / f"pixel-{step:05d}.png")


if __name__ == "__main__":
    main()
