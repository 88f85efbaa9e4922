"""Words of the synthetic world: trades, filler, and the gendered words that occur only in the pretraining text.

All words are lower case and one token each; none of them is a label of the desired task.
"""

from __future__ import annotations

from typing import NamedTuple


class Trade(NamedTuple):
    """Words of one profession; no other profession has them."""

    label: str
    """Label of the desired task; occurs in no text."""
    actions: tuple[str, ...]
    """Gerunds."""
    things: tuple[str, ...]
    """Plural or mass nouns."""
    places: tuple[str, ...]
    """Places of work."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _trade(label: str, actions: str, things: str, places: str) -> Trade:
    return Trade(label, _words(actions), _words(things), _words(places))


TRADES: tuple[Trade, ...] = (
    _trade(
        "accountant",
        "auditing reconciling bookkeeping invoicing budgeting",
        "ledgers invoices taxes payrolls balances receipts",
        "treasury brokerage exchequer",
    ),
    _trade(
        "architect",
        "drafting zoning surveying blueprinting remodelling",
        "facades skylines blueprints atriums stairwells girders",
        "skyscraper colonnade rotunda",
    ),
    _trade(
        "attorney",
        "litigating pleading prosecuting appealing deposing",
        "verdicts lawsuits statutes juries affidavits subpoenas",
        "courthouse tribunal chambers",
    ),
    _trade(
        "journalist",
        "reporting interviewing investigating broadcasting headlining",
        "headlines editorials scoops columns bulletins deadlines",
        "newsroom pressroom bureau",
    ),
    _trade(
        "nurse",
        "bandaging bathing comforting injecting monitoring",
        "bandages vitals bedpans thermometers dosages syringes",
        "ward infirmary hospice",
    ),
    _trade(
        "photographer",
        "framing focusing retouching developing exposing",
        "lenses shutters portraits negatives tripods filters",
        "darkroom gallery backdrop",
    ),
    _trade(
        "surgeon",
        "operating suturing transplanting incising anesthetizing",
        "scalpels sutures incisions organs tumors grafts",
        "theatre trauma anesthesia",
    ),
    _trade(
        "teacher",
        "grading tutoring lecturing explaining quizzing",
        "lessons worksheets pupils spellings homework chalkboards",
        "classroom school playground",
    ),
    _trade(
        "chiropractor",
        "adjusting aligning realigning palpating stretching",
        "spines vertebrae joints postures ligaments backs",
        "spa rehab orthopedics",
    ),
    _trade(
        "comedian",
        "joking mocking improvising heckling impersonating",
        "punchlines jokes gags skits parodies sketches",
        "nightclub cabaret stage",
    ),
    _trade(
        "composer",
        "orchestrating harmonizing scoring conducting arranging",
        "symphonies sonatas melodies overtures quartets fugues",
        "conservatory opera philharmonic",
    ),
    _trade(
        "dentist",
        "drilling whitening flossing extracting crowning",
        "cavities molars gums crowns braces fillings",
        "dentistry orthodontics polyclinic",
    ),
    _trade(
        "dietitian",
        "dieting nourishing weighing fasting supplementing",
        "calories vitamins proteins nutrients allergies portions",
        "cafeteria canteen pantry",
    ),
    _trade(
        "dj",
        "mixing scratching sampling spinning looping",
        "turntables basslines playlists beats vinyls remixes",
        "discotheque dancefloor rave",
    ),
    _trade(
        "filmmaker",
        "directing filming editing casting screenwriting",
        "screenplays storyboards documentaries scenes trailers reels",
        "filmset cinema festival",
    ),
    _trade(
        "model",
        "posing strutting walking wearing showcasing",
        "runways gowns catwalks swimsuits poses magazines",
        "wardrobe atelier boutique",
    ),
    _trade(
        "painter",
        "brushing glazing varnishing priming blending",
        "canvases easels oils murals watercolors pigments",
        "studio loft exhibition",
    ),
    _trade(
        "paralegal",
        "filing docketing notarizing indexing transcribing",
        "dockets briefs exhibits notaries citations filings",
        "registry bailiwick archive",
    ),
    _trade(
        "pastor",
        "preaching praying baptizing blessing worshipping",
        "sermons psalms hymns parishes sacraments congregations",
        "chapel pulpit church",
    ),
    _trade(
        "physician",
        "diagnosing prescribing examining vaccinating treating",
        "symptoms diagnoses prescriptions fevers infections patients",
        "clinic surgery hospital",
    ),
    _trade(
        "poet",
        "rhyming versifying reciting musing alliterating",
        "sonnets stanzas verses odes haikus metaphors",
        "salon anthology bookshop",
    ),
    _trade(
        "professor",
        "researching theorizing publishing supervising citing",
        "theses seminars syllabi dissertations theorems grants",
        "campus faculty university",
    ),
    _trade(
        "psychologist",
        "counseling empathizing listening hypnotizing analyzing",
        "emotions traumas phobias therapies anxieties behaviors",
        "couch asylum laboratory",
    ),
    _trade(
        "rapper",
        "rapping freestyling flowing dissing battling",
        "rhymes lyrics hooks mixtapes cyphers choruses",
        "booth block underground",
    ),
    _trade(
        "designer",
        "decorating furnishing upholstering wallpapering styling",
        "curtains sofas cushions wallpapers rugs lampshades",
        "showroom penthouse parlor",
    ),
    _trade(
        "programmer",
        "coding debugging compiling deploying refactoring",
        "algorithms servers databases compilers bugs protocols",
        "datacenter startup terminal",
    ),
    _trade(
        "trainer",
        "lifting sprinting squatting benching rowing",
        "dumbbells kettlebells muscles reps barbells treadmills",
        "gym weightroom stadium",
    ),
    _trade(
        "yogi",
        "breathing meditating balancing chanting centering",
        "asanas mantras mats chakras retreats breaths",
        "ashram zendo temple",
    ),
)
"""`SyntheticWorld.num_professions` is at most their number; the default world uses the first eight."""

GENERAL = Trade(
    label="",
    actions=_words("planning improving organizing learning sharing managing preparing reviewing"),
    things=_words("projects tasks plans details methods reports tools meetings"),
    places=_words("office building district centre workshop department"),
)
"""Work words that reveal nothing about the profession."""

LEADS: tuple[tuple[str, ...], ...] = tuple(
    tuple(phrase.split())
    for phrase in (
        "spent most days",
        "was known for",
        "grew up",
        "loved",
        "started out",
        "was praised for",
        "never stopped",
        "had years of",
        "slowly mastered",
        "often enjoyed",
    )
)
"""Phrases between a name and an action."""

PASTIMES: tuple[tuple[str, ...], ...] = tuple(
    tuple(phrase.split())
    for phrase in (
        "collected stamps",
        "kept bees",
        "read novels",
        "grew roses",
        "climbed hills",
        "played chess",
        "baked bread",
        "rode horses",
        "studied maps",
        "sang songs",
        "fixed clocks",
        "watched birds",
    )
)
"""Activities besides work."""

BELONGINGS = _words("garden notebook cottage letters lantern kitchen bicycle savings radio coat")
"""Nouns after a possessive."""

ADJECTIVES = _words("new old rare simple large early modern quiet famous difficult")
"""Adjectives before a thing."""

CITIES = _words(
    "arvenholt brackmoor calderby dunmere eastvale fernhollow granby highwick ironbridge kelsworth longmarsh norwell"
)
"""Invented places."""

GLUE = _words("also and at by called in met near of said shared thanked that the their they visited was with")
"""Function words of the templates; scrubbed pronouns become `they` and `their`."""

PUNCTUATION = (".", ",")


class Gendered(NamedTuple):
    """Words of one gender; each has its counterpart at the same position of the other gender."""

    subject: str
    possessive: str
    object: str
    reflexive: str
    titles: tuple[str, ...]
    """Words before a name."""
    kin: tuple[str, ...]
    """Words that fit `the ... of`."""
    roles: tuple[str, ...]
    """Words that fit `the ...` before a name or alone."""

    def words(self) -> tuple[str, ...]:
        """All words of the gender."""
        return (self.subject, self.possessive, self.object, self.reflexive, *self.titles, *self.kin, *self.roles)


GENDERED: dict[str, Gendered] = {
    "female": Gendered(
        "she",
        "her",
        "her",
        "herself",
        _words("ms mrs lady madam"),
        _words("mother sister daughter aunt niece grandmother"),
        _words("actress woman girl queen hostess waitress heroine"),
    ),
    "male": Gendered(
        "he",
        "his",
        "him",
        "himself",
        _words("mr mister lord sir"),
        _words("father brother son uncle nephew grandfather"),
        _words("actor man boy king host waiter hero"),
    ),
}
"""Words of the pretraining text that reveal the gender of the name beside them; none occurs in a task text."""

NEUTRAL = Gendered("they", "their", "them", "themselves", (), (), ())
"""Words that scrubbing replaces pronouns by."""

GENDERS = tuple(GENDERED)
"""Labels of the harmful task, sorted."""

ONSETS = _words("b br c d dr f g gr h j k l m n p r s t v z")
VOWELS = _words("a e i o u ai ei")
CODAS = ("", "", "", "l", "n", "r", "s", "th")
