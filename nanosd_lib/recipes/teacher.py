"""`make teacher`: sd-mini, its judges and its VAE, with the numbers of `budgets/teacher.yaml`."""

from __future__ import annotations

import json

import torch

from nanosd_lib import paths
from nanosd_lib.learning import sd_mini
from nanosd_lib.runs import profiles


def main(argv: list[str] | None = None) -> int:
    """Train, or go on where a killed training stopped; takes no words."""
    if argv:
        raise SystemExit(f"error: teacher takes no words, got {argv[0]!r}")
    budget = profiles.teacher_training()
    torch.set_num_threads(budget.threads)
    made = sd_mini.train(paths.ROOT / "results" / "teacher", paths.ROOT / "data", budget)
    print(json.dumps({k: made[k] for k in ("steps", "training_seconds")}))
    return 0
