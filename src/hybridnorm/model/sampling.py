"""Sampling from a model, with a key/value cache."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import SamplingConfig
from hybridnorm.model.transformer import Transformer

_COLDEST = 1e-6  # below, logits over the temperature overflow; the likeliest token has it all


@torch.inference_mode()
def generate(
    model: Transformer,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end_of_document: int | None = None,
) -> Tensor:
    """Continue `input_ids` `(batch, seq)`; returns them with the new tokens appended.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample from the k likeliest tokens only.
        top_p: sample from the smallest set of tokens with at least this probability only.
        end_of_document: a sequence that has produced this token gets only this from then on;
            stop once all have.

    Raises:
        HybridNormError: a sampling setting outside its range, or logits that are not finite.
    """
    SamplingConfig(  # checks them
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    generator = torch.Generator(input_ids.device).manual_seed(seed)
    model = with_cast_weights(model)
    caches = model.kv_caches(input_ids.shape[1] + max_new_tokens)
    tokens = [input_ids]
    ended = torch.zeros(len(input_ids), 1, dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        logits = model.next_logits(tokens[-1], caches).float()
        if len(tokens) == 1 and not logits.isfinite().all():  # once: asking waits for the device
            raise HybridNormError("the model's logits are not finite; its training has diverged")
        new = _sample(logits, temperature, top_k, top_p, generator)
        if end_of_document is not None:
            new = new.masked_fill(ended, end_of_document)
            ended |= new == end_of_document
        tokens.append(new)
        if end_of_document is not None and ended.all():  # asking waits for the device
            break
    return torch.cat(tokens, dim=1)


def with_cast_weights(model: Transformer) -> Transformer:
    """`model` with its weights in the activations' dtype, cast once, not at every token.

    Blocks are as they were written, without torch.compile or recomputation. Weights that need no
    cast are shared. A model that is laid out over ranks is returned as it is.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    with torch.device("meta"):
        cast = Transformer(model.config, model.placement)
    weights = {name: weight.to(model.dtype) for name, weight in model.state_dict().items()}
    cast.load_state_dict(weights, assign=True)
    cast.dtype = model.dtype
    return cast


def _sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Tensor:
    """One token per row of `logits` `(batch, vocab)`, as `(batch, 1)`."""
    if temperature < _COLDEST:
        return logits.argmax(-1, keepdim=True)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_k is not None or top_p is not None:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        if top_p is not None:
            # A token stays while those before it have not reached top_p yet.
            ranked = ranked.where(ranked.cumsum(-1) - ranked < top_p, 0.0)
        if top_k is not None:
            ranked[:, top_k:] = 0.0
        chosen = torch.multinomial(ranked, 1, generator=generator)
        return order.gather(-1, chosen)
    return torch.multinomial(probabilities, 1, generator=generator)
