"""Names and texts as DuckDB's SQL writes them."""

from __future__ import annotations


def quoted(name: str) -> str:
    """
    >>> quoted('the "last" one')
    '"the ""last"" one"'
    """
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """
    >>> text("o'brien's")
    "'o''brien''s'"
    """
    return "'" + value.replace("'", "''") + "'"
