"""Run as one of several ranks: command lines one after the other, on ranks that join once.

RANK=... python tests/train/verbs.py '[["train", ...], ...]' prints [[status, stdout, stderr], ...].
"""

import json
import sys

from ranks import join_once

from command_line import in_process


def main() -> None:
    join_once()
    results = [in_process(*argv) for argv in json.loads(sys.argv[1])]
    print(json.dumps([[r.returncode, r.stdout, r.stderr] for r in results]))


if __name__ == "__main__":
    main()
