"""What notebook 07's tables say, in words made from their numbers."""

from __future__ import annotations

import pandas as pd

from nanosd_lib.views.readings import between, digits, listed

SIGNED = "{:+.2g}"


def _row(table: pd.DataFrame, case: str, data: str, measure: str) -> pd.Series:
    found = table[(table.case == case) & (table.data == data) & (table.measure == measure)]
    return found.iloc[0]


def _in(row: pd.Series, form: str = "") -> str:
    return between(row.difference, row.difference_low, row.difference_high, form)


def _better(row: pd.Series, sign: int) -> str:
    """better, worse or undecided, by the whole interval; sign is that of an improvement."""
    low, high = sorted((sign * row.difference_low, sign * row.difference_high))
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def gain(damage: pd.DataFrame, g: list[float], published: int) -> str:
    """The curve of gains: damage of both kinds, the published timestep and the matched one."""
    both, (one, two) = damage.iloc[-1], (damage.iloc[k] for k in (0, 1))
    return (
        f"At t = {published} an error of the U-Net is multiplied by {digits(g[published])}. The"
        f" latents of damaged and clean training pictures lie"
        f" {between(both.rms, both.rms_low, both.rms_high)} apart ({digits(one.rms)} for"
        f" {one.data}, {digits(two.rms)} for {two.data}); noise of that size is met at t ="
        f" {both.t:.0f}: {g[published] / g[int(both.t)]:.0f} times less."
    )


def lesson(before: float, after: float, steps: int) -> str:
    """The page's own short training: error of held-out pictures before and after."""
    way = "fell" if after < before else "did not fall"
    return (
        f"In {steps} steps the mean square error of held-out pictures {way}, from"
        f" {digits(before)} to {digits(after)}. That shows how it is learned, not how well."
    )


def differences(table: pd.DataFrame, ours: str) -> str:
    """Every case against bicubic: of those trained as `ours` was, how many are better beyond their
    interval; what a backbone does untrained; whether longer training shows.
    """
    way, said = table[table.case == ours].trained.iloc[0], []
    for data in dict.fromkeys(table.data):
        rows = table[(table.data == data) & (table.measure == "lpips")]
        mine, others = rows[rows.trained == way], rows[(rows.trained != way) & (rows.steps > 0)]
        verdicts = [_better(r, -1) for _, r in mine.iterrows()]
        best = mine.loc[mine.difference.idxmin()]
        psnr = _row(table, best.case, data, "psnr_y")
        bare = rows[rows.steps == 0].set_index("case")
        none = [f"{_in(r, SIGNED)} ({name})" for name, r in bare.iterrows()]
        said.append(
            f"On {data} (n = {best.n}) {verdicts.count('better')} of {len(mine)} systems trained"
            f" alike ({way}) have a smaller LPIPS than bicubic beyond their interval; the smallest"
            f" belongs to {best.case} ({_in(best, SIGNED)}), whose PSNR is {_better(psnr, 1)}"
            f" ({_in(psnr, SIGNED)} dB)."
            + (f" Untrained, backbones change it by {listed(none)}." if none else "")
            + (f" Trained otherwise: {len(others)}." if len(others) else "")
        )
    return " ".join(said)


def over_seeds(table: pd.DataFrame, to_teacher: pd.DataFrame, ours: str) -> str:
    """What another seed of the training would change (over_seeds of sr_differences.csv)."""
    n, said, wide = _row(table, ours, table.data.iloc[0], "lpips").seeds, [], []
    if n < 2:
        return "One seed: nothing is known of what another would change."
    for data in dict.fromkeys(table.data):
        parts = []
        for name, some in (("bicubic", table), ("the teacher's backbone", to_teacher)):
            r = _row(some, ours, data, "lpips")
            ends = between(r.over_seeds, r.over_seeds_low, r.over_seeds_high, SIGNED)
            parts.append(f"{ends} against {name}")
            half = r.over_seeds_high - r.over_seeds_low
            wide.append(half > r.difference_high - r.difference_low)
        said.append(f"on {data} {listed(parts)}")
    more = f"In {sum(wide)} of these {len(wide)} the seeds leave more open than the pictures do."
    return f"Differences of LPIPS over {n:.0f} seeds of the training: {'; '.join(said)}. {more}"


def adapters(table: pd.DataFrame) -> str:
    """What many adapters on one backbone weigh, and what as many networks would (adapters.csv)."""
    share = table.parameters / table.of
    least, most = table.loc[share.idxmin()], table.loc[share.idxmax()]
    light, whole = table.megabytes.sum(), 2 * table.of.sum() / 1e6
    return (
        f"An adapter has {share.min():.0%} ({least['name']}) to {share.max():.0%}"
        f" ({most['name']}) of the parameters of the U-Net and the VAE it belongs to. All"
        f" {len(table)} are {digits(light)} MB in float16; as many networks of their own would be"
        f" {digits(whole)} MB."
    )


def each_photograph(table: pd.DataFrame, ours: str) -> str:
    """Photograph by photograph (sr_photographs.csv): whether crops or photographs are too few."""
    rows = table[table.case == ours]
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for _, r in rows.iterrows():
        kinds[_better(r, -1)].append(r.photograph)
    words = {"better": "smaller", "worse": "larger", "undecided": "not told apart"}
    said = [f"{words[k]} on {listed(names)}" for k, names in kinds.items() if names]
    wide = ((rows.difference_high - rows.difference_low) / 2).mean()
    apart = rows.difference.std()
    more = "photographs" if apart > wide else "crops of each"
    return (
        f"LPIPS of {ours} against bicubic's is {listed(said)} (intervals over {rows.n.iloc[0]}"
        f" crops). From photograph to photograph the difference varies by {digits(apart)} (one"
        f" deviation); within one it is known to {digits(wide)}. So what would decide is more"
        f" {more}."
    )


def without_vsd(table: pd.DataFrame, case: str, ways: tuple[str, str]) -> str:
    """What VSD does: a case trained without it against the same with it (`differences`), where both
    were trained alike.
    """
    without, with_ = ways
    if without != with_:
        return f"No comparison: without VSD {without}, with it {with_}."
    said = []
    for data in dict.fromkeys(table.data):
        parts = []
        for measure, name, sign, form in (
            ("lpips", "LPIPS", -1, SIGNED),
            ("psnr_y", "PSNR", 1, SIGNED),
        ):
            row = _row(table, case, data, measure)
            parts.append(f"{name} changes by {_in(row, form)} ({_better(row, sign)})")
        said.append(f"on {data} {listed(parts)}")
    return f"When VSD is left out, {'; '.join(said)}."


def longer(
    to_bicubic: pd.DataFrame, to_ours: pd.DataFrame, case: str, steps: tuple[int, int]
) -> str:
    """Whether a doubled budget helps: LPIPS of a case trained twice as long against the same that
    was not (`to_ours`) and against bicubic, where it really had twice as many steps.
    """
    twice, once = steps
    if twice != 2 * once:
        return f"No comparison: {twice} steps are not twice {once}."
    said, helped = [], []
    for data in dict.fromkeys(to_ours.data):
        off, plain = (_row(t, case, data, "lpips") for t in (to_ours, to_bicubic))
        said.append(
            f"on {data} by {_in(off, SIGNED)} ({_better(off, -1)}), which leaves"
            f" {_in(plain, SIGNED)} against bicubic's ({_better(plain, -1)})"
        )
        helped += [data] if _better(off, -1) == "better" else []
    end = f"It helps on {listed(helped)}." if helped else "No gain of it is seen."
    return f"{twice} steps in place of {once} change LPIPS {'; '.join(said)}. {end}"


def ceiling(table: pd.DataFrame) -> str:
    """What the VAEs alone keep, beside bicubic: rows of sr.csv."""
    said = []
    for data in dict.fromkeys(table.data):
        of = table[(table.data == data) & (table.fix == "none")]
        plain = of[of.system == "bicubic"].iloc[0]
        alone = of[of.system == "VAE alone"].set_index("vae").psnr_y
        parts = [f"the {name} VAE {digits(x)} dB" for name, x in alone.items()]
        said.append(
            f"on {data} {listed(parts)}, where bicubic of the damaged ones has"
            f" {digits(plain.psnr_y)} dB"
        )
    low = min(
        table[(table.system == "VAE alone") & (table.data == d)].psnr_y.min()
        - table[(table.system == "bicubic") & (table.data == d)].psnr_y.max()
        for d in dict.fromkeys(table.data)
    )
    end = (
        "The ceiling is not what decides."
        if low > 0
        else "Where the ceiling lies below bicubic, no backbone can win on PSNR."
    )
    return (
        "Clean pictures through a VAE and nothing else (PSNR of luma, so higher than page 00's of"
        f" all colours): {'; '.join(said)}. {end}"
    )


def answer(
    table: pd.DataFrame, to_teacher: pd.DataFrame, ours: str, params: float, ms: float
) -> str:
    """Page 07 in one sentence: differences of the small backbone to bicubic and to the teacher."""
    photo, scene = "held-out photographs", "held-out scenes"
    lpips, psnr = (_row(table, ours, photo, m) for m in ("lpips", "psnr_y"))
    same, scenes = _row(to_teacher, ours, photo, "lpips"), _row(table, ours, scene, "lpips")
    there = _row(to_teacher, ours, scene, "lpips")
    words = {"better": "smaller", "worse": "larger", "undecided": "undecided"}
    return (
        f"OSEDiff around NanoSD2 changes LPIPS against bicubic by {_in(lpips, SIGNED)} on held-out"
        f" photographs ({words[_better(lpips, -1)]}; PSNR {_in(psnr, SIGNED)} dB) and by"
        f" {_in(scenes, SIGNED)} on held-out scenes ({words[_better(scenes, -1)]}); against the"
        f" teacher's backbone it is {_in(same, SIGNED)} ({words[_better(same, -1)]}) on photographs"
        f" and {_in(there, SIGNED)} ({words[_better(there, -1)]}) on scenes, with {params:.0%} of"
        f" the parameters and {ms:.0%} of the time, the VAE included."
    )


def photograph(table: pd.DataFrame) -> str:
    """A whole photograph, restored tile by tile: rows of sr_photograph.csv."""
    plain, rest = table.iloc[0], table.iloc[1:]
    nearest, quickest = rest.loc[rest.lpips.idxmin()], rest.loc[rest.seconds.idxmin()]
    way = "smaller" if nearest.lpips < plain.lpips else "larger"
    return (
        f"{plain.picture} at {digits(plain.megapixels)} megapixels, one photograph and one draw of"
        f" the damage, so without intervals: the least LPIPS is {digits(nearest.lpips)}"
        f" ({nearest.method}), {way} than bicubic's {digits(plain.lpips)}; the quickest,"
        f" {quickest.method}, takes {digits(quickest.seconds / quickest.megapixels)} s a megapixel."
        f" Across tile borders errors step {rest.seam.min():.2f} to {rest.seam.max():.2f} times as"
        f" much as elsewhere; {_without_tiles(plain.seam, rest.seam.max())}."
    )


def whole_photograph(table: pd.DataFrame) -> str:
    """The largest photograph at its full size and its upper part (`photographed.shipped`)."""
    if table.empty:
        return (
            "This run has no such row: the release holds none for these adapters"
            " (`make release ONLY=photograph` restores the photograph at its full size)."
        )
    plain, ours = (table[(table.method == "bicubic") == b] for b in (True, False))
    full, part = (ours.loc[f()] for f in (ours.megapixels.idxmax, ours.megapixels.idxmin))
    bicubic = plain.loc[plain.megapixels.idxmax()]
    said = "smaller" if full.lpips < bicubic.lpips else "larger"
    return (
        f"{full.picture} at its {digits(full.megapixels)} megapixels is {full.tiles:,.0f} tiles:"
        f" {full.seconds / 60:.1f} minutes on {full.measured}, in {digits(full.peak_mb)} MB,"
        f" {full.peak_mb / part.peak_mb:.2f} times what {digits(part.megapixels)} megapixels of the"
        f" same width need. LPIPS is {digits(full.lpips)}, {said} than bicubic's"
        f" {digits(bicubic.lpips)}; across tile borders its error steps {full.seam:.2f} times"
        f" as much as elsewhere; {_without_tiles(bicubic.seam, full.seam)}."
    )


def _without_tiles(control: float, seam: float) -> str:
    """What is left of a seam where the same places of a picture without tiles are rough as well."""
    more = seam / control - 1
    tiles = f"the tiles add {more:.0%}" if more > 0.005 else "the tiles add nothing"
    return (
        f"those of bicubic enlargement, which has no tiles, {control:.2f} times at the same places"
        f" (the grids of JPEG and of the enlargement), so {tiles}"
    )


def estimated(table: pd.DataFrame) -> str:
    """What S3Diff's estimator knows of the damage: rows of `estimated`."""
    said = [
        f"{r.score} on {r.data} to {between(r.error, r.error_low, r.error_high)}, where a constant"
        f" would err by {digits(r.spread)} (rank correlation"
        f" {between(r.correlation, r.correlation_low, r.correlation_high)})"
        for r in table.itertuples()
    ]
    least = table.loc[table.correlation.idxmin()]
    return (
        f"The estimator tells {'; '.join(said)}. It is least sure of {least.score} on {least.data}."
    )


def photograph_of_tiles(table: pd.DataFrame) -> str:
    """The tiles of the paper's photograph (sr_tiles.csv), here and at SD 1.5's size."""
    timed = table["where"].str.contains("all timed")
    large, small = table[timed].iloc[0], table[timed].iloc[-1]
    fast = table[~timed].loc[table[~timed].seconds.idxmin()]
    took = between(small.seconds, small.seconds_low, small.seconds_high)
    return (
        f"{small.tiles} tiles take {took} s around {small.backbone} with the {small.vae} VAE,"
        f" {small.ratio:.2f} of the {digits(large.seconds)} s around the {large.backbone}. At SD"
        f" 1.5's size the fastest that was timed here ({fast['where'].split(', ')[2]},"
        f" {fast.backbone}, {fast.vae} VAE) would take {digits(fast.seconds)} s a photograph."
    )
