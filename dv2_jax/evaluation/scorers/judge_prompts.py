"""Prompts that ask a judge to extract an answer or to compare two, where VLMEvalKit asks a language model.

The tasks and the formats of the replies are those of VLMEvalKit; the wording is ours, and the examples are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Messages = list[dict[str, str]]


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _options(choices: Mapping[str, str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in choices.items())


def match_option(question: str, choices: Mapping[str, str], reply: str) -> Messages:
    """Asks which option a reply means: a letter, or Z."""
    return _user(
        "Match an answer with the options of a single-choice question: which option is most similar to the answer? Output"
        f" one capital letter of {', '.join(choices)}; output Z if the answer refuses, or if no option has a similar"
        " meaning. Output nothing else.\n\n"
        f"Question: {question}\nOptions:\n{_options(choices)}\nAnswer: {reply}\nYour output:"
    )


def extract_answer(question: str, reply: str) -> Messages:
    """Asks for the final answer in a reply to a question whose text says in which form it is wanted."""
    return _user(
        "Extract the final answer from a model's response to a question, in the form that the question asks for: an"
        " integer, a number with so many decimals, a Python list such as [2007, 2008], or the letter of an option. Do not"
        " solve the question. Output the extracted answer and nothing else.\n\n"
        f"{question}\nModel response: {reply}\nExtracted answer:"
    )


def extract_math_answer(reply: str) -> Messages:
    """Asks for the final answer in a reply to a mathematical question that is not shown."""
    return _user(
        "Extract the final answer from a model's response to a math problem, without explanation: a number, an"
        " expression, an interval, a function, several values, or the letter of an option. Output null if the response"
        " gives none. Output nothing else.\n\n"
        f"Model response: '{reply}'\nExtracted answer:"
    )


def compare_math_answers(question: str, reference: str, extracted: str) -> Messages:
    """Asks whether an extracted answer agrees with the reference: 1 or 0."""
    return _user(
        "Decide whether two answers to a math question agree. They agree only if the model's answer matches the standard"
        " answer completely; for questions without options, another way of writing the same (0.5 m and 50 cm) agrees too."
        " Output 1 if they agree, 0 if not, and nothing else.\n\n"
        f"[Question]: {question}\n[Standard answer]: {reference}\n[Model's answer]: {extracted}\nJudgement:"
    )


def extract_letters(question: str, reply: str) -> Messages:
    """Asks which letters a reply chooses: capital letters without separators, or Z."""
    return _user(
        "Which options does an answer to a multiple-choice question choose? If it names no letter, infer it from the"
        " options in the question. Output the chosen capital letters without blanks or commas, such as B or ACD; output Z"
        " if the answer chooses none. Output nothing else.\n\n"
        f"Question: {question}\nAnswer: {reply}\nYour output:"
    )


_SHORT_FORMS: dict[str, str] = {
    "multiple choice": "the letter of the option, such as A",
    "float": "a number with three decimals",
}


def shorten_answer(reply: str, answer_type: str) -> Messages:
    """Asks for a short form of a free-form answer."""
    form = _SHORT_FORMS.get(answer_type, "a short answer, numbers with three decimals")
    return _user(f"Rewrite the answer in one line as {form}. Output nothing else.\n\nAnswer: {reply}\nShort answer:")


def three_way(question: str, references: Sequence[str], reply: str) -> Messages:
    """Asks for correct, incorrect or not attempted, as JSON."""
    return _user(
        "Judge an answer to a question about an image by the reference answer. Languages, letter case, punctuation, order"
        " and other names of the same thing do not matter; only what the question asks for is needed.\n"
        "correct: it contains the important part of the reference and contradicts none of it; hedging is allowed.\n"
        "incorrect: a statement contradicts the reference, even if hedged.\n"
        "not attempted: the important part is missing and nothing contradicts the reference.\n"
        "A number must agree with the reference to the digits that it gives: for 3518.17, 3518 and 3518.1 are correct, 3520"
        " is incorrect, and about 3500 is not attempted.\n"
        'Output JSON and nothing else: {"verdict": "correct"}, {"verdict": "incorrect"} or {"verdict": "not attempted"}.\n\n'
        f"Question: {question}\nReference answer: {' or '.join(references)}\nAnswer: {reply}"
    )
