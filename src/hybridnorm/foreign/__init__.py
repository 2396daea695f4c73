"""Folders of `transformers`, ours or anybody's: a damaged one is a line that names the field.

Every verb that reads such a folder comes through here. What `transformers` raises, over many lines
and of many kinds, is reduced to one; what it accepts in silence, a configuration that does not fit
the weights, is found.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
