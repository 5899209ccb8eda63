"""Which modules a user means by ``where=`` and ``exclude=``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from qcompile.errors import ConfigurationError

__all__ = ["NOT_SELECTED", "Selection", "selectors"]

NOT_SELECTED = "not selected by where="


class Selection:
    """Reads selectors once and applies them to modules, remembering which selectors matched.

    Args:
        where: globs over qualified names, module types, or predicates ``(name, module) -> bool``;
            one or several; ``None`` selects everything.
        exclude: the same; wins over ``where``.

    Raises:
        ConfigurationError: a selector is of another kind.
    """

    def __init__(self, where: Any = None, exclude: Any = None) -> None:
        self._where = None if where is None else selectors("where", where)
        self._exclude = selectors("exclude", () if exclude is None else exclude)
        self._matched: set[int] = set()

    def refuses(self, names: Iterable[str], module: nn.Module) -> str | None:
        """Return why the module that goes by ``names`` is left alone, or ``None`` to take it."""
        names = tuple(names)
        excluded = self._first_match(self._exclude, names, module)
        chosen = None if self._where is None else self._first_match(self._where, names, module)
        if excluded is not None:
            return f"excluded by {_describe(excluded)}"
        return NOT_SELECTED if self._where is not None and chosen is None else None

    def _first_match(self, selectors: list[Any], names: tuple[str, ...], module: nn.Module) -> Any:
        """Return the first selector that matches; try them all, to learn which ever match."""
        hits = [s for s in selectors if any(_matches(s, name, module) for name in names)]
        self._matched.update(id(selector) for selector in hits)
        return hits[0] if hits else None

    def unmatched(self, modules: Mapping[str, nn.Module]) -> list[str]:
        """Describe the selectors that have matched nothing, each with what may have been meant.

        Args:
            modules: every module of the model by name, whatever its type.
        """
        found = []
        for keyword, selectors in (("where", self._where or []), ("exclude", self._exclude)):
            for selector in selectors:
                if id(selector) not in self._matched:
                    note = f"{keyword}={_describe(selector)} matches no layer"
                    found.append(f"{note}{_hint(selector, modules)}.")
        if self._where == []:
            found.append("where= is empty, which selects nothing.")
        return found


def selectors(keyword: str, given: Any) -> list[Any]:
    """Return one or several selectors as a list.

    Raises:
        ConfigurationError: one is of a wrong kind.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str | type | nn.Module)
    selectors = list(given) if several else [given]
    for selector in selectors:
        if isinstance(selector, nn.Module) or not (
            isinstance(selector, str | type) or callable(selector)
        ):
            raise ConfigurationError(
                f"{keyword}= takes globs over qualified names, module types and predicates "
                f"(name, module) -> bool, got {type(selector).__name__}. Use the module's name."
            )
    return selectors


def _matches(selector: str | type | Callable[..., Any], name: str, module: nn.Module) -> bool:
    if isinstance(selector, str):
        return fnmatchcase(name, selector)
    if isinstance(selector, type):
        return isinstance(module, selector)
    try:
        return bool(selector(name, module))
    except Exception as error:
        raise ConfigurationError(
            f"the predicate {_describe(selector)} failed on {name!r} "
            f"({type(module).__name__}): {error}"
        ) from error


def _describe(selector: Any) -> str:
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", "?")


def _hint(selector: Any, modules: Mapping[str, nn.Module]) -> str:
    """Point at a container that the selector matched although it names no layer."""
    if not isinstance(selector, str):
        return ""
    containers = [
        n for n in modules if n and fnmatchcase(n, selector) and any(modules[n].children())
    ]
    if not containers:
        return ""
    kind = type(modules[containers[0]]).__name__
    return f": it names a {kind}; for the layers inside use {selector + '.*'!r}"
