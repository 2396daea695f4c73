"""Normalization placements as data: vocabulary, table, grammar, equations, drawings. No torch."""

from hybridnorm.placement.registry import placement as placement
from hybridnorm.placement.registry import strategies as strategies
from hybridnorm.placement.spec import Placement as Placement
