"""How many target tokens a worker's batch has, as the settings have it."""

# Of a sentence, where only the number of sentences is set: about what news and talks have in
# subwords.
TOKENS_A_SENTENCE = 25


def rows_by_settings(max_tokens: int | None, batch_size: int | None) -> int:
    """Return the target tokens of a batch that the settings allow for.

    What depends on it must be the same on all workers of a group and after a resume, so no batch
    is looked at.

    Args:
        max_tokens: ``--max-tokens``.
        batch_size: ``--batch-size``, sentences.
    """
    by_sentences = batch_size * TOKENS_A_SENTENCE if batch_size else None
    limits = [limit for limit in (max_tokens, by_sentences) if limit]
    return min(limits, default=0)
