#!/usr/bin/env bash
# Collect the wheels that benchmarks/gpu.sh needs on a machine without a network: pure Python, under
# 1 MB.
#
#     benchmarks/gpu_wheels.sh WHEELS
set -euo pipefail
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary :all: -d "${1:?a folder for the wheels}" \
    tyro docstring-parser typeguard tomli-w
