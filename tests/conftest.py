"""What all tests share: one torch thread, since networks this small only wait for a second one; the
bundled teacher, loaded once a worker; executed pages kept for whoever looks into a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from nanosd_lib.networks import pipeline

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # `nohup make test`: what is ignored is
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # inherited, and tests send it


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sd_mini():
    """The bundled teacher's pipeline. Whoever needs to change it takes `pipeline.with_parts`."""
    return pipeline.load_teacher("data/sd-mini")


def pytest_collection_modifyitems(config, items):
    """Nightly tests only where they are asked for by name: `make nightly`. The end-to-end run comes
    first: one of two workers takes it, the other one the rest.
    """
    items.sort(key=lambda item: item.path.stem != "test_end_to_end")
    if "nightly" not in (config.option.markexpr or ""):
        skip = pytest.mark.skip(reason="nightly: `make nightly`")
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where KEEP_PAGES names a folder, a failed test leaves its executed pages there."""
    report = yield
    kept = os.environ.get("KEEP_PAGES")
    study = getattr(item, "funcargs", {}).get("study")
    if kept and report.failed and study:
        shutil.copytree(study["folder"] / "notebooks", Path(kept), dirs_exist_ok=True)
    return report
