"""Turns a codistilled checkpoint into a model that needs this plugin no more.

``--format fairseq`` writes a checkpoint of fairseq's own ``translation`` task.  It holds tensors
and plain containers only, so that ``torch.load(..., weights_only=True)`` reads it; the optimizer's
state stays behind.  ``--format ctranslate2`` writes a model directory of CTranslate2.

Nothing is written to its final place before it has been loaded there where it is to be used, and
has given the outputs of the trained model.
"""

from fairseq_codistill.export.run import FORMATS, Options, export

__all__ = ["FORMATS", "Options", "export"]
