"""Named bounds of requests, so that a program can say `fast` and its host decide what that means."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lib_mlx.config import Profile
from lib_mlx.errors import InvalidArgument
from lib_mlx.generation import PixelBounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lib_mlx.generation import GenerationRequest

_BUILT_IN = {
    "fast": Profile(max_tokens=512, max_pixels=512 * 512),
    "balanced": Profile(max_tokens=2048, max_pixels=1024 * 1024),
    "quality": Profile(),
}


def find_profile(name: str, own: Mapping[str, Profile]) -> Profile:
    """Return the bounds called `name`, of the server's `own` or the built-in ones; raises InvalidArgument."""
    known = {**_BUILT_IN, **own}
    if name not in known:
        raise InvalidArgument(
            f"There is no profile {name!r}.", hint=f"Use one of {', '.join(sorted(known))}.", param="profile"
        )
    return known[name]


def bounded(request: GenerationRequest, profile: Profile) -> GenerationRequest:
    """Return `request` within the bounds of `profile`."""
    if profile.max_pixels is not None:
        asked = request.pixel_bounds
        most = min(asked.most or profile.max_pixels, profile.max_pixels)
        request = replace(request, pixel_bounds=PixelBounds(asked.least, most))
    if profile.max_tokens is None:
        return request
    return replace(request, max_tokens=min(request.max_tokens or profile.max_tokens, profile.max_tokens))
