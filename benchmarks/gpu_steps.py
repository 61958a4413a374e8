"""The steps of benchmarks/gpu.py: what each measures, its command and its time limit. Pure; nothing runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["machine", "tests", "ratio", "bench", "fit", "trl"]
PRESET = "ddpo-compressibility-sd14-lora"
SHARDING = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}  # fmt: skip
"""As `accelerate launch --use_fsdp --fsdp_version 2` sets it."""
LARGE_CARD = 40.0
"""GiB from which SDXL and Stable Diffusion 3 are measured at two images at once, and not one."""


@dataclass(frozen=True)
class Step:
    """A measurement in a process of its own."""

    name: str
    about: str
    """What it measures, in a few words."""
    kind: Kind
    """How its answer is read, and in which table it stands."""
    command: tuple[str, ...]
    """What Python is given."""
    limit: int
    """Seconds, after which it is ended."""
    smaller: tuple[str, ...] = ()
    """Words that are added in a second attempt where the first one runs out of memory; none makes no second one."""
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, str] | None = None
    """A path in the repository without which it is skipped, and how to make it."""


@dataclass(frozen=True)
class Model:
    """How a model is measured."""

    name: str
    """Of `gpu_models`."""
    pixels: int
    """To a side of its images."""
    rows: int
    """Images sampled, and rows trained, at once."""
    samples: int
    """Images of a round."""
    steps: int
    """Of the sampler, all of which are trained."""
    others: tuple[int, ...]
    """Other numbers of rows that are measured."""
    repeats: int = 1
    """Rounds of `tastemaker bench` that are measured."""
    smaller: int | None = None
    """Pixels to a side of a second attempt where the first one runs out of memory."""


@dataclass(frozen=True)
class Scale:
    """Of all steps: a card, or the rehearsal on a CPU."""

    device: Literal["cuda", "cpu"]
    models: tuple[Model, ...]
    precision: str
    pairs: int
    """Rounds of this package and of trl."""
    ratio_rows: tuple[int, ...]
    ratio_images: int
    ratio_steps: int
    fit_rows: tuple[int, ...]
    seconds: int
    """The limit of an ordinary step."""
    compiled: tuple[str, ...]
    """The models that are compiled, which takes minutes of a CPU."""


def card(memory_gib: float) -> Scale:
    """The steps for a card with this memory."""
    rows = 2 if memory_gib >= LARGE_CARD else 1
    others = tuple(number for number in (1, 2, 4) if number != rows)
    return Scale(
        device="cuda",
        models=(
            Model("sd15", 512, 8, 16, 5, (1, 4, 16, 32), repeats=2),
            Model("sdxl", 1024, rows, 4, 3, others),
            Model("sd3", 1024, rows, 4, 3, others, smaller=512),
        ),
        precision="bf16",
        pairs=3,
        ratio_rows=(1, 2, 4, 8),
        ratio_images=8,
        ratio_steps=10,
        fit_rows=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
        seconds=180,
        compiled=("sd15", "sdxl", "sd3"),
    )


REHEARSAL = Scale(
    device="cpu",
    models=(
        Model("sd15", 64, 2, 4, 2, (1,)),
        Model("sdxl", 128, 1, 1, 2, ()),
        Model("sd3", 128, 1, 1, 2, (), smaller=64),
    ),
    precision="bf16",
    pairs=1,
    ratio_rows=(1, 2),
    ratio_images=2,
    ratio_steps=2,
    fit_rows=(1, 2),
    seconds=900,
    compiled=("sd15",),
)
"""The steps with small networks, one repeat and few images, and without compiling each model."""


def plan(scale: Scale) -> tuple[Step, ...]:
    """The steps, the most wanted first: where the time is short, the last ones are left for the next call."""
    first = scale.models[0]
    made = [
        Step("machine", "card, driver and versions", "machine", ("benchmarks/gpu_machine.py",), 120),
        Step(
            "tests", "tests/gpu", "tests",
            ("-m", "pytest", "-q", "-m", "gpu", "--junitxml", "build/gpu-tests.xml", "tests/gpu"),
            600 if scale.device == "cuda" else 3600,
        ),
        *(ratio(scale, first, precision) for precision in ("bf16", "fp32", "fp16")),
        *(bench(scale, model, f"{model.name}", "the base of the comparisons") for model in scale.models),
        *(step for model in scale.models for step in fits(scale, model)),
        sharded(scale, first),
    ]  # fmt: skip
    for model in scale.models:
        made += variants(scale, model)
    made += list(whole_network(scale, first))
    made += [
        bench(scale, first, f"{first.name}-{precision}", f"precision={precision}", f"precision={precision}")
        for precision in ("fp32", "fp16")
    ]
    for model in scale.models:
        made += [
            bench(scale, model, f"{model.name}-rows-{rows}", f"{rows} images and rows at once", rows=rows)
            for rows in model.others
        ]
    return (*made, trl(scale))


def source(scale: Scale, model: Model) -> str:
    """What `--model` is given."""
    return f"gpu_models:{model.name}{'_reduced' if scale.device == 'cpu' else ''}"


def words(scale: Scale, model: Model, rows: int) -> tuple[str, ...]:
    """Preset and settings of a run that is measured."""
    return (
        PRESET, "--model", source(scale, model), f"precision={scale.precision}", "prompts=bundled-eight",
        f"sampling.samples={max(model.samples, rows)}", f"sampling.steps={model.steps}", f"sampling.batch={rows}",
        f"optimizer.rows={rows}", "optimizer.updates=1", "memory.vae_slicing=true",
    )  # fmt: skip


def measured(scale: Scale, model: Model, *settings: str, rows: int | None = None) -> tuple[str, ...]:
    """`tastemaker bench`, without the interpreter's `-m`."""
    given = words(scale, model, model.rows if rows is None else rows)
    return ("bench", *given, *settings, "--repeats", str(model.repeats), "--json")


def smaller(model: Model) -> tuple[str, ...]:
    if model.smaller is None:
        return ()
    return (f"sampling.height={model.smaller}", f"sampling.width={model.smaller}")


def bench(
    scale: Scale, model: Model, name: str, about: str, *settings: str, rows: int | None = None, times: int = 1
) -> Step:
    """`tastemaker bench` of a model with these settings besides; `times` the ordinary limit."""
    command = ("-m", "tastemaker", *measured(scale, model, *settings, rows=rows))
    return Step(name, about, "bench", command, times * scale.seconds, smaller(model))


def ratio(scale: Scale, model: Model, precision: str) -> Step:
    """Log-probabilities in training against those in sampling, before the first update."""
    command = (
        "benchmarks/ratio.py", "--model", source(scale, model), "--precision", precision, "--graph", "--json",
        "--images", str(scale.ratio_images), "--steps", str(scale.ratio_steps), "--rows",
        *map(str, scale.ratio_rows),
    )  # fmt: skip
    return Step(f"ratio-{precision}", f"before the first update, {precision}", "ratio", command, scale.seconds)


def fits(scale: Scale, model: Model) -> Iterator[Step]:
    """The most rows that fit 24 GB, plainly and with all that saves memory."""
    saving = ("tuning.gradient_checkpointing=true", "memory.offload=true")
    for suffix, about, settings in (
        ("", "on 24 GB", ()),
        ("-saving", "on 24 GB with gradient checkpointing and offload", saving),
    ):
        command = (
            "benchmarks/gpu_fit.py", "--card-gib", "24", "--rows", ",".join(map(str, scale.fit_rows)),
            *words(scale, model, 1), "sampling.steps=2", *settings,
        )  # fmt: skip
        yield Step(f"fit-{model.name}{suffix}", f"most rows {about}", "fit", command, 2 * scale.seconds, smaller(model))


def sharded(scale: Scale, model: Model) -> Step:
    """FSDP2 with one process. accelerate shards on accelerators only; the tests' launcher makes it do so on a CPU."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    program = ("tests/invariants/launched.py", "--sharded") if scale.device == "cpu" else ("-m", "tastemaker")
    command = (*launcher, *program, *measured(scale, model))
    return Step(f"{model.name}-fsdp", "FSDP2 with one process", "bench", command, scale.seconds, environment=SHARDING)


def variants(scale: Scale, model: Model) -> list[Step]:
    """What changes speed and memory, one setting at a time."""
    name = model.name
    compiled = bench(scale, model, f"{name}-compile", "torch.compile", "speed.compile=true", times=2)
    return [
        *([compiled] if name in scale.compiled else []),
        bench(scale, model, f"{name}-checkpointing", "gradient checkpointing", "tuning.gradient_checkpointing=true"),
        bench(scale, model, f"{name}-nf4", "base weights in 4 bits", "tuning.base_weights=nf4"),
    ]


def whole_network(scale: Scale, model: Model) -> Iterator[Step]:
    """All weights trained, by AdamW and by AdamW with its state in 8 bits."""
    full = ("tuning.mode=full", "tuning.gradient_checkpointing=true")
    name = model.name
    yield bench(scale, model, f"{name}-full", "whole network, AdamW", *full)
    yield bench(scale, model, f"{name}-full-8bit", "whole network, 8-bit AdamW", *full, "optimizer.eight_bit=true")


def trl(scale: Scale) -> Step:
    """A round of trl 0.23.1's DDPO and one of this package, in turns."""
    model = scale.models[0]
    size = ("--samples", "8", "--steps", "10", "--batch", "4") if scale.device == "cuda" else ("--steps", "4")
    command = (
        "benchmarks/trl_ddpo.py", "--model", source(scale, model), "--precision", scale.precision, "--updates", "2",
        "--pairs", str(scale.pairs), "--out", f"build/gpu-trl-{scale.device}.json", *size,
    )  # fmt: skip
    return Step(
        "trl", "a round beside trl 0.23.1's", "trl", command, 2 * scale.seconds,
        needs=(
            "build/trl-env/made", "`python benchmarks/trl_ddpo.py --make-environment` makes it, with a torch of its own"
        ),
    )  # fmt: skip
