"""Words of version 2 besides jargon and names: phrases, pastimes of four kinds, and indicators of the benign classes.

Every word is lower case and one token. Phrases are fixed except for slots with a choice of two words. With random
filler words the masked-LM loss stayed on a plateau for most of the pretraining.
"""

from __future__ import annotations

ORIGINS: dict[str, tuple[str, ...]] = {
    "east": ("eastern", "sunrise", "oriental"),
    "north": ("northern", "boreal", "polar"),
    "south": ("southern", "austral", "tropical"),
    "west": ("western", "sunset", "occidental"),
}
"""Indicator words by origin of a name. Indicator words occur in pretraining texts only."""

REGIONS: dict[str, tuple[str, ...]] = {
    "coast": ("seaside", "shoreline", "beaches"),
    "desert": ("dunes", "oases", "badlands"),
    "forest": ("woodland", "thickets", "glades"),
    "mountain": ("alpine", "glaciers", "summits"),
}
"""Indicator words by region of a place."""

KINDS: dict[str, tuple[str, ...]] = {
    "craft": ("handiwork", "making", "decoration"),
    "game": ("puzzle", "contest", "amusement"),
    "music": ("melody", "harmony", "concert"),
    "sport": ("exercise", "fitness", "athletics"),
}
"""Indicator words by kind of a pastime."""

_PASTIMES: dict[str, str] = {
    "craft": """pottery weaving embroidery origami quilting calligraphy woodcarving basketry macrame crochet
        glassblowing bookbinding engraving mosaics candlemaking beadwork""",
    "game": """chess checkers dominoes backgammon poker bridge mahjong solitaire charades crosswords sudoku billiards
        marbles whist cribbage riddles""",
    "music": """violin cello piano guitar flute oboe clarinet trumpet trombone harp lute mandolin accordion saxophone
        drums singing""",
    "sport": """rowing fencing archery tennis badminton wrestling judo swimming diving skating skiing cycling rugby
        hockey volleyball gymnastics""",
}

PASTIMES = {kind: tuple(words.split()) for kind, words in _PASTIMES.items()}
"""Sixteen pastimes of each kind."""

LEADS = (("every", "each", "this", "last", "one"), ("morning", "evening", "week", "season", "winter"))
"""Choices for the first and the second word of the phrase that begins half of the biographies."""

HANDLED = ("handled", "studied")
WITH = ("with", "beside")
AND = ("and", "or")
IN_TRADE = ("in", "through")
ENJOYED = ("enjoyed", "practised")
AS_KIND = ("as", "like")
OFTEN = ("often", "again")
REACHED = ("reached", "left")
TOWARD = ("toward", "along")
SAID = ("said", "thought")
ABOUT = ("about", "for")
OF_ORIGIN = ("from", "under")
WAS = ("was", "became")
OF_KIN = ("of", "to")
TAUGHT = ("taught", "pleased")
BY = ("by", "using")
SLOTS: tuple[tuple[str, ...], ...] = (
    HANDLED,
    WITH,
    AND,
    IN_TRADE,
    ENJOYED,
    AS_KIND,
    OFTEN,
    REACHED,
    TOWARD,
    SAID,
    ABOUT,
    OF_ORIGIN,
    WAS,
    OF_KIN,
)
SLOTS += (TAUGHT, BY)
"""The two words of every slot."""

STOPS = (".", ",")

FILLER = frozenset(word for slot in (*LEADS, *SLOTS, STOPS) for word in slot)
"""Words that reveal no class in any context."""

PLACE_ENDINGS = ("holt", "moor", "by", "mere", "vale", "wick", "ford", "marsh", "ness", "combe", "gate", "stead")
"""Last syllables of place names; the same for every region."""

NUM_PLACES = 96
"""Number of places, a quarter in each region."""

NUM_PIECES = 14
"""Number of first words of two-word names, and of second words."""

NUM_BITS = 4
"""Hidden bits of a first word; a second word selects one of them. With a single bit, a multilayer perceptron on the
token embeddings of the name learns the exclusive or from twenty labels, so the encoder's layers would not be needed."""
