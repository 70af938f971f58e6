"""What the files that define systems may say: one class for each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from molsampler.collective_variables import Intervals, collective_variable
from molsampler.target import System

FileName = Annotated[str, Field(min_length=1, description="the name of a file")]


class BasinsSpec(BaseModel):
    """Key ``basins`` of a system file: intervals of a collective variable, cut at rising edges."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    along: str
    edges: list[float] = Field(description="a list of rising numbers")


class SystemSpec(BaseModel):
    """Keys of the system files of one kind, and how they become a system.

    A kind derives from this class, declares its keys as fields, builds its system from them and is
    registered by :func:`molsampler.systems.register_system_kind`. Its systems return a mapping of
    these keys, ``kind`` included, from ``_record``: artifacts and samples are then read without a file;
    :meth:`~molsampler.target.System.record` adds ``temperature``. ``Field(description=...)`` is the form that
    messages ask for.

    Attributes
    ----------
    kind : the name of the kind
    name : name of the system; the file's, if it gives none
    description : one line for listings
    collective_variables : texts by name, see :mod:`molsampler.collective_variables`
    basins : what ``compare`` and ``free-energy`` take for the modes of the system
    temperature : that of the system; energies are those of the other keys times their default one over it
    elsewhere : why records of such systems do not suffice to rebuild them, as a clause that follows
        the system's name; empty where they do
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    elsewhere: ClassVar[str] = ""

    kind: str
    name: str
    description: str = ""
    collective_variables: dict[str, str] = Field(
        default={}, description="a mapping of names to texts such as distance:0,1"
    )
    basins: BasinsSpec | None = None
    temperature: float | None = Field(default=None, description="a positive number")

    def runs(self) -> str:
        """What code of its user's own building the system runs, empty for none. Naming a system that
        runs some is refused without ``trust_code``."""
        return ""

    def build(self, folder: Path | None) -> System:
        """The system. ``folder`` is that of the file, None for what other files record of a system.

        Raises
        ------
        InputError
            A value is unusable; the caller names the file.
        """
        raise NotImplementedError

    def placed(self, system: System) -> System:
        """What was built, at the temperature of the file.

        Raises
        ------
        InputError
            The temperature is unusable.
        """
        return system if self.temperature is None else system.at(self.temperature)

    def define_basins(self, system: System) -> None:
        """Give a system the collective variables and basins of its file.

        They are no part of its definition: :meth:`~molsampler.target.System.record` leaves them out, and
        files of samples do not depend on them.

        Raises
        ------
        InputError
            A text is of no known form or does not fit the system, or edges do not rise.
        """
        for text in self.collective_variables.values():
            collective_variable(text, system.shape, files=False)
        system.collective_variables = dict(self.collective_variables)
        if self.basins is not None:
            variable = collective_variable(
                self.basins.along, system.shape, named=self.collective_variables, files=False
            )
            system.basins = Intervals(variable, tuple(self.basins.edges))
