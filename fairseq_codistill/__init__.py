"""Codistillation for fairseq: n models train in groups that exchange nothing but snapshots.

This module imports neither torch nor fairseq, so that ``codistill --help`` is quick and the
lower floors can be used alone.  As a ``--user-dir`` the package registers its task and criterion
from ``fairseq_codistill/tasks``, which fairseq imports by itself.
"""

__version__ = "0.1.0"
