"""Judging models: perplexity of texts, tasks through lm-eval, tasks while a model trains."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
