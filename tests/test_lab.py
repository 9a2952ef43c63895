"""lab: a reader opens notebook 01 in JupyterLab, asks for the explorer, and moves a slider."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request

import nbformat
import pytest

from nanosd_lib.paths import ROOT

pytestmark = pytest.mark.nightly
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


@pytest.fixture
def lab(tmp_path):
    """The address of a lab on a copy of the page as far as its explorer, and `explorer.show()`."""
    book = nbformat.read(ROOT / "notebooks" / "01_tiling_analysis.ipynb", 4)
    last = next(i for i, c in enumerate(book.cells) if "explorers.Explorer(" in c.source)
    kept = [c for c in book.cells[: last + 1] if c.cell_type == "code" and "draw(" not in c.source]
    book.cells = [*kept, nbformat.v4.new_code_cell("explorer.show()")]
    nbformat.write(book, tmp_path / "explorer.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(8)
    names = ("CONFIG_DIR", "DATA_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
    env = os.environ | {
        f"JUPYTER{'' if n.startswith('LAB') else '_'}{n}": str(tmp_path / n) for n in names
    }
    env["NANOSD_RESULTS"] = str(tmp_path / "results")
    words = [
        str(ROOT / ".venv" / "bin" / "python"), "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ip=127.0.0.1", "--MappingKernelManager.default_kernel_name=nanosd", f"--port={port}",
        "--port-retries=0", f"--IdentityProvider.token={token}", f"--notebook-dir={tmp_path}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT)
        home = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{home}/api?token={token}", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield home, token
        server.terminate()
        server.wait(30)


def test_a_slider_changes_the_table(lab):
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the lab is not seen through a browser")
    home, token = lab

    def idle() -> bool:
        with urllib.request.urlopen(f"{home}/api/sessions?token={token}") as told:
            kernels = [x["kernel"] for x in json.load(told)]
        return any(k["execution_state"] == "idle" and k["connections"] for k in kernels)

    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{home}/lab/tree/explorer.ipynb?reset&token={token}")
        page.wait_for_selector(".jp-NotebookPanel-toolbar", timeout=120_000)
        for _ in range(240):
            page.wait_for_timeout(500)
            if page.locator(".jp-Dialog").count():
                page.locator(".jp-Dialog .jp-mod-accept").click()
            if idle():
                break
        page.wait_for_timeout(1500)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        slider = page.locator(".widget-slider .noUi-handle").first
        slider.wait_for(timeout=180_000)
        table = page.locator(".widget-output table").first
        table.wait_for(timeout=60_000)
        before = table.inner_text()
        slider.focus()
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        api.expect(table).not_to_have_text(before, timeout=30_000)
        browser.close()
