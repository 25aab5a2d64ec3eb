"""igkd: knowledge distillation with integrated gradients, as an executable paper.

Importing this package is cheap: torch is imported by the modules that need it, so that
``python run_all.py --help`` answers at once.
"""

import os
from pathlib import Path

# PyTorch's threads wait for each other in a loop, which slows all of them many times as soon as another program
# wants a core. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
REPOSITORY = Path(__file__).resolve().parent.parent
