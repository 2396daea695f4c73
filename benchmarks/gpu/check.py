"""Run tests/device, and say in OUT/check.json what passed, what failed, and what was measured.

python benchmarks/gpu/check.py OUT
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def condensed(report: Path) -> dict[str, Any]:
    """A junit file without its tracebacks."""
    found: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": {}, "measured": {}}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        failure = case.find("failure")
        if failure is None:
            failure = case.find("error")
        if failure is not None:
            found["failed"][name] = (failure.get("message") or "").partition("\n")[0][:160]
        else:
            found["passed" if case.find("skipped") is None else "skipped"] += 1
        for item in case.iter("property"):
            found["measured"].setdefault(name, {})[item.get("name")] = item.get("value")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    report = out / "check.xml"
    command = [sys.executable, "-m", "pytest", "tests/device", "-m", "slow or not slow", "-q"]
    command += ["-W", "default", "-p", "no:cacheprovider", "--durations", "10"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "4"]
    command += ["-o", "junit_family=xunit1", "--junitxml", str(report)]
    status = subprocess.run(command, cwd=ROOT).returncode
    if not report.exists():
        sys.exit(status)
    (out / "check.json").write_text(json.dumps(condensed(report), indent=1))


if __name__ == "__main__":
    main()
