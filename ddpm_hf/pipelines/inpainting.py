"""RePaint: a trained model paints parts of images anew."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ddpm_hf.pipelines.images import Images, check_output_type, to_input, to_output

REPAINT_STEPS, REPAINT_JUMP, REPAINT_ROUNDS = 250, 10, 10
"""RePaint's own (Lugmayr et al., section 5)."""


class Inpainting:
    """Inpainting for a pipeline that is also `Editing`."""

    @torch.no_grad()
    def inpaint(
        self: Any,
        images: Images,
        mask: Images,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str | None = "pil",
        *,
        seeds: Sequence[int] | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> Any:
        """Paint a part of images anew, to fit the rest (RePaint, Lugmayr et al., algorithm 1).

        Args:
            images: PIL, or arrays or tensors in [0, 1]; of the model's mode and size.
            mask: white (1) where to paint, black (0) where to keep; one for all images or one for each, of one channel.
            generator: one for all images, or a list of one for each.
            num_inference_steps: in [1, T], each of which is done ten times; None is 250, or T if that is less.
            output_type: "pil", or in [0, 1] "np" with channels last or "pt" with channels first.
            seeds: one for each image, instead of generators.
            class_labels: one for all images or one for each; for a class-conditional network.
            guidance_scale: of classifier-free guidance; 1 is none.

        Returns:
            The images, unchanged where they were to be kept.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        check_output_type(output_type, self._image_shape[0])
        x_0 = self._input(images)
        paint = (to_input(mask, 1, self._image_shape[1:], "the mask") > 0).to(x_0.device)
        if len(paint) not in (1, len(x_0)):
            raise ValueError(f"{len(paint)} masks for {len(x_0)} images; give one for all or one for each")
        _, generator = self._check_batch(len(x_0), generator, seeds, class_labels)
        labels = self._check_labels(class_labels, len(x_0), guidance_scale)
        T = self.scheduler.config.num_train_timesteps
        num_steps = min(REPAINT_STEPS, T) if num_inference_steps is None else num_inference_steps
        ancestral = self._ancestral(T - 1, num_steps)
        alpha_bar = [*ancestral.alphas_cumprod.double()[ancestral.timesteps].tolist(), 1.0]

        x_t = self._noise(len(x_0), generator)
        with self.sampling():
            for index, is_down in self.progress_bar(list(repaint_moves(num_steps))):
                if is_down:
                    t = ancestral.timesteps[index]
                    output = self._predict(x_t, t, labels, guidance_scale, ancestral)
                    painted = ancestral.step(output, t, x_t, generator=generator).prev_sample
                    signal = alpha_bar[index + 1]
                    known = signal**0.5 * x_0 + (1 - signal) ** 0.5 * self._noise(len(x_0), generator)
                    x_t = torch.where(paint, painted, known)  # eq. 8
                else:
                    alpha = alpha_bar[index] / alpha_bar[index + 1]
                    x_t = alpha**0.5 * x_t + (1 - alpha) ** 0.5 * self._noise(len(x_0), generator)
        return to_output(x_t, output_type)


def repaint_moves(num_steps: int) -> Iterator[tuple[int, bool]]:
    """RePaint's way through the timesteps: ten down, ten up again, until each ten were done ten times.

    Args:
        num_steps: number of timesteps, of which index 0 is the noisiest.

    Yields:
        The index of the noisier end of a move, and whether it goes down (to index + 1) or up (from there).
    """
    start = 0
    while start < num_steps - 1:
        end = min(start + REPAINT_JUMP, num_steps - 1)
        for lap in range(REPAINT_ROUNDS):
            yield from ((index, True) for index in range(start, end))
            if lap < REPAINT_ROUNDS - 1:
                yield from ((index, False) for index in reversed(range(start, end)))
        start = end
    yield num_steps - 1, True
