"""What a learner sees in a real browser: `make lab`, a lesson run from top to bottom, a question answered by form."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")

LESSONS = ["01_naive_model_parallelism"]
LAB = "03_one_f_one_b"
SECONDS = 240  # for a lesson on a busy machine; a quiet one takes a tenth
# The background services of Chromium would look for the network, which a test has no business with.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def lab(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab started by `make lab` on a copy of the course."""
    if shutil.which("make") is None or not (project_root / ".venv").exists():
        pytest.skip("needs make and the .venv that it keeps")
    folder = tmp_path_factory.mktemp("lab")
    (folder / "course" / "notebooks").mkdir(parents=True)
    for lesson in (project_root / "notebooks").glob("*.ipynb"):
        (folder / "course" / "notebooks" / lesson.name).write_text(_without_outputs(lesson))
    shutil.copytree(project_root / "exercises" / LAB, folder / "course" / LAB)
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Draw all cells, not only those in sight, so that all of them can be looked at.
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.port=0",  # any that is free
        "--ServerApp.token=test",
        f"--ServerApp.root_dir={folder / 'course'}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
        "--expose-app-in-browser",
    ]
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        ["make", "lab", f"LAB_ARGS={' '.join(options)}"],
        cwd=project_root,
        env=os.environ | {"PPKIT_LIVE": "1"},  # with widgets, as for a learner
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield _address(server, folder / "log")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def _without_outputs(notebook: Path) -> str:
    """A notebook as new: what a browser then shows, this run has made."""
    document = json.loads(notebook.read_text())
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(document)


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Where it serves, as it says itself, once it answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        if said := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{said[0]}/api/status?token=test", timeout=5):
                return said[0]
        time.sleep(0.3)
    pytest.fail(f"make lab did not serve:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def _open(browser: Any, lab: str, path: str) -> Any:
    """Open a notebook in a page and a workspace of its own, with no other notebook in it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{lab}/lab/workspaces/{Path(path).stem}/tree/{path}?token=test")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_function("window.jupyterapp !== undefined")
    page.evaluate("window.jupyterapp.restored")
    # Until then JupyterLab leaves out, without a word, the cells that it is told to run.
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
        timeout=120_000,
    )
    return page


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_runs_from_top_to_bottom(
    name: str, lab: str, browser: Any, project_root: Path, tmp_path: Path
) -> None:
    page = _open(browser, lab, f"notebooks/{name}.ipynb")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """() => {
            const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent);
            return prompts.length > 0 && prompts.every(p => /\\[\\d+\\]/.test(p));
        }""",
        timeout=SECONDS * 1000,
    )
    page.wait_for_timeout(2000)
    page.screenshot(path=str(tmp_path / f"{name}.png"))
    cells = page.evaluate("window.jupyterapp.shell.currentWidget.content.model.toJSON()")["cells"]
    figures = 0
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert bool(errors) == ("raises-exception" in cell["metadata"].get("tags", [])), (cell["id"], errors)
        assert not [output for output in cell["outputs"] if output.get("name") == "stderr"], cell["outputs"]
        figures += sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in cell["outputs"])
    assert figures > 0
    assert page.locator(".jp-OutputArea-output.js-plotly-plot:has(.bars path)").count() == figures
    page.close()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_answers_of_a_form_come_into_the_cell_and_are_accepted(lab: str, browser: Any) -> None:
    page = _open(browser, lab, f"{LAB}/{LAB}.ipynb")
    try:
        _run(page, "setup")
        _run(page, "task-2")
        page.get_by_label("Micro-batches whose activations").fill("3")
        page.get_by_label("Idle part of all ranks").fill("3 / 15")
        page.keyboard.press("Tab")  # from field to field, and to the words to choose from
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.get_by_text('idle_compared = "as long"').wait_for()
        _run(page, "check-2")
        assert "not done yet" in _output(page, "check-2")
        assert "run its cell once more" in _output(page, "check-2")
        page.get_by_role("radio", name="as long").focus()
        page.keyboard.press("Shift+Enter")  # in the form, it runs the form's cell
        page.get_by_text("Now this cell says").wait_for()
        source = page.evaluate(f"{_FIND}('task-2').model.sharedModel.getSource()")
        assert source == (
            'held_on_rank_1 = 3\nidle_fraction = 3 / 15\nidle_compared = "as long"\n'
            "lab03.ask_predictions(held_on_rank_1, idle_fraction, idle_compared)"
        )
        _run(page, "check-2")
        assert "passed. 15 of 15 points" in _output(page, "check-2")
    finally:
        page.close()


_FIND = "(id => window.jupyterapp.shell.currentWidget.content.widgets.find(cell => cell.model.id === id))"


def _run(page: Any, cell: str) -> None:
    """Run a cell, and wait for its end."""
    page.evaluate(
        f"""id => {{
            const notebook = window.jupyterapp.shell.currentWidget.content;
            notebook.activeCellIndex = notebook.widgets.indexOf({_FIND}(id));
            {_FIND}(id).model.clearExecution();
            return window.jupyterapp.commands.execute('notebook:run-cell');
        }}""",
        cell,
    )
    page.wait_for_function(f"id => {_FIND}(id).model.executionCount !== null", arg=cell, timeout=SECONDS * 1000)
    page.wait_for_timeout(1000)


def _output(page: Any, cell: str) -> str:
    """What a cell shows, as text."""
    return str(page.evaluate(f"id => {_FIND}(id).outputArea.node.innerText", cell))
