"""Training configuration: one validated, immutable tree; presets are YAML files beside this module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from ..diffusion.identities import Identity
from ..errors import FileFormatError, InputError, IntegrityError, UnknownNameError, nearest
from ..nn.body import BodyConfig, EGNNConfig, Frozen
from ..nn.generators.implicit import GeneratorConfig, LangevinScheme
from ..storage.plain_yaml import parse_yaml, read_yaml
from ..storage.validation import validated

PRESETS = ("fast", "paper")
_FOLDER = Path(__file__).parent / "presets"
_SEAL = "# SHA-256 of the lines below: "


class LinearBetaConfig(Frozen):
    """:class:`~molsampler.diffusion.schedule.LinearBeta`."""

    kind: Literal["linear-beta"] = "linear-beta"
    beta_min: float
    beta_max: float
    levels: int = 30


class LogUniformConfig(Frozen):
    """:class:`~molsampler.diffusion.schedule.LogUniformSigma`, in units of the data scale."""

    kind: Literal["log-uniform"] = "log-uniform"
    sigma_min: float = Field(0.02, gt=0)
    sigma_max: float = Field(3.0, gt=0)


class PosteriorConfig(Frozen):
    """Target score by fresh posterior chains at every generator step, as in the paper."""

    kind: Literal["posterior"] = "posterior"
    identity: Identity = "mixed"
    particles: int = Field(20, ge=1)
    levels: int = Field(10, ge=1)
    steps: int = Field(50, ge=1)
    average: int = Field(1, ge=1)


class ReplayConfig(Frozen):
    """Target score by a denoiser fitted to a replay of equilibrated chains.

    ``size`` chains start from a Gaussian of ``start_scale`` (in the system's length unit), are
    annealed by SMC with ``anneal_moves`` MALA steps per level and equilibrated by ``equilibration``
    more. During training ``refresh`` of them take ``refresh_steps`` steps per iteration. The denoiser
    gets ``warmup`` iterations before the generator starts and ``steps`` per iteration after.
    """

    kind: Literal["replay"] = "replay"
    size: int = Field(8192, ge=2)
    start_scale: float = Field(1.0, gt=0)
    anneal_moves: int = Field(5, ge=1)
    equilibration: int = Field(1000, ge=0)
    refresh: int = Field(512, ge=0)
    refresh_steps: int = Field(2, ge=1)
    warmup: int = Field(1500, ge=0)
    steps: int = Field(1, ge=0)


class TrainConfig(Frozen):
    """Everything that decides a training run, apart from the target and the machine.

    ``coordinates: internal`` samples a molecule by bond lengths, angles and torsions
    (:mod:`molsampler.molecule.internal`), with a perceptron.

    ``sampling_scheme`` is that of the averaged generator's Langevin layers, if not the one trained
    with: learned steps stay short under ``euler``, which punishes long ones, and are then sampled with
    less error by ``leimkuhler-matthews``. ``sampling_layers`` is the number of layers it evaluates, if not
    that trained; the ladder of steps is stretched. ``calibrate`` tunes the scale of its latent at the end,
    against the replay.
    """

    system: str
    coordinates: Literal["cartesian", "internal"] = "cartesian"
    seed: int = Field(0, ge=0)
    iterations: int = Field(4000, ge=1)
    batch_size: int = Field(256, ge=1)
    generator: GeneratorConfig = GeneratorConfig()
    denoiser: BodyConfig = EGNNConfig()
    schedule: Annotated[LinearBetaConfig | LogUniformConfig, Field(discriminator="kind")] = (
        LogUniformConfig()
    )
    target_score: Annotated[PosteriorConfig | ReplayConfig, Field(discriminator="kind")] = (
        ReplayConfig()
    )
    weighting: Literal["uniform", "inverse-alpha", "sigma", "denoiser"] = "denoiser"
    clip: float = Field(2.0, gt=0)
    noise_annealing: float = Field(0.0, ge=0, le=1)
    sampling_scheme: LangevinScheme | None = None
    sampling_layers: int | None = Field(None, ge=1, le=256)
    calibrate: bool = True
    score_steps: int = Field(5, ge=1)
    generator_lr: float = Field(1e-3, gt=0)
    score_lr: float = Field(1e-3, gt=0)
    decay_start: float = Field(0.5, ge=0, lt=1)
    final_lr: float = Field(0.02, ge=0, le=1)
    score_final_lr: float | None = Field(None, ge=0, le=1)
    max_grad_norm: float = Field(10.0, gt=0)
    ema: float = Field(0.998, ge=0, lt=1)
    data_scale: float | None = Field(None, gt=0)
    evaluate_every: int = Field(250, ge=1)
    evaluate_samples: int = Field(4000, ge=10)
    evaluate_steps: int = Field(20, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    log_every: int = Field(10, ge=1)
    max_bad_steps: int = Field(20, ge=1)
    compile: bool = False


def load_config(
    preset: str = "fast",
    system: str = "",
    *,
    file: Path | str | None = None,
    overrides: Sequence[str] = (),
    invariant: bool = True,
    molecule: bool = False,
) -> TrainConfig:
    """Build a configuration from a preset, then a YAML file, then ``KEY=VALUE`` overrides.

    Keys may be dotted (``generator.body.width=32``). ``invariant`` says whether a system without
    its own preset gets an equivariant network (True) or a perceptron; ``molecule`` that it gets internal
    coordinates (:func:`molsampler.molecule.internal.available`).

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
    # Our own file, which may use aliases.
    book = yaml.safe_load((_FOLDER / f"{preset}.yaml").read_text())
    fallback = book["invariant" if invariant else "other"]
    if molecule:
        fallback = book.get("molecule", fallback)
    values = _merge(book["common"], book["systems"].get(system, fallback))
    if file is not None:
        values = _merge(values, _read_yaml(Path(file)))
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise InputError(f"an override must read KEY=VALUE, got {item!r}")
        values = _merge(values, _nested(key.split("."), _parse_scalar(key, text)))
    values = _merge(values, {"system": system}) if system else values
    return validate(values)


def validate(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from a plain mapping, with readable errors."""
    try:
        return validated(TrainConfig, values)
    except InputError as error:
        raise type(error)(f"configuration: {error}") from None


def difference(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Lines ``key: old -> new`` for every leaf in which two configurations differ."""
    first, second = _flatten(old.model_dump()), _flatten(new.model_dump())
    return [
        f"{key}: {first.get(key)!r} -> {second.get(key)!r}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


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
    # Files of earlier versions begin without a comment.
    if seal.startswith(b"#") and seal != f"{_SEAL}{hashlib.sha256(text).hexdigest()}".encode():
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
