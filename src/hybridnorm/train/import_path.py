"""Classes of users by import path."""

import importlib
import sys
from typing import TypeVar

from hybridnorm.errors import HybridNormError

T = TypeVar("T")


def import_class(path: str, base: type[T], field: str) -> type[T]:
    """The subclass of `base` at `path`, such as `mypkg.MyHook`; the working directory counts.

    Raises:
        HybridNormError: no such module or class; `field` of the recipe is named.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise HybridNormError(f"{field}: {path!r} is no import path, such as mypkg.MyClass")
    try:
        if "" not in sys.path:
            sys.path.append("")
        cls = getattr(importlib.import_module(module), name, None)
    except (
        Exception,
        SystemExit,
    ) as error:  # the user's code
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HybridNormError(f"{field}: cannot import {module}: {reason}") from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise HybridNormError(f"{field}: {module} has no {base.__name__.lower()} class {name!r}")
    return cls
