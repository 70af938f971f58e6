r"""Any OpenMM system as a differentiable reduced energy.

.. math:: u(x) = U(x) / kT, \qquad -\nabla u(x) = F(x) / kT

with potential energy U and forces F from OpenMM and positions in nanometres. The density
:math:`\exp(-u)` is one over the free coordinates of all particles, so whatever makes coordinates
depend on each other, or on a box, is refused: see :class:`OpenMMSystem`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from molsampler import torchrun
from molsampler.compiled import UnavailableError
from molsampler.errors import InputError, SimulationError, nearest
from molsampler.molecule.chirality import oriented, stereocentres
from molsampler.molecule.graph import equivalence_classes, rotatable_bonds, within_bonds
from molsampler.molecule.molecule import Molecule
from molsampler.space import Euclidean, MeanFree
from molsampler.target import System, check_positions
from molsampler.units import kT

from ..arguments import checked_name, integer
from . import probe
from .context import Array, ContextEvaluator, EvaluationError
from .geometry import require_sane
from .native.kernel import NativeEvaluator, require_agreement
from .workers import WorkerPool

if TYPE_CHECKING:
    import mdtraj
    import openmm

#: Barrier, in kT, of a bond's own torsion terms up to which :meth:`OpenMMSystem.starts` turns it.
#: Peptide bonds have over 35 at 300 K, backbone and side-chain torsions up to 12.
TURNING_BARRIER = 20.0
#: Shortest distance in nm, between atoms more than three bonds apart, of a start without a clash.
_CLASH = 0.15
#: Draws of all torsions before a start with a clash is accepted.
_START_DRAWS = 100

#: Name of the platform that is not OpenMM's.
NATIVE = "native"
Evaluator = ContextEvaluator | NativeEvaluator

#: Forces that act on velocities and leave the energy alone.
_NOT_POTENTIAL = ("CMMotionRemover", "AndersenThermostat")
#: Forces with parameters of each particle, which tell particles apart.
_OF_PARTICLES = ("NonbondedForce", "GBSAOBCForce", "CustomNonbondedForce", "CustomGBForce")
_TORSIONS = ("PeriodicTorsionForce", "RBTorsionForce", "CMAPTorsionForce", "CustomTorsionForce")


class OpenMMSystem(System):
    """An ``openmm.System`` at a temperature, positions in nm, energies in kT.

    ::

        forcefield = openmm.app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
        system = forcefield.createSystem(pdb.topology, constraints=None, rigidWater=False)
        target = OpenMMSystem(system, pdb.topology, temperature=300, positions=pdb.positions)

    Molecules of common terms are evaluated by a compiled kernel, ten to fifty times as fast as OpenMM's
    Reference platform, which it agrees with (:mod:`systems.openmm.native`); others by OpenMM, a row at a
    time. Both ways a row is the same to the last bit whatever its batch and the number of workers or
    threads; on other platforms as far as they repeat themselves. Later changes to ``system`` have no effect.

    Parameters
    ----------
    system : ``openmm.System`` without constraints, virtual sites, massless particles, periodic
        boundaries or a barostat; thermostats and removers of centre-of-mass motion are left out
    topology : ``openmm.app.Topology`` or ``mdtraj.Topology`` with an atom for each particle
    temperature : kelvin, a number or an ``openmm.unit.Quantity``
    name : used in files
    positions : one sensible configuration ``(n, 3)`` in nm, array or ``Quantity``: where reference
        runs of a molecule start
    platform : ``native``, an OpenMM platform, or ``auto``: native where it knows all terms and agrees with
        OpenMM at ``positions``; else Reference, unless that takes over a millisecond and another is at
        least twice as fast in a short probe. Name one where results must not depend on the machine
    properties : platform properties; on the CPU platform ``Threads`` is 1 unless given
    workers : processes of OpenMM that share the rows of a batch; 0 evaluates in this process
    timeout : seconds within which a worker must answer a block of rows of about 0.05 s
    invariant : whether translation, rotation and reflection leave the energy unchanged. None finds
        out by evaluating transformed configurations, and takes a system with a
        ``CustomExternalForce`` for one in a field
    description : one line for listings
    labels : one per particle, such as atom types: what tells particles apart beyond element, mass and
        nonbonded parameters
    conformers : sensible configurations ``(k, n, 3)`` in nm from which :meth:`starts` begins, where
        turning bonds does not reach all of them; ``positions`` alone by default

    Attributes
    ----------
    translation_invariant, rotation_invariant, reflection_invariant : as found or declared;
        configurations live in the mean-free space only where translation leaves the energy alone
    molecule : None for particles of one kind without bonds. Types are equal for atoms of one element,
        mass and parameters of nonbonded and external forces that their bonds do not tell apart, such as the
        hydrogens of a methyl group; bonds are the topology's, or the harmonic ones where it has none;
        chiral centres have the handedness of ``positions``, and are left out where reflection changes the
        energy
    positions : the given configuration ``(n, 3)`` float64 in nm, or None
    platform : the platform in use

    Raises
    ------
    InputError
        An argument is unusable, or the system is of a kind that has no density on free coordinates.
    MissingDependencyError
        OpenMM is not installed.
    """

    length_nm = 1.0
    in_kelvin = True
    _context: tuple[int, Evaluator] | None
    _pool: WorkerPool | None

    def __init__(
        self,
        system: openmm.System,
        topology: Any,
        temperature: Any,
        *,
        name: str = "openmm",
        positions: Any = None,
        platform: str = "auto",
        properties: Mapping[str, str] | None = None,
        workers: int = 0,
        timeout: float = 60.0,
        invariant: bool | None = None,
        description: str = "",
        labels: Sequence[Hashable] | None = None,
        conformers: Any = None,
    ) -> None:
        probe.require_openmm()
        import openmm

        if not isinstance(system, openmm.System):
            raise InputError(f"system must be an openmm.System, got {type(system).__name__}")
        n = system.getNumParticles()
        self.name = checked_name(name)
        self.temperature = kelvin(temperature)
        self.workers = integer("workers", workers, 0, 1024)
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise InputError(f"timeout must be a positive number of seconds, got {timeout!r}")
        self.timeout = float(timeout)
        if invariant not in (None, True, False):
            raise InputError(f"invariant must be True, False or None, got {invariant!r}")
        _check_kind(system)
        self._topology = _openmm_topology(topology)
        if self._topology.getNumAtoms() != n:
            raise InputError(
                f"topology has {self._topology.getNumAtoms()} atoms, system has {n} particles"
            )
        self.positions = None if positions is None else _nanometres(positions, n)
        self.conformers = (
            None if conformers is None else np.stack([_nanometres(each, n) for each in conformers])
        )
        self.description = description or f"{n} particles with the energy of an OpenMM system"

        potential = _potential(system)
        self._xml = openmm.XmlSerializer.serialize(potential)
        self._bonds = _bonds(self._topology, potential)
        if labels is not None and len(labels) != n:
            raise InputError(f"labels must hold one for each of {n} particles, got {len(labels)}")
        known = zip(_labels(self._topology, potential), labels or [None] * n, strict=True)
        self._types = equivalence_classes(list(known), self._bonds)
        kinds = {type(force).__name__ for force in potential.getForces()}
        # Particles that only a field acts on may share a place.
        self._collide = n > 1 and bool(kinds - {"CustomExternalForce"})
        if self.positions is not None and self._collide:
            require_sane(self.positions, potential)
        self._find_symmetry(invariant, in_field="CustomExternalForce" in kinds)
        if n == 1 and self.translation_invariant:
            raise InputError("a single free particle has a constant energy, hence no density")
        self.space = MeanFree(n, 3) if self.translation_invariant else Euclidean(n, 3)

        given = dict(properties or {})
        self.platform = self._choose(platform, given)
        self.properties = probe.default_properties(self.platform, given)
        # OpenMM's contexts are asked one thread at a time, the kernel by as many as come.
        self.concurrent = self.platform == NATIVE
        self._forget()
        if self.platform != "Reference" or given:
            self._own_context()

    @cached_property
    def molecule(self) -> Molecule | None:  # type: ignore[override]
        """Types, bonds, handedness and geometry; see the class."""
        if not self._bonds and len(set(self._types)) == 1:
            return None
        centres: list[tuple[int, int, int, int]] = []
        if self.positions is not None and self.invariant:
            found = stereocentres(self._types, self._bonds)
            centres = oriented(found, torch.as_tensor(self.positions))
        return Molecule.of(
            self._types,
            self._bonds,
            chiral_centres=centres,
            turning_bonds=[(j, k) for (_, j, k, _), _ in self._turning_bonds()],
            geometry=self.positions,
        )

    def _checked_temperature(self, temperature: Any) -> float:
        return super()._checked_temperature(kelvin(temperature))

    def _move(self, source: System) -> None:
        # The hash in the record is one of the temperature, and there is no default one.
        self._made_at = None
        # Which bonds turn freely depends on it.
        self.__dict__.pop("molecule", None)
        text = source.description.removesuffix(f", {source.temperature:g} K")
        if text != source.description:
            self.description = f"{text}, {self.temperature:g} K"
        if isinstance(source, OpenMMSystem) and not source.workers:
            with source._lock:
                source._own_context()
            self._context = source._context

    def _find_symmetry(self, invariant: bool | None, *, in_field: bool) -> None:
        n = self._topology.getNumAtoms()
        alike = len(set(self._types)) == 1 and n > 1
        evaluator = ContextEvaluator(self._xml, "Reference", {})
        places = probe.probe_positions(n, self.positions)
        if invariant is not None:
            self.translation_invariant = self.rotation_invariant = invariant
            self.reflection_invariant = self.invariant = invariant
            self.exchangeable = alike and probe.symmetry(evaluator, places, exchange=True).exchange
            return
        found = probe.symmetry(evaluator, places, exchange=alike)
        self.translation_invariant = found.translation and not in_field
        self.rotation_invariant = found.rotation and not in_field
        self.reflection_invariant = found.reflection and not in_field
        self.invariant = (
            self.translation_invariant and self.rotation_invariant and self.reflection_invariant
        )
        self.exchangeable = found.exchange

    def _choose(self, platform: str, properties: Mapping[str, str]) -> str:
        if platform == "auto":
            if not self._not_native(properties):
                return NATIVE
            places = probe.probe_positions(self.space.shape[0], self.positions)
            return probe.fastest_platform(self._xml, places)
        if platform == NATIVE:
            if reason := self._not_native(properties):
                raise InputError(f"platform {NATIVE!r} does not serve {self.name!r}: {reason}")
            return NATIVE
        known = [NATIVE, *probe.available_platforms()]
        if platform not in known:
            raise InputError(
                f"platform must be 'auto' or one of {', '.join(known)}, got {platform!r}"
                f"{nearest(str(platform), known)}"
            )
        return platform

    def _not_native(self, properties: Mapping[str, str]) -> str | None:
        """Why the compiled kernel does not evaluate the system, or None where it does."""
        if self.workers or properties:
            return "workers and properties are OpenMM's"
        if self.positions is None:
            return "it is compared with OpenMM at positions, and there are none"
        try:
            require_agreement(self._xml, self.positions)
        except UnavailableError as error:
            return str(error)
        return None

    # Files

    def _record(self) -> str | dict[str, Any]:
        """Name and SHA-256 of the serialised system and the temperature.

        The system itself stays where the user keeps it: readers are given it and compare.
        """
        content = re.sub(r'openmmVersion="[^"]*"', "", self._xml) + repr(self.temperature)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return {"kind": "openmm", "name": self.name, "sha256": digest}

    def topology(self) -> mdtraj.Topology:
        """MDTraj topology of the given one."""
        import mdtraj

        return mdtraj.Topology.from_openmm(self._topology)

    def openmm_twin(self) -> tuple[openmm.System, openmm.app.Topology]:
        """A copy of the system, without thermostats, and its topology.

        Lengths are nanometres and energies ``u * kT`` at ``temperature``.
        """
        import openmm

        return openmm.XmlSerializer.deserialize(self._xml), self._topology

    # Evaluation

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        positions = x.detach().to("cpu", torch.float64).contiguous().numpy()
        energies, forces = np.empty(len(positions)), np.empty_like(positions)
        self._evaluate(positions, energies, forces)
        beta = 1.0 / kT(self.temperature)
        energies *= beta
        forces *= beta
        if self._collide:
            # Terms such as a bond of zero length have an energy there and no direction.
            energies[_touching(positions)] = np.inf
        return torch.from_numpy(energies).to(x), torch.from_numpy(forces).to(x)

    def _evaluate(self, positions: Array, energies: Array, forces: Array) -> None:
        try:
            if self.concurrent:
                with self._lock:
                    evaluator = self._own_context()
                evaluator.evaluate(positions, energies, forces)
                return
            with self._lock:
                if self.workers:
                    self._own_pool().evaluate(positions, energies, forces)
                else:
                    self._own_context().evaluate(positions, energies, forces)
        except EvaluationError as error:
            raise SimulationError(
                f"platform {self.platform} refused row {error.row}: {error}"
            ) from None

    def _own_context(self) -> Evaluator:
        # A forked child makes its own: threads of the parent's platform do not exist there.
        if self._context is None or self._context[0] != os.getpid():
            self._context = (os.getpid(), self._evaluator())
        return self._context[1]

    def _evaluator(self) -> Evaluator:
        import openmm

        if self.platform == NATIVE:
            return NativeEvaluator(self._xml)
        try:
            return ContextEvaluator(self._xml, self.platform, self.properties)
        except openmm.OpenMMException as error:
            raise SimulationError(
                f"OpenMM makes no context on platform {self.platform} with properties "
                f"{self.properties}: {error}"
            ) from None

    def _own_pool(self) -> WorkerPool:
        if self._pool is None or self._pool.closed or self._pool.owner != os.getpid():
            self._pool = WorkerPool(
                self._xml,
                self.platform,
                self.properties,
                particles=self.shape[0],
                # Where torchrun starts several processes a machine, they share its workers.
                workers=max(1, self.workers // torchrun.on_this_machine()),
                timeout=self.timeout,
            )
        return self._pool

    def close(self) -> None:
        """Stop the workers, if there are any; the next evaluation starts new ones."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._context = None
        self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_context", "_pool")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    # Starts

    def starts(self, count: int, *, generator: torch.Generator | None) -> Tensor | None:
        """``count`` configurations ``(count, n, 3)``: the given one with bonds turned at random, or any of
        the conformers, where there are some.

        Turned are bonds whose own torsion terms have a barrier of at most ``TURNING_BARRIER``, which
        excludes peptide and double bonds; a draw in which distant atoms clash is repeated. Handedness
        stays as given. None where there are no positions or no bonds.
        """
        if self.positions is None or not self._bonds:
            return None
        n = self.shape[0]
        pool = torch.from_numpy(
            self.positions[None] if self.conformers is None else self.conformers
        )
        turning = self._turning_bonds()
        near = torch.ones(n, n, dtype=torch.bool).tril()
        for i, j in within_bonds(n, self._bonds, 3):
            near[i, j] = True
        # One origin takes no draw, so that starts of a seed stay what they are.
        chosen = (
            torch.zeros(count, dtype=torch.long)
            if len(pool) == 1
            else torch.randint(len(pool), (count,), generator=generator)
        )
        starts, pending = pool[chosen], torch.arange(count)
        for _ in range(_START_DRAWS):
            if not len(pending) or not turning:
                break
            x = pool[chosen[pending]]
            for (_, j, k, _), moving in turning:
                angle = 2 * math.pi * torch.rand(len(x), generator=generator, dtype=x.dtype)
                x[:, moving] = _rotated(x[:, moving], x[:, j], x[:, k], angle)
            starts[pending] = x
            closest = torch.cdist(x, x).masked_fill(near, math.inf).amin((1, 2))
            pending = pending[closest < _CLASH]
        return self.space.project(starts)

    def _turning_bonds(self) -> list[tuple[tuple[int, int, int, int], list[int]]]:
        """Rotatable bonds that turn freely at this temperature, with the atoms that turn; see ``starts``."""
        if self.positions is None:
            return []
        import openmm

        torsions, _ = self.openmm_twin()
        for index in reversed(range(torsions.getNumForces())):
            if type(torsions.getForce(index)).__name__ not in _TORSIONS:
                torsions.removeForce(index)
        evaluator = ContextEvaluator(openmm.XmlSerializer.serialize(torsions), "Reference", {})
        angle = torch.linspace(0, 2 * math.pi, 37, dtype=torch.float64)[:-1]
        found = []
        for bond in rotatable_bonds(self.shape[0], self._bonds):
            (_, j, k, _), moving = bond
            x = torch.from_numpy(self.positions).repeat(len(angle), 1, 1)
            x[:, moving] = _rotated(x[:, moving], x[:, j], x[:, k], angle)
            energies = np.empty(len(x))
            evaluator.evaluate(x.numpy(), energies, np.empty(tuple(x.shape)))
            if np.ptp(energies) <= TURNING_BARRIER * kT(self.temperature):
                found.append(bond)
        return found


def _rotated(x: Tensor, start: Tensor, end: Tensor, angle: Tensor) -> Tensor:
    """Positions ``(b, m, 3)`` turned by ``angle`` ``(b,)`` about the axes from ``start`` to ``end``."""
    axis: Tensor = torch.nn.functional.normalize(end - start, dim=-1)[:, None]
    arm = x - end[:, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along = (arm * axis).sum(-1, keepdim=True) * axis
    across = torch.linalg.cross(axis.expand_as(arm), arm)
    turned: Tensor = end[:, None] + along + cos * (arm - along) + sin * across
    return turned


def _touching(positions: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether two particles coincide, ``(b,)``."""
    found: np.ndarray[Any, np.dtype[np.bool_]]
    found = (np.diff(np.sort(positions[:, :, 0], axis=1), axis=1) == 0).any(1)
    for row in np.flatnonzero(found):
        found[row] = len(np.unique(positions[row], axis=0)) < positions.shape[1]
    return found


# Arguments


def kelvin(temperature: Any) -> float:
    """A temperature in kelvin, from a number or an ``openmm.unit.Quantity``."""
    from openmm import unit

    value = temperature
    if unit.is_quantity(value):
        try:
            value = value.value_in_unit(unit.kelvin)
        except TypeError:
            raise InputError(f"temperature must be in kelvin, got {temperature!r}") from None
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 < value < 1e9:
        raise InputError(f"temperature must be a positive number of kelvin, got {temperature!r}")
    return float(value)


def _nanometres(positions: Any, n: int) -> Array:
    from openmm import unit

    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    if isinstance(positions, list | tuple):
        positions = np.array([[float(c) for c in row] for row in positions])
    tensor = check_positions(positions, (n, 3), name="positions")
    if tensor.dim() != 2:
        raise InputError(f"positions must be one configuration ({n}, 3), got {tuple(tensor.shape)}")
    return tensor.detach().cpu().double().numpy().copy()


def _openmm_topology(topology: Any) -> openmm.app.Topology:
    from openmm import app

    if isinstance(topology, app.Topology):
        return topology
    if hasattr(topology, "to_openmm"):
        return topology.to_openmm()
    raise InputError(
        "topology must be an openmm.app.Topology or an mdtraj.Topology, got "
        f"{type(topology).__name__}"
    )


def _check_kind(system: openmm.System) -> None:
    """Refuse systems whose energy is no density over the free coordinates of all particles."""
    from openmm import unit

    n = system.getNumParticles()
    if n < 1:
        raise InputError("system has no particles")
    if system.getNumConstraints():
        raise InputError(
            f"system has {system.getNumConstraints()} constraints. A constrained distance is held by "
            "the integrator, not by the energy: over free coordinates exp(-u) has nothing that keeps "
            "it, so samples would fall apart. Build the system with constraints=None and "
            "rigidWater=False"
        )
    sites = [i for i in range(n) if system.isVirtualSite(i)]
    if sites:
        raise InputError(
            f"system has {len(sites)} virtual sites (the first is particle {sites[0]}). Their places "
            "follow from other particles, so they are no coordinates of the density; use a model "
            "without them"
        )
    for i in range(n):
        if system.getParticleMass(i).value_in_unit(unit.dalton) <= 0:
            raise InputError(
                f"particle {i} of system has no mass, which is how OpenMM holds a particle in place; "
                "the density is one over all particles. Give it a mass, or leave it out"
            )
    for force in system.getForces():
        if "Barostat" in type(force).__name__:
            raise InputError(
                f"system has a {type(force).__name__}: the volume would be a further coordinate. "
                "Remove it; constant-volume systems are sampled"
            )
        if force.usesPeriodicBoundaryConditions():
            raise InputError(
                f"the {type(force).__name__} of system is periodic. Its energy repeats in every image "
                "of the box, so exp(-u) cannot be normalised over free coordinates. Use NoCutoff or "
                "CutoffNonPeriodic, with implicit solvent where one is needed"
            )


def _potential(system: openmm.System) -> openmm.System:
    """A copy of the system without the forces that act on velocities."""
    import copy

    potential = copy.deepcopy(system)
    for index in reversed(range(potential.getNumForces())):
        if type(potential.getForce(index)).__name__ in _NOT_POTENTIAL:
            potential.removeForce(index)
    return potential


def _bonds(topology: openmm.app.Topology, system: openmm.System) -> tuple[tuple[int, int], ...]:
    pairs = {tuple(sorted((bond[0].index, bond[1].index))) for bond in topology.bonds()}
    if not pairs:
        for force in system.getForces():
            if type(force).__name__ == "HarmonicBondForce":
                for k in range(force.getNumBonds()):
                    pairs.add(tuple(sorted(force.getBondParameters(k)[:2])))
    return tuple(sorted((i, j) for i, j in pairs))


def _labels(topology: openmm.app.Topology, system: openmm.System) -> list[tuple[Any, ...]]:
    """Element, mass and the parameters that forces give to each particle."""
    labels: list[list[Any]] = [
        [None if atom.element is None else atom.element.symbol, system.getParticleMass(i)._value]
        for i, atom in enumerate(topology.atoms())
    ]
    for force in system.getForces():
        kind = type(force).__name__
        if kind == "CustomExternalForce":
            for k in range(force.getNumParticles()):
                particle, parameters = force.getParticleParameters(k)
                labels[particle].append((kind, *parameters))
        elif kind in _OF_PARTICLES:
            for i, label in enumerate(labels):
                values = force.getParticleParameters(i)
                label.append((kind, *(getattr(value, "_value", value) for value in values)))
    return [tuple(label) for label in labels]
