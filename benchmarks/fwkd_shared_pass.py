"""How much does one shared teacher pass save FwKD? Both ways timed in turns, in one run.

Shared: each step runs the teacher once and trains all thirty surrogates on what was captured.
Separate: thirty trainings, each of which runs the teacher once a step for its own surrogate.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from nanosd_lib.data import splits
from nanosd_lib.learning import fwkd
from nanosd_lib.networks import arch, pipeline

BATCH, ROUNDS = 16, 4


def step(teacher, nets, batch) -> None:
    """One FwKD step of these surrogates: teacher pass, losses, gradients, AdamW."""
    seen = fwkd.look(teacher, batch)
    for net, optimiser in nets:
        want = fwkd.targets(seen, net.stage, net.code)
        fwkd.relative_error(fwkd.outputs(net, seen[net.stage].inputs), want).backward()
        optimiser.step()
        optimiser.zero_grad()


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    pipe = pipeline.load_teacher("data/sd-mini")
    latents = splits.Latents(**splits.latents(pipe, "train", 64, 8, 0)["latents"])
    nets = fwkd.surrogates(pipe.unet, list(arch.alternatives())).values()
    pairs = [(n, torch.optim.AdamW(n.parameters(), lr=1e-3, fused=True)) for n in nets]
    rows = []
    for k in tqdm(range(ROUNDS + 1), desc="rounds"):
        batch = splits.noisy(latents, pipe.scheduler, BATCH, torch.Generator().manual_seed(k))
        began = time.perf_counter()
        step(pipe.unet, pairs, batch)
        middle = time.perf_counter()
        for pair in pairs:
            step(pipe.unet, [pair], batch)
        rows.append((k, middle - began, time.perf_counter() - middle))
    table = pd.DataFrame(
        rows[1:], columns=["round", "shared_s", "separate_s"]
    )  # the first warms up
    table["ratio"] = table.separate_s / table.shared_s
    print(table.round(3).to_string(index=False))
    print(f"one step of all thirty: shared is {table.ratio.median():.2f} times faster (median)")
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
