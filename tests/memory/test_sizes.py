"""Amounts of memory as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import ConfigurationError
from qcompile.memory import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4GiB", 4 << 30),
        ("500MB", 500_000_000),
        (" 1.5 kib ", 1536),
        ("65536", 65536),
        ("12 b", 12),
        ("0.5TB", 500_000_000_000),
        (1 << 20, 1 << 20),
    ],
)
def test_amounts_are_read(text, amount) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "GiB", "4 Gb/s", "4GiBs", "-1", "0", "1e9", 0, -5, 1.5, True])
def test_what_is_no_amount_is_refused(text) -> None:
    with pytest.raises(ConfigurationError, match="memory_budget"):
        parse_bytes(text)


@given(st.integers(0, 1 << 45))
def test_what_is_printed_is_near(amount) -> None:
    printed = format_bytes(amount).replace(",", "")
    if amount:
        read = float(printed.split()[0]) * parse_bytes(f"1{printed.split()[1]}")
        assert abs(read - amount) <= 0.006 * amount
    else:
        assert printed == "0 B"
