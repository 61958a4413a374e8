"""`tm.sample` and `tm.evaluate`: images of a model, with or without an adapter, and what rewards say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tastemaker.api.objects import model_here, prompt_set
from tastemaker.api.runs import Run
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling
from tastemaker.config.schema import Sampling
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sampler import LocalSampler
from tastemaker.diffusion.sde import make_sde
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import ConfigError, RewardError
from tastemaker.evaluation import evaluate as evaluation
from tastemaker.evaluation.images import fixed_draw, save_samples, to_pil
from tastemaker.evaluation.metrics import diversity, share_correct
from tastemaker.models.adapter_files import find_adapter
from tastemaker.models.bundled import BUNDLED
from tastemaker.rewards.base import RewardFunction, wrap
from tastemaker.rewards.registry import load_reward
from tastemaker.runs.folders import new_folder
from tastemaker.spread import moments
from tastemaker.types import Draw


@dataclass(frozen=True)
class Samples:
    """B images of prompts: those of a prompt follow each other."""

    images: list[Image.Image]
    prompts: list[str]
    """[B] the prompt of each image."""
    seeds: list[int]
    """[B] which of its prompt's images each is, from 0."""

    def __len__(self) -> int:
        return len(self.images)

    def save(self, folder: str | Path) -> Path:
        """Writes the images into a new folder, with sheet.png of all and samples.json of prompts and seeds.

        As `tastemaker sample` does. Returns the folder. Raises ConfigError where it is in use.
        """
        indices = {prompt: index for index, prompt in enumerate(dict.fromkeys(self.prompts))}
        with new_folder(Path(folder)) as target:
            save_samples(target, self.images, self.prompts, [indices[prompt] for prompt in self.prompts], self.seeds)
        return Path(folder)


@dataclass(frozen=True)
class Evaluation:
    """B images of prompts with their rewards."""

    samples: Samples
    rewards: dict[str, Tensor]
    """[B] float32 each, by the reward's name."""
    correct: list[bool | None]
    """[B] whether each image shows its prompt, by the bundled model's judge; None where that cannot say."""
    metrics: dict[str, float] = field(default_factory=dict)
    """`<reward>/mean` and `<reward>/std` (population), `diversity` (mean standard deviation of a pixel over the images
    of a prompt, in [0, 0.5]), and for the bundled model `judge/correct`, the share of images that show their prompt."""


def sample(
    model: str | Path | Any,
    prompts: str | Sequence[str],
    *,
    adapter: Run | str | Path | None = None,
    n: int = 1,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 5.0,
    embedded_guidance: float | None = None,
    eta: float = 1.0,
    negative_prompt: str = "",
    batch: int = 16,
    height: int | None = None,
    width: int | None = None,
    sde_type: SdeType = "auto",
) -> Samples:
    """`n` images of each different prompt, the same for the same arguments as those of `tastemaker sample`.

    `model`, `prompts` as in `tastemaker.train`; a loaded pipeline stays as it is. `adapter`: a run, or a folder or file
    of what one trained. `steps`: 1 to 1000; `guidance`: 1 turns it off, and `negative_prompt` is what it moves away
    from; `embedded_guidance`: the weight that a network as that of FLUX.1-dev is given as an input, the model's own
    when None; `eta`: 0 is deterministic, 1 the ancestral sampler; `sde_type`: the noise schedule, as
    `sampling.sde_type` of a run; `batch`: images sampled at once; `height`, `width`: of the images in pixels, the
    model's own when None. On an accelerator the network runs in float16, else in float32.

    Raises ConfigError for a number out of range or a missing adapter, ModelError, or PromptError.
    """
    given = SamplingFlags(steps, guidance, embedded_guidance, negative_prompt, eta, sde_type, height, width)
    loaded, draw, sampler = _prepared(model, prompts, adapter, n, seed, batch, given)
    return _samples(draw, evaluation.generate(loaded, sampler, draw, guidance=guidance, batch=batch).images)


def evaluate(
    model: str | Path | Any,
    prompts: str | Sequence[str],
    rewards: str | RewardFunction | Sequence[str | RewardFunction],
    *,
    adapter: Run | str | Path | None = None,
    n: int = 4,
    seed: int = 0,
    steps: int = 50,
    guidance: float = 5.0,
    embedded_guidance: float | None = None,
    eta: float = 1.0,
    negative_prompt: str = "",
    batch: int = 16,
    height: int | None = None,
    width: int | None = None,
    sde_type: SdeType = "auto",
) -> Evaluation:
    """`n` images of each prompt, as `sample` makes them, with their rewards.

    `rewards`: one or several, each a name or an expression as `--reward` takes it, or a function of images [B,3,H,W] in
    [0,1] and B prompts. Raises what `sample` raises, and RewardError where a reward cannot be loaded, fails, or has the
    name of another.
    """
    several = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
    named: dict[str, Any] = {}
    for one in several:
        name = one if isinstance(one, str) else wrap(one).name
        if name in named:
            raise RewardError(f"two rewards are called {name!r}: give each a name of its own")
        named[name] = load_reward(one) if isinstance(one, str) else wrap(one)
    given = SamplingFlags(steps, guidance, embedded_guidance, negative_prompt, eta, sde_type, height, width)
    loaded, draw, sampler = _prepared(model, prompts, adapter, n, seed, batch, given)
    found = evaluation.evaluate(loaded, sampler, draw, named, guidance=guidance, batch=batch, judged=model in BUNDLED)
    totals = {name: scores.total for name, scores in found.scores.items()}
    metrics: dict[str, float] = {}
    for name, values in totals.items():
        metrics[f"{name}/mean"], metrics[f"{name}/std"] = moments(values)
    metrics |= {"diversity": diversity(found.images, draw.prompts), **share_correct(found.correct)}
    return Evaluation(_samples(draw, found.images), totals, found.correct, metrics)


def _prepared(
    model: Any,
    prompts: str | Sequence[str],
    adapter: Run | str | Path | None,
    n: int,
    seed: int,
    batch: int,
    given: SamplingFlags,
) -> tuple[Model, Draw, LocalSampler]:
    """The loaded model, the images to be made, and the sampler. Raises what `sample` raises."""
    for name, value in (("n", n), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, but must be at least 1")
    sampling = chosen_sampling(Sampling(), given, named=str)
    listed = prompt_set(prompts).prompts
    found = None
    if adapter is not None:
        found = find_adapter(adapter.folder if isinstance(adapter, Run) else adapter)
    loaded = model_here(model, sampling)
    if found is not None:
        loaded.weights.load(found)
    sde = make_sde(loaded, sampling.steps, sampling.eta, sampling.sde_type)
    return loaded, fixed_draw(listed, n, seed), LocalSampler(loaded, sde)


def _samples(draw: Draw, x: Tensor) -> Samples:
    return Samples(to_pil(x), list(draw.prompts), list(draw.sample_index))
