"""The words of `tally`: who, did what, with what; and the sentences that state a relation. Data, no logic."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = words(
    "Tom Mia Sam Anna Ben Lucy Max Emma Leo Nina Jack Kate Paul Rosa Adam Ella Mark Zoe Luke Ivy Alex Maria Peter Sarah David "
    "Julia Daniel Laura Eric Alice Oscar Clara Simon Grace Henry Helen Omar Lena Victor Diana"
)
BOXES = tuple(f"the {colour} box" for colour in words("red blue green black white brown yellow orange purple pink gray silver golden"))
CLASSES = tuple(f"room {letter}" for letter in words("A B C D E F G H J K L M N"))

# Past and plain form of the verb, and what is counted.
DOINGS = tuple(
    tuple(line.split(maxsplit=2))
    for line in """
picked pick apples
picked pick flowers
baked bake cookies
baked bake cakes
collected collect shells
collected collect stamps
sold sell tickets
sold sell books
found find coins
planted plant trees
counted count birds
painted paint pictures
washed wash plates
wrote write letters
folded fold shirts
caught catch fish
""".strip().splitlines()
)
GETTING = tuple(("got", "get", things) for things in words("pens eggs cards balls keys stones maps cups chairs books lamps bottles"))

SCENES = ((PEOPLE, DOINGS),) * 3 + ((BOXES, GETTING), (CLASSES, GETTING))
"""Who may appear with which doings; people three times as often as the others."""

# w: who, r and s: the earlier ones, v: verb, t: things, a and b: numbers. A step repeats the sentence that the prompt used, so
# that a target follows from its prompt and its loss measures the memory, not a taste in phrasing.
RELATIONS = {
    "given": ("{w} {v} {a} {t} and then {b} more", "{w} {v} {a} {t} on Monday and {b} on Tuesday"),
    "more": ("{w} {v} {b} more {t} than {r}", "compared with {r}, {w} {v} {b} more {t}"),
    "fewer": ("{w} {v} {b} fewer {t} than {r}", "compared with {r}, {w} {v} {b} fewer {t}"),
    "twice": ("{w} {v} twice as many {t} as {r}", "{w} {v} two times as many {t} as {r}"),
    "thrice": ("{w} {v} three times as many {t} as {r}", "compared with {r}, {w} {v} three times as many {t}"),
    "both": ("{w} {v} as many {t} as {r} and {s} together", "{w} {v} as many {t} as both {r} and {s}"),
}
CONCLUSION = "{fact}, {a} {sign} {b} = {n}, so {w} has {n}."
"""A step. Its result stands once more right after the name that it belongs to, where a model looks for it."""
SIGNS = {"given": "+", "more": "+", "fewer": "-", "twice": "*", "thrice": "*", "both": "+", "sum": "+", "difference": "-"}

QUESTIONS = {
    "sum": ("How many {t} did {r} and {s} {p} together?", "{r} and {s} together {v} {a} + {b} = {n} {t}."),
    "difference": (
        "How many more {t} did {r} {p} than {s}?",
        "{r} {v} more {t} than {s}, and the difference is {a} - {b} = {n} {t}.",
    ),
    "last": ("How many {t} did {w} {p}?", "How many {t} did {w} {p} in all?"),
}

DISTRACTORS = tuple(
    """
The bus ticket cost {k} dollars.
There were {k} benches in the park.
The walk home took {k} minutes.
It was {k} degrees outside.
The old clock struck {k} times.
A dog barked {k} times.
The radio played {k} songs.
There were {k} clouds in the sky.
The street counts {k} houses.
The teacher is {k} years old.
The bridge is {k} meters long.
The lunch break lasted {k} minutes.
The bakery next door sold {k} rolls.
A train passed with {k} wagons.
""".strip().splitlines()
)
