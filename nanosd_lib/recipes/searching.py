"""The searches of notebook 05, each network judged a cached computation of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from nanosd_lib.networks import arch
from nanosd_lib.runs.cache import Repeated
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.provenance import canonical, text_hash
from nanosd_lib.search import ehvi, loop


def searched(
    run: Run,
    acquisition: str,
    initial: list[int],
    networks: list[arch.Arch],
    known: np.ndarray,
    judge: Repeated,
    inputs: Sequence[Artifact],
) -> pd.DataFrame:
    """The trials of one search; each network judged is kept by itself, the whole as well."""
    b = run.profile.search
    evaluations = b.evaluations * (2 if acquisition == "random" else 1)  # a pool to draw from
    table = text_hash(canonical([[str(a) for a in networks], [float(v) for v in known]]))
    how = {"acquisition": acquisition, "initial": initial, "evaluations": evaluations}
    return run.cached(
        "search",
        loop.run_search,
        how | {"seed": run.seed},
        [*inputs, table],
        quiet=True,
        networks=networks,
        known=known,
        judge=judge,
    )["trials"]


def front(trials: pd.DataFrame, direction: str) -> pd.DataFrame:
    """Rows of `trials` on the front of the EHVI search in that direction that enlarge its
    hypervolume: better than the reference point in both.
    """
    t = trials[(trials.direction == direction) & (trials.search == "EHVI")]
    Y = torch.tensor([[loop.log_distance(r.tafid), getattr(r, direction)] for r in t.itertuples()])
    ref = ehvi.reference_point(Y[torch.tensor((t.phase == "initial").to_numpy())])
    inside = (Y < ref).all(1)
    return t[inside.numpy()][ehvi.pareto_mask(Y[inside]).numpy()]


def trials(
    found: dict[tuple[str, str], pd.DataFrame], networks: list, known: dict, judge: Repeated
) -> pd.DataFrame:
    """The searches as one table: a row for each network judged, in the order of judging, with the
    interval of its tAFID.
    """
    rows = []
    for (direction, how), table in found.items():
        for r in table.itertuples():
            costs = known["params"][r.index], known["latency"][r.index]
            name = str(networks[r.index])
            s = judge(arch=name)["scores"]
            tafid = s["tafid"], s["tafid_low"], s["tafid_high"]
            rows.append((name, *costs, *tafid, direction, how, r.order, r.phase, r.hypervolume))
    columns = ["arch", "params", "latency", "tafid", "tafid_low", "tafid_high"]
    columns += ["direction", "search"]
    return pd.DataFrame(rows, columns=[*columns, "order", "phase", "hypervolume"])
