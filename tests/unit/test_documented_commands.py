"""Every command that README and docs show, in this process: with `--dry-run`, or as far as its flags go.

Files, modules and runs that a command names as examples are made beforehand; models on the hub are stood in for by the
bundled one, and rewards that need the hub or a server by one of this machine.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save

from tastemaker.cli import reward_train
from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.convert_guided_diffusion import GuidedDiffusionArgs
from tastemaker.cli.doctor_reward import DoctorArgs
from tastemaker.cli.main import main
from tastemaker.cli.report import ReportArgs
from tastemaker.cli.reward import ServeArgs
from tastemaker.cli.reward_train import RewardTrainArgs
from tastemaker.config.presets import PRESETS
from tastemaker.config.yaml_file import dump_config
from tastemaker.errors import ConfigError
from tastemaker.iteration.settings import IterationSettings
from tastemaker.models import load_model
from tastemaker.models.adapter_files import WEIGHTS
from tastemaker.question_benchmarks.formats import load_benchmark
from tastemaker.reward_models.settings import check
from tastemaker.rewards.expression import parse as parse_reward
from tastemaker.rewards.expression import parts
from tastemaker.rewards.labelers.settings import is_label
from tastemaker.rewards.registry import BUILTIN, load_reward
from tastemaker.rewards.serving.settings import is_remote
from tastemaker.runs.manifest import write_manifest
from tastemaker.training import preflight

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", re.M | re.S)
DRY = ("train", "resume", "sample", "mix", "ask", "bench", "evaluate", "iterate", "export")
PLACEHOLDERS = {
    "PRESET": "ddpo-compressibility",
    "$RUN": "RUN",
    "NAME": "jpeg-compressibility",
    "...": "ddpo-compressibility",
}
"""What stands for an argument of the reader's choice, with such an argument."""
HUB = re.compile(r"[\w.-]+/[\w.-]+")
PARSED = {"report": ReportArgs, "doctor": DoctorArgs, "reward": ServeArgs, "serve": ServeArgs, "train": RewardTrainArgs}
"""Commands without a dry run, whose flags are read."""
LOCAL_MODELS = ("path/to/checkpoint", "build/digits", "build/drawn32")
"""Models that the reader has, or that a script of the repository makes."""


def commands(text: str) -> list[str]:
    """The command lines of a page's shell blocks that start tastemaker, with lines that go on joined."""
    lines = [
        line.strip().removeprefix("$ ")
        for block in BLOCK.findall(text)
        for line in re.sub(r"\\\n", " ", block).split("\n")
    ]
    found = [line for line in lines if re.match(r"(\S+=\S* )*(\S*/)?(tastemaker|torchrun|accelerate launch)\s", line)]
    return [part for line in found for part in one_by_one(line)]


def one_by_one(line: str) -> list[str]:
    """The single commands of a line, without comments, redirections and what is no command of ours."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    parts: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set(";&|<>"):
            parts.append([])
        else:
            parts[-1].append(token)
    return [" ".join(part) for part in parts if part and re.search(r"\btastemaker\b", " ".join(part[:1] + part[1:]))]


SHOWN = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}")
    for page in PAGES
    for command in dict.fromkeys(commands(page.read_text(encoding="utf-8")))
]


def arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What tastemaker is given. A launcher's own flags are read by its own parser."""
    argv = shlex.split(command)
    while re.fullmatch(r"\w+=.*", argv[0]):
        name, _, value = argv.pop(0).partition("=")
        monkeypatch.setenv(name, value)
        if name == "PYTHONPATH":  # which Python reads when it starts
            monkeypatch.syspath_prepend(ROOT / value)
    if Path(argv[0]).name == "tastemaker":
        return argv[1:]
    if argv[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        launched = get_args_parser().parse_args(argv[1:])
        count = int(launched.nproc_per_node) * int(launched.nnodes.rpartition(":")[2])
    else:
        from accelerate.commands.launch import launch_command_parser

        launched = launch_command_parser().parse_args(argv[2:])
        count = launched.num_processes
    assert launched.module
    assert launched.training_script == "tastemaker"
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("RANK", "0")
    return launched.training_script_args


def make_run(folder: Path) -> None:
    """A folder that looks like a run with a checkpoint and an adapter, as far as a dry run reads it."""
    (folder / "checkpoints/step-000001").mkdir(parents=True)
    (folder / "adapter").mkdir()
    (folder / "config.yaml").write_text(dump_config(PRESETS["ddpo-compressibility"].config), encoding="utf-8")


@functools.cache
def trained() -> dict[str, bytes]:
    """The files of an adapter of the bundled model that has learned nothing, by their places in a run."""
    from tastemaker import models
    from tastemaker.models.tuning import Tuning

    model = models.load_model("bundled")
    model.tune(Tuning())
    with TemporaryDirectory() as place:
        model.weights.save(Path(place))
        files = {f"adapter/{file.name}": file.read_bytes() for file in Path(place).iterdir()}
    weights = {name: value.detach().contiguous() for name, value in model.weights.trainable().items()}
    return files | {"checkpoints/step-000020/weights.safetensors": save(weights)}


def make_trained(run: Path) -> None:
    """A run with an adapter and a checkpoint of round 20 that can be loaded."""
    make_run(run)
    for name, data in trained().items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(data)
    write_manifest(
        run / "checkpoints/step-000020",
        {"weights.safetensors": trained()["checkpoints/step-000020/weights.safetensors"]},
        {},
    )


def make_examples(argv: list[str], folder: Path) -> None:
    """The runs, prompt files, configs and modules that a command names."""
    named = [word for word in argv if not word.startswith("-")]
    if argv[0] == "evaluate":
        for run in dict.fromkeys(re.findall(r"runs/[\w.-]+", " ".join(argv))):
            make_trained(folder / run)
    if argv[0] in ("resume", "mix", "report"):
        runs = [word for word in named[1:] if re.fullmatch(r"[A-Z]+|runs/[\w.-]+", word)]
    elif argv[0] == "ask":
        runs = [word for word in named[2:3] if word.startswith("runs/")]
        make_benchmarks(argv, folder)
    else:
        runs = [after for before, after in itertools.pairwise(argv) if before == "--adapter"]
    if "--resume" in argv:
        (folder / argv[argv.index("--resume") + 1]).mkdir(parents=True)
        (folder / argv[argv.index("--resume") + 1] / "iterate.yaml").write_text(dump_config(IterationSettings()))
    if "--tuning.start-from" in argv:  # which is read
        model = load_model("bundled")
        model.tune(PRESETS["ddpo-compressibility"].config.tuning)
        model.weights.save(folder / argv[argv.index("--tuning.start-from") + 1] / "adapter")
    for run in runs:
        if not (folder / run).exists():
            make_run(folder / run)
        if argv[0] == "ask":  # which tells adapters apart by what is in them
            (folder / run / "adapter" / WEIGHTS).write_bytes(b"")
    for word in argv:
        for name in re.findall(r"[\w.-]+\.txt", word):
            (folder / name).write_text("a dog\na cat\na bird\na horse\n", encoding="utf-8")
        for name in re.findall(r"[\w.-]+\.ya?ml", word):
            (folder / name).write_text("preset: ddpo-compressibility\n", encoding="utf-8")
        if match := re.search(r"(?<![\w:/.-])(my_\w+|taste):(\w+)", word):
            module, function = match.groups()
            (folder / f"{module}.py").write_text(
                "from tastemaker.rewards.base import reward\n\n@reward(differentiable=True)\n"
                f"def {function}(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n",
                encoding="utf-8",
            )


def make_benchmarks(argv: list[str], folder: Path) -> None:
    """The published files that a command names, and images of their prompts."""
    forms = {"geneval2_data.jsonl": "geneval2.jsonl", "dpg_bench.csv": "dpg.csv"}
    for name in [word for word in argv if word in forms]:
        shutil.copy(Path(__file__).parents[1] / "data/question_benchmarks" / forms[name], folder / name)
        prompts = [prompt.id for prompt in load_benchmark(str(folder / name)).prompts]
        for given in [after for before, after in itertools.pairwise(argv) if before == "--images"]:
            (folder / "my-model").mkdir(exist_ok=True)
            for prompt in prompts:
                Image.new("RGB", (8, 8), "red").save(folder / f"my-model/{prompt}.png")
            if given.endswith(".json"):
                (folder / given).write_text(json.dumps({prompt: f"my-model/{prompt}.png" for prompt in prompts}))


def local_reward(name, *args, **kwargs):
    """The reward of this name; of one that needs the hub, a server or a further package, another with its gradient.

    The expression, the names in it and the arguments that they must have are those given.
    """
    elsewhere, differentiable = False, True
    for part in parts(parse_reward(name)):
        entry = BUILTIN.get(part.partition(":")[0])
        argument = part.partition(":")[2]
        other = entry is not None and (argument or entry.default or "bundled") != "bundled" and entry.argument
        elsewhere |= is_remote(part) or is_label(part) or bool(other) or part == "ocr" or part in ENTRY_POINTS
        elsewhere |= part.startswith("runs/")  # a reward model that the reader has trained
        differentiable &= entry is None or entry.differentiable
    if not elsewhere:
        return load_reward(name, *args, **kwargs)
    return load_reward("soft-colourfulness" if differentiable else "jpeg-compressibility")


def remembered(count: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Counts once for all models with the same weights and sizes: most commands have the same few, and a count takes
    half a second."""
    found: dict[tuple[object, ...], Any] = {}

    def counted(model: Any, cond: Any) -> Any:
        shapes = tuple((name, weight.shape, weight.requires_grad) for name, weight in model.network.named_parameters())
        key = (shapes, model.latent_shape, tuple(cond.states), cond.guidance)
        if key not in found:
            found[key] = count(model, cond)
        return found[key]

    return counted


forward_counts, backward_flops = remembered(preflight.count_forward), remembered(preflight.count_backward)


ENTRY_POINTS = ("image-reward:image-reward", "hps-v2.1:hps")
"""Named in the docs for what is on the reader's disk."""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, where models of the hub and of the reader are the bundled one."""
    from tastemaker import models

    real = models.load_meta_model

    def stand_in(source: str):
        known = source == "bundled" or (ROOT / source / "model_index.json").is_file()
        if known or not (HUB.fullmatch(source) or source in LOCAL_MODELS):
            return real(str(ROOT / source) if known and source != "bundled" else source)
        return real("bundled")

    for module in (models, preflight):
        monkeypatch.setattr(module, "load_meta_model", stand_in)
    monkeypatch.setattr(preflight, "count_forward", forward_counts)
    monkeypatch.setattr(preflight, "count_backward", backward_flops)
    monkeypatch.setattr(preflight, "load_reward", local_reward)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if re.fullmatch(r"my_\w+|taste", name)]:
        del sys.modules[name]


def run(argv: list[str], folder: Path) -> int:
    """Runs a documented command as far as it goes without starting anything."""
    argv = [PLACEHOLDERS.get(word, word) for word in argv]
    make_examples(argv, folder)
    if argv[0] in DRY and "--help" not in argv:
        return main([*argv, "--dry-run"])
    if argv[0] == "label":
        module = importlib.import_module(f"tastemaker.cli.label_{argv[1]}")
        cls = vars(module)[f"{argv[1].title()}Args"]
        parse(cls, split_assignments(argv[2:], flag_types(cls)), "label")
        return 0
    if argv[0] == "compare":
        module = importlib.import_module(f"tastemaker.cli.compare_{argv[1]}")
        cls = vars(module)[f"{argv[1].title()}Args"]
        parse(cls, argv[2:], "compare")
        return 0
    if argv[0] == "convert" and argv[1:]:
        assert argv[1] == "guided-diffusion"
        parse(GuidedDiffusionArgs, argv[2:], "convert guided-diffusion")
        return 0
    if argv[0] in PARSED and argv[1:]:
        argv = argv[argv[0] == "reward" :]  # `reward serve`
        cls = PARSED[argv[0]]
        given = parse(cls, split_assignments(argv[1:], flag_types(cls)), argv[0])
        if isinstance(given, RewardTrainArgs):
            check(reward_train._architecture(given), reward_train._training(given))
        return 0
    return main(argv)


@pytest.mark.parametrize("command", SHOWN)
def test_documented_command(
    command: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    code = run(arguments(command, monkeypatch), elsewhere)
    errors = capsys.readouterr().err
    named = re.findall(r"(?:source=|dataset:|--pairs )([\w./-]+)", command)
    missing = [word for word in named if not (elsewhere / word).exists()]
    if code == 2 and missing:  # pictures and data sets that only the reader has
        assert missing[0] in errors
    else:
        assert code == 0, errors


def test_the_pages_have_commands():
    assert len(SHOWN) > 60


@pytest.mark.parametrize(
    "command",
    [
        "tastemaker train ddpo-compressibility --samplng.steps 3",
        "tastemaker train ddpo-compresibility",
        "tastemaker train ddpo-compressibility --reward clip-scor",
        "tastemaker sample --promt x",
        "tastemaker ask bundld bundled",
        "tastemaker trian ddpo-compressibility",
    ],
)
def test_mistakes_are_noticed(command: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    assert run(arguments(command, monkeypatch), elsewhere) == 2


@pytest.mark.parametrize(
    "command",
    ["tastemaker report --ot x", "tastemaker reward serve ocr --prt 1", "tastemaker doctor --reward x --sze 3"],
)
def test_mistakes_where_nothing_is_run(command: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="unknown flag"):
        run(arguments(command, monkeypatch), elsewhere)


@pytest.mark.parametrize(
    "command",
    ["torchrun --nprocs-per-node 2 -m tastemaker train x", "accelerate launch --num_proceses 2 -m tastemaker train x"],
)
def test_mistakes_in_a_launcher_s_flags(command: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises((SystemExit, AssertionError, TypeError, ValueError)):
        arguments(command, monkeypatch)


def test_commands_are_found():
    page = (
        "```bash\n$ tastemaker ls rewards   # all\nFOO=1 tastemaker train a \\\n    --x 'b # c'\nmake demo\n"
        'tastemaker resume "$RUN"; [ $? -eq 75 ] && sbatch "$0"\n```\n```python\ntastemaker ls\n```\n'
    )
    assert commands(page) == [
        "tastemaker ls rewards", "FOO=1 tastemaker train a --x 'b # c'", 'tastemaker resume "$RUN"'
    ]  # fmt: skip
