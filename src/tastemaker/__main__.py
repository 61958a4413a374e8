"""`python -m tastemaker`: the command line, for launchers that start modules, as accelerate and torchrun do."""

import sys

from tastemaker.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
