"""Runs whose reward is people, here simulated ones: waiting, stopped in the middle, and resumed to the same weights."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from safetensors.torch import load_file
from test_runs import SETTINGS, exit_with_main, metrics

from forked import Child, finish
from label_serving import serving
from tastemaker.cli.main import main
from tastemaker.labelling.batches import look_up
from tastemaker.labelling.project import create_project
from tastemaker.labelling.settings import Labelling
from tastemaker.labelling.simulate import simulate
from tastemaker.labelling.tables import Batch
from tastemaker.labelling.taste import Behaviour
from tastemaker.runs.checkpoint import saved_round

LIVE = [
    "--rounds", "2", "sampling.per_prompt=2", "sampling.batch=4", "evaluation.every=2", "evaluation.per_prompt=2",
    "checkpoint.every=1", "labelers.poll=0.05",
]  # fmt: skip
"""Two rounds and evaluations before and after them: four batches of images."""
ROUND_2, LAST_EVALUATION = 3, 4


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch):
    monkeypatch.setattr("tastemaker.training.run.write_report", lambda folder: folder / "report.html")  # a second each


def redness(x, prompts):
    return x[:, 0].mean(dim=(1, 2)).tolist()


def words(checkpoint, out, project, *more):
    fixed = ["train", "ddpo-compressibility", "--model", str(checkpoint), "--out", str(out)]
    return [*fixed, "--reward", f"label:{project}", *SETTINGS, *LIVE, *more]


class People:
    """Simulated labelers of a served project, who answer by the utility alone, and work when they are told to."""

    def __init__(self, served):
        self.served, self.crowd = served, served.crowd(2)

    def batches(self):
        """The states of all batches, in their order."""
        project = self.served.project
        with project.database.read() as session:
            keys = session.scalars(sa.select(Batch.key).order_by(Batch.id)).all()
            return [look_up(session, project.settings, key) for key in keys]

    def wait_for(self, count):
        """Waits until a run has sent its n-th batch."""
        deadline = time.monotonic() + 200
        while len(self.batches()) < count:
            assert time.monotonic() < deadline, self.batches()
            time.sleep(0.05)

    def label(self, votes=None):
        """Labels what there is, or so many pairs each."""
        asyncio.run(simulate(self.crowd, Behaviour(temperature=0.0), redness, 0, votes=votes))

    @contextmanager
    def at_work(self):
        """They label whatever comes until the block ends."""
        ended = threading.Event()

        def work():
            while not ended.is_set():
                # Each time that they label they log in, which is slow on purpose.
                if any(batch.state == "waiting" for batch in self.batches()):
                    self.label()
                else:
                    time.sleep(0.05)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(60)


@contextmanager
def people(folder):
    create_project(folder, Labelling("pair")).close()
    with serving(folder) as served:
        yield People(served)


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """The run that nothing went wrong in."""
    folder = tmp_path_factory.mktemp("live")
    with people(folder / "labels") as labelers, labelers.at_work():
        assert main(words(checkpoint, folder / "run", folder / "labels")) == 0
        assert [batch.state for batch in labelers.batches()] == ["finished"] * 4
    return folder / "run"


def same(one, two):
    """Both runs came to the same end, with the same figures on the way."""
    assert metrics(one) == metrics(two)
    for name in ("weights", "optimizer"):
        first, second = (load_file(run / f"checkpoints/step-000002/{name}.safetensors") for run in (one, two))
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first), name


def test_rewards_are_what_people_said(whole):
    """Of each pair one image won and one lost: the mean is a half, whatever the images are."""
    rounds = [record for record in metrics(whole) if "round" in record]
    assert [record["reward/mean"] for record in rounds] == [0.5, 0.5]
    assert {record["reward/max"] - record["reward/min"] for record in rounds} == {1.0}


def test_a_run_killed_and_stopped_while_it_waits_goes_on_to_the_same_weights(whole, checkpoint, tmp_path):
    run, project = tmp_path / "run", tmp_path / "labels"
    with people(project) as labelers:
        child = Child(exit_with_main, *words(checkpoint, run, project), log=tmp_path / "first")
        for number in range(1, ROUND_2):
            labelers.wait_for(number)
            labelers.label()
        # Killed when some of the second round's pairs are labelled.
        labelers.wait_for(ROUND_2)
        labelers.label(votes=1)
        waiting = labelers.batches()[-1]
        assert (waiting.state, waiting.tasks) == ("waiting", 4)
        assert 0 < waiting.labelled < 4
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert "waiting for labelers at http://127.0.0.1:" in child.output()
        assert saved_round(run) == 1

        # What was said before and meanwhile is found: the second round's images are no new batch.
        labelers.label()
        child = Child(exit_with_main, "resume", str(run), log=tmp_path / "second")
        labelers.wait_for(LAST_EVALUATION)
        child.send_signal(signal.SIGTERM)
        assert "stopped by SIGTERM after round 2 of 2" in finish(child, 75)
        with labelers.at_work():
            assert main(["resume", str(run)]) == 0
        assert [batch.state for batch in labelers.batches()] == ["finished"] * 4
    same(whole, run)


def test_nobody_comes(checkpoint, tmp_path, capsys, monkeypatch):
    """The run ends with exit code 69 and a checkpoint, and goes on from there when people are back.

    Its clock goes a day forward when the second round's images are there, so that nobody has to wait.
    """
    run, project = tmp_path / "run", tmp_path / "labels"
    with people(project) as labelers:
        left = threading.Event()
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 86_400 * left.is_set())

        def label_first():
            """The first evaluation and the first round."""
            for number in range(1, ROUND_2):
                labelers.wait_for(number)
                labelers.label()
            labelers.wait_for(ROUND_2)
            left.set()

        thread = threading.Thread(target=label_first, daemon=True)
        thread.start()
        with monkeypatch.context() as patch:
            patch.setattr("tastemaker.rewards.labelers.reward.time", clock)
            assert main(words(checkpoint, run, project, "labelers.wait=80000")) == 69
        thread.join(60)
        errors = capsys.readouterr().err
        assert "(`labelers.wait` is how long to wait for them; what they have labelled is kept)" in errors
        assert f"saved up to round 1; go on with: tastemaker resume {run}" in errors
        assert saved_round(run) == 1
        with labelers.at_work():
            assert main(["resume", str(run)]) == 0


def test_another_project_is_not_the_same_reward(whole, checkpoint, tmp_path, capsys):
    """A resumed run wants the same people's project, wherever it is served."""
    run, project = tmp_path / "run", tmp_path / "labels"
    with people(project) as labelers, labelers.at_work():
        assert main(words(checkpoint, run, project, "--rounds", "1", "evaluation.every=9")) == 0
    with people(tmp_path / "others"):
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace(str(project), str(tmp_path / "others")))
        assert main(["resume", str(run), "--rounds", "2"]) == 2
    assert "the server's reward labelling project" in capsys.readouterr().err
