"""Decoder-only transformer: configuration, norms, blocks, initialization, generation."""
