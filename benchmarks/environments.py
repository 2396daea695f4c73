"""Build the virtual environments of the peers from requirements/*.txt.

python benchmarks/environments.py
python benchmarks/environments.py litgpt --environments build/environments
"""

import argparse
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
DEFAULT = Path(__file__).parent.parent / "build" / "environments"


def build(requirements: Path, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "--quiet", "--disable-pip-version-check", "install"]
    # torch first and by itself: every peer gets the version that hybridnorm is measured with.
    torch = requirements.read_text().split()[0]
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--requirement", str(requirements)], check=True)


def main() -> None:
    known = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peers", nargs="*", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--environments", type=Path, default=DEFAULT)
    options = parser.parse_args()
    for name in options.peers or known:
        if name not in known:
            sys.exit(f"{name}: no such peer; there are {', '.join(known)}")
        print(f"{options.environments / name}", flush=True)
        build(REQUIREMENTS / f"{name}.txt", options.environments / name)


if __name__ == "__main__":
    main()
