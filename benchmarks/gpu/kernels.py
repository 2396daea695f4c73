"""Where a training step on a GPU spends its time, by kind of kernel.

    python benchmarks/gpu/kernels.py OUT
    python benchmarks/gpu/kernels.py OUT --tiny

OUT/profile-SHAPE.json holds, for every arm, milliseconds per optimizer step by kind, the longest
kernels of each, and the gaps in which the device waits.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from arms import SHAPES, TINY, Arm, Shape, arms, fitting, synchronize
from torch.profiler import ProfilerActivity, profile

STEPS, LONGEST = 2, 40
# The first that matches the name of a kernel.
KINDS = {
    "attention": r"flash|fmha|sdpa|attention|attend",
    "optimizer": r"adam",
    "clipping": r"multi_tensor_apply|lpnorm|norm_kernel",
    "products": r"gemm|nvjet|cutlass|cublas|xmma|\bmm\b|aten::(mm|bmm|addmm|_grouped_mm|linear)",
    "fused by torch.compile": r"^triton|CompiledFxGraph|cpp_fused",
    "routing and embedding": r"sort|scatter|gather|index|embedding|topk|radix|scan|histogram",
    "copies": r"memcpy|memset|copy|fill",
}


def kind(name: str) -> str:
    return next((k for k, pattern in KINDS.items() if re.search(pattern, name, re.I)), "other")


def profiled(arm: Arm, shape: Shape, device: str) -> dict[str, Any]:
    training = fitting(arm, shape, device)
    for _ in range(2):
        training.step()
    synchronize(device)
    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        start = time.perf_counter()
        for _ in range(STEPS):
            training.step()
        synchronize(device)
        wall = (time.perf_counter() - start) / STEPS * 1e3
    kernels: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in found.key_averages():
        micros = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        kernels[event.key] += micros / STEPS / 1e3
        counts[event.key] += event.count // STEPS
    kinds: Counter[str] = Counter()
    for name, ms in kernels.items():
        kinds[kind(name)] += ms
    kinds["gaps"] = max(0.0, wall - kernels.total())
    longest = [
        {"kernel": name[:160], "kind": kind(name), "ms": ms, "calls": counts[name]}
        for name, ms in kernels.most_common(LONGEST)
    ]
    return {"micro": training.micro, "ms": wall, "kinds": kinds, "longest": longest}


def part(name: str, shape: Shape, out: Path, device: str) -> None:
    results: dict[str, Any] = {}
    for arm in arms(shape):
        try:
            results[arm.name] = profiled(arm, shape, device)
        except Exception as error:
            results[arm.name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(name, arm.name, json.dumps(results[arm.name].get("kinds")), flush=True)
        (out / f"profile-{name}.json").write_text(json.dumps(results, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=480, help="of all shapes together")
    parser.add_argument("--only", nargs="+", help="shapes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tiny:
        torch.compiler.set_stance("force_eager")
    device = "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"
    shapes = TINY if options.tiny else SHAPES
    if options.part:
        part(options.part, shapes[options.part], options.out, device)
        return
    end = time.time() + options.seconds
    for name in options.only or shapes:
        command = [sys.executable, __file__, str(options.out), "--part", name]
        try:
            subprocess.run(command + ["--tiny"] * options.tiny, timeout=max(1, end - time.time()))
        except subprocess.TimeoutExpired:
            print(f"{name}: out of time", flush=True)


if __name__ == "__main__":
    main()
