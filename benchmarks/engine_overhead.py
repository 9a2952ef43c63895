"""What the engine costs beside plain papermill: the same notebook through both, in turns.

Writes benchmarks/engine_overhead.csv: notebook, engine, seconds (median), ratio to plain papermill.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from tqdm.auto import tqdm

from nanosd_lib.runs import kernels  # registers the engine

ROUNDS = 3
NOTEBOOKS = {
    "40 small cells": ["x = 1"] * 40,
    "40 cells of 100 kB": ["print('x' * 100_000)"] * 40,
    "40 cells of 1000 lines": ["for i in range(1000): print(i, flush=True)"] * 40,
}


def write(path: Path, cells: list[str]) -> None:
    spec = {"name": kernels.kernel_name(), "language": "python", "display_name": "Python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": spec})
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(book, path)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, cells in NOTEBOOKS.items():
            source, out = Path(folder) / "in.ipynb", Path(folder) / "out.ipynb"
            write(source, cells)
            for k in tqdm(range(ROUNDS), desc=name):
                for engine in (None, "nanosd")[:: 1 if k % 2 else -1]:
                    began = time.perf_counter()
                    papermill.execute_notebook(source, out, engine_name=engine, progress_bar=False)
                    rows.append((name, engine or "papermill", time.perf_counter() - began))
    table = pd.DataFrame(rows, columns=["notebook", "engine", "seconds"])
    table = table.groupby(["notebook", "engine"], sort=False).seconds.median().reset_index()
    plain = table[table.engine == "papermill"].set_index("notebook").seconds
    table["ratio"] = table.seconds / table.notebook.map(plain)
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.3g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
