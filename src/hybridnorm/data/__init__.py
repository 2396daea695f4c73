"""Text to tokens to batches: corpus, tokenizer, prepared shards, deterministic order."""
