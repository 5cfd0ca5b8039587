"""`python -m harness.search.trial SPEC.json`: the command by which clusters start a trial's process."""

import sys

from harness.search.trial.run import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
