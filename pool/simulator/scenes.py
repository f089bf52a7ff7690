"""What an import shows: pictures or point clouds, and the pictures that belong to each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from .media import ImportFailed, is_cloud

Related = dict[str, list[str]]


def frame_name(name: str) -> str:
    """What a file is called as a frame: CVAT makes .pcd files of all point clouds."""
    return str(PurePosixPath(name).with_suffix(".pcd")) if is_cloud(name) else name


def find_scenes(names: Sequence[str], shown: Callable[[str], str]) -> Related:
    """Names that become frames, in their order, each with the related images that are none.

    ``shown`` is a name as the real server has it in its messages. Raises
    :class:`ImportFailed` for point clouds with images that belong to none of them.
    """
    paths = [PurePosixPath(name) for name in names]
    clouds = {path.with_suffix(""): str(path) for path in paths if is_cloud(path.name)}
    owners = {
        str(path): _owner(path, clouds) if clouds else _owner_of_picture(path)
        for path in paths
        if not (clouds and is_cloud(path.name))
    }
    if clouds and not all(owners.values()):
        unknown = ", ".join(sorted(shown(name) for name, owner in owners.items() if not owner)[:5])
        scenes = ", ".join(sorted(map(shown, clouds.values()))[:5])
        raise ImportFailed(
            "ValueError: Combined media types are not supported, found: images, 3d point clouds. "
            f"Scenes: {scenes}. Unknown files: {unknown}\n"
        )
    found: Related = {name: [] for name in map(str, paths) if not owners.get(name)}
    for name, owner in sorted(owners.items()):
        if owner in found:
            found[owner].append(name)
    return found


def _owner_of_picture(path: PurePosixPath) -> str | None:
    """``a.png`` is the owner of all in ``related_images/a_png``."""
    folder = path.parent
    if folder.parent.name != "related_images":
        return None
    return str(folder.parent.parent / ".".join(folder.name.rsplit("_", 1)))


def _owner(path: PurePosixPath, clouds: dict[PurePosixPath, str]) -> str | None:
    """The point cloud that a picture belongs to, by the layouts that CVAT knows."""
    folder, above = path.parent, path.parent.parent
    places = [path.with_suffix(""), folder / folder.name]
    if above.name == "related_images":
        places.append(above.parent / "pointcloud" / folder.name.rsplit("_", 1)[0])
    if folder.name == "data" and re.match(r"image_\d+", above.name, re.IGNORECASE):
        places.append(above.parent / "velodyne_points" / "data" / path.stem)
    return next((clouds[place] for place in places if place in clouds), None)
