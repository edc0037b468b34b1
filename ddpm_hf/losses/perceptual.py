"""How different the predicted image looks from the real one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int
from torch import Tensor, nn

from ddpm_hf.config.loss import PerceptualConfig
from ddpm_hf.losses.backbones import load_distance
from ddpm_hf.runtime.errors import UserError

Images = Float32[Tensor, "batch channels height width"]
SMALLEST_SIDE = 64  # pixels, below which deep stages have no room left


class PerceptualLoss(nn.Module):
    """Distance of predicted from real images in the features of a frozen backbone (Johnson et al. 2016; LPIPS).

    The backbone follows the module to its device, but is none of its parts: it is never trained, saved or counted.
    Everything that can be missing or not fit is found here, at construction.

    Args:
        config: the backbone, its stages and the size of images for it.
        image_channels: of the images in training, 1 or 3.
        image_size: their side, in pixels.

    Raises:
        UserError: if the backbone cannot be loaded or does not take these images.
    """

    def __init__(self, config: PerceptualConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        if config.backbone is None:
            raise UserError("a perceptual loss needs a backbone")
        self.side = config.image_size or max(image_size, SMALLEST_SIDE)
        distance = load_distance(config.backbone, config.stages)
        if image_channels not in (1, distance.num_channels):
            raise UserError(
                f"{config.backbone} takes images of {distance.num_channels} channels; given {image_channels}; allowed: "
                f"1 or {distance.num_channels}"
            )
        self.num_channels = distance.num_channels
        self._hidden = (distance,)  # in a tuple, so that Module does not see it
        self._try_out(config.backbone, image_channels, image_size)

    def forward(
        self, predicted_x_0: Images, x_0: Images, timesteps: Int[Tensor, " batch"]
    ) -> Float32[Tensor, " batch"]:
        """The distance of each image; `timesteps` does not matter.

        Args:
            predicted_x_0: images that the network stands for, around [-1, 1].
            x_0: the real ones.
            timesteps: of each image.
        """
        with torch.autocast(x_0.device.type, enabled=False):
            return self._hidden[0](self._prepare(predicted_x_0), self._prepare(x_0))

    def _prepare(self, images: Images) -> Float32[Tensor, "batch backbone_channels side side"]:
        images = images.expand(-1, self.num_channels, -1, -1)  # grayscale: three equal channels
        if images.shape[-2:] == (self.side, self.side):
            return images
        return F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=self.side < images.shape[-1])

    def _try_out(self, backbone: str, channels: int, size: int) -> None:
        try:
            with torch.no_grad():
                images = torch.zeros(1, channels, size, size)
                self(images, images, torch.zeros(1, dtype=torch.int64))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{backbone} does not take images of {self.side} pixels ({error}); set image_size to a side it takes"
            ) from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PerceptualLoss":
        self._hidden[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)
