"""What is known before the first step: sizes, memory, misfits of recipe and placement."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
