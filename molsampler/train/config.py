"""Training configuration: one validated, immutable tree; presets are YAML files beside this module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from ..errors import FileFormatError, InputError, IntegrityError, UnknownNameError, nearest
from ..frozen import Frozen
from ..molecule.z_matrix import has_internal_coordinates
from ..nn.generators import AnyGenerator, GeneratorConfig, Sampling
from ..nn.generators.implicit import ImplicitConfig
from ..objectives import AnyObjective, ObjectiveConfig
from ..objectives.dikl_replay import DiKLReplayConfig
from ..storage.plain_yaml import parse_yaml, read_yaml
from ..storage.validation import validated
from ..target import System
from ..temperatures import TemperatureRange

PRESETS = ("fast", "exact", "paper")
_FOLDER = Path(__file__).parent / "presets"
_SEAL = "# SHA-256 of the lines below: "


class Start(Frozen):
    """The trained sampler whose weights a training starts from, as it was named, and their hash."""

    sampler: str
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TrainConfig(Frozen):
    """Everything that decides a training run, apart from the target and the machine.

    ``coordinates: internal`` samples a molecule by bond lengths, angles and torsions
    (:mod:`molsampler.molecule.internal_coordinates`). ``sampling`` says how the trained generator is
    sampled, by the settings of its kind; ``calibrate`` tunes its one number at the end, against the
    objective's population, and adds kinetic layers where they make a sampler usable that is not.
    ``temperatures`` has the sampler trained over a range of them, in kelvin for molecules. ``criterion`` is
    what checkpoints are selected by (:mod:`molsampler.train.criterion`); ``auto`` is ``ess`` where draws
    carry weights, of which the heaviest hundredth is cut down, ``discrepancy`` where there is a population,
    else ``drift``. ``until_ess`` ends training at the first evaluation whose effective share of weights
    reaches it, at every temperature that is judged, and is what the verdict then asks for. ``within`` are
    seconds that the whole training is to fit in: ``iterations``, the warm-up and the chains of the population
    are then upper bounds (:mod:`molsampler.train.fit`). ``start`` is the sampler to start from
    (:func:`molsampler.train.start.started_from`). ``probe`` has the energy probed before a fresh run
    (:mod:`molsampler.wellposed`).
    """

    system: str
    coordinates: Literal["cartesian", "internal"] = "cartesian"
    temperatures: TemperatureRange | None = None
    seed: int = Field(0, ge=0)
    iterations: int = Field(4000, ge=1)
    generator: AnyGenerator = ImplicitConfig()
    sampling: dict[str, Any] = Field(default_factory=dict)
    objective: AnyObjective = DiKLReplayConfig()
    criterion: Literal[
        "auto", "ess", "discrepancy", "drift", "energy-tvd", "mean-energy", "last"
    ] = "auto"
    calibrate: bool = True
    until_ess: float | None = Field(None, gt=0, le=1)
    within: float | None = Field(None, gt=0)
    evaluate_every: int = Field(250, ge=1)
    evaluate_samples: int = Field(4000, ge=10)
    evaluate_steps: int = Field(20, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    log_every: int = Field(10, ge=1)
    max_bad_steps: int = Field(20, ge=1)
    compile: bool = False
    probe: bool = True
    start: Start | None = None

    def how_to_sample(self) -> Sampling:
        """``sampling`` in the form of the generator's kind."""
        return self.generator.sampling(self.sampling)

    def what_to_train(self) -> GeneratorConfig:
        """``generator``, told the temperature where there is a range of them."""
        if self.temperatures is None:
            return self.generator
        return self.generator.conditioned(self.temperatures)


def load_config(
    preset: str = "fast",
    system: System | str = "",
    *,
    file: Path | str | None = None,
    overrides: Sequence[str] = (),
    temperatures: TemperatureRange | None = None,
    invariant: bool | None = None,
    molecule: bool | None = None,
) -> TrainConfig:
    """Build a configuration from a preset, then a YAML file, then ``KEY=VALUE`` overrides.

    Keys may be dotted (``generator.body.width=32``); those of the objective may be written without
    ``objective.`` in front (``batch_size=64``). ``system`` is the system to train on, or its name or label
    (``lj13@0.3``), ``temperatures`` the key of that name. A system without settings of its own in the preset
    gets an equivariant network where it is ``invariant``, else a perceptron, and internal coordinates where
    it is a ``molecule`` that has them (:func:`molsampler.molecule.z_matrix.has_internal_coordinates`): both
    as the system has it unless given. A system whose energy is a sum over pairs has settings for cheap
    energies. A name alone is taken as invariant, as no molecule and not as such a sum. A training over a
    range of temperatures, whichever of the three asks for it, has what the preset says under
    ``over-temperatures``.

    Raises
    ------
    UnknownNameError
        The preset or a key does not exist; the nearest name is suggested.
    InputError
        A value is out of range, or the file is not a YAML mapping.
    """
    if preset not in PRESETS:
        raise UnknownNameError(
            f"preset must be one of {', '.join(PRESETS)}, got {preset!r}{nearest(preset, PRESETS)}"
        )
    pairwise = not isinstance(system, str) and system.pairwise
    if not isinstance(system, str):
        invariant = system.invariant if invariant is None else invariant
        molecule = has_internal_coordinates(system) if molecule is None else molecule
        system = system.label
    # Our own file, which may use aliases.
    book = yaml.safe_load((_FOLDER / f"{preset}.yaml").read_text())
    fallback = book["other" if invariant is False else "invariant"]
    if pairwise and invariant:
        fallback = book.get("pairs", fallback)
    if molecule:
        fallback = book.get("molecule", fallback)
    values = _merge(book["common"], book["systems"].get(system.partition("@")[0], fallback))
    over_temperatures = values.pop("over-temperatures", {})
    own = {} if file is None else _read_yaml(Path(file))
    if temperatures is not None or _has_range(own, overrides):
        values = _merge(values, over_temperatures)
    values = _updated(values, own)
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key:
            names = _names(values)
            hint = nearest(item, names) or f" (keys: {', '.join(names)})"
            if item in names:
                hint = f": {item}=..."
            raise InputError(f"an override must read KEY=VALUE, got {item!r}{hint}")
        values = _updated(values, _nested(key.split("."), _parse_scalar(key, text)))
    values = _merge(values, {"system": system}) if system else values
    if temperatures is not None:
        told = temperatures.model_dump()
        given = values.get("temperatures")
        if isinstance(given, Mapping) and any(told.get(k) != value for k, value in given.items()):
            raise InputError(
                f"the range of temperatures is given twice: {temperatures} (--temperature), and {given} by a "
                "file or --set"
            )
        values = _merge(values, {"temperatures": told})
    return validate(values)


def validate(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from a plain mapping, with readable errors."""
    try:
        config = validated(TrainConfig, values)
    except InputError as error:
        raise type(error)(f"configuration: {error}") from None
    try:
        sampling = validated(type(config.generator.sampling()), config.sampling)
        config.generator.require_sampling(sampling)
    except InputError as error:
        raise type(error)(f"configuration: sampling: {error}") from None
    if config.temperatures is None and getattr(config.generator, "temperatures", None) is not None:
        raise InputError(
            "configuration: generator.temperatures: the range of a training is the key temperatures "
            "(--temperature LO:HI)"
        )
    if config.until_ess is not None and not config.generator.weighted:
        raise InputError(
            f"configuration: until_ess: a generator of kind {config.generator.kind!r} draws without weights; "
            "take --preset exact"
        )
    if config.temperatures is not None:
        if not config.objective.over_temperatures:
            raise InputError(
                f"configuration: temperatures: an objective of kind {config.objective.kind!r} trains at one "
                "temperature; take --preset fast or --preset exact"
            )
        try:
            config.what_to_train()
        except InputError as error:
            raise InputError(f"configuration: temperatures: {error}") from None
    return config


def difference(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Lines ``key: old -> new`` for every leaf in which two configurations differ."""
    first, second = leaves(old), leaves(new)
    return [
        f"{key}: {first.get(key)!r} -> {second.get(key)!r}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def leaves(config: TrainConfig) -> dict[str, Any]:
    """Every value of a configuration by its dotted key."""
    return _flatten(config.model_dump())


def to_yaml(config: TrainConfig) -> str:
    """The resolved configuration as YAML text that :func:`load_config` reads back.

    Its first line, a comment, holds the SHA-256 of the others.
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def from_yaml(path: Path) -> TrainConfig:
    """Read a resolved configuration.

    Raises
    ------
    IntegrityError
        Its lines are not those whose SHA-256 it states.
    InputError, UnknownNameError
        See :func:`load_config`.
    """
    values = _read_yaml(path)
    seal, _, text = path.read_bytes().partition(b"\n")
    if seal != f"{_SEAL}{hashlib.sha256(text).hexdigest()}".encode():
        raise IntegrityError(
            f"{path} is damaged or was edited: its lines do not have the SHA-256 that it states"
        )
    return validate(values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileFormatError as error:
        raise InputError(str(error)) from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(
            f"{path} must hold a mapping of configuration keys, got {type(values).__name__}"
        )
    return values


def _has_range(own: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Whether a file or overrides ask for a range of temperatures."""
    asked = own.get("temperatures") is not None
    for item in overrides:
        key, _, text = item.partition("=")
        if key.partition(".")[0] == "temperatures":
            asked = text not in ("null", "~", "")
    return asked


def _parse_scalar(key: str, text: str) -> Any:
    try:
        value = parse_yaml(text, f"the value of override {key!r}")
    except FileFormatError as error:
        raise InputError(str(error)) from None
    # YAML 1.1 reads "1e-3" as a string; people mean a number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _updated(values: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """The values with an update merged in; another kind of generator is not sampled as the old one was."""
    update = _placed(update, values)
    old, new = (_chosen("generator", each).get("kind") for each in (values, update))
    if new not in (None, old):
        values = {key: value for key, value in values.items() if key != "sampling"}
    return _merge(values, update)


def _chosen(key: str, *mappings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the first of several mappings holds under a key that names a kind, if any does."""
    found = [each[key] for each in mappings if isinstance(each.get(key), Mapping)]
    return next((each for each in found if "kind" in each), {})


def _placed(update: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The update with keys that only the objective knows put under ``objective``."""
    known = ObjectiveConfig.model_of(_chosen("objective", update, values)).model_fields
    for key in update:
        if key not in TrainConfig.model_fields and key not in known:
            names = _names(update, values)
            hint = nearest(key, names) or f" (known: {', '.join(names)})"
            raise UnknownNameError(f"configuration: unknown key {key!r}{hint}")
    own = {k: v for k, v in update.items() if k in known and k not in TrainConfig.model_fields}
    rest = {key: value for key, value in update.items() if key not in own}
    return _merge(rest, {"objective": own}) if own else rest


def _names(*mappings: Mapping[str, Any]) -> list[str]:
    """The keys that may be set without a prefix, then those of the generator with theirs."""
    objective = ObjectiveConfig.model_of(_chosen("objective", *mappings))
    generator = GeneratorConfig.model_of(_chosen("generator", *mappings))
    inner = [f"generator.{key}" for key in generator.model_fields]
    return list(dict.fromkeys([*TrainConfig.model_fields, *objective.model_fields, *inner]))


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            # Another kind shares no keys with the old one.
            other = "kind" in value and value["kind"] != old.get("kind")
            merged[key] = dict(value) if other else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
