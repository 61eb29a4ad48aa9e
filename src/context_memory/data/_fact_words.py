"""What is said in a conversation, how it is asked for later, and the words of each kind; every fourth word is for tests alone."""

from __future__ import annotations

KINDS: dict[str, tuple[str, str, str, str]] = {
    "name": (
        "By the way, my name is {}.", "What is my name?", "Your name is {}.",
        "Anna Ben Clara David Elena Felix Greta Hugo Ida Jonas Karla Leo Maria Nils Olga Paul Rosa Simon Tara Viktor Wendy "
        "Yusuf Zoe Amir Bella Carlos",
    ),
    "town": (
        "I live in {}, by the way.", "Which town do I live in?", "You live in {}.",
        "Oslo Lima Cairo Boston Dublin Kyoto Madrid Naples Porto Quito Riga Seoul Tunis Vienna Warsaw Zurich Athens "
        "Berlin Chicago Delhi Geneva Havana",
    ),
    "pet": (
        "I have a pet {} at home.", "Which pet do I have?", "You have a pet {}.",
        "rabbit parrot hamster turtle snake lizard goldfish canary pony ferret mouse frog duck goat spider pigeon crab chicken donkey pig",
    ),
    "job": (
        "I work as a {}.", "What do I work as?", "You work as a {}.",
        "baker nurse pilot teacher lawyer farmer singer painter plumber waiter driver dentist tailor writer barber "
        "judge miner sailor clerk chef",
    ),
    "colour": (
        "My favourite colour is {}.", "What is my favourite colour?", "Your favourite colour is {}.",
        "red blue green yellow purple orange pink brown black white grey violet turquoise silver gold beige crimson indigo",
    ),
    "number": (
        "My room number is {}.", "What is my room number?", "Your room number is {}.",
        " ".join(str(n) for n in range(112, 990, 37)),
    ),
}  # fmt: skip
"""What is said, how it is asked for, the answer, and the words."""


def words(kind: str, split: str) -> list[str]:
    """The words of a split."""
    every = KINDS[kind][3].split()
    held = every[3::4]
    return held if split == "test" else [w for w in every if w not in held]
