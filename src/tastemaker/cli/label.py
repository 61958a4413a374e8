"""`tastemaker label`: the commands of labelling projects."""

from __future__ import annotations

import importlib

from tastemaker.errors import ConfigError, nearest

ACTIONS = {
    "create": "make a project of images from a run, a model with prompts, or files",
    "serve": "let people label a project in their browsers",
    "export": "write a project's preferences as a data set",
    "import": "read preferences of other people's data sets into a project",
    "stats": "show how far a project is, and how well its labelers agree",
    "simulate": "label a project by simulated people, over HTTP",
    "withdraw": "ask labelers no more for images of a training run that was given up",
    "backup": "copy a project while it is labelled",
}
"""The commands, each a module `label_NAME` of this package with a function `run(argv) -> exit code`."""

_HELP = """usage: tastemaker label ACTION PROJECT ...

People compare images in their browsers, and what they prefer trains a model.

actions:
{actions}

`tastemaker label ACTION --help` shows its options."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.format(actions="\n".join(f"  {name:8} {what}" for name, what in ACTIONS.items())))
        return 0
    if argv[0] not in ACTIONS:
        raise ConfigError(f"unknown `tastemaker label {argv[0]}`; {nearest(argv[0], list(ACTIONS))}")
    return importlib.import_module(f"tastemaker.cli.label_{argv[0]}").run(argv[1:])
