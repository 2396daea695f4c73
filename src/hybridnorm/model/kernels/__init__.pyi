from .chunks import chunk_rows as chunk_rows
from .cpu_attention import blockwise_attention as blockwise_attention
from .cross_entropy import linear_cross_entropy as linear_cross_entropy
from .grouped_products import GroupedLinear as GroupedLinear
from .grouped_products import grouped_linear as grouped_linear
from .precision import at_least_float32 as at_least_float32
