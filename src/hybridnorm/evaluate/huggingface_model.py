"""A Hugging Face folder as a candidate: stock architectures, and code of its own on request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate.packing import Batch, Span
from hybridnorm.evaluate.scoring import Step, score
from hybridnorm.foreign import load_model, loading, quiet

_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")
_UNKNOWN = 2048  # tokens of a window where the configuration says nothing, as lm-eval has it


class HuggingFaceModel:
    """A model and a tokenizer of `transformers`."""

    def __init__(self, name: str, model: Any, tokenizer: Any, window: int | None = None) -> None:
        config = model.config
        known = [getattr(config, field) for field in _LENGTHS if hasattr(config, field)]
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        self.window: int = window or next(iter(known), _UNKNOWN)
        self.device: torch.device = model.device
        self.vocab_size: int = config.vocab_size
        if len(tokenizer) > self.vocab_size:
            raise HybridNormError(
                f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {self.vocab_size}; "
                "put the tokenizer there that it was trained with"
            )
        ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
        found = [token for token in ends if token is not None]
        if not found:
            raise HybridNormError(f"{name}: the tokenizer has neither an eos nor a bos token")
        self.end_of_document, self.prefix = found[0], found[-1]
        tokenizer.split_special_tokens = True  # spelled out in a text, they are text
        self.shares_beginnings = False
        self.shares_beginnings = _can_share(self)

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        if not texts:
            return []
        # verbose: longer ones than the model takes are cut into windows
        options = {"verbose": False} | ({} if special else {"add_special_tokens": False})
        ids: list[list[int]] = self.tokenizer(list(texts), **options)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def logits(self, batch: Batch) -> Tensor:
        """The head sees the places that are asked for alone; what follows it is the model's own."""
        inputs: dict[str, Tensor] = {}
        if batch.tree is not None:
            hidden = torch.finfo(self.model.dtype).min
            mask = torch.zeros_like(batch.tree.mask, dtype=self.model.dtype)
            mask.masked_fill_(~batch.tree.mask, hidden)
            inputs = {"attention_mask": mask, "position_ids": batch.tree.positions}

        def keep(head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].flatten(0, 1)[batch.places][None], *args[1:])

        with self.model.get_output_embeddings().register_forward_pre_hook(keep):
            logits: Tensor = self.model(batch.input_ids, use_cache=False, **inputs).logits
        return logits[0]

    def stepper(self, max_len: int) -> Step:
        cache = None

        def step(ids: Tensor) -> Tensor:
            nonlocal cache
            out = self.model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits: Tensor = out.logits[:, -1]
            return logits

        return step


def load_huggingface_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    window: int | None,
    *,
    trust_remote_code: bool,
) -> HuggingFaceModel:
    """The causal language model in a folder; nothing is fetched.

    Raises:
        HybridNormError: transformers is not installed, the folder brings code that was not
            trusted, or it cannot be loaded.
    """
    model = load_model(folder, trust_remote_code=trust_remote_code, dtype=dtype)
    from transformers import AutoTokenizer

    with loading(folder), quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    return HuggingFaceModel(str(folder), model.to(device), tokenizer, window)


def _can_share(candidate: HuggingFaceModel) -> bool:
    """Whether the architecture takes a mask and positions: two texts give what they give alone.

    A sliding window is not in the mask, and recurrent layers know none.
    """
    config = candidate.model.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    ids = [token % candidate.vocab_size for token in (3, 1, 4, 1, 5, 9, 2, 6)]
    spans = [Span((*ids, *rest), len(rest)) for rest in ((7, 1), (2, 8, 1), (5, 5))]
    alone = [s.log_likelihood for s in score(candidate, spans, batch_tokens=1)]
    try:
        candidate.shares_beginnings = True
        together = [s.log_likelihood for s in score(candidate, spans, batch_tokens=64)]
    except (RuntimeError, TypeError, ValueError):
        return False
    tolerance = 1e-3 if candidate.model.dtype == torch.float32 else 0.1
    return all(abs(a - b) < tolerance for a, b in zip(alone, together, strict=True))
