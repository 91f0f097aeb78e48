"""Which of a file's tables is meant, and what its columns are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from surveyproc.errors import InputError

# A listing in an error names no more tables, and no more columns of each.
MOST_LISTED = 12


@dataclass(frozen=True)
class TableInFile:
    """One of the tables of a file.

    Attributes
    ----------
    index : int
        Place in the file, as the format counts (HDUs of FITS; tables of a VOTable, from 0).
    names : tuple of str
        What it may be asked for by (EXTNAME; name and ID).
    columns : tuple of str
        Names of its columns.
    """

    index: int
    names: tuple[str, ...]
    columns: tuple[str, ...]


def choose(
    url: str, tables: Sequence[TableInFile], table: str | int | None, columns: Sequence[str]
) -> TableInFile:
    """The table that `table` names; of several, or without a name, the one that has `columns`.

    Raises
    ------
    InputError
        If there is none, or more than one; the message lists the tables with their columns.
    """
    named = [one for one in tables if table is None or _is(one, table)]
    having = [one for one in named if set(columns) <= set(one.columns)]
    if len(named) == 1:
        return named[0]
    if len(having) == 1:
        return having[0]
    asked = f" with the columns {', '.join(columns)}" if columns else ""
    if not named:
        problem = f"no table is called {table!r}"
    else:
        problem = f"{len(having)} tables{asked}" if having else f"no table{asked}"
    lines = [
        f"  {one.index}: {' or '.join(one.names) or '(no name)'}: {_listed(one.columns)}"
        for one in tables[:MOST_LISTED]
    ]
    if len(tables) > MOST_LISTED:
        lines.append(f"  and {len(tables) - MOST_LISTED} more")
    raise InputError(
        f"{url}: {problem}; the key `table` beside `source` chooses one by name or number:\n"
        + "\n".join(lines)
    )


def _is(one: TableInFile, table: str | int) -> bool:
    if isinstance(table, int):
        return one.index == table
    return table.casefold() in [name.casefold() for name in one.names]


def _listed(columns: Sequence[str]) -> str:
    rest = len(columns) - MOST_LISTED
    return ", ".join(columns[:MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class Names:
    """What the columns of a table are called here.

    Attributes
    ----------
    names : tuple of str
        One a column, no two alike.
    repeated : frozenset of str
        Names that several columns have in the file: nobody can know which is meant.
    warnings : tuple of str
        What was renamed.
    """

    names: tuple[str, ...]
    repeated: frozenset[str]
    warnings: tuple[str, ...]


def own_names(found: Sequence[str]) -> Names:
    """Names of columns as a file has them, but each once and none empty.

    Names that differ in upper and lower case differ. A column without a name is called `col` and
    its number, from 1, as astropy and STILTS do; of columns with one name the later get a number.

    Examples
    --------
    >>> own_names(["", "ra", "mag", "mag"]).names
    ('col1', 'ra', 'mag', 'mag_2')
    """
    names: list[str] = []
    warnings: list[str] = []
    seen: Counter[str] = Counter()
    taken = set(found)
    for number, name in enumerate(found, start=1):
        seen[name] += 1
        if name and seen[name] == 1:
            names.append(name)
            continue
        own, count = (f"{name}_{seen[name]}", seen[name]) if name else (f"col{number}", number)
        while own in taken:
            count += 1
            own = f"{name or 'col'}_{count}"
        taken.add(own)
        names.append(own)
        fault = f"{name!r} is the name of an earlier column too" if name else "it has no name"
        warnings.append(f"column {number} is called {own!r} here: {fault}")
    repeated = frozenset(name for name, count in seen.items() if name and count > 1)
    return Names(tuple(names), repeated, tuple(warnings))
