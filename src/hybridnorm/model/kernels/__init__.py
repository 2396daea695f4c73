"""What PyTorch lacks on some device: attention, grouped linear layers, the loss, RMSNorm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
