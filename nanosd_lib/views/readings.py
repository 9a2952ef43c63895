"""Readings: what a figure or a table says, in words that are made from its numbers.

Each function takes the tables that a page shows and returns one paragraph. A comparison whose
interval holds both answers is "undecided"; no number stands here that is not in a table.
"""

from __future__ import annotations

import pandas as pd

CAN_FAIL = 1e-3  # of the prediction's power: what a stage must move for a claim on it to fail


def digits(x: float, form: str = "") -> str:
    """Two digits that matter, without an exponent for what is large: 130, 0.91, 1.5e-05."""
    return form.format(x) if form else f"{float(f'{x:.2g}'):g}"


def between(value: float, low: float, high: float, form: str = "") -> str:
    """ "0.91 (0.87 to 0.94)"; without ends where nothing is known of them."""
    if low != low or high != high:
        return f"{digits(value, form)} (no interval)"
    return f"{digits(value, form)} ({digits(low, form)} to {digits(high, form)})"


def within(row: pd.Series, name: str, form: str = "") -> str:
    """A number of a row between its `_low` and `_high`."""
    return between(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def side(low: float, high: float, one: float = 1.0) -> str:
    """below | above | undecided: where an interval lies against a number."""
    return "below" if high < one else "above" if low > one else "undecided"


def _percent(row: pd.Series) -> str:
    """A share with its interval: "90 % (82 to 94)"."""
    return f"{100 * row.value:.0f} % ({100 * row.value_low:.0f} to {100 * row.value_high:.0f})"


def _row(teacher: pd.DataFrame, check: str, kind: str) -> pd.Series:
    return teacher[(teacher.check == check) & (teacher.kind == kind)].iloc[0]


def _ends(row: pd.Series, form: str = "") -> str:
    return between(row.value, row.value_low, row.value_high, form)


def listed(names: list[str]) -> str:
    return (
        ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "none"
    )


def can_fail(sensitivity: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Stages whose whole interval lies above `CAN_FAIL`, and the rest."""
    whole = sensitivity[sensitivity.band == "all"]
    matters = whole.eps_error_low > CAN_FAIL
    return list(whole.removed[matters]), list(whole.removed[~matters])


def answer(teacher: pd.DataFrame, sensitivity: pd.DataFrame) -> str:
    """Page 00 in one sentence."""
    one, two = (
        _row(teacher, "prompts, both", kind) for kind in ("one object", "two objects, new caption")
    )
    photographs = _row(teacher, "VAE PSNR (dB)", "held-out photographs")
    sure, rest = can_fail(sensitivity)
    return (
        f"The teacher shows the shape and colour asked for in {_percent(one)} of one-object and"
        f" {_percent(two)} of two-object prompts (other prompts' pictures: {100 * one.beside:.0f} %"
        f" and {100 * two.beside:.0f} %), and its VAE keeps held-out photographs at"
        f" {_ends(photographs, '{:.1f}')} dB,"
        f" {against(photographs)} bicubic of a quarter of the size ({photographs.beside:.1f} dB)."
        f" Removing {listed(sure)} changes what it predicts, so claims about them can fail here"
        + (f"; {listed(rest)} hardly: they are nearly dead{_rests_on(rest)}." if rest else ".")
    )


def _rests_on(dead: list[str]) -> str:
    """What a claim on the deepest three rests on, where some of them do nothing."""
    left = [s for s in ("E4", "M", "D4") if s not in dead]
    if len(left) == 3 or not left:
        return ""
    return f", and what is said of E4+M+D4 rests on {listed(left)} alone"


def against(row: pd.Series) -> str:
    """Where a value stands beside what it is to be read against: above, below or level with it."""
    if row.value_low > row.beside:
        return "above"
    return "below" if row.value_high < row.beside else "level with"


def reconstruction(teacher: pd.DataFrame) -> str:
    psnr = teacher[teacher.check == "VAE PSNR (dB)"].set_index("kind")
    files = psnr.drop(index=["held-out scenes", "held-out photographs"])
    gain = files.value - files.beside
    colour = teacher[teacher.check == "VAE colour error"].set_index("kind").value[files.index]
    return (
        f"Scenes come back at {_ends(psnr.loc['held-out scenes'], '{:.1f}')} dB. Of {len(files)}"
        f" photographs the VAE is nearest to bicubic on {gain.idxmin()} ({gain.min():+.1f} dB) and"
        f" farthest above it on {gain.idxmax()} ({gain.max():+.1f} dB); the mean colour moves most"
        f" on {colour.idxmax()} ({colour.max():.2g} of the range)."
    )


def prompts(teacher: pd.DataFrame) -> str:
    both = teacher[teacher.check == "prompts, both"].set_index("kind")
    judged = both[both.index.str.startswith("renders")]
    pairs = {"one object": "one object", "two objects": "two objects, new caption"}
    said = []
    for objects, kind in pairs.items():
        unseen, seen = both.loc[f"{objects}, unseen pair"], both.loc[kind]
        apart = unseen.value_high < seen.value_low or unseen.value_low > seen.value_high
        said.append(
            f"with {objects} in {_percent(unseen)} of pictures against {_percent(seen)}"
            + ("" if apart else f", undecided at n = {int(seen.n)}")
        )
    return (
        "Pairs of shape and colour that no training scene had, against pairs that some had, are"
        f" drawn right {'; '.join(said)}. On renders the classifier is right about"
        f" {100 * judged.value.iloc[0]:.0f} % (one object) and"
        f" {100 * judged.value.iloc[1]:.0f} % (two); how often it errs on the teacher's"
        " blurrier pictures is not measured."
    )


def stages(sensitivity: pd.DataFrame) -> str:
    whole = sensitivity[sensitivity.band == "all"].set_index("removed")
    most, least = whole.eps_error.idxmax(), whole.eps_error.idxmin()
    deep = whole.loc["E4+M+D4"]
    line = lambda r: between(r.eps_error, r.eps_error_low, r.eps_error_high)  # noqa: E731
    side = (
        "less than"
        if deep.tafid_high < deep.floor
        else "more than"
        if deep.tafid_low > deep.floor
        else "about as much as"
    )
    return (
        f"Over all timesteps, the prediction changes by {line(whole.loc[most])} of its power"
        f" without {most}, by {line(whole.loc[least])} without {least}. E4, M and D4 together,"
        f" which the paper drops: {line(deep)}; their pictures move by a distance of"
        f" {between(deep.tafid, deep.tafid_low, deep.tafid_high)}, {side} other noise moves them"
        f" ({digits(deep.floor)})."
        + (
            f" D4 alone costs more ({digits(whole.tafid['D4'])}) than the three together; why, is"
            " not tested here."
            if whole.tafid_low["D4"] > deep.tafid_high
            else ""
        )
    )


def distances(table: pd.DataFrame) -> str:
    frechet = table.set_index("pictures")
    renders, yard = (
        frechet.loc[k] for k in ("teacher to renders", "teacher to itself, other noise")
    )
    floor, none = (frechet.loc[k] for k in ("renders to renders", "untrained network to renders"))
    line = lambda r: between(r.frechet, r.frechet_low, r.frechet_high)  # noqa: E731
    return (
        f"Over {int(renders.n)} pictures the teacher lies {line(renders)} from renders; other"
        f" renders lie {line(floor)}, an untrained network {line(none)}. The same prompts with"
        f" other noise give {line(yard)}: the yardstick for tAFID, below which a student that"
        f" starts from the teacher's own noise can come. It shares its prompts, renders do not:"
        f" {digits(yard.frechet)} and {digits(floor.frechet)} are not to be compared."
    )


# ------------------------------------------------------------------------------------------ ledger
VERBS = {"holds": "holds", "fails": "fails", "undecided": "is undecided", "not run": "was not run"}


def _claim(ledger: pd.DataFrame, name: str) -> pd.Series:
    return ledger.set_index("id").loc[name]


def _verb(row: pd.Series) -> str:
    """holds, fails or is undecided here; where it is undecided with the reason."""
    said = VERBS[row.verdict]
    reason = row.why.split(". ")[0] if row.verdict == "undecided" else ""
    return f"**{said}** here" + (f" ({reason[:1].lower()}{reason[1:]})" if reason else "")


def _number(row: pd.Series, form: str = "") -> str:
    """Its value with its interval and n: "0.93 (0.83 to 1.03; n = 96)"; a dash where none is."""
    if pd.isna(row.ours):
        return "–"
    if not row.low < row.high:
        return digits(row.ours, form)
    many = row.seeds > 1  # then the interval is over seeds
    n = f"; {row.seeds:.0f} seeds" if many else "" if pd.isna(row.n) else f"; n = {row.n:.0f}"
    ends = f"{digits(row.low, form)} to {digits(row.high, form)}"
    return f"{digits(row.ours, form)} ({ends}{n})"


def _nearer(row: pd.Series, equal: float, sign: int = 1) -> str:
    """nearer, further, or not told apart: where an interval lies against equality; sign -1 where
    more is nearer.
    """
    low, high = sorted((sign * (row.low - equal), sign * (row.high - equal)))
    return "nearer" if high < 0 else "further" if low > 0 else "not told apart"


def sentences(ledger: pd.DataFrame) -> dict[str, str]:
    """What came of each step of the paper, one sentence each: the verb is the verdict of a row
    whose evidence is trained or timed; counted and restated rows add facts and no verb.
    """
    of = lambda name: _claim(ledger, name)  # noqa: E731
    gives, moves, time = (
        of(k)
        for k in ("dropped-stages-give-little", "dropped-stages-cost-much", "deep-stages-cost-time")
    )
    low, ranks, few = (
        of(k) for k in ("fwkd-low-error", "stage-errors-predict-tafid", "fwkd-quarter-of-data")
    )
    speed, size, behind = (
        of(k)
        for k in (
            "ehvi-beats-random-latency", "ehvi-beats-random-params", "tinysd-dominated-by-search"
        )
    )  # fmt: skip
    vae, latents, tile, prior = (
        of(k)
        for k in (
            "vae-loses-little", "vae-keeps-latents", "codesign-removes-bottleneck",
            "codesign-preserves-prior",
        )
    )  # fmt: skip
    aligned, lpips, clip = (
        of(k)
        for k in (
            "alignment-improves", "images-resemble-teacher-lpips", "images-resemble-teacher-clip"
        )
    )  # fmt: skip
    kept, beats, helps = (
        of(k) for k in ("sr-quality-kept", "sr-beats-input", "prior-helps-restoration")
    )
    both = low.verdict == ranks.verdict == "holds"
    makes = "makes" if both else "does not make" if ranks.verdict == "fails" else "may make"
    tiny = {"holds": "lies behind", "fails": "does not lie behind"}
    return {
        "Surgery": f"That E4, M and D4 give little {_verb(gives)}: without them tAFID is"
        f" {_number(gives)} of what it is without the least important kept stage. Their share of"
        f" the bytes is {_number(moves)} times their share of the multiply-adds, their share of the"
        f" time {_number(time)} times ({time.backend or 'not timed'})."
        + (f" {gives.why}" if gives.verdict == "holds" and gives.why else ""),
        "Feature-wise distillation": f"That a short training suffices {_verb(low)}: {_number(low)}"
        f" of 30 surrogates are below the bound, surely to possibly ({low.protocol}); a low stage"
        f" error {makes} an accurate network (rank correlation {_number(ranks, '{:.2f}')}); that a"
        f" quarter of the data costs little {VERBS[few.verdict]} ({_number(few, '{:.2f}')} times"
        " the error of all of it).",
        "Search": f"That EHVI pays {_verb(speed)} for latency and {_verb(size)} for size: its gain"
        f" over the common start exceeds random search's by {_number(speed, '{:+.0%}')} and"
        f" {_number(size, '{:+.0%}')}; TinySD {tiny.get(behind.verdict, 'may lie behind')} the"
        " front on new prompts.",
        "Slim VAE": f"That the slim VAE loses little {_verb(vae)}: {_number(vae, '{:.1f}')} dB are"
        f" lost on scenes (below zero: gained); of the latents' worst channel {_number(latents)} is"
        f" explained; with the slim U-Net, a whole tile takes {_number(tile)} of the time that it"
        f" takes with the teacher's VAE, at SD 1.5's width ({tile.backend or 'not timed'});"
        f" tAFID is {_number(prior)} times.",
        "Alignment": f"That a short alignment improves the networks {_verb(aligned)}: tAFID falls"
        f" to {_number(aligned)} of what it was, on average over the printed ones. To the"
        " teacher's own pictures NanoSD2 is then, beside"
        f" the teacher with other noise, {_nearer(lpips, 1)} by LPIPS ({_number(lpips)} times) and"
        f" {_nearer(clip, 0, -1)} by embedding cosine ({_number(clip, '{:+.3f}')}).",
        "Super-resolution": f"That NanoSD inside keeps the quality {_verb(kept)}: on held-out"
        f" photographs LPIPS is {_number(kept)} times that with the teacher's backbone. That it is"
        f" better than bicubic enlargement there {_verb(beats)} ({_number(beats)} times), and that"
        f" the prior helps {_verb(helps)}.",
    }


def undecided(ledger: pd.DataFrame) -> str:
    """How much is undecided, and what would decide it."""
    open_, words = ledger[ledger.verdict == "undecided"], []
    kinds = {
        "too few seeds": "more seeds",
        "the interval": "more pictures, rounds or networks",
        "no interval": "a second measurement",
    }
    for begin, cure in kinds.items():
        count = int(open_.why.str.startswith(begin).sum())
        words += [f"{count} want {cure}"] if count else []
    rest = len(open_) - sum(open_.why.str.startswith(k).sum() for k in kinds)
    words += [f"{rest} rest on a guard that is not met or not measured"] if rest else []
    waiting = ledger[ledger.verdict == "not run"].why
    scale = waiting.str.contains("profile sd15|SD 1.5|A100|NYUv2", regex=True)
    long = waiting.str.contains("longer study") & ~scale
    wait = {
        "for SD 1.5's weights, data or size": int(scale.sum()),
        "for a longer study": int(long.sum()),
        "for a page that is not written yet": int((~scale & ~long).sum()),
    }
    waits = listed([f"{n} {what}" for what, n in wait.items() if n])
    trained = ledger[(ledger.evidence == "trained") & (ledger.verdict != "not run")]
    sure = int(trained.verdict.isin(["holds", "fails", "reproduced", "differs"]).sum())
    return (
        f"{len(open_)} rows are undecided: {listed(words)}. Of the {len(trained)} rows that rest"
        f" on trained networks {sure} are decided. {len(waiting)} rows wait"
        f"{': ' + waits if waits else ''}."
    )
