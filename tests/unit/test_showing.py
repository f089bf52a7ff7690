"""Which frames of a carrier are hidden, and which pictures are taken for the same."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.slots import picture_of, slot_settings

from pool.model import Slot, TaskState
from pool.requests.showing import filled_frames, frames_of, frames_to_hide, is_new
from pool.requests.slot_pictures import placeholder, same_picture

STATES = [state for state in TaskState if state is not TaskState.CREATING]


@st.composite
def carriers(draw: st.DrawFn) -> Sequence[Slot]:
    frames = draw(st.integers(1, 4))
    slots = []
    for position in range(draw(st.integers(1, 6))):
        state = draw(st.sampled_from(STATES))
        first = position * frames
        filled = draw(st.integers(1, frames)) if state is TaskState.READY else 0
        slots.append(
            Slot(
                id=str(position),
                carrier_id="c",
                position=position,
                state=state,
                job_id=position,
                start_frame=first,
                stop_frame=first + frames - 1,
                filled=filled,
                shown_at=draw(st.sampled_from([None, 5.0])) if filled else None,
                erased=draw(st.booleans()) if filled else False,
                unwanted=draw(st.booleans()) if filled else False,
            )
        )
    return slots


@given(carriers(), st.sets(st.integers(0, 23)))
def test_frames_to_hide(slots: Sequence[Slot], hidden: set[int]) -> None:
    wanted = frames_to_hide(slots, hidden)
    for slot in slots:
        frames, pictures = set(frames_of(slot)), set(filled_frames(slot))
        if slot.state is not TaskState.READY or slot.erased or slot.unwanted:
            assert wanted >= frames, "it holds nothing that is to be seen"
            continue
        assert wanted >= frames - pictures, "no placeholder is seen"
        if is_new(slot):
            assert not wanted & pictures
        else:
            assert wanted & pictures == hidden & pictures, "people's own doing stays"
    assert wanted <= {number for slot in slots for number in frames_of(slot)}
    shown = [slot for slot in slots if not is_new(slot)]
    assert frames_to_hide(shown, wanted) == frames_to_hide(shown, hidden), "a second time is none"


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Another one for each seed, with as much detail as a photo has."""
    chance = random.Random(seed)
    coarse = Image.frombytes("RGB", (12, 9), chance.randbytes(12 * 9 * 3)).resize(size)
    noise = Image.frombytes("RGB", size, chance.randbytes(size[0] * size[1] * 3))
    return Image.blend(coarse, noise, 0.2)


def saved(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@given(st.integers(0, 10**6), st.integers(10, 95), st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_a_picture_is_the_same_after_compression(seed: int, quality: int, format: str) -> None:
    image = photo(seed, (96, 64))
    written = saved(image, format)
    assert same_picture(saved(image, quality=quality), written)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_pictures_of_two_requests_are_told_apart(one: int, other: int) -> None:
    same = one == other
    assert same_picture(saved(photo(one, (96, 64)), quality=50), saved(photo(other, (96, 64)))) is (
        same
    )


def test_a_placeholder_and_other_colours_are_told_apart(tmp_path: object) -> None:
    settings = slot_settings(tmp_path, marked=False)  # type: ignore[arg-type]
    reserved = placeholder(settings)
    assert same_picture(reserved, reserved)
    colours = [(250, 10, 10), (10, 250, 10), (0, 0, 0), (128, 128, 128), (255, 255, 255)]
    pictures = [reserved, *map(picture_of, colours)]
    for number, written in enumerate(pictures):
        assert [same_picture(each, written) for each in pictures] == [
            place == number for place in range(len(pictures))
        ]


def test_a_change_in_a_part_of_a_scene_is_seen() -> None:
    before = photo(3)
    after = before.copy()
    after.paste((255, 255, 255), (40, 40, 100, 100))
    assert not same_picture(saved(before, quality=70), saved(after))


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_a_turned_picture_is_compared_as_it_is_shown(turn: int) -> None:
    turns = {1: 0, 3: 180, 6: 270, 8: 90}
    exif = Image.Exif()
    exif[0x0112] = turn
    written = saved(photo(5), exif=exif)
    shown = saved(photo(5).rotate(turns[turn], expand=True), quality=60)
    assert same_picture(shown, written)
    assert (turn == 1) is same_picture(saved(photo(5)), written)


def test_no_picture_is_another_one() -> None:
    assert not same_picture(b"no picture", picture_of())
    assert not same_picture(picture_of(), b"no picture")
    assert not same_picture(picture_of()[:200], picture_of())
