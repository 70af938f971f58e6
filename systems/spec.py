"""What the files that define systems may say: one class for each kind."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from molsampler.target import System


class SystemSpec(BaseModel):
    """Keys of the system files of one kind, and how they become a system.

    A kind derives from this class, declares its keys as fields, builds its system from them and is
    registered by :func:`molsampler.systems.register_system_kind`. Its systems return a mapping of
    these keys, ``kind`` included, from :meth:`~molsampler.target.System.record`: artifacts and samples
    are then read without a system file. ``Field(description=...)`` is the form that messages ask for.

    Attributes
    ----------
    kind : the name of the kind
    name : name of the system; the file's, if it gives none
    description : one line for listings
    elsewhere : why records of such systems do not suffice to rebuild them, as a clause that follows
        the system's name; empty where they do
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    elsewhere: ClassVar[str] = ""

    kind: str
    name: str
    description: str = ""

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
