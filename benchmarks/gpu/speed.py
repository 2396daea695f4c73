"""Training speed on one GPU: placements beside each other and beside `transformers`, in turns.

    python benchmarks/gpu/speed.py OUT
    python benchmarks/gpu/speed.py OUT --tiny

One process per shape. In it every arm is built anew for its turn, so that each has the whole
memory, and takes the largest micro-batch that fits; all train on the same number of tokens per
optimizer step. OUT/speed-SHAPE.json is written after every turn.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arms import SHAPES, TINY, Arm, Shape, arms, fitting, llama_shape, ours, synchronize
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridnorm.model.flops import flops_per_token
from hybridnorm.train.environment import environment
from hybridnorm.train.report.speed import peak_flops, peak_memory

STEPS, ROUNDS = 4, 3


def turn(arm: Arm, shape: Shape, device: str) -> dict[str, Any]:
    """Seconds per optimizer step; and until the end of the first one, compilation included."""
    start = time.perf_counter()
    training = fitting(arm, shape, device)
    first = time.perf_counter() - start
    training.step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(STEPS):
        training.step()
    synchronize(device)
    seconds = (time.perf_counter() - start) / STEPS
    peak = peak_memory(torch.device(device))
    return {"micro": training.micro, "first": first, "seconds": seconds, "peak": peak}


def race(name: str, shape: Shape, out: Path, device: str, deadline: float) -> None:
    contenders = arms(shape)
    results: dict[str, Any] = {arm.name: {"turns": []} for arm in contenders}
    about: dict[str, Any] = {
        "environment": environment(torch.device(device)),
        "shape": name,
        "model": vars(shape.config),
        "tokens_per_step": shape.tokens,
        "seq": shape.seq,
        "flops_per_token": flops_per_token(shape.config, shape.seq),
        "peak_flops": peak_flops(torch.device(device)),
        "arms": results,
    }
    for number in range(ROUNDS):
        # Every second round in reverse order.
        for arm in contenders[:: -1 if number % 2 else 1]:
            if time.time() > deadline:
                return
            found = results[arm.name]
            if "error" not in found:
                try:
                    found["turns"].append(turn(arm, shape, device))
                except Exception as error:  # a peer that fails is a line of the table
                    found["error"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
            (out / f"speed-{name}.json").write_text(json.dumps(about, indent=1))
            print(name, arm.name, found.get("error") or found["turns"][-1], flush=True)


def attention(out: Path, device: str) -> None:
    """Milliseconds of forward and backward pass of causal attention, by PyTorch's kernels."""
    rows: list[dict[str, Any]] = []
    for shape_name, shape in (SHAPES if device == "cuda" else TINY).items():
        config = shape.config
        for backend in ("default", "FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
            inputs = [
                torch.randn(
                    4, shape.seq, heads, config.head_dim, device=device, dtype=torch.bfloat16
                ).requires_grad_()
                for heads in (config.n_heads, config.kv_heads, config.kv_heads)
            ]
            row: dict[str, Any] = {"shape": shape_name, "backend": backend}
            try:
                row["ms"] = _attention_ms(inputs, backend, device)
            except Exception as error:
                row["error"] = str(error).strip().splitlines()[0][:200]
            rows.append(row)
            print(row, flush=True)
    (out / "speed-attention.json").write_text(json.dumps(rows, indent=1))


def _attention_ms(inputs: list[torch.Tensor], backend: str, device: str) -> float:
    grouped = inputs[0].shape[2] != inputs[1].shape[2]

    def once() -> None:
        q, k, v = (x.transpose(1, 2) for x in inputs)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=grouped
        )
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    chosen = list(SDPBackend.__members__.values()) if backend == "default" else backend
    if backend != "default":
        chosen = [SDPBackend.__members__[backend]]
    repeats = 10
    if backend == "default":
        once()
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            once()
        synchronize(device)
        return (time.perf_counter() - start) / repeats * 1e3
    with sdpa_kernel(chosen):
        return _attention_ms(inputs, "default", device)


def generation(out: Path, shape: Shape, device: str) -> None:
    """Greedy, eager, bfloat16, beside `transformers`; both with a cache that grows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from hybridnorm.model.sampling import generate

    prompt, new = (32, 128) if device == "cuda" else (4, 8)
    model, _ = ours("hybridnorm-star").build(shape, device)
    with torch.device(device):
        theirs = LlamaForCausalLM(LlamaConfig(**llama_shape(shape) | {"use_cache": True}))
    theirs = theirs.bfloat16().eval()

    def mine(ids: torch.Tensor) -> torch.Tensor:
        return generate(model, ids, new, temperature=0)

    def other(ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        return theirs.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new
        )

    rows = []
    for batch in (1, 16):
        ids = torch.randint(500, (batch, prompt), device=device)
        ways = {"hybridnorm-star": mine, "transformers Llama": other}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(4):
            for name, way in ways.items():
                start = time.perf_counter()
                assert way(ids).shape[1] == prompt + new
                synchronize(device)
                if number:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
        rows.append({"batch": batch, "new": new, "seconds": seconds})
        (out / "speed-generation.json").write_text(json.dumps(rows, indent=1))
        print(rows[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=480, help="of all parts together")
    parser.add_argument("--only", nargs="+", help="shapes, attention, generation")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tiny:
        torch.compiler.set_stance("force_eager")
    device = "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"
    shapes = TINY if options.tiny else SHAPES
    parts = options.only or ["attention", *shapes, "generation"]
    if options.part is None:
        end = time.time() + options.seconds
        for number, part in enumerate(parts):
            left = end - time.time()
            deadline = time.time() + left / (len(parts) - number) * 1.2
            command = [sys.executable, __file__, str(options.out), "--part", part]
            command += ["--deadline", str(deadline)] + ["--tiny"] * options.tiny
            try:
                subprocess.run(command, timeout=max(left, 1))
            except subprocess.TimeoutExpired:
                print(f"{part}: out of time", flush=True)
    elif options.part == "attention":
        attention(options.out, device)
    elif options.part == "generation":
        generation(options.out, next(iter(shapes.values())), device)
    else:
        race(options.part, shapes[options.part], options.out, device, options.deadline)


if __name__ == "__main__":
    main()
