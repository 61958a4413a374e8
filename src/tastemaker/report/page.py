"""The one-file HTML report of a run, or of several side by side. No network, no JavaScript library."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from tastemaker.errors import ConfigError
from tastemaker.evaluation.figures import Plot, swatch
from tastemaker.printing import readable
from tastemaker.report.data import Run, read_run
from tastemaker.report.grid import build_grid
from tastemaker.report.plots import compare_plots, run_plots
from tastemaker.report.text import differences, summarise


def write_report(run: Path) -> Path:
    """Writes run/report.html from what is in the folder so far, finished or not, and returns its path."""
    data = read_run(run)
    return write_page(run / "report.html", _render([data], f"{data.name} · tastemaker", run_plots(data)))


def compare_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes one page about several runs to `out`: a table, curves laid over each other, images side by side."""
    if not runs:
        raise ConfigError("a comparison needs the folder of at least one run")
    data = [read_run(run) for run in runs]
    return write_page(out, _render(data, f"{len(data)} runs compared · tastemaker", compare_plots(data)))


def _render(runs: Sequence[Run], title: str, plots: Sequence[Plot]) -> str:
    names = _names(runs)
    return render_page(
        _text("template.html"),
        title=title,
        runs=[summarise(run, name) for run, name in zip(runs, names, strict=True)],
        swatches=[swatch(index) for index in range(len(runs))],
        differences=differences(runs),
        plots=plots,
        grid=build_grid(runs, names),
    )


def render_page(template: str, **values: object) -> str:
    """A page in the reports' style: Jinja2 with every value escaped, and `style`, the style sheet.

    `template` extends page.html, which has the head and the content security policy.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    return environment.from_string(template).render(style=_text("style.css").rstrip("\n"), **values)


def _text(name: str) -> str:
    return resources.files("tastemaker.report").joinpath(name).read_text(encoding="utf-8")


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with their parents' where two are the same."""
    short = [run.name for run in runs]
    return [
        name if short.count(name) == 1 else f"{run.folder.resolve().parent.name}/{name}"
        for run, name in zip(runs, short, strict=True)
    ]


def _csp_hash(script: str) -> str:
    """The source under which the page's content security policy lets this very script run, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(readable(str(script)).encode()).digest()).decode()


def write_page(path: Path, page: str) -> Path:
    """Replaces the file in one go, because a browser may be showing it and a run may be killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(readable(page), encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return path
