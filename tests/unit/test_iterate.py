"""`tastemaker iterate`: the whole loop at small scale, its lineage, going on after every step, and wrong input."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load_file

import tastemaker as tm
from compared import project
from tastemaker.algorithms.ppo import PPO
from tastemaker.cli.main import main
from tastemaker.config.schema import Config
from tastemaker.data.images import read_image, to_tensor
from tastemaker.data.prompts import load_prompts
from tastemaker.errors import ConfigError
from tastemaker.iteration import iterate, labels, lineage
from tastemaker.iteration.settings import IterationSettings, Loop, SimulatedLabelers, run_config
from tastemaker.labelling.image_files import image_path
from tastemaker.labelling.project import open_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.simulate import Tally
from tastemaker.labelling.sources import Policy
from tastemaker.labelling.tables import Prompt, Task, TaskImage
from tastemaker.labelling.taste import Behaviour
from tastemaker.reward_models.comparisons import load_comparisons
from tastemaker.reward_models.settings import Training
from tastemaker.rewards.preferences.architecture import Architecture

TASKS = 12
SMALL = [
    "--tasks", str(TASKS), "--label.images", "3", "--label.confirm=false", "--simulate", "--simulated.count", "1",
    "--simulated.utility", "colourfulness", "--simulated.temperature", "0.01", "--prompts", "bundled-eight",
    "sampling.steps=2", "sampling.samples=4", "sampling.per_prompt=2", "evaluation.prompts=2",
    "evaluation.per_prompt=2",
    "evaluation.kl_images=0", "rounds=1", "optimizer.updates=1", "--reward-model.epochs", "2",
]  # fmt: skip
UNET = ["ppo-compressibility", *SMALL, "--algorithm.value-from", "REWARD_MODEL", "--policy", "previous",
        "--evaluation.rewards", "colourfulness"]  # fmt: skip
HEAD = ["ddpo-compressibility", *SMALL, "--network.kind", "head", "--iterations", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two iterations without an interruption."""
    out = tmp_path_factory.mktemp("iterations") / "whole"
    assert main(["iterate", *UNET, "--out", str(out)]) == 0
    return out


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_came_from_what(whole):
    """Each hash is that of the file itself, and each step used what the step before it left."""
    first, second = json.loads((whole / "lineage.json").read_text())["iterations"]
    for one in (first, second):
        assert one["reward_model_sha256"] == sha256(whole / one["reward_model"] / "model.safetensors")
        assert one["run_sha256"] == sha256(whole / one["run"] / "adapter/pytorch_lora_weights.safetensors")
        assert one["labels_sha256"] == load_comparisons(str(whole / one["labels"])).digest
        assert one["tasks"] == TASKS
        assert one["pairs"] == TASKS * 3
    assert first["policy"] is None
    assert (second["policy"], second["policy_sha256"]) == (first["run"], first["run_sha256"])
    assert first["learned_from"] == [first["labels_sha256"]]
    assert second["learned_from"] == [first["labels_sha256"], second["labels_sha256"]]
    for number, one in enumerate((first, second), 1):
        config = tm.load_run(whole / one["run"]).config
        folder = str(whole / f"iteration-{number}" / "reward-model")
        assert config.reward == folder
        assert isinstance(config.algorithm, PPO)
        assert config.algorithm.value_from == folder
        assert config.tuning.start_from == (None if number == 1 else str(whole / "iteration-1/run"))
        trained = json.loads((whole / one["reward_model"] / "reward_model.json").read_text())["training"]
        assert trained["tasks"] == number * TASKS


def project_images(folder: Path) -> dict[tuple[str, int], torch.Tensor]:
    """The images of a project by prompt and number of the task, in their order."""
    with open_project(folder) as project, project.database.read() as session:
        rows = session.execute(
            sa.select(Prompt.text, Task.number, TaskImage.sha256)
            .join(Task, Task.prompt_id == Prompt.id)
            .join(TaskImage, TaskImage.task_id == Task.id)
            .order_by(Task.number, TaskImage.position)
        ).all()
        found: dict[tuple[str, int], list[torch.Tensor]] = {}
        for prompt, number, sha in rows:
            found.setdefault((prompt, number), []).append(to_tensor(read_image(image_path(project.folder, sha), sha)))
    return {key: torch.stack(images) for key, images in found.items()}


def test_images_are_those_of_the_policies(whole):
    """By the sampler of the alignment with seeds 1 and 2: all of the base model, then every other one of the adapter's.

    `tm.sample` numbers its images from 0, as the images of a prompt's first task are numbered.
    """
    prompts = list(load_prompts("bundled-eight").prompts)
    adapter = whole / "iteration-1/run"
    for number, makers in ((1, (None, None, None)), (2, (adapter, None, adapter))):
        shown = project_images(whole / f"iteration-{number}/labels")
        assert len(shown) == TASKS
        assert [prompt for prompt, _ in shown] == (prompts + prompts)[:TASKS]
        made = {maker: tm.sample("bundled", prompts[:1], adapter=maker, n=3, seed=number, steps=2).images
                for maker in makers}  # fmt: skip
        images = torch.stack([to_tensor(made[maker][place]) for place, maker in enumerate(makers)])
        torch.testing.assert_close(next(iter(shown.values())), images, rtol=0, atol=1.01 / 255)


def test_the_report_has_all_iterations(whole):
    page = (whole / "report.html").read_text()
    assert "2 iterations of PPO on bundled" in page
    assert 'href="iteration-2/run/report.html"' in page
    assert 'href="iteration-1/reward-model/report.html"' in page
    assert "colourfulness, unseen" not in page  # there are no unseen prompts
    assert page.count("<h3>") >= 2 + 2  # prompts, and plots
    assert "iteration 2" in page


class Stopped(Exception):
    """A crash."""


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    """While people are waited for; what was sampled stays."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(labels, "_wait", interrupted)
    words = [word for word in HEAD if word != "--simulate"]
    assert main(["iterate", *words, "--out", str(tmp_path / "out")]) == 130
    assert f"go on by: tastemaker iterate --resume {tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out/iteration-1/labels").is_dir()


def test_iterations_that_are_stopped_after_each_step_end_as_uninterrupted_ones(whole, tmp_path, monkeypatch):
    """Stopped before and after each step that is still to be done: lineage, labels and weights are the same.

    An alignment is stopped after its checkpoint, before its adapter is written.
    """
    out, stops = tmp_path / "whole", 0
    from tastemaker.training import run as training

    state = {"left": 0}

    def stopping(function, before):
        def call(*args, **kwargs):
            if before and state["left"] == 0:
                state["left"] = -1
                raise Stopped
            state["left"] -= before
            return function(*args, **kwargs)

        return call

    # Each of these is called once for each iteration, in this order.
    for module, name in (
        (iterate, "sample_tasks"), (iterate, "wait_for_labels"), (iterate, "train_reward_model"), (training, "train"),
        (training, "write_adapter"), (iterate, "write_report"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, stopping(getattr(module, name), True))
    command = ["iterate", *UNET, "--out", str(out)]
    while True:
        state["left"] = 1 if stops else 0  # the step that stopped it goes well this time, and the next one stops it
        try:
            assert main(command) == 0
            break
        except Stopped:
            stops += 1
            command = ["iterate", "--resume", str(out)]
    assert stops == 11
    found, expected = (
        [replace(one, run_sha256=None, policy_sha256=None) for one in lineage.read(path)] for path in (out, whole)
    )
    assert found == expected
    for number in (1, 2):  # a file of safetensors has its metadata in no order
        own, other = (
            load_file(path / f"iteration-{number}/run/adapter/pytorch_lora_weights.safetensors")
            for path in (out, whole)
        )
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize(
    ("loop", "makers", "learned", "starts"),
    [
        (Loop(iterations=3), ["0", "10", "210"], [["1"], ["1", "2"], ["1", "2", "3"]], [None, None, None]),
        (Loop(iterations=3, labels="newest"), ["0", "10", "210"], [["1"], ["2"], ["3"]], [None, None, None]),
        (Loop(iterations=3, images="newest"), ["0", "1", "2"], [["1"], ["1", "2"], ["1", "2", "3"]],
         [None, None, None]),
        (Loop(iterations=2, policy="previous"), ["0", "10"], [["1"], ["1", "2"]], [None, "iteration-1/run"]),
    ],
)  # fmt: skip
def test_which_images_labels_and_policy_an_iteration_takes(tmp_path, monkeypatch, loop, makers, learned, starts):
    """The steps themselves only note what they are given. `makers` are the runs in turn, 0 the base model."""
    sampled, sources, configs, trainings = [], [], [], []
    facts = SimpleNamespace(digest="d", facts={"tasks": 1, "pairs": 1}, training=[], validation=[])
    note = {
        "sample_tasks": lambda folder, loop, config, number, policies, log: sampled.append(policies),
        "wait_for_labels": lambda *_: None,
        "load_comparisons": lambda folder: facts,
        "load_several": lambda folders: sources.append([Path(one).parent.name[-1] for one in folders]) or facts,
        "train_reward_model": lambda found, network, training, out, **_: trainings.append((network, training)),
        "read_description": lambda folder: (SimpleNamespace(training={}), ""),
        "write_report": lambda *_: None,
    }
    for name, function in note.items():
        monkeypatch.setattr(iterate, name, function)
    monkeypatch.setattr(iterate.training, "train", lambda config, folder, command: configs.append(config))
    monkeypatch.setattr(lineage, "adapter_digest", lambda run: "a")
    monkeypatch.setattr(lineage, "reward_model_digest", lambda folder: "r")
    loop = replace(loop, network=Architecture("head", hidden=5), reward_model=Training(epochs=7))
    iterate.start(IterationSettings(loop), tmp_path / "out", command="")
    assert sources == learned
    assert [config.tuning.start_from and str(Path(config.tuning.start_from).relative_to(tmp_path / "out"))
            for config in configs] == starts  # fmt: skip
    runs = {str(n): Policy(str(tmp_path / f"out/iteration-{n}/run"), tmp_path / f"out/iteration-{n}/run")
            for n in range(1, loop.iterations)} | {"0": Policy("bundled")}  # fmt: skip
    assert sampled == [[runs[maker] for maker in each] for each in makers]
    assert trainings == [(loop.network, loop.reward_model)] * loop.iterations


def test_what_simulated_people_are_like(tmp_path, monkeypatch):
    """Every setting of theirs, at a value that is not its default."""
    given = SimulatedLabelers(4, 3, "colourfulness", 0.25, 0.5, 0.75, 0.125)
    seen = {}

    @contextmanager
    def served(project, serving):
        yield "http://here"

    async def simulate(crowd, behaviour, utility, seed):
        seen.update(behaviour=behaviour, seed=seed)
        return Tally()

    monkeypatch.setattr(labels, "served_in_thread", served)
    monkeypatch.setattr(labels, "invited", lambda project, url, count, seed: seen.update(count=count, names=seed))
    monkeypatch.setattr(labels, "simulate", simulate)
    monkeypatch.setattr(labels, "utility_of", lambda name: seen.update(utility=name))
    labels._simulated(None, given, lambda line: None)  # type: ignore[arg-type]
    behaviour = Behaviour(temperature=0.25, tie=0.5, left_bias=0.75, disagreement=0.125)
    assert seen == {"utility": "colourfulness", "count": 4, "names": 3, "seed": 3, "behaviour": behaviour}


def test_tasks_that_are_not_labelled(tmp_path, monkeypatch):
    """They stop the iteration, unless they may be left."""
    project(tmp_path / "p", tasks=3, labelled=False)
    monkeypatch.setattr(labels, "_people", lambda project, waiting, log: None)
    with pytest.raises(ConfigError, match=r"3 of the 3 tasks of .* are not labelled.*--accept-unfinished"):
        labels.wait_for_labels(tmp_path / "p", Loop(), labels.Waiting(), print)
    labels.wait_for_labels(tmp_path / "p", Loop(), labels.Waiting(accept_unfinished=True), print)


def test_more_iterations(whole, tmp_path, capsys):
    import shutil

    out = Path(shutil.copytree(whole, tmp_path / "more"))
    for config in out.glob("iteration-*/run/config.yaml"):  # which name folders of the original
        config.write_text(config.read_text().replace(str(whole), str(out)))
    assert main(["iterate", "--resume", str(out), "--iterations", "1"]) == 2
    assert "has done 2 iterations already: give a larger --iterations" in capsys.readouterr().err
    assert main(["iterate", "--resume", str(out), "--iterations", "3"]) == 0
    assert [one.run is not None for one in lineage.read(out)] == [True] * 3
    assert "3 iterations of PPO" in (out / "report.html").read_text()
    for name in ("reward_model.json", "model.safetensors"):  # those of another iteration
        shutil.copy(out / "iteration-1/reward-model" / name, out / "iteration-2/reward-model" / name)
    assert main(["iterate", "--resume", str(out), "--iterations", "4"]) == 2
    assert "is not the one that iteration 2 left there: restore it" in capsys.readouterr().err
    (out / "iteration-1/reward-model/model.safetensors").write_bytes(b"x")
    assert main(["iterate", "--resume", str(out), "--iterations", "4"]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_people_label_in_their_browsers(tmp_path, monkeypatch, capsys):
    """The command waits until the last task is labelled, here by a client of the app that serves it."""
    monkeypatch.setattr(labels, "POLL", 0.05)
    out, project = tmp_path / "out", tmp_path / "out/iteration-1/labels"
    words = [word for word in HEAD if word != "--simulate"]

    def people():
        while not (project / "server.json").is_file():
            time.sleep(0.05)
        assert main(["label", "simulate", str(project), "--labelers", "2", "--utility", "colourfulness"]) == 0

    thread = threading.Thread(target=people)
    thread.start()
    assert main(["iterate", *words, "--out", str(out)]) == 0
    thread.join()
    said = capsys.readouterr().out
    assert "/login#token=" in said
    assert f"{TASKS} of {TASKS} tasks are labelled" in said
    assert not (project / "server.json").exists()


def test_an_algorithm_that_learns_from_pairs_needs_no_reward_model(tmp_path):
    settings = IterationSettings(
        Loop(
            iterations=2, tasks=TASKS, simulate=True, label=Labelling(mode="rank", images=3, confirm=False),
            simulated=SimulatedLabelers(count=1, utility="colourfulness"),
        ),
        tm.preset(
            "ddpo-compressibility", "algorithm=diffusion-dpo", "pairs.sources=LABELS", "prompts=bundled-eight",
            "sampling.steps=2", "sampling.samples=4", "sampling.per_prompt=2", "evaluation.prompts=2",
            "evaluation.per_prompt=1", "rounds=1", "optimizer.updates=1",
        ),
    )  # fmt: skip
    iterate.start(settings, tmp_path / "out", command="")
    first, second = lineage.read(tmp_path / "out")
    assert first.reward_model is second.reward_model is None
    assert first.run == "iteration-1/run"
    both = (str(tmp_path / "out/iteration-1/labels"), str(tmp_path / "out/iteration-2/labels"))
    assert tm.load_run(tmp_path / "out/iteration-1/run").config.pairs.sources == both[:1]
    assert tm.load_run(tmp_path / "out/iteration-2/run").config.pairs.sources == both
    assert second.learned_from == (first.labels_sha256, second.labels_sha256)
    newest = replace(settings, loop=replace(settings.loop, labels="newest"))
    work = iterate._Work(newest, tmp_path / "out", [first, second], "", iterate.NO_WAITING, (), print)
    assert tuple(work.labels) == both[1:]
    assert work.labels_sha256 == second.learned_from[1:]
    page = (tmp_path / "out/report.html").read_text()
    assert "reward model" not in page.partition("</thead>")[2]
    assert f"on {str(first.labels_sha256)[:12]}, {str(second.labels_sha256)[:12]}" in page


def test_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = [word for word in SMALL if "=" in word and not word.startswith("--")]
    config = tm.preset("ddpo-compressibility", "prompts=bundled-eight", *quick)
    found = tm.iterate(
        config, iterations=1, tasks=TASKS, simulate=True, label=Labelling(mode="pair"), network=Architecture("head"),
        simulated=SimulatedLabelers(utility="colourfulness"),
    )  # fmt: skip
    assert found.folder == Path("runs/iterate-1")
    assert [run.folder for run in found.runs] == [Path("runs/iterate-1/iteration-1/run")]
    assert found.records[0].pairs == TASKS
    for wrong, message in (
        ({"resume": "runs/iterate-1", "tasks": 3}, "give resume and iterations alone"),
        ({"config": config, "task": 3}, "unknown setting 'task' of iterations; did you mean 'tasks'"),
        ({}, "give the settings of the alignment"),
    ):
        with pytest.raises(ConfigError, match=message):
            tm.iterate(**wrong)


def test_a_transformer_has_a_reward_model_of_its_own_blocks(tmp_path):
    words = ["--model", "bundled-flow", "--network.kind", "transformer", "--network.blocks", "2", "--iterations", "1"]
    assert main(["iterate", "grpo-compressibility", *SMALL, *words, "--out", str(tmp_path / "out")]) == 0
    made = json.loads((tmp_path / "out/iteration-1/reward-model/reward_model.json").read_text())["architecture"]
    assert (made["kind"], made["model"], made["blocks"]) == ("transformer", "bundled-flow", 2)
    assert lineage.read(tmp_path / "out")[0].run is not None


def test_the_word_for_the_reward_model_stands_for_its_folder():
    config = Config(reward="REWARD_MODEL:penalty=1 + 0.1*colourfulness")
    config = replace(config, evaluation=replace(config.evaluation, rewards=("REWARD_MODEL:value=std",)))
    found = run_config(IterationSettings(Loop(), config), "p", "runs/rm", "runs/before")
    assert found.reward == "runs/rm:penalty=1 + 0.1*colourfulness"
    assert found.evaluation.rewards == ("runs/rm:value=std",)
    assert found.tuning.start_from == "runs/before"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label.mode", "rate", "--label.images", "1"], "a reward model learns from images that are compared"),
        (["--label.overlap", "3"], "label.overlap is 3, but there are 1 simulated labelers"),
        (["--iterations", "0"], "iterations is 0, but must be greater than 0"),
        (["--reward", "colourfulness"], "in which no reward model has a part: write REWARD_MODEL"),
        (["algorithm=diffusion-dpo", "--pairs", "x"], "but an iteration learns from its labels: give LABELS"),
        (["--policy", "previous", "tuning.mode=full"], "policy is previous, which starts from an adapter"),
        (["--tuning.start-from", "x"], "where an alignment starts is what policy says"),
        (["--network.kind", "cnn"], "cannot be 'cnn'"),
        (["--model", "bundled-flow", "--network.kind", "unet"], "take kind transformer for a transformer"),
        (["--network.kind", "transformer"], "take kind unet for a U-Net"),
        (["--model", "bundled-flow", "--network.kind", "transformer", "algorithm=ppo"], "take conv or mlp"),
        (
            ["--network.kind", "clip", "algorithm=ppo", "algorithm.value_from=REWARD_MODEL"],
            "a value network begins as a reward model of kind unet, and network.kind is clip",
        ),
        (["--model", "bundled-flow", "--network.kind", "transformer", "--network.blocks", "9"], "blocks is 9, but"),
        (["--network.kind", "unet", "--network.heads", "7"], "heads is 7, but must divide the 128 channels"),
        (["--network.kind", "unet", "--network.timesteps", "1000"], "the training time 1000 is none of bundled"),
        (["--prompts", "nosuch"], "nosuch"),
        (["--simulated.utility", "nosuch"], "nosuch"),
        (["--evaluation.rewards", "nosuch"], "nosuch"),
        (["--resume", "nowhere", "--tasks", "3"], "unknown flag --tasks"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    argv = words if words[0] == "--resume" else ["ddpo-compressibility", *SMALL, *words, "--dry-run"]
    assert main(["iterate", *argv]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_going_on_where_nothing_was_begun(tmp_path, capsys):
    assert main(["iterate", "--resume", str(tmp_path)]) == 2
    assert f"{tmp_path} has no iterations" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["iterate", *UNET, "--dry-run"]) == 0
    said = capsys.readouterr().out
    images = "36 images of bundled, 8 prompts; later ones of the newest policy, those before it and the base model"
    assert f"12 tasks of 3 images ({images}), mode rank, labelled by 1 simulated labelers" in said
    assert "1 rounds of ppo from the adapter of the iteration before" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("people", [False, True])
def test_the_demo_of_preferences_is_accepted(tmp_path, monkeypatch, capsys, people):
    """`make demo-preferences` itself takes minutes: here its settings are checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    script = Path(__file__).parents[2] / "scripts/demo_preferences.py"
    demo = runpy.run_path(str(script))["demo"]
    assert demo(people, 60, ["--dry-run", "seed=1"]) == 0
    said = capsys.readouterr().out
    assert "60 tasks of 5 images" in said
    assert ("simulated labelers" in said) != people
    assert not list(tmp_path.iterdir())
