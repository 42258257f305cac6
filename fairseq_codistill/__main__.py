"""``python -m fairseq_codistill`` is the same as ``codistill``."""

import sys

from fairseq_codistill.cli import main

sys.exit(main())
