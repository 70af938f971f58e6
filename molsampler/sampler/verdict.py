"""Whether a trained sampler is fit for use, in one sentence that its card keeps."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Verdict(BaseModel):
    """Judgement of a sampler by the training that made it.

    Attributes
    ----------
    usable : whether every measure reached its goal
    measure : the measure that decided: the first that failed, or the one that says most
    value, goal : what was measured and what was asked for, None where there is no number
    sentence : the measures against their goals, what they were measured on, and what they do not see
    advice : what to change, None for a usable sampler
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    usable: bool
    measure: str
    value: float | None
    goal: float | None
    sentence: str
    advice: str | None = None

    def __str__(self) -> str:
        said = f"{'usable' if self.usable else 'not usable'}: {self.sentence}"
        return said if self.advice is None else f"{said}; {self.advice}"
