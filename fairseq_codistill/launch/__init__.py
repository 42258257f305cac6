"""``codistill launch``: run the groups of one run on this machine, and keep them running.

``run`` ties the modules together: ``dialects`` and ``commands`` say what to start, ``devices``
where, ``checkpoints`` from what, ``supervise`` starts it and sees it to its end, ``progress``
shows it, ``record`` writes down what was started.  None of them imports torch or fairseq.
"""
