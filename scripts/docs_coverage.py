"""Fails when a public module, class, function or method of the package has no docstring.

Functions of at most three statements and classes of one need none. Whatever is in a function or in a private class is
private.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src/tastemaker"
IMPLEMENTED = {"steps", "run", "grid", "x0", "encode", "denoise", "decode", "reference", "chosen"}
"""Names that are documented at their protocol, or at `cli.main`."""


def public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """The public classes, functions and methods that a module or class defines."""
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def missing(source: str, path: str) -> list[str]:
    """Public names without a docstring in the text of a file, with the file's name and the line."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) or not tree.body else [f"{path}: module"]
    for node in public(tree.body):
        short = len(node.body) == 1 or (isinstance(node, ast.FunctionDef) and len(node.body) <= 3)
        if not (short or node.name in IMPLEMENTED or ast.get_docstring(node)):
            found.append(f"{path}:{node.lineno}: {node.name}")
    return found


def gaps() -> list[str]:
    """Public names without a docstring in the whole package."""
    return [gap for path in sorted(SOURCE.rglob("*.py")) for gap in missing(path.read_text("utf-8"), str(path))]


if __name__ == "__main__":
    print("\n".join(gaps()) or "every public name is documented")
    sys.exit(bool(gaps()))
