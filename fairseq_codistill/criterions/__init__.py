"""The fairseq criterions; each is imported by the task that it belongs to."""
