"""Pretrain transformers with HybridNorm, and compare normalization placements honestly."""

from typing import TYPE_CHECKING, Any

from hybridnorm.placements import Placement, placement

if TYPE_CHECKING:
    from hybridnorm.diagnose import classify as classify
    from hybridnorm.model import ModelConfig as ModelConfig
    from hybridnorm.model import Transformer as Transformer

__version__ = "0.1.0"
__all__ = ["ModelConfig", "Placement", "Transformer", "classify", "placement"]

_LAZY = {
    "ModelConfig": "hybridnorm.model.config",
    "Transformer": "hybridnorm.model.transformer",
    "classify": "hybridnorm.diagnose.classifier",
}


def __getattr__(name: str) -> Any:
    """Import torch only when a model is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hybridnorm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
