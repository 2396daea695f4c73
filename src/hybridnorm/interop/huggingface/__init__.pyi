from .configuration_hybridnorm import HybridNormConfig as HybridNormConfig
from .export import export_run as export_run
from .importing import KNOWN as KNOWN
from .importing import architecture as architecture
from .importing import import_model as import_model
from .modeling_hybridnorm import HybridNormForCausalLM as HybridNormForCausalLM
from .modeling_hybridnorm import HybridNormModel as HybridNormModel
