"""What the tests of training share."""

import pytest

from collaborative_experts.training import run_folder


@pytest.fixture(autouse=True)
def draw_curve(monkeypatch):
    """The function that draws the curve of a run. Runs leave it out, where it would take a third of their time."""
    draw = run_folder._draw
    monkeypatch.setattr(run_folder, "_draw", lambda history, path: None)
    return draw
