"""What the matrices of a block are called, by what they do. No torch."""

INPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Read what enters a sublayer; tensor parallelism cuts their columns."""
OUTPUTS = ("o_proj", "down_proj")
"""Write to the stream; tensor parallelism cuts their rows, initialization scales them."""
