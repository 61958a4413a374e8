"""`tastemaker compare`: people compare the images of two or three models without knowing whose they are."""

from __future__ import annotations

import importlib

from tastemaker.errors import ConfigError, nearest

ACTIONS = {
    "create": "make a blind comparison of two or three models",
    "serve": "let people answer it in their browsers",
    "result": "show win rates with their intervals, and whether the study may stop",
}
"""The commands, each a module `compare_NAME` of this package with a function `run(argv) -> exit code`."""

_HELP = """usage: tastemaker compare ACTION PROJECT ...

People compare images of two or three models side by side, without knowing whose they are.

actions:
{actions}

`tastemaker compare ACTION --help` shows its options."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.format(actions="\n".join(f"  {name:8} {what}" for name, what in ACTIONS.items())))
        return 0
    if argv[0] not in ACTIONS:
        raise ConfigError(f"unknown `tastemaker compare {argv[0]}`; {nearest(argv[0], list(ACTIONS))}")
    return importlib.import_module(f"tastemaker.cli.compare_{argv[0]}").run(argv[1:])
