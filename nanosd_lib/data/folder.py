"""Photographs that a user brings: a plain folder of captioned pictures, trained on and held out.

    found = folder.scan(512, Path("photographs"))   # what can be used, and why the rest cannot
    mine = folder.Photographs.of(Path("photographs"), found["pictures"])
    batches, captions = folder.crops(mine, "train", 1000, side=512, seed=0, few=16)

Captions stand in a table, `captions.csv` or `metadata.csv` with the columns file_name and text (as
in Hugging Face's ImageFolder), or in text files of the pictures' own stems: `cat.jpg`, `cat.txt`.

What a folder can leave open is decided here, once:

- Where there is a table, it alone counts and text files are not read. Two tables are refused.
- A picture without a caption is passed over and counted. So is one that cannot be read to its last
  pixel, or whose shorter side is below the pixels that are wanted: no crop is ever enlarged.
- A caption that is wrong is refused, since its folder is not what its owner thinks: one that is
  empty or not UTF-8, one text file for two pictures, two rows for one, a row for none.
- Line breaks in a caption are blanks. Hidden files, folders below and other files are not read.
- Which pictures are held out is decided by a hash of each one's stem, so by no seed, order or
  neighbour: about a tenth. Where that leaves no picture to hold out, or none to train on, the one
  whose hash is nearest goes there. Copies under other names are not recognised.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import pictures
from nanosd_lib.networks import pipeline

ENDINGS = ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .gif .ppm .pgm .jp2 .avif .heic .heif"
TABLES = ("captions.csv", "metadata.csv")
HELD_OUT = 0.1
CAPTIONED = (
    "write captions.csv with the columns file_name,text, or a text file of the same stem for each"
)
SHOWN = 3  # names of each kind that a report lists


@dataclass(frozen=True, eq=False)
class Photographs:
    """A scanned folder: for each split the (file, caption) of every picture that can be used."""

    folder: Path
    splits: dict[str, list[tuple[str, str]]]

    @classmethod
    def of(cls, folder: Path, found: Iterable[list[str]]) -> Photographs:
        """found: what `scan` returns as "pictures"."""
        splits: dict[str, list[tuple[str, str]]] = {"train": [], "heldout": []}
        for file, caption, split in found:
            splits[split].append((file, caption))
        return cls(folder, splits)


def scan(smallest: int, folder: Path) -> dict:
    """Every picture read once: "pictures", a list of [file, caption, split] sorted by name, those
    that are passed over with the reason of each, and "said", the count in one line and the reasons.

    smallest: pixels that the shorter side must have. ValueError, in one line that names file and
    fix, for a folder that cannot be used (see above) or leaves fewer than two pictures.
    """
    names, texts = listed(folder)
    known = captions(folder, names, texts)
    passed = {n: ("without caption", "") for n in names if n not in known}
    for name in tqdm(known, desc="photographs", leave=False):
        if trouble := _trouble(folder / name, smallest):
            passed[name] = trouble
    used = [n for n in names if n not in passed]
    count = f"{len(used)} of {len(names)} pictures used" + _counts(passed)
    reasons = [why for _, why in passed.values() if why]
    if len({_share(n) for n in used}) < 2:
        fix = [*reasons, *([CAPTIONED] if passed else []), "add pictures under names of their own"]
        raise ValueError(
            f"photographs {folder}: {count}, and two are needed, one of them to hold out: {fix[0]}"
        )
    more = [f"and {len(reasons) - 2 * SHOWN} more"] if len(reasons) > 2 * SHOWN else []
    split = _splits(used)
    held = f"{list(split.values()).count('heldout')} of them held out"
    said = "\n  ".join([f"photographs: {count}", held, *reasons[: 2 * SHOWN], *more])
    return {"pictures": [[n, known[n], split[n]] for n in used], "passed": passed, "said": said}


def crops(
    mine: Photographs, split: str, n: int, side: int, seed: int, few: int
) -> tuple[Iterator[Tensor], list[str]]:
    """n square crops in batches (at most few, 3, side, side) in [-1, 1], and the n captions.

    Every picture of the split, in an order drawn from the seed, gives as many as the others or one
    more, and is read once; a crop's own side is drawn between `side` and the picture's shorter one,
    then its place. ValueError for a split that is neither "train" nor "heldout", and where a
    picture has changed since the scan.
    """
    if split not in mine.splits:
        raise ValueError(f"split {split!r}: use one of {', '.join(mine.splits)}")
    g, chosen = torch.Generator().manual_seed(seed), mine.splits[split]
    order = torch.randperm(len(chosen), generator=g).tolist()[:n]
    shares = [(chosen[i], n // len(chosen) + (k < n % len(chosen))) for k, i in enumerate(order)]
    text = [caption for (_, caption), many in shares for _ in range(many)]
    made = (_cut(mine.folder / file, many, side, g) for (file, _), many in shares)
    return _batches(chain.from_iterable(made), few), text


def _cut(path: Path, many: int, side: int, g: torch.Generator) -> Iterator[Tensor]:
    """That many crops (3, side, side) of one picture."""
    x = torch.from_numpy(pictures.read(path)).permute(2, 0, 1)
    h, w = x.shape[1:]
    if min(h, w) < side:
        raise ValueError(f"picture {path} {_too_small(w, h, side)}")
    for _ in range(many):
        edge = int(torch.randint(side, min(h, w) + 1, (1,), generator=g))
        top, left = (int(torch.randint(m - edge + 1, (1,), generator=g)) for m in (h, w))
        crop = x[None, :, top : top + edge, left : left + edge].float() / 127.5 - 1
        yield pipeline.sized(crop, side)[0]


def _batches(made: Iterator[Tensor], few: int) -> Iterator[Tensor]:
    while some := list(islice(made, few)):
        yield torch.stack(some)


# -------------------------------------------------------------------------------------------- scan
def listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the pictures in a folder, and of the tables and text files beside them, sorted."""
    if not folder.is_dir():
        file, none = "is a file: name the folder it is in", "is no folder here: check its name"
        raise ValueError(f"photographs {folder} {file if folder.exists() else none}")
    try:
        below = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
    except OSError as error:
        raise ValueError(f"photographs {folder} cannot be read: {error.strerror}") from None
    names = sorted(entry.name for entry in below if not entry.is_dir())
    for name in names:
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):  # line breaks, no UTF-8
            raise ValueError(f"photographs {folder} holds a file named {name!r}: rename it")
    found = [n for n in names if Path(n).suffix.lower() in ENDINGS.split()]
    if not found:
        deep = any(Path(f).suffix.lower() in ENDINGS.split() for f in folder.glob("*/*"))
        fix = "those in folders below must be moved up" if deep else "name another one"
        raise ValueError(f"photographs {folder} holds no pictures ({ENDINGS}): {fix}")
    texts = [n for n in names if n.lower() in TABLES or n.lower().endswith(".txt")]
    return found, [n for n in texts if (folder / n).is_file()]


def captions(folder: Path, names: list[str], texts: list[str]) -> dict[str, str]:
    """Picture -> caption, from the table or the text files among `texts`; not every one has one."""
    tables = [n for n in texts if n.lower() in TABLES]
    if len(tables) > 1:
        raise ValueError(f"photographs {folder} holds {' and '.join(tables)}: keep one of them")
    return _of_table(folder / tables[0], names) if tables else _of_texts(folder, names, texts)


def _of_table(path: Path, names: list[str]) -> dict[str, str]:
    known, found = {_composed(n): n for n in names}, {}
    for line, name, text in _rows(path):
        file = known.get(_composed(name.removeprefix("./")))
        if file is None:
            close = get_close_matches(name, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(
                f"{path}, line {line} names {name!r}, and no such picture is beside it{hint}:"
                " bring the picture, or delete the line"
            )
        if file in found:
            raise ValueError(f"{path}, line {line} names {file} a second time: keep one line of it")
        if not text:
            raise ValueError(
                f"{path}, line {line}: the caption of {file} is empty: write one, or delete the"
                " line (a picture without caption is passed over)"
            )
        found[file] = text
    return found


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file_name and text of each row of a table."""
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if header.count("file_name") != 1 or header.count("text") != 1:
            shown = " ".join(", ".join(header).split())[:200] or "(none)"
            raise ValueError(
                f"{path} has the columns {shown} where file_name and text are wanted, once each:"
                " name them in its first line, with commas between"
            )
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue  # as spreadsheets end their tables
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, line {rows.line_num} has {len(row)} cells and the first line"
                    f" {len(header)}: put a caption that holds commas in double quotes"
                )
            cells = dict(zip(header, row, strict=True))
            yield rows.line_num, cells["file_name"].strip(), " ".join(cells["text"].split())
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {rows.line_num} is no row of a table ({error}): put captions in double"
            " quotes, and double those inside"
        ) from None


def _of_texts(folder: Path, names: list[str], texts: list[str]) -> dict[str, str]:
    pictures_of: dict[str, list[str]] = {}
    for name in names:
        pictures_of.setdefault(_composed(Path(name).stem), []).append(name)
    found: dict[str, str] = {}
    for name in texts:
        of = pictures_of.get(_composed(Path(name).stem), [])
        if len(of) > 1:
            raise ValueError(
                f"{folder / name} would be the caption of {' and '.join(of)}: rename all but one,"
                " or write a captions.csv"
            )
        if of and of[0] in found:
            raise ValueError(f"photographs {folder} holds two captions of {of[0]}: delete {name}")
        if of:
            found[of[0]] = " ".join(_text(folder / name).split())
            if not found[of[0]]:
                raise ValueError(
                    f"{folder / name}, the caption of {of[0]}, is empty: write one, or delete the"
                    " file (a picture without caption is passed over)"
                )
    return found


def _text(path: Path) -> str:
    """A text file, with or without a byte order mark."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8: save it again in that encoding")
    return text


def _trouble(path: Path, smallest: int) -> tuple[str, str] | None:
    """What kind of trouble a captioned picture makes, and the line that says it; None for none."""
    try:
        h, w, _ = pictures.read(path).shape
    except ValueError as error:
        return "unreadable", str(error).replace(str(path), path.name)
    if min(h, w) < smallest:
        return "too small", f"picture {path.name} {_too_small(w, h, smallest)}"
    return None


def _too_small(w: int, h: int, smallest: int) -> str:
    return f"is {w}x{h} pixels and {smallest} on its shorter side are wanted: bring a larger copy"


def _counts(passed: dict[str, tuple[str, str]]) -> str:
    """ ": 2 without caption (a.jpg, b.jpg), 1 unreadable (c.jpg)"; nothing where all are used."""
    kinds: dict[str, list[str]] = {}
    for name, (kind, _) in passed.items():
        kinds.setdefault(kind, []).append(name)
    parts = [
        f"{len(of)} {kind} ({', '.join([*of[:SHOWN], *(['...'] if len(of) > SHOWN else [])])})"
        for kind, of in kinds.items()
    ]
    return f": {', '.join(parts)}" if parts else ""


def _composed(name: str) -> str:
    """A name as most systems write it: macOS may hold its accents as characters of their own."""
    return unicodedata.normalize("NFC", name)


def _share(name: str) -> float:
    """Where in [0, 1) the hash of a picture's stem falls, whatever its case."""
    digest = hashlib.sha256(_composed(Path(name).stem).casefold().encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _splits(names: list[str]) -> dict[str, str]:
    """Picture -> split, by a bound that moves only where one of them would be empty."""
    shares = {n: _share(n) for n in names}
    at = sorted(set(shares.values()))
    bound = min(max(HELD_OUT, at[1]), at[-1])
    return {n: "heldout" if share < bound else "train" for n, share in shares.items()}
