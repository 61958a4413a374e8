"""`tm.ask`: a benchmark of prompts with questions, as `tastemaker ask` runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from tastemaker.api.objects import copied, model_here
from tastemaker.api.runs import Run, load_run
from tastemaker.cli.folders import is_run, next_free
from tastemaker.cli.sampling import SamplingFlags, chosen_sampling
from tastemaker.config.schema import Config
from tastemaker.config.schema import Sampling as SamplerSettings
from tastemaker.diffusion.model import Model
from tastemaker.diffusion.sde_types import SdeType
from tastemaker.errors import ConfigError
from tastemaker.in_memory import object_name
from tastemaker.models.adapter_files import find_adapter
from tastemaker.models.weights_digest import weights_digest
from tastemaker.question_benchmarks.benchmark import Benchmark
from tastemaker.question_benchmarks.benchmark import take as taken
from tastemaker.question_benchmarks.formats import load_benchmark
from tastemaker.question_benchmarks.results import Results
from tastemaker.question_benchmarks.run import Given, Plan
from tastemaker.question_benchmarks.run import run as ask_plan
from tastemaker.question_benchmarks.sampling import Sampling, identity_of, sampling_of
from tastemaker.question_benchmarks.settings import JUDGE, TEXT_MODEL, Calls


def ask(
    benchmark: str | Benchmark,
    model: Run | str | Path | Any | None = None,
    *,
    vlm: str | None = None,
    images: str | Path | None = None,
    adapter: Run | str | Path | None = None,
    out: str | Path | None = None,
    written: bool = False,
    text_model: str = TEXT_MODEL,
    calls: Calls | None = None,
    grid: int = 1,
    take: int | None = None,
    n: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    embedded_guidance: float | None = None,
    eta: float | None = None,
    sde_type: SdeType | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int = 16,
    log: Callable[[str], None] | None = None,
) -> Results:
    """Samples a benchmark's prompts, asks its questions about the images, and returns the scores with intervals.

    - `benchmark`: what `tastemaker ask` takes, or a `Benchmark` of your own.
    - `model`: a run, a model's name or folder, or a loaded pipeline; or `images` that are there, as `--images`.
    - `vlm`: who answers, `MODEL@http://HOST:PORT/v1`, `MODEL` in this process, or `judge`, the default for `bundled`.
    - `out`: a folder; the same folder with the same arguments goes on with what was interrupted.
    - `n`: images of each prompt, the benchmark's own when None. `steps` to `width`: of the sampler, as in `sample`; the
      run's when None. The others as the flags of `tastemaker ask`.

    Raises a TastemakerError; of a model that does not answer any more RewardUnavailable. Images and answers stay.
    """
    for name, value in (("grid", grid), ("take", take), ("n", n), ("batch", batch), ("steps", steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}, but must be at least 1")
    if (model is None) == (images is None):
        raise ConfigError("give a model or run whose images are made, or images, and not both")
    found = load_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    vlm = vlm or (JUDGE if found.name == "bundled" else None)
    if vlm is None:
        raise ConfigError("give who answers, as vlm='MODEL@http://HOST:PORT/v1'")
    if take is not None:
        found = taken(found, take)
    if images is not None:
        source: Sampling | Given = Given(Path(images), n, grid)
    else:
        base, name, given = Config().sampling, str(model), model
        if isinstance(model, Run) or (isinstance(model, (str, Path)) and is_run(Path(model))):
            run = model if isinstance(model, Run) else load_run(model)
            given, adapter, base, name = run.config.model, run, run.config.sampling, str(run.folder)
        flags = SamplingFlags(steps, guidance, embedded_guidance, negative_prompt, eta, sde_type, height, width)
        sampling = chosen_sampling(base, flags, named=str)
        path = adapter.folder if isinstance(adapter, Run) else None if adapter is None else Path(adapter)
        count = n or found.per_prompt
        if isinstance(given, (str, Path)):
            source = sampling_of(str(given), path, name=name, n=count, seed=seed, sampling=sampling, batch=batch)
        else:
            source = _of_pipeline(given, path, count, seed, sampling, batch)
    folder = Path(out) if out is not None else next_free("ask")
    return ask_plan(Plan(found, source, vlm, folder, calls or Calls(), written, text_model), log=log)


def _of_pipeline(pipeline: Any, adapter: Path | None, n: int, seed: int, s: SamplerSettings, batch: int) -> Sampling:
    """Images of a loaded pipeline, which stays as it is."""
    own = copied(pipeline)
    name = object_name(type(pipeline).__name__)
    found = None if adapter is None else find_adapter(adapter)
    parts = {part: value for part, value in own.components.items() if isinstance(value, nn.Module)}
    digest = weights_digest(parts)

    def load() -> Model:
        loaded = model_here(own, s)
        if found is not None:
            loaded.weights.load(found)
        return loaded

    return Sampling(name, load, identity_of(digest, found, s), n, seed, s.steps, s.guidance, s.eta, batch, s.sde_type)
