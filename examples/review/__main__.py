"""Run the review: `python -m examples.review`.

Nothing is defined here, so that all that crosses to Ray's workers has an importable name.
"""

from __future__ import annotations

import sys

from examples.review.cli import main

if __name__ == "__main__":
    sys.exit(main())
