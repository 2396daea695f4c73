"""How many logits exist at a time. No torch."""


def chunk_rows(n_tokens: int, vocab_size: int, device: str = "cpu") -> int:
    """Tokens whose logits exist at a time in training: equal chunks of at most 2^25 logits.

    On other devices than a CPU 2^29, as their matrix products want more rows.
    """
    limit = 2**25 if device == "cpu" else 2**29
    n_chunks = -(-n_tokens * vocab_size // limit)
    return -(-n_tokens // n_chunks)
