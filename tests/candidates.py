"""Small models with random weights, and what a plain loop says of them."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hybridnorm.data.tokenizer import ByteTokenizer
from hybridnorm.evaluate.run_model import RunModel
from hybridnorm.model import ModelConfig, Transformer

WORDS = [
    "the",
    "norm",
    "of",
    "a",
    "deep",
    "model",
    "grows",
    "where",
    "its",
    "residual",
    "stream",
    "is",
    "bare,",
    "and",
    "falls",
    "again",
]


def run_model(window: int = 64, **shape: Any) -> RunModel:
    """Our own model, on bytes."""
    defaults = {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 64,
        "vocab_size": 257,
    }
    model = Transformer(ModelConfig(**defaults | shape), seed=1)
    with torch.no_grad():  # far from uniform, so that an error shows
        model.embedding.weight.mul_(5)
    return RunModel("tiny", model, ByteTokenizer(), window)


def text(seed: int, n_words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def log_likelihoods(model: Any, tokens: list[int], scored: int, vocab_size: int) -> list[float]:
    """Of the last tokens, each by a forward pass of its own over all before it."""
    found = []
    for end in range(len(tokens) - scored, len(tokens)):
        with torch.no_grad():
            out = model(torch.tensor([tokens[:end]]))
        logits = getattr(out, "logits", out)[0, -1, :vocab_size].double()
        found.append(float(logits.log_softmax(-1)[tokens[end]]))
    return found


def save_llama(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A stock model with random weights and a tokenizer of its own, as Hugging Face saves them."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text(seed, 40) for seed in range(20)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64}
    config = AutoConfig.for_model(architecture, **shape | {"eos_token_id": 0} | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(folder)
    return folder
