"""Text to token shards: formats, documents, the plan of shards, the pool of workers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
