"""The command line as a stranger meets it: help, mistakes, and what reaches the functions behind the verbs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tastemaker
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.windows import Backward
from tastemaker.cli import mix, settings
from tastemaker.cli.arguments import flag_types, nearest_flags, parse, split_assignments
from tastemaker.cli.main import COMMANDS, main
from tastemaker.cli.sampling import step_mask
from tastemaker.cli.train import TrainArgs
from tastemaker.config.presets import PRESETS
from tastemaker.config.schema import Config
from tastemaker.config.yaml_file import dump_config
from tastemaker.process_count import process_count

SOURCE = Path(tastemaker.__file__).parent.parent
PRESET = "ddpo-compressibility"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TASTEMAKER_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def read(argv: list[str]) -> tuple[TrainArgs, str]:
    return settings.read(TrainArgs, argv, "train")


def start(*argv: str, code: str = "pass") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with warnings as errors; `code` runs after it."""
    program = f"import sys; from tastemaker.cli.main import main; code = main(sys.argv[1:]); {code}; sys.exit(code)"
    return python(program, *argv)


def python(program: str, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-W", "error", "-c", program, *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def make_run(folder: Path, config: Config | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config or Config()), encoding="utf-8")
    return folder


# ---------------------------------------------------------------- help


@pytest.mark.parametrize(
    "argv", [["--help"], *([command, "--help"] for command in COMMANDS), ["ls"], ["train", "nothing"]]
)
def test_torch_stays_out_of_help_lists_and_mistakes(argv: list[str]):
    code = "assert 'torch' not in sys.modules, 'torch'; assert 'diffusers' not in sys.modules"
    done = start(*argv, code=code)
    assert done.returncode == (2 if "nothing" in argv else 0), done.stderr


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS), ["train", PRESET, "--help"]])
def test_help_takes_about_two_fifths_of_a_second_at_most(argv: list[str]):
    """On a machine that reads four of Python's own modules in 0.12 s: a slow one, or a slow hour, is slow at both.

    But not equally: help took less than 2.8 times as long as the reading on idle processors, and 2.9 to 3.5 times on
    busy ones.
    """

    def seconds(run: Callable[[], subprocess.CompletedProcess[str]]) -> float:
        # Time on the processor, which other work on the machine lengthens less than the clock's.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run()
        assert done.returncode == 0, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    modules = "argparse, ast, inspect, typing"
    reading = f"import {modules}; [ast.parse(inspect.getsource(module)) for module in ({modules})]"
    assert any(seconds(lambda: start(*argv)) < 3.6 * seconds(lambda: python(reading)) for _ in range(10))


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
    assert main(["train", "--help"]) == 0


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tastemaker {tastemaker.__version__}\n"


def test_help_of_train_shows_the_defaults_of_the_preset():
    bundled, paper = start("train", PRESET, "--help").stdout, start("train", f"{PRESET}-sd14", "--help").stdout
    assert "Learning rate. (default: 0.006)" in bundled
    assert "Learning rate. (default: 1e-05)" in paper
    assert "Rounds of sampling and training. (default: 200)" in paper


# ---------------------------------------------------------------- mistakes

MISTAKES = [
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["train"], "give a preset (`tastemaker ls presets`) or --config FILE"),
    (["train", "optimizer.lr=1"], "give a preset (`tastemaker ls presets`) or --config FILE"),
    (["train", "ddpo-compresibility"], "unknown preset 'ddpo-compresibility'; did you mean 'ddpo-compressibility'?"),
    (["train", "--seed", "3", "ddpo-compresibility"], "did you mean 'ddpo-compressibility'?"),
    (["train", "run.yaml"], "a file is given as `--config run.yaml`"),
    (["train", "--config", "run.yaml"], "run.yaml cannot be read: No such file or directory"),
    (["train", PRESET, "--config", "run.yaml"], "give a preset or --config, not both"),
    (["train", PRESET, "other"], "unexpected 'other'; see `tastemaker train --help`"),
    (
        ["train", PRESET, "--sampling.guidence", "3"],
        "unknown flag --sampling.guidence; did you mean --sampling.guidance?",
    ),
    (["train", PRESET, "sampling.guidence=3"], "unknown flag --sampling.guidence; did you mean --sampling.guidance?"),
    (["train", PRESET, "--lr", "3"], "unknown flag --lr; did you mean --optimizer.lr?"),
    (
        ["train", PRESET, "anchor.weight=3"],
        "unknown flag --anchor.weight; it is called --prior_preservation.weight now",
    ),
    (
        ["train", PRESET, "anchor.pictures=3"],
        "unknown flag --anchor.pictures; it is called --prior_preservation.images now",
    ),
    (
        ["train", PRESET, "--evaluation.fall", "3"],
        "unknown flag --evaluation.fall; it is called --early_stop.min_delta",
    ),
    (["train", PRESET, "--clip", "3"], "did you mean --algorithm.clip or --advantage.clip?"),
    (
        ["train", PRESET, "--algorithm", "diffusion-dpo", "--pairs.source", "folder"],
        "unknown flag --pairs.source; it is called --pairs.sources now",
    ),
    (
        ["train", PRESET, "--algorithm", "diffusion-dpo", "pairs.surces=folder"],
        "unknown flag --pairs.surces; did you mean --pairs.sources?",
    ),
    (
        ["train", PRESET, "--algorithm", "diffusion-dpo", "--optimizer.no-single-pass"],
        "pairs.sources is empty, but the algorithm diffusion-dpo",
    ),
    (["train", PRESET, "--algorithm", "diffusion-dpo"], "pairs.sources is empty, but the algorithm diffusion-dpo"),
    (["train", PRESET, "--xyzzy"], "unknown flag --xyzzy; see `tastemaker train --help`"),
    (["train", PRESET, "--rounds", "many"], "--rounds is 'many', expected a whole number (see"),
    (["train", PRESET, "optimizer.lr=fast"], "--optimizer.lr is 'fast', expected a number (see"),
    (["train", PRESET, "--sampling.height", "big"], "--sampling.height is 'big', expected a whole number or None (see"),
    (["train", PRESET, "--precision", "fp31"], "--precision cannot be 'fp31'; known: 'fp32', 'bf16', 'fp16' (see"),
    (["train", PRESET, "--optimizer.betas", "0.9"], "--optimizer.betas needs 2 values (see"),
    (["train", PRESET, "--optimizer.betas", "0.9", "x"], "--optimizer.betas cannot be '0.9', 'x' (see"),
    (["train", PRESET, "--seed"], "--seed needs a value (see"),
    (["train", PRESET, "--rounds", "0"], "rounds is 0, but must be greater than 0"),
    (["train", PRESET, "algorithm=ddpoo"], "algorithm cannot be 'ddpoo'; did you mean 'ddpo'?"),
    (["train", PRESET, "--window"], "window cannot be ''; known: backward, random, sliding, whole"),
    (["train", PRESET, "algorithm.kl=1"], "unknown flag --algorithm.kl"),
    (["train", PRESET, "algorithm=rwr"], "advantage.normalise is per-prompt, but the algorithm rwr needs softmax or"),
    (["train", PRESET, "sampling.branches=3"], "sampling.per_prompt is 16, but must be a multiple of"),
    (["train", PRESET, "--algorithm.clip", "0"], "algorithm.clip is 0.0, but must be greater than 0"),
    (["train", PRESET, "--optimizer.lr", "nan"], "optimizer.lr is nan, but must be finite"),
    (["train", PRESET, "--out", "used"], "used"),
    (["train", PRESET, "--out", "a-run"], "a-run holds a run: go on with it by `tastemaker resume a-run`"),
    (["resume"], "give the folder of a run"),
    (["resume", "runs/b"], "runs/b does not exist; did you mean 'runs/a'?"),
    (["resume", "used"], "used has no config.yaml, so it is not a run; "),
    (["resume", "a-run", "--rounds", "0"], "--rounds is 0, but must be greater than 0"),
    (["report"], "give the folder of a run"),
    (["report", "runs/b"], "runs/b does not exist; did you mean 'runs/a'?"),
    (["report", "a-run", "--out", "x.html"], "--out is for a comparison of several runs"),
    (["sample"], "give prompts by --prompt"),
    (["sample", "--prompt", "a", "--prompts", "b"], "and not by both"),
    (["sample", "--promt", "a"], "unknown flag --promt; did you mean --prompt?"),
    (["sample", "--prompts", "bundled-singel"], "unknown prompts 'bundled-singel'"),
    (["sample", "--prompt", "a", "--n", "0"], "--n is 0, but must be at least 1"),
    (["sample", "--prompt", "a", "--eta", "nan"], "--eta is nan, but must be finite"),
    (["sample", "--prompt", "a", "--steps", "1001"], "--steps is 1001, but the schedule has only 1000"),
    (["sample", "--prompt", "a", "--adapter", "none"], "--adapter is none, but there is no such folder"),
    (["sample", "--prompt", "a", "--adapter-steps", "0:9"], "--adapter-steps says when an adapter acts"),
    (["sample", "--prompt", "a", "--adapter", "a-run", "--adapter-steps", "5"], "--adapter-steps is '5', but must be"),
    (
        ["sample", "--prompt", "a", "--adapter", "a-run", "--adapter-steps", "0:5,40:51"],
        "the range 40:51, but of 50",
    ),
    (["sample", "--prompt", "a", "--adapter", "a-run", "--adapter-steps", "5:5"], "its end is larger than its start"),
    (["mix"], "give the folders of the adapters"),
    (["mix", "a-run", "nowhere"], "there is no folder nowhere"),
    (["mix", "a-run", "--alpha", "0:1"], "--alpha is '0:1', but must be a number, several"),
    (["mix", "a-run", "--alpha", "half"], "--alpha is 'half', but must be a number, several with commas, or start"),
    (["mix", "a-run", "--alpha", "0:nan:1"], "--alpha is '0:nan:1', but must be"),
    (["mix", "a-run", "--alpha", "1:0:0.1"], "by a step that leads there"),
    (["mix", "a-run", "--alpha", "0:1:0.001"], "which are 1001 mixtures, but a sweep has at most 101"),
    (["mix", "a-run", "runs/a", "--weights", "0.5"], "must have a number for each of the 2 adapters"),
    (["mix", "a-run", "runs/a", "--weights", "0:1:1"], "--weights is '0:1:1', but must be numbers with commas"),
    (["mix", "a-run", "runs/a", "--weights", "1,0", "--alpha", "1"], "give --alpha or --weights, not both"),
    (["mix", "a-run", "runs/a", "a-run"], "--alpha mixes two adapters, and there are 3: give --weights"),
    (["mix", "a-run", "--mode", "both"], "--mode cannot be 'both'; known: 'factor', 'delta'"),
    (["mix", "a-run", "--rank", "2"], "--rank is of mixtures in --mode delta"),
    (["mix", "a-run", "--rank", "0", "--mode", "delta"], "--rank is 0, but must be at least 1"),
    (["mix", "a-run", "--n", "1", "--take", "1"], "one image has no deviation to measure rewards in"),
    (["mix", "used"], "which would name the base model: give --model MODEL"),
    (["mix", "used", "--model", "m"], "which would name a reward: give --reward NAME"),
    (["mix", "used", "--model", "m", "--reward", "r"], "which would name prompts: give --prompts or --prompt"),
    (["mix", "a-run", "--out", "used"], "used"),
    (["mix", "a-run"], "there is no adapter in a-run: expected a finished run"),
    (["ls", "preset"], "unknown kind 'preset'; did you mean 'presets'?"),
    (["doctor", "--fast"], "unexpected '--fast': doctor takes no arguments"),
    (["doctor", "--reward", "jpeg-compressibility", "--size", "4"], "--size is 4, but must lie in [8, 4096]"),
    (["doctor", "--reward", "jpeg-compressibility", "--bacth", "4"], "unknown flag --bacth; did you mean --batch?"),
    (["reward", "sevre"], "unknown `tastemaker reward sevre`; did you mean 'serve'?"),
    (["reward", "serve"], "give a reward, as in `tastemaker reward serve jpeg-compressibility`"),
    (["reward", "serve", "http://127.0.0.1:1"], "is already on a server"),
    (["reward", "serve", "x", "--port", "70000"], "--port is 70000"),
    (["reward", "serve", "x", "--token-env", "a secret"], "--token-env is not the name of an environment variable"),
    (
        ["reward", "serve", "x", "--host", "0.0.0.0"],
        "put a token into $TASTEMAKER_REWARD_TOKEN, or give --without-token",
    ),
    (["train", PRESET, "remote.timeout=0"], "remote.timeout is 0"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    make_run(Path("a-run"))
    make_run(Path("runs/a"))
    Path("used/by").mkdir(parents=True)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tastemaker: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("out", ["file/run", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused(out: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    Path("file").touch()
    assert main(["train", PRESET, "--out", out]) == 2
    assert capsys.readouterr().err.startswith("tastemaker: cannot write to ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_launcher_s_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert main(["train", PRESET]) == 2
    assert "$WORLD_SIZE is 'many', expected the number of processes" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "")  # as an empty variable of a job script
    assert process_count() == 1


def test_mistakes_read_the_same_without_unicode():
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "tastemaker", "train", PRESET, "--rounds", "many"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == "tastemaker: --rounds is 'many', expected a whole number (see `tastemaker train --help`)\n"


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("TASTEMAKER_DEBUG", "1")
    assert main(["trian"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("tastemaker: unknown command 'trian'; did you mean 'train'?\n")


def test_a_reader_that_leaves_early_is_no_error():
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    program = "import sys; from tastemaker.cli.main import main; sys.exit(main(['ls']))"
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([sys.executable, "-c", program], stdout=write_end, stderr=subprocess.PIPE, env=environment)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


# ---------------------------------------------------------------- flags


def test_flags_change_single_settings_of_the_preset():
    args, stem = read([PRESET, "--optimizer.lr", "1e-4", "--sampling.per-prompt=4", "--trackers", "wandb", "trackio"])
    base = PRESETS[PRESET].config
    assert stem == PRESET
    assert args.settings.optimizer.lr == 1e-4
    assert args.settings.optimizer.updates == base.optimizer.updates
    assert args.settings.sampling.per_prompt == 4
    assert args.settings.trackers == ("wandb", "trackio")


def test_no_flags_are_the_preset_itself():
    for name, preset in PRESETS.items():
        assert read([name])[0].settings == preset.config


def test_assignments():
    argv = [
        PRESET,
        "optimizer.lr=1e-4",
        "rounds=3",
        "optimizer.betas=[0.8, 0.9]",
        "tuning.gradient_checkpointing=true",
    ]
    settings = read([*argv, "tuning.targets=to_q", "--checkpoint.every=2"])[0].settings
    assert (settings.optimizer.lr, settings.rounds, settings.optimizer.betas) == (1e-4, 3, (0.8, 0.9))
    assert settings.tuning.gradient_checkpointing
    assert settings.tuning.targets == ("to_q",)
    assert settings.checkpoint.every == 2
    lora = read([f"{PRESET}-sd14", "tuning.gradient_checkpointing=false", "sampling.height=null"])[0].settings
    assert not lora.tuning.gradient_checkpointing
    assert lora.sampling.height is None


def test_assignments_leave_values_of_flags_alone():
    types_ = flag_types(TrainArgs)
    assert split_assignments(["--reward", "a=b"], types_) == ["--reward", "a=b"]
    assert split_assignments(["--prompts", "runs/a=b.txt"], types_) == ["--prompts", "runs/a=b.txt"]
    assert split_assignments(["p", "reward=a=b"], types_) == ["p", "--reward", "a=b"]


def test_another_algorithm_is_named_with_or_without_dashes():
    for argv in (["algorithm=dpok"], ["--algorithm", "dpok"], ["--algorithm=dpok"]):
        chosen = read([PRESET, *argv, "algorithm.value=mlp", "--algorithm.kl", "0.5"])[0].settings
        assert chosen.algorithm == DPOK(value="mlp", kl=0.5)
        assert chosen.optimizer == PRESETS[PRESET].config.optimizer


def test_the_presets_own_algorithm_keeps_its_settings_when_it_is_named():
    assert read([PRESET, "algorithm=ddpo"])[0].settings == PRESETS[PRESET].config


def test_what_belongs_together_is_checked_once_all_flags_are_read():
    chosen = read([PRESET, "algorithm=rwr", "advantage.normalise=softmax", "window=backward", "window.initial=3"])
    assert chosen[0].settings.algorithm == RWR()
    assert chosen[0].settings.window == Backward(initial=3)


def test_preset_may_follow_the_flags():
    args, stem = read(["--seed", "3", PRESET])
    assert (stem, args.settings.seed, args.settings.rounds) == (PRESET, 3, PRESETS[PRESET].config.rounds)


def test_flags_go_over_the_file_and_the_file_over_its_preset():
    Path("my.run.yaml").write_text(f"preset: {PRESET}-sd14\nrounds: 7\nseed: 8\n")
    for argv in (["--config", "my.run.yaml"], ["--config=my.run.yaml"]):
        args, stem = read([*argv, "--seed", "9"])
        assert stem == "my.run"
        assert (args.settings.rounds, args.settings.seed) == (7, 9)
        assert args.settings.model == "CompVis/stable-diffusion-v1-4"


def test_every_setting_has_a_flag():
    known = flag_types(TrainArgs)
    assert {"config", "out", "rounds", "optimizer.lr", "algorithm.clip", "tuning.targets"} <= set(known)
    assert "preset" not in known
    assert "settings.rounds" not in known


def test_weights_of_a_sweep():
    points = lambda *argv: mix.mixture_points(parse(mix.MixArgs, ["a", *argv], "mix"))  # noqa: E731
    assert points() == {f"alpha {n / 10:g}": (n / 10,) for n in range(11)}
    assert points("b", "--alpha", "0:1:0.25") == {
        "alpha 0": (0, 1), "alpha 0.25": (0.25, 0.75), "alpha 0.5": (0.5, 0.5), "alpha 0.75": (0.75, 0.25),
        "alpha 1": (1, 0),
    }  # fmt: skip
    # 1 - 0.9 is 0.09999999999999998, and 3 * 0.1 is 0.30000000000000004: the weights are what was written.
    assert points("b")["alpha 0.9"] == (0.9, 0.1)
    assert points("b")["alpha 0.3"] == (0.3, 0.7)
    assert points("b", "--alpha=-0.5,1.5") == {"alpha -0.5": (-0.5, 1.5), "alpha 1.5": (1.5, -0.5)}
    assert list(points("b", "--alpha", "1:0:-0.5")) == ["alpha 1", "alpha 0.5", "alpha 0"]
    assert points("b", "c", "--weights", "0.2,0.3,0.5") == {"weights 0.2,0.3,0.5": (0.2, 0.3, 0.5)}


def test_steps_of_an_adapter():
    """Half-open, as Python's slices are; step 0 is the noisiest."""
    assert step_mask("0:2,3:4", 5) == (True, True, False, True, False)
    assert step_mask(":2, 4:", 5) == (True, True, False, False, True)
    assert step_mask(":", 2) == (True, True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("guidance", "did you mean --sampling.guidance?"),
        ("optimiser.lr", "did you mean --optimizer.lr?"),
        ("sampling.step", "did you mean --sampling.steps?"),
        ("checkpoint.evry", "did you mean --checkpoint.every?"),
        ("qqq", ""),
    ],
)
def test_nearest_flags(name: str, hint: str):
    assert nearest_flags(name, list(flag_types(TrainArgs))) == hint
