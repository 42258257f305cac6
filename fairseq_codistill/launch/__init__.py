"""``codistill launch``: run the groups of one run on this machine, and keep them running.

``run`` ties the modules together: ``dialects`` and ``commands`` say what to start, ``devices``
where, ``checkpoints`` from what; ``supervise`` sees it to its end, each ``group`` of them a few
of ``process``; ``progress`` shows it, ``record`` writes down what was started.  None of them
imports torch or fairseq.
"""
