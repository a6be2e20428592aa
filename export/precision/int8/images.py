"""Images as a network takes them. The preprocessing is stated, never guessed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convbn.errors import FileAccessError, NotSupportedError, UsageError
from convbn.export.files.atomic import reason
from convbn.export.precision.errors import CalibrationError

__all__ = ["IMAGE_SUFFIXES", "Preprocess", "load_image", "parse_preprocess"]

IMAGE_SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
_COLOURS: Final = {"rgb": 3, "bgr": 3, "grey": 1}
_HINT: Final = (
    "write imagenet, or resize=256,size=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225,layout=nchw"
)


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image: ``(x / 255 · scale − mean) / std`` after resizing and cropping.

    Attributes:
        size: height and width that the network takes; None for those of the model's input.
        resize: length of the shorter side before the centre is cut out; None resizes to `size` at once.
        mean: a value a channel, or one for all.
        std: likewise.
        scale: 1 for values from 0 to 1, 255 for values from 0 to 255.
        layout: ``nchw`` or ``nhwc``.
        colour: ``rgb``, ``bgr`` or ``grey``.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    layout: str = "nchw"
    colour: str = "rgb"

    def __post_init__(self) -> None:
        if self.layout not in ("nchw", "nhwc"):
            raise UsageError(f"there is no layout {self.layout!r}", hint="choose nchw or nhwc")
        if self.colour not in _COLOURS:
            raise UsageError(f"there is no colour {self.colour!r}", hint=f"choose {' or '.join(_COLOURS)}")
        channels = _COLOURS[self.colour]
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise UsageError(f"mean and std need 1 or {channels} values for {self.colour} images")
        if min(self.std) <= 0 or self.scale <= 0 or min(*(self.size or (1, 1)), self.resize or 1) < 1:
            raise UsageError("std, scale, size and resize must be positive")

    def settled(self, shape: tuple[int | None, ...]) -> Preprocess:
        """With the size that an input of rank 4 has.

        Raises:
            UsageError: the input has another size or number of channels, or none and none was given.
        """
        channels, *sides = shape[1:] if self.layout == "nchw" else (shape[3], *shape[1:3])
        if channels not in (None, _COLOURS[self.colour]):
            raise UsageError(
                f"{self.colour} images have {_COLOURS[self.colour]} channels in layout {self.layout}, and the "
                f"model's input has {channels}"
            )
        size = self.size or (None, None)
        merged = tuple(s if own is None else own for own, s in zip(sides, size, strict=True))
        if None in merged:
            raise UsageError(
                "the model leaves the size of images open", hint="add size=HEIGHTxWIDTH to --preprocess"
            )
        if self.size is not None and merged != self.size:
            raise UsageError(
                f"size {self.size[0]}x{self.size[1]} is not the model's, {merged[0]}x{merged[1]}"
            )
        height, width = (int(side) for side in merged if side is not None)
        if self.resize is not None and self.resize < max(height, width):
            raise UsageError(f"resize={self.resize} is smaller than what is cut out of it, {height}x{width}")
        return replace(self, size=(height, width))


_PRESETS: Final = {
    "imagenet": Preprocess(
        resize=256, size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}


def parse_preprocess(text: str) -> Preprocess:
    """Parse ``imagenet`` or ``key=value`` pairs separated by commas; the keys are those of the class.

    Raises:
        UsageError: the text is nothing of the kind.
    """
    if text in _PRESETS:
        return _PRESETS[text]
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or key in values or key not in Preprocess.__dataclass_fields__:
            raise UsageError(f"--preprocess {text!r} is not understood at {part.strip()!r}", hint=_HINT)
        try:
            values[key] = _value(key, value)
        except ValueError as error:
            raise UsageError(f"--preprocess {key}={value!r} is no value of that kind", hint=_HINT) from error
    return Preprocess(**values)


def _value(key: str, text: str) -> Any:
    if key == "size":
        sides = [int(side) for side in text.lower().split("x")]
        if len(sides) > 2:
            raise ValueError(text)
        return (sides[0], sides[-1])
    if key == "resize":
        return int(text)
    if key in ("mean", "std"):
        return tuple(float(value) for value in text.split("/"))
    return float(text) if key == "scale" else text.lower()


def load_image(path: Path, step: Preprocess) -> npt.NDArray[np.float32]:
    """One image without a batch axis.

    Args:
        path: of the file.
        step: with its size settled.

    Raises:
        NotSupportedError: pillow is not installed.
        FileAccessError: the file cannot be read.
        CalibrationError: it is no image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise NotSupportedError(
            "images need pillow", source=path, hint="pip install 'convbn[images]'"
        ) from error
    if step.size is None:
        raise ValueError("the size is not settled")
    height, width = step.size
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if step.colour == "grey" else "RGB")
    except UnidentifiedImageError as error:
        raise CalibrationError("is not an image", source=path) from error
    except Image.DecompressionBombError as error:
        raise CalibrationError("is too large for an image", source=path) from error
    except OSError as error:
        if error.errno is None:  # pillow's own, for a damaged file
            raise CalibrationError(f"is a damaged image: {error}", source=path) from error
        raise FileAccessError(f"cannot be read: {reason(error)}", source=path) from error
    if step.resize is None:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    else:
        ratio = step.resize / min(image.size)
        scaled = [max(step.resize, round(side * ratio)) for side in image.size]
        image = image.resize((scaled[0], scaled[1]), Image.Resampling.BILINEAR)
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels: npt.NDArray[Any] = np.asarray(image, np.float32).reshape(height, width, -1)
    pixels = pixels * np.float32(step.scale / 255)
    if step.colour == "bgr":
        pixels = pixels[:, :, ::-1]
    pixels = (pixels - np.array(step.mean, np.float32)) / np.array(step.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if step.layout == "nchw" else pixels)
