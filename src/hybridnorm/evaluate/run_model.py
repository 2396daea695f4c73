"""The model of a run as a candidate."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybridnorm.data import TextTokenizer, load_tokenizer
from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate.packing import Batch
from hybridnorm.evaluate.scoring import Step
from hybridnorm.model import Transformer, with_cast_weights
from hybridnorm.train import load_trained


class RunModel:
    """A `Transformer` and its tokenizer.

    Args:
        window: tokens it reads at most.

    Raises:
        HybridNormError: the tokenizer knows tokens that the model does not.
    """

    shares_beginnings = True

    def __init__(
        self, name: str, model: Transformer, tokenizer: TextTokenizer, window: int
    ) -> None:
        self.vocab_size = model.config.vocab_size or model.config.padded_vocab_size
        if tokenizer.vocab_size > self.vocab_size:
            raise HybridNormError(
                f"{name}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{self.vocab_size}; put the tokenizer there that it was trained with"
            )
        self.name, self.window, self.tokenizer = name, window, tokenizer
        self.model = with_cast_weights(model)
        self.device = model.embedding.weight.device
        self.end_of_document = self.prefix = tokenizer.end_of_document

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        return self.tokenizer.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def logits(self, batch: Batch) -> Tensor:
        return self.model.logits_at(batch.input_ids, batch.places, batch.tree)

    def stepper(self, max_len: int) -> Step:
        caches = self.model.kv_caches(max_len)
        return lambda ids: self.model.next_logits(ids, caches)


def load_run_model(
    run_dir: Path, checkpoint: str, device: torch.device, dtype: torch.dtype, window: int | None
) -> tuple[RunModel, list[str]]:
    """The model of a run, and a line for each damaged checkpoint that was passed over.

    Args:
        window: None: the length of the sequences it was trained on.

    Raises:
        HybridNormError: not a run, no such or a damaged checkpoint, or another tokenizer.
    """
    trained = load_trained(run_dir, checkpoint)
    trained.model.dtype = dtype
    window = window or trained.recipe.train.seq_len
    model = trained.model.to(device)
    return RunModel(str(run_dir), model, load_tokenizer(run_dir), window), trained.problems
