"""Time to a notebook's first line: kernel start, imports, and the run opened.

Ordinary kernels against forked ones, in turns, and the imports of some modules by themselves;
`--before COMMIT` adds the same for an older commit. Writes benchmarks/startup.csv: what, way,
seconds and cpu_seconds (medians of `runs`), ratio (of CPU-seconds to the first way of its kind).
A forked kernel's CPU-seconds are its own; those of the imports, spent once a study, have a row.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import nbformat
import pandas as pd
import psutil
from tqdm.auto import tqdm

from nanosd_lib.engine import forking, kernels
from nanosd_lib.paths import ROOT

MODULES = {  # and what they were called when the library had no rooms
    "paper": "paper",
    "runs.provenance": "provenance",
    "studies.jobs": "jobs",
    "studies.doctor": "doctor",
    "studies.runner": "runner",
    "runs.notebook": "store",
    "search.ehvi": "search",
    "networks.surgery": "surgery",
}
SPENT = "import os; print('spent', sum(os.times()[:2]))"


def opening(source: Path, path: Path) -> None:
    """The notebook up to its run, and a cell that prints the CPU-seconds of its kernel."""
    book = nbformat.read(source, as_version=4)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"][:2]
    head, line, _ = code[1].partition("open_run(")
    code[1] = f"{head}{line}'{source.stem}', 'smoke')"
    book.cells = [nbformat.v4.new_code_cell(text) for text in (*code, SPENT)]
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, path)


def first_line(path: Path, library: Path, results: Path) -> tuple[float, float]:
    """Seconds and CPU-seconds until the run of `opening` stands."""
    out, env = path.with_suffix(".out.ipynb"), {"NANOSD_RESULTS": str(results)}
    env |= {"PYTHONPATH": str(library), "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    outcome = kernels.execute(path, out, {}, env)
    seconds = time.perf_counter() - began
    if outcome.state != "ok":
        raise RuntimeError(f"{path.stem}: {outcome.error}")
    text = nbformat.read(out, as_version=4).cells[-1].outputs[0].text
    return seconds, float(text.split()[1])


def imported(module: str, library: Path) -> tuple[float, float]:
    """Seconds and CPU-seconds of a Python that imports one module of the library."""
    code = f"import nanosd_lib.{module}, os; print(sum(os.times()[:2]))"
    env, began = os.environ | {"PYTHONPATH": str(library)}, time.perf_counter()
    words = [sys.executable, "-c", code]  # which looks into its own folder first
    done = subprocess.run(words, cwd=library, env=env, capture_output=True, check=True)
    return time.perf_counter() - began, float(done.stdout)


@contextlib.contextmanager
def libraries(before: str | None) -> Iterator[dict[str, Path]]:
    """Way -> folder of the library; `before` is taken out of git into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        ways = {"ordinary": ROOT}
        if before:
            words = ["git", "archive", before, "nanosd_lib", "notebooks", "data"]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
            tarfile.open(fileobj=BytesIO(done.stdout)).extractall(folder, filter="data")
            ways = {"before": Path(folder), **ways}
        yield ways


def measured(ways: dict[str, Path], rounds: int) -> Iterator[tuple]:
    """(what, way, seconds, cpu_seconds) of every run."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder, forking.ahead(notebooks):
        warm = forking.AHEAD[-1]
        for number in tqdm(range(rounds), desc="rounds"):
            for source in tqdm(notebooks, desc="notebooks", leave=False):
                path = Path(folder) / source.name
                forking.AHEAD.remove(warm)  # none is forked meanwhile
                for way, library in ways.items():
                    opening(library / "notebooks" / source.name, path)
                    yield source.stem, way, *first_line(path, library, Path(folder) / "results")
                forking.AHEAD.append(warm)
                began = time.perf_counter()
                seconds, cpu = first_line(path, ROOT, Path(folder) / "results")
                if warm.refused:
                    raise RuntimeError(warm.refused)
                if number == 0 and source == notebooks[0]:  # it has waited for the imports
                    times = psutil.Process(warm.zygote.process.pid).cpu_times()
                    lasted = time.perf_counter() - began
                    yield "imports, once a study", "forked", lasted, times.user + times.system
                    seconds, cpu = first_line(path, ROOT, Path(folder) / "results")
                yield source.stem, "forked", seconds, cpu
            for module in tqdm(MODULES, desc="modules", leave=False):
                for way, library in ways.items():
                    flat = way == "before" and not (library / "nanosd_lib" / "runs").is_dir()
                    name = MODULES[module] if flat else module
                    said = "now" if way == "ordinary" else way
                    yield f"import {module}", said, *imported(name, library)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", help="a commit to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    columns = ["what", "way", "seconds", "cpu_seconds"]
    with libraries(options.before) as ways:
        rows = pd.DataFrame(measured(ways, options.rounds), columns=columns)
    groups = rows.groupby(["what", "way"], sort=False)
    table = groups.median().assign(runs=groups.size()).reset_index()
    base = table.groupby("what").cpu_seconds.transform("first")
    table["ratio"] = table.cpu_seconds / base
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.3g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
