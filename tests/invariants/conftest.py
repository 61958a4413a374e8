"""What holds for all runs of these tests."""

from __future__ import annotations

import pytest

from drawing import undrawn


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """Figures of reports are not drawn, also where fixtures of a module train; `drawing.drawn` has them drawn."""
    with undrawn():
        yield
