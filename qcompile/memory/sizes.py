"""Amounts of memory, as people write and read them."""

from __future__ import annotations

import re

from qcompile.errors import ConfigurationError

__all__ = ["format_bytes", "parse_bytes"]

_DECIMAL, _BINARY = ("k", "m", "g", "t"), ("ki", "mi", "gi", "ti")
_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000 ** (i + 1) for i, prefix in enumerate(_DECIMAL)}
_UNITS |= {f"{prefix}b": 1024 ** (i + 1) for i, prefix in enumerate(_BINARY)}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(amount: str | int, what: str = "memory_budget") -> int:
    """Read an amount of memory.

    Args:
        amount: bytes as a number, or text such as ``4GiB``, ``1.5 GB``, ``500MB`` or ``65536``;
            upper and lower case are alike, KB is 1000 bytes and KiB 1024.
        what: the argument's name, for messages.

    Raises:
        ConfigurationError: it is no positive amount, or has an unknown unit.
    """
    if isinstance(amount, int) and not isinstance(amount, bool):
        value = amount
    elif isinstance(amount, str) and (found := _NUMBER.fullmatch(amount)):
        number, unit = found.groups()
        if unit.lower() not in _UNITS:
            raise ConfigurationError(
                f"{what}: unknown unit {unit!r} in {amount!r}; known: B, KB, MB, GB, TB (powers of "
                f"1000), KiB, MiB, GiB, TiB (powers of 1024)."
            )
        value = int(float(number) * _UNITS[unit.lower()])
    else:
        raise ConfigurationError(
            f"{what}: an amount of memory is a number of bytes or text such as '4GiB' or '500MB', "
            f"got {amount!r}."
        )
    if value < 1:
        raise ConfigurationError(f"{what}: must be at least one byte, got {amount!r}.")
    return value


def format_bytes(amount: float) -> str:
    """Write an amount in the largest binary unit that leaves at least one, to three digits."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1000:
            digits = 0 if unit == "B" or amount >= 100 else 1 if amount >= 10 else 2
            return f"{sign}{amount:.{digits}f} {unit}"
        amount /= 1024
    return f"{sign}{amount:,.2f} TiB"
