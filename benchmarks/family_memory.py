"""A table of families x methods x memory settings at published sizes, by the estimate of `tastemaker train --dry-run`.

    python benchmarks/family_memory.py          # a few minutes on one core; nothing is downloaded or allocated

Each model is a folder of configs (`family_configs.py`), whose networks are on PyTorch's meta device. Every figure is
the sum of `training.plan.estimated_memory` for one image of the model's own size in training and in sampling
(`optimizer.rows=1`, `sampling.batch=1`; two rows of the network with guidance, two for a pair) in bfloat16, LoRA of
rank 4, AdamW. Rewards and the CUDA libraries come on top. Writes docs/results/family-memory.json and the table
between the marks in docs/results/family-memory.md.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from family_configs import MODELS, Published, write

from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config
from tastemaker.models.memory_settings import Memory
from tastemaker.training.plan import Facts, estimated_memory, round_calls
from tastemaker.training.preflight import preflight

RESULTS = Path(__file__).parents[1] / "docs/results"
CARD = 24 * 2**30
"""Bytes of the card that the table is marked for."""
ON_TOP = 2 * 2**30
"""Bytes that are kept free for what the estimate leaves out: CUDA's libraries, the allocator, a small reward."""
METHODS = {
    "DDPO, GRPO": "ddpo-compressibility",
    "DPOK (KL to the base)": "dpok-compressibility",
    "PPO with a U-Net value network": "ppo-compressibility",
    "AlignProp": "alignprop-compressibility",
    "Diffusion-DPO": "diffusion-dpo",
    "DDPO, whole network": "ddpo-compressibility",
}
"""Presets by the names of their rows. Diffusion-DPO has no preset of its own: it is DDPO's with that algorithm."""
SETTINGS = ("bf16", "checkpointing", "checkpointing, offload", "checkpointing, offload, nf4")


def config_of(method: str, model: Published, source: str) -> Config:
    """The run of a method, one image at a time at the model's own size."""
    name = METHODS[method]
    if name == "diffusion-dpo":
        from tastemaker.algorithms.diffusion_dpo import DiffusionDPO

        config = PRESETS["ddpo-compressibility"].config
        config = replace(config, algorithm=DiffusionDPO(), pairs=replace(config.pairs, source="pairs"))
    else:
        config = PRESETS[name].config
    mode = "full" if "whole" in method else "lora"
    return replace(
        config,
        model=source,
        precision="bf16",
        prompts="bundled-single",
        sampling=replace(config.sampling, guidance=model.guidance, batch=1),
        optimizer=replace(config.optimizer, rows=2 if config.algorithm.needs == "pairs" else 1),
        tuning=replace(config.tuning, mode=mode),
    )


def suits(method: str, model: Published) -> bool:
    """Whether the model has what the method needs: a U-Net's encoder for the value network."""
    return "U-Net" not in method or "unet" in model.networks


def with_setting(config: Config, setting: str) -> Config | None:
    """The run with memory settings; None where they cannot be had together."""
    if "nf4" in setting and config.tuning.mode == "full":
        return None
    offload = "offload" in setting
    return replace(
        config,
        tuning=replace(
            config.tuning,
            gradient_checkpointing="checkpointing" in setting,
            base_weights="nf4" if "nf4" in setting else "none",
        ),
        memory=Memory(offload=offload, vae_slicing=offload, vae_tiling=offload),
    )


def facts_of(configs: Mapping[str, Config]) -> dict[str, Facts]:
    """What the plans need of one model, for each method that suits it.

    The checks of `--dry-run` are made once, and again for a value network: other methods differ in settings alone,
    but that a whole network trains all its parameters.
    """
    plain = preflight(configs["DDPO, GRPO"], None)
    found = {}
    for method, config in configs.items():
        if config.algorithm.requirements.value is not None:
            found[method] = preflight(config, None)
        else:
            whole = config.tuning.mode == "full"
            found[method] = replace(plain, trainable=plain.network) if whole else plain
    return found


def rows_of(model: Published) -> dict[str, dict[str, dict[str, float]]]:
    """Of a model, bytes by what they are for, by setting and method."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(write(model, Path(folder)))
        configs = {method: config_of(method, model, source) for method in METHODS if suits(method, model)}
        found = facts_of(configs)
    made: dict[str, dict[str, dict[str, float]]] = {}
    for method, facts in found.items():
        rows = max(round_calls(configs[method], facts.stochastic, 1).backward)
        settings = {setting: with_setting(configs[method], setting) for setting in SETTINGS}
        made[method] = {
            setting: estimated_memory(config, facts, rows) for setting, config in settings.items() if config is not None
        }
    return made


def cell(parts: Mapping[str, float] | None) -> str:
    """GiB, bold where a card of 24 GB has room for it."""
    if parts is None:
        return ""
    total = sum(parts.values())
    text = f"{total / 2**30:.1f}"
    return f"**{text}**" if total <= CARD - ON_TOP else text


def table(made: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Markdown."""
    lines = [f"| model | method | {' | '.join(SETTINGS)} |", f"|---|---|{'---:|' * len(SETTINGS)}"]
    for model, methods in made.items():
        for i, (method, settings) in enumerate(methods.items()):
            cells = " | ".join(cell(settings.get(setting)) for setting in SETTINGS)
            lines.append(f"| {model if i == 0 else ''} | {method} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    made = {}
    for model in MODELS:
        print(model.name, file=sys.stderr, flush=True)
        made[model.name] = rows_of(model)
        print(table({model.name: made[model.name]}), flush=True)
    text = table(made)
    (RESULTS / "family-memory.json").write_text(json.dumps(made, indent=1) + "\n")
    page = RESULTS / "family-memory.md"
    marked = re.compile("(?<=<!-- table -->\n\n).*?(?=\n\n<!-- end of table -->)", re.DOTALL)
    page.write_text(marked.sub(lambda found: text, page.read_text()))
