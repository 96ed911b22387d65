"""Loads the models of `sidelight serve`, with their settings. torch is imported only when models are loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ..settings import ModelSettings, Settings

if TYPE_CHECKING:
    from ..engine import EngineConfig
    from ..models import LoadedModel, LoadingStage
    from ..operations import ModelLimits


def load_models(settings: Settings) -> tuple[list[LoadedModel], list[EngineConfig]]:
    """Loads all models. Returns them with how much the engine of each takes on. Raises ModelError."""
    import torch

    counts = [_thread_counts(model) for model in settings.models]
    # One thread loads the models, for two reasons. Layers are timed during loading, and other processes disturb the
    # timing least if one thread runs. And OpenMP would keep a pool of threads for this thread besides the engine's
    # pool: with more threads than cores, all sleep between two operations, and a step on 2 cores takes twice the time.
    torch.set_num_threads(1)
    is_json = settings.values.log_format == "json"
    if settings.values.log_level != "debug" or is_json:
        hide_bars(keeps_downloads=not is_json)  # downloads may take long
    loaded = _load_models(settings)
    torch.set_num_threads(counts[0][-1])
    return loaded, _engine_configs(loaded, settings, counts)


def _thread_counts(model: ModelSettings) -> tuple[int, ...]:
    """Returns the numbers of threads that a model may use. Call this before torch's own number is changed."""
    import torch

    from ..runner.thread_tuner import thread_counts

    if model.values.threads:
        return (model.values.threads,)
    return (torch.get_num_threads(),) if "OMP_NUM_THREADS" in os.environ else thread_counts()


def _load_models(settings: Settings) -> list[LoadedModel]:
    """Loads all models, one after another. Raises ModelError."""
    from ..models import ModelError
    from .progress import open_progress, show_loading

    loaded: list[LoadedModel] = []
    with open_progress(quiet=not has_bars(settings.values)) as progress:
        for model in settings.models:
            if loaded:
                logging.getLogger(__name__).info("loading %s", model.path)
            if model.name in [other.name for other in loaded]:
                raise ModelError(f"two models are named {model.name}: give one of them another name")
            with show_loading(progress, model.path and str(model.path), model.name) as on_stage:
                loaded.append(_load_model(model, on_stage))
    return loaded


def _load_model(model: ModelSettings, on_stage: Callable[[LoadingStage], None]) -> LoadedModel:
    """Loads one model. Raises ModelError."""
    from ..models import BUNDLED_NAME, ModelError, load

    values = model.values
    try:
        found = load(
            model.path,
            name=model.name,
            device=values.device,
            dtype=values.dtype,
            max_length=values.max_length,
            compiled=values.compile,
            on_stage=on_stage,
        )
    except ModelError:
        raise
    except Exception as error:  # which nobody has foreseen
        logging.getLogger(__name__).debug("loading failed", exc_info=True)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"cannot load {model.path or BUNDLED_NAME}: {reason}; --log-level debug says more") from error
    return replace(found, limits=_model_limits(values))


def has_bars(values: SimpleNamespace) -> bool:
    """Whether a terminal gets bars: not among lines for programs, nor where the log is to say little."""
    return values.log_format == "text" and values.log_level in ("debug", "info")


def _engine_configs(loaded: list[LoadedModel], settings: Settings, counts: list[tuple[int, ...]]) -> list[EngineConfig]:
    """Returns how much the engine of each model takes on. The models share the memory of their device."""
    from ..engine import EngineConfig
    from ..runner import divide_memory

    models = [model.values for model in settings.models]
    fractions = divide_memory(loaded, [values.max_slots for values in models], settings.values.memory_fraction)
    return [
        EngineConfig(
            max_running=values.max_slots,
            max_waiting=values.max_waiting,
            max_feature_bytes=values.max_feature_mib * 1024**2,
            memory_fraction=fraction,
            thread_counts=thread_counts,
            step_timeout=values.step_timeout,
            max_unread_bytes=values.max_unread_kib * 1024,
        )
        for values, fraction, thread_counts in zip(models, fractions, counts, strict=True)
    ]


def _model_limits(values: SimpleNamespace) -> ModelLimits:
    """Returns the limits of requests to a model with these settings."""
    from ..operations import ModelLimits

    return ModelLimits(
        max_new_tokens=values.max_new_tokens,
        max_step_bytes=values.max_step_mib * 1024**2,
        max_pass_bytes=values.max_pass_mib * 1024**2,
        max_follow_streams=values.max_follow_streams,
    )


def hide_bars(*, keeps_downloads: bool) -> None:
    """Hides transformers' progress bar for weights, and the one of the hub for downloads unless that is kept."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    has_download_bars = keeps_downloads and not are_progress_bars_disabled()
    disable_progress_bar()  # the hub's as well
    if has_download_bars:
        enable_progress_bars()
