"""Training-time augmentation of whole batches on any device, with independent random numbers for every image.

Each part has a function that draws random numbers and one that applies them, so that the second can be
compared with a reference. Geometry and policies keep uint8; colour jitter, blur and noise return float in
[0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from harness.config.schema import AugmentConfig
from harness.data.augment.augmix import AugMix
from harness.data.augment.auto_augment import RandAugment, TrivialAugment
from harness.data.augment.blur import add_noise, blur, blur_radius, draw_noise, draw_strengths
from harness.data.augment.colour import adjust_hue, blend, grey_levels
from harness.data.augment.ops import reflect, rotate_and_scale
from harness.data.sharding import Shard
from harness.errors import ConfigError

MID_GREY = 128 / 255  # close to the mean of photographs, which is what cutout's paper fills with
ERASED_AREA = (0.02, 0.33)  # of the image
ERASED_RATIO = (0.3, 3.3)  # height ÷ width
ERASING_TRIES = 10


class BatchAugment:
    """Applies what `AugmentConfig` sets, in the order of `__call__`."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self._policy = _build_policy(config)

    def __call__(
        self,
        images_BCHW: Tensor,
        generator: torch.Generator,
        flips_B: Tensor | None = None,
        shard: Shard | None = None,
    ) -> Tensor:
        """Augment a batch.

        Args:
            images_BCHW: uint8, three channels.
            generator: On the images' device.
            flips_B: True for each image to be mirrored; None to draw.
            shard: The part of a batch that the images are; None: the whole batch. Random numbers are always
                drawn for the whole batch.

        Returns:
            uint8, or float in [0, 1] with colour jitter, blur or noise, in channels_last; the input itself if
            nothing is switched on.
        """
        config, images = self.config, images_BCHW
        shard = shard or Shard.whole(len(images))
        whole = shard.whole_like(images)
        if config.flip or config.crop_padding:
            offsets_B2, drawn_B = self.draw_windows(shard.total, generator)
            flips_B = shard.select(drawn_B) if flips_B is None else flips_B
            images = crop_and_flip(images, shard.select(offsets_B2), flips_B)
        if config.rotation or config.scale:
            degrees, scales = shard.select(draw_turns(shard.total, config, generator), dim=1)
            images = rotate_and_scale(images, degrees, scales)
        if self._policy is not None:
            images = self._policy(images, generator, shard)
        if config.brightness or config.contrast or config.saturation or config.hue:
            factors = shard.select(draw_jitter(whole, config, generator), dim=1)
            images = jitter_colours(tv.to_dtype(images, torch.float32, scale=True), factors)
        if config.blur_sigma:
            sigmas = shard.select(draw_strengths(shard.total, config.blur_sigma, generator))
            images = blur(
                tv.to_dtype(images, torch.float32, scale=True), sigmas, blur_radius(config.blur_sigma)
            )
        if config.noise_std:
            noise = shard.select(draw_noise(whole, config.noise_std, generator))
            images = add_noise(tv.to_dtype(images, torch.float32, scale=True), noise)
        if config.cutout_size:
            images = cut_out(images, shard.select(draw_centres(whole, generator)), config.cutout_size)
        if config.erasing_probability:
            boxes = draw_boxes(whole, config.erasing_probability, generator)
            images = erase(images, boxes, generator, shard)
        if images is images_BCHW:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    def draw_windows(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a whole batch's crops, int64 (B, 2), and which of its images are mirrored, bool (B,)."""
        offsets_B2 = draw_offsets(count, self.config.crop_padding, generator)
        return offsets_B2, draw_flips(count, 0.5 if self.config.flip else 0.0, generator)


def _build_policy(config: AugmentConfig) -> TrivialAugment | RandAugment | AugMix | None:
    match config.policy:
        case "none":
            return None
        case "trivial":
            return TrivialAugment()
        case "rand":
            return RandAugment(config.rand_num_ops, config.rand_magnitude)
        case "augmix":
            return AugMix(config.augmix_severity, config.augmix_width, config.augmix_depth)


# ── crop and flip ─────────────────────────────────────────────────────────────────────────────────


def draw_offsets(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """Draw how far each window is shifted down and right, int64 (B, 2) in [-padding, padding]."""
    return torch.randint(-padding, padding + 1, (count, 2), generator=generator, device=generator.device)


def draw_flips(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Draw which images are mirrored, bool (B,)."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def crop_and_flip(images_BCHW: Tensor, offsets_B2: Tensor, flips_B: Tensor) -> Tensor:
    """Cut a window of the image's own size out of it and its reflected border, then mirror it left to right.

    One gather does both, without ever building the padded images.
    """
    batch, channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    rows = reflect(torch.arange(height, device=device) + offsets_B2[:, :1], height)
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(flips_B[:, None], width - 1 - columns, columns)
    columns = reflect(columns + offsets_B2[:, 1:], width)
    first = torch.arange(batch, device=device)[:, None, None] * (height * width)
    pixels = (first + rows[:, :, None] * width + columns[:, None, :]).reshape(-1)
    flat = images_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)  # a view, where images are channels_last
    return flat.index_select(0, pixels).view(batch, height, width, channels).permute(0, 3, 1, 2)


def check_fits(config: AugmentConfig, height: int, width: int) -> None:
    """Refuse a border that reflection cannot fill.

    Raises:
        ConfigError: If `crop_padding`, or what a blur looks at, is not smaller than the image.
    """
    if config.crop_padding >= min(height, width):
        raise ConfigError(
            f"augment.crop_padding={config.crop_padding} needs images larger than itself, "
            f"these have {height}x{width} pixels; lower it"
        )
    if config.blur_sigma and blur_radius(config.blur_sigma) >= min(height, width):
        raise ConfigError(
            f"augment.blur_sigma={config.blur_sigma:g} reaches {blur_radius(config.blur_sigma)} pixels far, "
            f"beyond images of {height}x{width} pixels; lower it"
        )


# ── rotation and scale ────────────────────────────────────────────────────────────────────────────


def draw_turns(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw an angle in degrees and a factor for each image, float (2, B), uniform in their ranges."""
    uniform = torch.rand(2, count, generator=generator, device=generator.device) * 2 - 1
    spread = torch.tensor([config.rotation, config.scale], device=generator.device)
    return torch.tensor([0.0, 1.0], device=generator.device)[:, None] + uniform * spread[:, None]


# ── colour jitter ─────────────────────────────────────────────────────────────────────────────────


def draw_jitter(images_BCHW: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw brightness, contrast and saturation factors and a hue shift for each image, float (4, B)."""
    spread = (config.brightness, config.contrast, config.saturation, config.hue)
    uniform = torch.rand(4, len(images_BCHW), generator=generator, device=generator.device) * 2 - 1
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0], device=generator.device)
    return centre[:, None] + uniform * torch.tensor(spread, device=generator.device)[:, None]


def jitter_colours(images_BCHW: Tensor, factors_4B: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order (torchvision's is random per batch).

    Args:
        images_BCHW: float in [0, 1].
        factors_4B: Drawn by `draw_jitter`.
    """
    brightness, contrast, saturation, hue = factors_4B[:, :, None, None, None]
    images = blend(images_BCHW, 0.0, brightness)
    images = blend(images, grey_levels(images).mean(dim=(1, 2, 3), keepdim=True), contrast)
    images = blend(images, grey_levels(images), saturation)
    return adjust_hue(images, hue)


# ── cutout and random erasing ─────────────────────────────────────────────────────────────────────


def draw_centres(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a pixel of each image, int64 (B, 2)."""
    batch, _, height, width = images_BCHW.shape
    uniform = torch.rand(batch, 2, generator=generator, device=generator.device)
    return (uniform * torch.tensor([height, width], device=generator.device)).long()


def cut_out(images_BCHW: Tensor, centres_B2: Tensor, size: int) -> Tensor:
    """Cover a square around each image's centre pixel, as far as it lies inside, with mid-grey.

    Source: DeVries and Taylor, arXiv:1708.04552, who fill with the data set's mean, which is close to that.
    """
    top_left = centres_B2 - size // 2
    mask = box_mask(images_BCHW, torch.cat([top_left, top_left + size], dim=1))
    fill = MID_GREY if images_BCHW.is_floating_point() else round(MID_GREY * 255)
    return images_BCHW.masked_fill(mask, fill)


def draw_boxes(images_BCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Draw the rectangle to erase from each image, int64 (B, 4) of top, left, bottom, right; it may be empty.

    Area and (log) aspect ratio are uniform; of ten tries the first that fits counts, as in the paper.
    """
    batch, _, height, width = images_BCHW.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, device=generator.device)

    area = height * width * uniform(*ERASED_AREA, batch, ERASING_TRIES)
    ratio = uniform(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1]), batch, ERASING_TRIES).exp()
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    erased = fits.any(dim=1) & (uniform(0.0, 1.0, batch) < probability)
    tall, wide = (size.gather(1, first).squeeze(1) * erased for size in (tall, wide))
    top = (uniform(0.0, 1.0, batch) * (height - tall + 1)).floor()
    left = (uniform(0.0, 1.0, batch) * (width - wide + 1)).floor()
    return torch.stack([top, left, top + tall, left + wide], dim=1).long()


def erase(
    images_BCHW: Tensor, boxes_B4: Tensor, generator: torch.Generator, shard: Shard | None = None
) -> Tensor:
    """Fill each image's box with uniform noise of its own.

    Args:
        boxes_B4: the boxes of the whole batch; the images are its part `shard`.

    Source: Zhong et al., arXiv:1708.04896 (the RE-R variant).
    """
    shard = shard or Shard.whole(len(images_BCHW))
    chosen = (boxes_B4[:, 2] > boxes_B4[:, 0]).nonzero().squeeze(1)
    noise = torch.rand(len(chosen), *images_BCHW.shape[1:], generator=generator, device=generator.device)
    is_here = (chosen >= shard.start) & (chosen < shard.stop)
    boxes_B4, chosen, noise = boxes_B4[chosen[is_here]], chosen[is_here] - shard.start, noise[is_here]
    members = images_BCHW[chosen]
    if not images_BCHW.is_floating_point():
        noise = (noise * 256).to(images_BCHW.dtype)
    result = images_BCHW.clone(memory_format=torch.preserve_format)
    result[chosen] = torch.where(box_mask(members, boxes_B4), noise, members)
    return result


def box_mask(images_BCHW: Tensor, boxes_B4: Tensor) -> Tensor:
    """Return where each image's box lies, bool (B, 1, H, W)."""
    height, width = images_BCHW.shape[-2:]
    top, left, bottom, right = boxes_B4.unbind(dim=1)
    rows = torch.arange(height, device=boxes_B4.device)
    columns = torch.arange(width, device=boxes_B4.device)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
