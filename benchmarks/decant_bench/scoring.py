"""From an exchange to a scored prediction: the answer, whether it is right, or why there is none."""

from decant.answers import AnswersConfig, read_text
from decant.task import TaskConfig, same_answer
from decant_bench.predictions import Failure, Prediction
from decant_bench.questions import Question
from decant_bench.replay import Exchange


def score(
    question: Question, exchange: Exchange, *, task: TaskConfig, answers: AnswersConfig | None = None
) -> Prediction:
    """The prediction for one question; a failed request is a wrong answer where the gold is known.

    An answer that is not in the form of `answers` is none.
    """
    if exchange.error is not None:
        return _failed(question, exchange)
    completion = exchange.completion
    assert completion is not None, "an exchange has a completion or an error"
    parsed = read_text(completion.text, task, answers or AnswersConfig())
    thoughts = [text for text in (completion.reasoning, parsed.reasoning) if text]
    return Prediction(
        id=question.id,
        gold=question.gold,
        group=question.group,
        length=question.length,
        answer=parsed.answer,
        reasoning="\n".join(thoughts) or None,
        response=completion.text,
        correct=None if question.gold is None else _is_right(parsed.answer, question.gold),
        status="done",
        finish_reason=completion.finish_reason,
        timing=exchange.timing.to_dict(),
    )


def _failed(question: Question, exchange: Exchange) -> Prediction:
    error = exchange.error
    assert error is not None
    return Prediction(
        id=question.id,
        gold=question.gold,
        group=question.group,
        length=question.length,
        correct=None if question.gold is None else False,
        status="failed",
        error=Failure(kind=error.kind, message=" ".join(str(error).split())),
        timing=exchange.timing.to_dict(),
    )


def _is_right(answer: str | None, gold: str) -> bool:
    return answer is not None and same_answer(answer, gold)
