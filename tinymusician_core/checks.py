"""Numbers that come from outside: what is got is named, and what is allowed."""

from __future__ import annotations

import math


def number(name: str, value, low: float, high: float, hint: str = "") -> float:
    """Return the value as a float; ValueError with what is allowed unless it is finite and from `low` to `high`."""
    allowed = f"{name} must be a number from {low:g} to {high:g}{hint}, got {value!r}"
    if isinstance(value, bool) or value is None:
        raise ValueError(allowed)
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ValueError(allowed) from None
    if not math.isfinite(found) or not low <= found <= high:
        raise ValueError(allowed)
    return found


def whole(name: str, value, low: int, high: int, hint: str = "") -> int:
    """Return the value as an int; ValueError with what is allowed unless it is whole and from `low` to `high`."""
    allowed = f"{name} must be a whole number from {low} to {high}{hint}, got {value!r}"
    if isinstance(value, bool) or value is None:
        raise ValueError(allowed)
    try:
        found = int(value)
        exact = isinstance(value, str) or found == value
    except (TypeError, ValueError, OverflowError):
        raise ValueError(allowed) from None
    if not exact or not low <= found <= high:
        raise ValueError(allowed)
    return found
