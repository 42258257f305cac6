"""Tokenise, lower-case and clean text exactly as Moses' Perl scripts do.

sacremoses is a port of `tokenizer.perl`; MosesTokenizer mends the places where its result is not
that of Moses today.  `clean` and `lower` are `clean-corpus-n.perl` and `lowercase.perl`.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import regex
import sacremoses
from parallel import map_in_processes

# Perl's IsAlnum, IsAlpha and IsN.  sacremoses has lists of characters for these, of an old Unicode
# and, for most languages, without Chinese and Korean: "Tokyo (東京)" would lose its word.
ALPHA = r"\p{Alphabetic}"
ALNUM = rf"{ALPHA}\p{{Nd}}"
NUMBER = r"\p{N}"

Rule = tuple[regex.Pattern[str], str]


def rule(pattern: str, replacement: str) -> Rule:
    """Return a substitution in the form that sacremoses keeps them in."""
    return regex.compile(pattern), replacement


class MosesTokenizer(sacremoses.MosesTokenizer):
    """The tokenizer of Moses, without options (no -a, no protected patterns)."""

    PAD_NOT_ISALNUM = rule(rf"([^{ALNUM}\s.'`,\-])", r" \1 ")
    COMMA_SEPARATE_1 = rule(rf"([^{NUMBER}]),", r"\1 , ")
    COMMA_SEPARATE_2 = rule(rf",([^{NUMBER}])", r" , \1")
    COMMA_SEPARATE_3 = rule(rf"([{NUMBER}]),$", r"\1 , ")
    ENGLISH_SPECIFIC_APOSTROPHE = [
        rule(rf"([^{ALPHA}])'([^{ALPHA}])", r"\1 ' \2"),
        rule(rf"([^{ALPHA}{NUMBER}])'([{ALPHA}])", r"\1 ' \2"),
        rule(rf"([{ALPHA}])'([^{ALPHA}])", r"\1 ' \2"),
        rule(rf"([{ALPHA}])'([{ALPHA}])", r"\1 '\2"),
        rule(rf"([{NUMBER}])'(s)", r"\1 '\2"),
    ]

    # Python counts these four as white space, Perl does not: it deletes them without a trace.
    NO_SPACE_IN_PERL = str.maketrans(dict.fromkeys("\x1c\x1d\x1e\x1f"))
    HAS_ALPHA = regex.compile(rf"[{ALPHA}]")
    ALL_LOWER = regex.compile(r"\p{Lowercase}*")
    FINAL_DOT = regex.compile(r"(?<=\S)\.$")

    def __init__(self, lang: str) -> None:
        super().__init__(lang)
        # Looked up for every word that ends in a dot: sets in place of sacremoses' lists.
        for name in ("NONBREAKING_PREFIXES", "NUMERIC_ONLY_PREFIXES"):
            setattr(self, name, frozenset(getattr(self, name)))

    def isanyalpha(self, text: str) -> bool:
        """Return whether there is a letter in the text."""
        return self.HAS_ALPHA.search(text) is not None

    def islower(self, text: str) -> bool:
        """Return whether the text is nothing but lower-case letters."""
        return self.ALL_LOWER.fullmatch(text) is not None

    def handles_nonbreaking_prefixes(self, text: str) -> str:
        """Split final dots from words, but not from abbreviations."""
        # Moses splits the dot from the last word whatever that is ("the U.S ."); sacremoses keeps
        # "U.S." there.
        return self.FINAL_DOT.sub(" .", super().handles_nonbreaking_prefixes(text))

    def __call__(self, line: str) -> str:
        """Return the tokens of a line, with spaces between them."""
        text = line.translate(self.NO_SPACE_IN_PERL)
        # Moses leaves a blank line as it is, sacremoses empties it.
        if text == line and (not line or line.isspace()):
            return line
        return self.tokenize(text, return_str=True)


def lower(text: str) -> str:
    """Return the text in lower case, as Perl's lc: letter by letter."""
    # Python alone knows that a Greek word ends in another sigma.
    return text.replace("Σ", "σ").lower()


def single_spaced(line: str) -> str:
    """Return the line with single spaces between its words and none around them."""
    return " ".join(line.split())


def clean(
    pairs: Iterable[tuple[str, str]],
    max_words: int,
    max_ratio: float = 9.0,
    max_word_length: int = 1000,
) -> Iterator[tuple[str, str]]:
    """Yield the pairs of tokenised lines that `clean-corpus-n.perl` keeps, from 1 word on."""
    for lines in pairs:
        # Its other work, deleting "|", has nothing to do: the tokenizer has escaped them all.
        source, target = map(single_spaced, lines)
        words = source.split(" "), target.split(" ")
        lengths = [len(side) for side in words]
        if not source or not target or max(lengths) > max_words:
            continue
        if max(lengths) / min(lengths) > max_ratio:
            continue
        if max(len(word) for side in words for word in side) <= max_word_length:
            yield source, target


_tokenizer: MosesTokenizer | None = None


def _start_worker(language: str) -> None:
    global _tokenizer
    _tokenizer = MosesTokenizer(language)


def _tokenize_here(line: str) -> str:
    assert _tokenizer is not None
    return _tokenizer(line)


def tokenize(lines: Iterable[str], language: str, workers: int = 1) -> Iterator[str]:
    """Yield every line tokenised, in order; with more than one worker, by that many processes."""
    if workers <= 1:
        return map(MosesTokenizer(language), lines)
    return map_in_processes(_tokenize_here, lines, workers, _start_worker, (language,))


def tokenize_pairs(
    sides: tuple[Iterable[str], Iterable[str]], languages: tuple[str, str], workers: int = 1
) -> Iterator[tuple[str, str]]:
    """Yield the tokenised lines of two texts in pairs; raise ValueError if one text is longer."""
    one, other = (tokenize(*each, workers) for each in zip(sides, languages, strict=True))
    for number, (first, second) in enumerate(zip_longest(one, other)):
        if first is None or second is None:
            longer, shorter = languages if second is None else languages[::-1]
            raise ValueError(
                f"the corpus has only {number} lines of '{shorter}' and more of '{longer}': the "
                "archive is not the one this script was made for, or is damaged."
            )
        yield first, second
