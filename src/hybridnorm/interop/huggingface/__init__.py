"""Hugging Face: export, import, and HybridNorm models that `transformers` trains.

Importing this registers them, so that `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know
them without remote code, and `HybridNormConfig` knows placements by name.
"""

from importlib.util import find_spec

import lazy_loader

from hybridnorm.errors import HybridNormError

if find_spec("transformers") is None:
    raise HybridNormError("transformers is not installed; pip install 'hybridnorm[hf]'")

from hybridnorm.interop.huggingface.registration import register

register()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
