"""Fails when a public module, class, function or method of the package has no docstring."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src/tastemaker"
IMPLEMENTED = {"steps", "run", "grid", "x0", "encode", "denoise", "decode", "reference"}
"""Names whose meaning stands at their protocol, or at `cli.main`."""


def missing(path: Path) -> list[str]:
    """Public names in a file that say nothing of themselves."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) or not tree.body else [f"{path}: module"]
    for node in ast.walk(tree):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
            continue
        if node.name in IMPLEMENTED or _nested(node, tree) or ast.get_docstring(node):
            continue
        short = len(node.body) == 1 or (isinstance(node, ast.FunctionDef) and len(node.body) <= 3)
        if not short:
            found.append(f"{path}:{node.lineno}: {node.name}")
    return found


def _nested(node: ast.AST, tree: ast.Module) -> bool:
    functions = [parent for parent in ast.walk(tree) if isinstance(parent, ast.FunctionDef) and parent is not node]
    return any(node in ast.walk(parent) for parent in functions)


if __name__ == "__main__":
    gaps = [gap for path in sorted(SOURCE.rglob("*.py")) for gap in missing(path)]
    print("\n".join(gaps) or "every public name is documented")
    sys.exit(bool(gaps))
