"""Why a placement trains well or badly: probes on a model or a run; and which norms a block has."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
