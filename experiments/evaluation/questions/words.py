"""Relations between words: past tenses of verbs, capitals of countries, opposites."""

from __future__ import annotations

from experiments.evaluation.questions.question import Question, Questions, parted

PAST = """
begin began, break broke, bring brought, build built, buy bought, catch caught, choose chose, come came, dig dug, draw
drew, drink drank, drive drove, eat ate, fall fell, feel felt, fight fought, find found, fly flew, forget forgot,
freeze froze, get got, give gave, go went, grow grew, hang hung, hear heard, hide hid, hold held, keep kept, know
knew, lead led, leave left, lend lent, lose lost, make made, meet met, pay paid, ride rode, ring rang, rise rose, run
ran, say said, see saw, sell sold, send sent, shake shook, shine shone, shoot shot, sing sang, sink sank, sit sat,
sleep slept, slide slid, speak spoke, spend spent, spin spun, stand stood, steal stole, stick stuck, swear swore,
sweep swept, swim swam, take took, teach taught, tear tore, tell told, think thought, throw threw, understand
understood, wake woke, wear wore, win won, write wrote, answer answered, carry carried, climb climbed, dance danced,
drop dropped, enjoy enjoyed, help helped, hurry hurried, invite invited, jump jumped, laugh laughed, move moved, need
needed, open opened, plan planned, play played, smile smiled, start started, stop stopped, study studied, talk talked,
travel traveled, try tried, visit visited, wait waited, walk walked, watch watched, work worked
"""
CAPITALS = """
Argentina Buenos Aires, Australia Canberra, Austria Vienna, Belgium Brussels, Brazil Brasília, Bulgaria Sofia, Canada
Ottawa, Chile Santiago, China Beijing, Colombia Bogotá, Croatia Zagreb, Cuba Havana, Denmark Copenhagen, Egypt Cairo,
Estonia Tallinn, Ethiopia Addis Ababa, Finland Helsinki, France Paris, Germany Berlin, Ghana Accra, Greece Athens,
Hungary Budapest, Iceland Reykjavik, India New Delhi, Indonesia Jakarta, Iran Tehran, Iraq Baghdad, Ireland Dublin,
Italy Rome, Jamaica Kingston, Japan Tokyo, Jordan Amman, Kenya Nairobi, Latvia Riga, Lebanon Beirut, Lithuania
Vilnius, Malaysia Kuala Lumpur, Mexico Mexico City, Mongolia Ulaanbaatar, Morocco Rabat, Nepal Kathmandu, Netherlands
Amsterdam, Nigeria Abuja, Norway Oslo, Pakistan Islamabad, Peru Lima, Philippines Manila, Poland Warsaw, Portugal
Lisbon, Qatar Doha, Romania Bucharest, Russia Moscow, Senegal Dakar, Serbia Belgrade, Slovakia Bratislava, Slovenia
Ljubljana, Spain Madrid, Sudan Khartoum, Sweden Stockholm, Syria Damascus, Thailand Bangkok, Tunisia Tunis, Turkey
Ankara, Uganda Kampala, Ukraine Kyiv, Uruguay Montevideo, Venezuela Caracas, Vietnam Hanoi, Zimbabwe Harare
"""
OPPOSITES = """
hot cold, big small, fast slow, high low, old young, light dark, happy sad, rich poor, strong weak, hard soft, early
late, open closed, full empty, wet dry, clean dirty, loud quiet, near far, long short, wide narrow, deep shallow,
thick thin, heavy light, good bad, right wrong, true false, easy difficult, safe dangerous, cheap expensive, sweet
bitter, sharp blunt, smooth rough, first last, same different, alive dead, awake asleep, brave cowardly, generous
selfish, polite rude, simple complicated, tight loose, beautiful ugly, kind cruel, honest dishonest, patient
impatient, possible impossible, visible invisible, legal illegal, lucky unlucky, up down, inside outside, above below,
before after, always never, day night, love hate, win lose, arrive leave, remember forget, buy sell, push pull, begin
end, accept refuse, enter exit, rise fall
"""


def past_tense(items: int | None = None, shots: int = 32, seed: int = 0) -> Questions:
    """The past tense of a verb, of 101 in all, regular and irregular ones."""
    found = [Question(verb, past) for verb, past in _pairs(PAST)]
    wordings = {
        "label": "Verb: {text}\nPast tense:",
        "sentence": "Today they {text}. Yesterday they",
        "arrow": "{text} ->",
    }
    return Questions("past_tense", *parted(found, items, shots, seed), wordings)


def capitals(items: int | None = None, shots: int = 16, seed: int = 0) -> Questions:
    """The capital of a country, of 69 in all."""
    found = [Question(country, capital) for country, capital in _pairs(CAPITALS)]
    wordings = {
        "sentence": "The capital of {text} is",
        "label": "Country: {text}\nCapital:",
        "question": "Q: What is the capital of {text}?\nA:",
    }
    return Questions("capitals", *parted(found, items, shots, seed), wordings)


def opposites(items: int | None = None, shots: int = 16, seed: int = 0) -> Questions:
    """The opposite of a word, among four choices, of which the others are opposites of other words."""
    pairs = _pairs(OPPOSITES)
    found = []
    for place, (word, opposite) in enumerate(pairs):
        others = [pairs[(place + step) % len(pairs)][1] for step in (7, 19, 31)]
        choices = sorted({opposite, *(other for other in others if other != word)})
        found.append(Question(word, opposite, tuple(choices)))
    wordings = {
        "sentence": "The opposite of {text} is",
        "label": "Word: {text}\nOpposite:",
        "question": "Q: What is the opposite of {text}?\nA:",
    }
    return Questions("opposites", *parted(found, items, shots, seed), wordings)


def _pairs(text: str) -> list[tuple[str, str]]:
    """Each word and what follows it, up to a comma."""
    found = [" ".join(pair.split()).partition(" ") for pair in text.split(",")]
    return [(first, second) for first, _, second in found]
