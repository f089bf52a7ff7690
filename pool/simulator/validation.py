"""Validation sets: frames of a task that also make up a ground truth job, or a pool of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .fields import Fields
from .media import natural_key, validation_error
from .records import Frame, Layout, Task

METHODS = ("random_uniform", "random_per_job", "manual")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """``validation_params`` of a data request. Of counts and shares, one is there."""

    mode: str
    method: str
    frames: tuple[str, ...] = ()
    count: int | None = None
    share: float | None = None
    per_job_count: int | None = None
    per_job_share: float | None = None


def read_validation(fields: Fields) -> Validation:
    """Read ``validation_params``, collecting what is wrong with them."""
    mode = fields.choice("mode", ("gt", "gt_pool"), required=True) or ""
    method = fields.choice("frame_selection_method", METHODS, default="") or ""
    fields.integer("random_seed", least=0)
    found = Validation(
        mode=mode,
        method=method,
        frames=tuple(fields.texts("frames", longest=1024)),
        count=fields.integer("frame_count", least=1),
        share=fields.number("frame_share"),
        per_job_count=fields.integer("frames_per_job_count", least=1),
        per_job_share=fields.number("frames_per_job_share"),
    )
    needed = {
        "random_uniform": ("frame_count", "frame_share"),
        "random_per_job": ("frames_per_job_count", "frames_per_job_share"),
        "manual": ("frames",),
    }
    pairs = [needed["random_per_job"]] if mode == "gt_pool" else []
    for names in [*pairs, *([needed[method]] if method else [])]:
        if not fields.errors and not any(name in fields for name in names):
            listed = ", ".join(f'"{name}"' for name in names)
            fields.wrong("non_field_errors", f"One of the fields {listed} required")
    return found


def check(task: Task, params: Validation | None, sorting_method: str) -> None:
    """What a validation set does not go with, as far as no file is needed to know it."""
    if params is None:
        return
    if params.mode == "gt_pool" and sorting_method != "random":
        raise validation_error('validation mode "gt_pool" can only be used with "random" sorting')
    per_job = params.per_job_count if params.method == "random_per_job" else None
    if params.mode == "gt" and per_job and task.segment_size <= per_job:
        raise validation_error("Validation frame count per job cannot be greater than segment size")


def choose(
    params: Validation,
    names: Sequence[str],
    segments: Sequence[tuple[int, int]],
    rng: random.Random,
) -> list[int]:
    """The numbers of the validation frames, ascending."""
    if params.method == "manual":
        unknown = sorted(set(params.frames) - set(names))
        if unknown:
            raise validation_error(f"Unknown validation frames requested: {', '.join(unknown)}")
        return sorted(names.index(name) for name in params.frames)
    if params.method == "random_uniform":
        count = params.count or max(1, int((params.share or 0) * len(names)))
        if count > len(names):
            raise validation_error(
                f"The number of validation frames requested ({count}) is greater that the number "
                f"of task frames ({len(names)})"
            )
        return sorted(rng.sample(range(len(names)), count))
    chosen: set[int] = set()
    for start, stop in segments:
        frames = set(range(start, stop + 1))
        count = params.per_job_count or max(1, int((params.per_job_share or 0) * len(frames)))
        free = sorted(frames - chosen)
        chosen.update(rng.sample(free, max(0, min(count, len(frames)) - len(frames & chosen))))
    return sorted(chosen)


def mix_in(
    params: Validation, frames: Sequence[Frame], segment_size: int, rng: random.Random
) -> tuple[list[Frame], list[list[str]], Layout]:
    """The frames of a task with a validation pool, its jobs' file names, and where the pool is.

    The pool comes last; each job gets some of it as honeypots, in between its own frames.
    """
    ordered = sorted(frames, key=lambda frame: natural_key(frame.name))
    pool = choose(params, [frame.name for frame in ordered], (), rng)
    if len(pool) >= len(ordered):
        raise validation_error(
            f"The number of validation frames requested ({len(pool)}) must be less than the "
            f"number of task frames ({len(ordered)})"
        )
    others = [number for number in range(len(ordered)) if number not in pool]
    rng.shuffle(others)
    size = segment_size or len(ordered)
    per_job = params.per_job_count or max(1, int((params.per_job_share or 0) * segment_size))
    per_job = min(per_job, len(pool))
    mixed: list[int] = []
    jobs: list[list[int]] = []
    for start in range(0, len(others), size):
        job = others[start : start + size] + rng.sample(pool, per_job)
        rng.shuffle(job)
        jobs.append(job)
        mixed += job
    real = {number: len(mixed) + place for place, number in enumerate(pool)}
    layout = Layout(
        mode="gt_pool",
        frames=list(real.values()),
        per_job=per_job,
        honeypots={place: real[number] for place, number in enumerate(mixed) if number in real},
    )
    names = [[ordered[number].name for number in job] for job in jobs]
    return [dataclasses.replace(ordered[number]) for number in [*mixed, *pool]], names, layout
