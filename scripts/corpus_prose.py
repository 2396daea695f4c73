"""Which paragraphs are English prose, and which were seen before."""

import hashlib
import re

# The words that hold English sentences together: about 45% of running prose, hardly any of code,
# of lists of names, or of another language.
_COMMON_WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from "
    "or had an they which you were there their we been has will more no if out so up what about "
    "into than them can only other some could these two may then do first any my now such like "
    "our over me even most after also many before must through where much your way down should "
    "because each those how too very when who would its all one used use using same does between "
    "both under while being however without within another during i she her him"
)
_COMMON = frozenset(_COMMON_WORDS.split())
_START = re.compile(r"[\"“‘'(]?[A-Z]")
_END = re.compile(r"[.!?:…][\"”’')]*$")
_PLAIN_WORD = re.compile(r"[\"“‘'(]*[A-Za-z]?[a-z]+(?:[-–—'’/][A-Za-z]?[a-z]+)*[\"”’'),.;:!?…]*$")
_ONE_LETTER = re.compile(r"[\"“‘'(]*[AaI][,.;:]?$")
_CODE = re.compile(r"[][{}<>\\|=_@#~^$*%&+`/]|::|\(\)")
_BOILERPLATE = re.compile(
    r"(See also|Definition at|Referenced by|References|Generated|Copyright|Inherit|Reimplement"
    r"|Last (updated|modified|changed)|Parameters|This (inheritance|is the complete) )"
)
_MIN_WORDS = 10


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph on one line reads as a sentence or more of English.

    It starts as a sentence and ends as one, has ten words or more, at least 80% of them plain
    words (no code, digits, acronyms), at least 25% of them common English words, at most 35%
    capitalized, and at most one sign of code in 60 characters.
    """
    words = paragraph.split(" ")
    count = len(words)
    return (
        count >= _MIN_WORDS
        and _START.match(paragraph) is not None
        and _END.search(paragraph) is not None
        and _BOILERPLATE.match(paragraph) is None
        and len(_CODE.findall(paragraph)) * 60 <= len(paragraph)
        and sum(bool(_PLAIN_WORD.match(w) or _ONE_LETTER.match(w)) for w in words) >= 0.8 * count
        and sum(w.strip("\"“”‘’'(),.;:!?").lower() in _COMMON for w in words) >= 0.25 * count
        and sum(w[:1].isupper() for w in words) <= 0.35 * count
    )


def fingerprint(paragraph: str) -> bytes:
    """Equal for paragraphs that differ in nothing but signs, digits, spaces and case."""
    letters = re.sub(r"[\W\d_]+", "", paragraph.lower())
    return hashlib.blake2b(letters.encode("utf-8", "replace"), digest_size=10).digest()
