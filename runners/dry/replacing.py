"""Other attributes in place of a library's own, for the length of a block."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Replacement = tuple[Any, str, Any]
"""Owner, name and what is put there."""

LAUNCHED: ContextVar[Callable[[list[Any]], None]] = ContextVar("launched", default=lambda arguments: None)
"""Is told of the arguments of each kernel."""
_MISSING = object()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute in place of `owner.name`, for the length of a block."""
    before = getattr(owner, name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def only_errors(logger_name: str) -> Iterator[None]:
    """A library that says nothing less than an error, for the length of a block."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Launch:
    """A Triton kernel that does nothing, and tells those who want to know what it would have read and written."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: LAUNCHED.get()([*args, *kwargs.values()])
