"""How the frames of a task are divided among its jobs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .data_params import DataParams
from .media import ImportFailed, validation_error
from .records import Layout, Task
from .sources import Media
from .validation import check, choose, mix_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Frame ranges, both ends included, and the two figures that the task then shows."""

    ranges: tuple[tuple[int, int], ...]
    segment_size: int
    overlap: int


def check_params(task: Task, params: DataParams) -> None:
    """What parameters do not go together. Raises :class:`ImportFailed`."""
    for name, clashes in (
        ("segment_size", bool(task.segment_size)),
        ("sorting_method", params.sorting_method != "lexicographical"),
        ("start_frame", bool(params.start_frame)),
        ("stop_frame", bool(params.stop_frame)),
        ("frame_filter", bool(params.frame_filter)),
        ("filename_pattern", bool(params.filename_pattern)),
        ("server_files_exclude", bool(params.server_files_exclude)),
    ):
        if clashes and params.job_file_mapping is not None:
            raise validation_error(f"job_file_mapping cannot be used with {name}")
    check(task, params.validation, params.sorting_method)


def lay_out(
    task: Task, media: Media, params: DataParams, rng: random.Random
) -> tuple[Media, Segments, Layout | None]:
    """Divide what an import found among jobs, and choose its validation frames."""
    validation, mapping = params.validation, params.job_file_mapping
    layout = None
    names: Sequence[Sequence[str]] | None = mapping
    if validation is not None and validation.mode == "gt_pool":
        frames, names, layout = mix_in(validation, media.frames, task.segment_size, rng)
        media = dataclasses.replace(media, frames=frames, size=len(frames))
    segments = divide(media.size, task.segment_size, task.overlap, mode=media.mode, mapping=names)
    if validation is not None and validation.mode == "gt":
        chosen = choose(validation, [frame.name for frame in media.frames], segments.ranges, rng)
        layout = Layout(mode="gt", frames=chosen)
    return media, segments, layout


def divide(
    size: int,
    segment_size: int,
    overlap: int | None,
    *,
    mode: str,
    mapping: Sequence[Sequence[str]] | None,
) -> Segments:
    """Cut ``size`` frames into jobs.

    With a mapping: one job for each entry, in its order. Otherwise ranges of ``segment_size``
    (0: all frames in one) of which neighbours share ``overlap`` frames, at most half a segment;
    videos share 5 unless the task says otherwise.
    """
    if mapping is not None:
        ranges, start = [], 0
        for names in mapping:
            ranges.append((start, start + len(names) - 1))
            start += len(names)
        return Segments(ranges=tuple(ranges), segment_size=0, overlap=0)
    if segment_size == 0 or segment_size > size:
        segment_size = size
    if overlap is None:
        overlap = 5 if mode == "interpolation" and size > segment_size else 0
    overlap = min(overlap, segment_size // 2)
    starts = range(0, size - overlap, segment_size - overlap)
    return Segments(
        ranges=tuple((start, min(start + segment_size, size) - 1) for start in starts),
        segment_size=segment_size,
        overlap=overlap,
    )


def check_count(jobs: int, most: int) -> None:
    if jobs > most:
        raise ImportFailed(
            "ValueError: Too many jobs would be created for the task. "
            f"Current total: {jobs}, maximum allowed: {most}.\n"
        )
