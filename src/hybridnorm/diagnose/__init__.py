"""Why a placement trains well or badly: probes on a model, on a run, and a page of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
