"""Time from a key press to the next pair on the screen, in the system's Chromium.

    python benchmarks/labelling_latency.py [--votes 200] [--size 256]

Serves a project of drawn pairs, labels it by keyboard, and measures in the page: from the key event's own time stamp to
the frame after the one in which both shown images are others and are decoded. Prints milliseconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median, quantiles

import uvicorn

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "browser"))

from browsing import chromium
from tests.drawn_tasks import drawn_tasks
from tests.label_client import served

from tastemaker.labelling.project import add_tasks
from tastemaker.labelling.settings import Labelling
from tastemaker.web.listening import listen

WATCH = """
window.latencies = [];
addEventListener("keydown", (event) => {
  const pressed = event.timeStamp;
  const shown = () => [...document.querySelectorAll("#stage .frame img")];
  const before = new Set(shown().map((image) => image.src));
  const look = () => {
    const now = shown();
    const next = now.length === 2 && now.every((image) => !before.has(image.src) && image.complete);
    if (next) requestAnimationFrame(() => window.latencies.push(performance.now() - pressed));
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}, true);
"""
IDLE = """() => new Promise((done) => {
  const times = [];
  const frame = (time) => (times.push(time) < 61 ? requestAnimationFrame(frame) : done((times[60] - times[0]) / 60));
  requestAnimationFrame(frame);
})"""


def measure(votes: int, size: int) -> tuple[list[float], float]:
    """The latency of each vote, and the time of a frame of the page at rest, in ms."""
    settings = Labelling(mode="pair")
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder) / "p", settings, tasks=0) as app,
        listen("127.0.0.1", 0) as listener,
        chromium() as browser,
    ):
        add_tasks(app.project, drawn_tasks(settings, votes + 10, size, seed=1))
        server = uvicorn.Server(uvicorn.Config(app.app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.add_cookies([{"name": app.app.state.context.cookie, "value": app.cookie("ann"), "url": address}])
            page = context.new_page()
            page.add_init_script(WATCH)
            page.goto(f"{address}/label")
            page.wait_for_selector("body[data-task]")
            page.wait_for_timeout(1000)
            frame = page.evaluate(IDLE)
            for vote in range(votes):
                page.keyboard.press(("ArrowLeft", "ArrowRight")[vote % 2])
                page.wait_for_timeout(250)
            page.wait_for_timeout(1000)
            latencies = page.evaluate("window.latencies")
            context.close()
        finally:
            server.should_exit = True
            thread.join()
    if len(latencies) != votes:
        sys.exit(f"{len(latencies)} of {votes} votes were followed by another pair")
    return latencies, frame


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--size", type=int, default=256, help="pixels of an image's side")
    arguments = parser.parse_args()
    found, frame_time = measure(arguments.votes, arguments.size)
    late = quantiles(found, n=20, method="inclusive")[-1]
    print(
        f"{len(found)} votes: median {median(found):.1f} ms, 95th percentile {late:.1f} ms, maximum {max(found):.1f} "
        f"ms; a frame of the page at rest {frame_time:.1f} ms"
    )
