"""The base of VLMEvalKit's multiple-choice benchmarks that read a reply by its options, then ask a judge."""

from __future__ import annotations

from dv2_jax.data.question import Question
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer, Score
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark, choice_prompt, choices_of, prediction_deepeyesv2
from dv2_jax.evaluation.scorers.choice_inference import NONE_FITS, infer_choice, read_option
from dv2_jax.evaluation.scorers.judge_prompts import match_option

RULE = "option letter or text by the rules of ms-vlmeval 0.0.20, then a judge matches the options"


class ChoiceBenchmark(KitBenchmark):
    """Multiple choice. `score`: the letter that the rules, or else the judge, read in the reply equals the answer.

    `score_deepeyesv2` follows the released evaluation: whenever no option is read (`Z`), its rubric judge compares the
    reply with the letter of the answer, without seeing the options.
    """

    columns = ("question", "answer", "A", "B")
    uses_judge = True
    protocol = RULE
    instruction = "Please select the correct answer from the options above. \n"

    def prompt(self, question: Question) -> str:
        return choice_prompt(question, self.instruction)

    def score(self, question: Question, answer: BenchmarkAnswer) -> Score:
        choice = self._choice(question, answer.prediction, answer)
        return choice if isinstance(choice, Score) else self._compared(question, choice)

    def score_deepeyesv2(self, question: Question, answer: BenchmarkAnswer) -> Score:
        """Scores as the class says; where the rules and the judge read no option, the kit's random choice is undecided."""
        prediction = prediction_deepeyesv2(answer)
        choice = self._choice(question, prediction, answer)
        if isinstance(choice, Score) or choice != NONE_FITS:
            return choice if isinstance(choice, Score) else self._compared(question, choice)
        if answer.judge is None:
            return self.needs_judge(question, "the reply names no option")
        verdict = answer.judge.verdict(question.text, [question.answer], prediction, rubric="consistency")
        return self.undecided(question, "") if verdict is None else self.scored(question, verdict, extracted=choice)

    def _compared(self, question: Question, choice: str) -> Score:
        return self.scored(question, choice == question.answer, extracted=choice)

    def _choice(self, question: Question, prediction: str, answer: BenchmarkAnswer) -> str | Score:
        """Returns the letter that a reply names, or the score of an answer for which none can be found."""
        choices = choices_of(question)
        if choice := read_option(prediction, choices):
            return choice
        if answer.judge is None:
            return self.needs_judge(question, "the reply names no option clearly")
        reply = answer.judge.ask(match_option(question.text, choices, prediction))
        return infer_choice(reply, choices) or self.undecided(question, reply)
