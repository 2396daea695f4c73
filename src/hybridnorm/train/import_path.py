"""Code of users by import path."""

import importlib
import sys
from typing import Any, TypeVar

from hybridnorm.errors import HybridNormError, in_a_line

T = TypeVar("T")


def import_object(path: str, field: str) -> Any:
    """What is at `path`, such as `mypkg.MyHook`; the working directory counts.

    Raises:
        HybridNormError: there is no such thing, or its module fails; `field` is named.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise HybridNormError(f"{field}: {path!r} is no import path, such as mypkg.name")
    try:
        if "" not in sys.path:
            sys.path.append("")
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the user's code
        raise HybridNormError(f"{field}: cannot import {path}: {in_a_line(error)}") from None


def import_class(path: str, base: type[T], field: str) -> type[T]:
    """The subclass of `base` at `path`.

    Raises:
        HybridNormError: as `import_object`, or it is something else.
    """
    found = import_object(path, field)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise HybridNormError(f"{field}: {path} is no {base.__name__.lower()} class")
    return found
