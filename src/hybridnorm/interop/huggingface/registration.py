"""HybridNorm models known to `transformers` in this process, and placements known by name."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hybridnorm.interop.huggingface.configuration_hybridnorm import HybridNormConfig
from hybridnorm.interop.huggingface.modeling_hybridnorm import (
    HybridNormForCausalLM,
    HybridNormModel,
)
from hybridnorm.interop.huggingface.shape import describe, model_config
from hybridnorm.placements import placement


def register() -> None:
    """Make `AutoModelForCausalLM` and the like find the classes; saving one writes its code."""
    AutoConfig.register(HybridNormConfig.model_type, HybridNormConfig)
    HybridNormConfig.register_for_auto_class()
    HybridNormConfig.resolve_name = _fill_in
    for auto, cls in (
        (AutoModel, HybridNormModel),
        (AutoModelForCausalLM, HybridNormForCausalLM),
    ):
        auto.register(HybridNormConfig, cls)
        cls.register_for_auto_class(auto.__name__)


def _fill_in(config: HybridNormConfig, name: str) -> None:
    for field, value in describe(placement(name), model_config(config)).items():
        setattr(config, field, value)
