from .inspection import inspect as inspect
from .official import from_official as from_official
from .official import to_official as to_official
