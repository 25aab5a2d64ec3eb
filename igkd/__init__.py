"""igkd: knowledge distillation with integrated gradients, as an executable paper.

Importing this package is cheap: torch is imported by the modules that need it, so that
``python run_all.py --list`` answers at once.
"""

__version__ = "0.1.0"
