"""What the head of a page promises, held against what the page was seen to do."""

from __future__ import annotations

import re


def check(head: str, seen: dict[str, list[str]]) -> None:
    """The head names exactly the tables that the page wrote, and every table of another notebook
    that it read.
    """
    writes, reads = (re.search(rf"\| {k} \|(.*)\|", head)[1] for k in ("writes", "reads"))
    tables = {name.removeprefix("tables/") for name in seen["writes"] if name.endswith(".csv")}
    assert set(re.findall(r"(\w+\.csv)", writes)) == tables
    read = {name.removeprefix("tables/") for name in seen["reads"] if name.endswith(".csv")}
    assert read <= set(re.findall(r"(\w+\.csv)", reads))
