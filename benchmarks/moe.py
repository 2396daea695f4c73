"""Training speed of experts: grouped beside looped, beside a dense model, beside `transformers`.

    python benchmarks/moe.py --rounds 7
    python benchmarks/moe.py --rounds 7 --dtype bf16

All arms train on the same random tokens, forward, backward, clip and fused AdamW, and take turns in
one process that keeps its memory; the table gives medians and ratios of the round's own times. The
dense model has the active parameters of the others. `transformers`' OLMoE runs in each of its
implementations of experts, with its auxiliary loss; in bf16 it runs under autocast.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.utils import logging

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import grouped_products as grouped
from hybridnorm.model.moe import load_balance
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.transformer import Transformer
from hybridnorm.recipe.config import TrainConfig
from hybridnorm.train.process_setup import set_up_process

Step = Callable[[], float]
OURS = ModelConfig(
    placement="pre-norm-qk",
    d_model=256,
    n_layers=4,
    n_heads=8,
    d_ff=352,
    n_experts=16,
    top_k=2,
    vocab_size=4096,
    tie_embeddings=False,
)
DENSE = replace(OURS, n_experts=0, d_ff=OURS.top_k * OURS.d_ff)


def looped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """What `grouped_linear` does, one expert after the other."""
    rows = torch.split(x, ends.diff(prepend=ends.new_zeros(1)).tolist())
    return torch.cat([part @ matrix.T for part, matrix in zip(rows, weight, strict=True)])


def training_step(model: nn.Module, objective: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        start = time.perf_counter()
        objective().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return step


def ours(
    config: ModelConfig,
    ids: Tensor,
    dtype: torch.dtype,
    product: object = None,
    compiled: bool = False,
) -> Step:
    model = Transformer(config)
    model.dtype = dtype
    parallelize(model, None, compile_blocks=compiled)
    kept = grouped.grouped_linear

    def objective() -> Tensor:
        # The module looks its product up at every call.
        grouped.grouped_linear = product or kept  # type: ignore[assignment]
        losses = model.losses(ids[:, :-1], ids[:, 1:])
        grouped.grouped_linear = kept
        if losses.routing is None:
            return losses.total
        auxiliary = 0.01 * load_balance(losses.routing) + 0.001 * losses.routing.z.mean()
        return losses.total + auxiliary

    return training_step(model, objective)


def theirs(experts: str, ids: Tensor, dtype: torch.dtype) -> Step:
    config = OlmoeConfig(
        hidden_size=OURS.d_model,
        num_hidden_layers=OURS.n_layers,
        num_attention_heads=OURS.n_heads,
        num_key_value_heads=OURS.n_heads,
        intermediate_size=OURS.d_ff,
        num_experts=OURS.n_experts,
        num_experts_per_tok=OURS.top_k,
        vocab_size=OURS.vocab_size,
        output_router_logits=True,
        use_cache=False,
        attn_implementation="sdpa",
        experts_implementation=experts,
    )
    model = OlmoeForCausalLM(config).train()
    low = torch.autocast("cpu", torch.bfloat16) if dtype != torch.float32 else None

    def objective() -> Tensor:
        with low or contextlib.nullcontext():
            loss: Tensor = model(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss
        return loss

    return training_step(model, objective)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    set_up_process(TrainConfig())
    logging.set_verbosity_error()
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4096, (options.batch, options.seq + 1), generator=generator)
    arms = {
        "hybridnorm, grouped": ours(OURS, ids, dtype),
        "hybridnorm, looped experts": ours(OURS, ids, dtype, looped),
        "hybridnorm, dense of equal active size": ours(DENSE, ids, dtype),
        "hybridnorm, grouped, compiled": ours(OURS, ids, dtype, compiled=True),
        "hybridnorm, dense, compiled": ours(DENSE, ids, dtype, compiled=True),
        "transformers OLMoE, eager": theirs("eager", ids, dtype),
        "transformers OLMoE, grouped_mm": theirs("grouped_mm", ids, dtype),
    }
    for step in arms.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds):
        # Every second round in reverse order, and a step that does not count before each that does:
        # what an arm leaves behind in caches and memory would be its neighbour's time.
        for name in list(arms)[:: -1 if number % 2 else 1]:
            arms[name]()
            times[name].append(arms[name]())
    show(times, options.batch * options.seq, options)


def show(times: dict[str, list[float]], tokens: int, options: argparse.Namespace) -> None:
    first = next(iter(times))
    threads = torch.get_num_threads()
    title = (
        f"{tokens:,} tokens per step, {options.dtype}, {threads} threads, {options.rounds} rounds"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("", "tokens/s", "range", f"{first}: times as fast"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, seconds in times.items():
        speeds = [tokens / s for s in seconds]
        ratio = statistics.median(t / o for t, o in zip(seconds, times[first], strict=True))
        span = f"{min(speeds):,.0f}-{max(speeds):,.0f}"
        table.add_row(name, f"{statistics.median(speeds):,.0f}", span, f"{ratio:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
