"""Where the norms of anybody's block sit, and what its residual carries."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
