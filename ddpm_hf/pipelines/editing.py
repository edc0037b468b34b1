"""What a trained model does to images: encode, reconstruct, interpolate, vary and inpaint them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ddpm_hf.pipelines.denoising import DenoisingPipeline, Generators, Labels, Request, make_generators
from ddpm_hf.pipelines.images import Images, OutputImages, to_input, to_output
from ddpm_hf.pipelines.samplers import DDIMScheduler, make_sampler, timesteps_down
from ddpm_hf.schedulers import DDPMScheduler

MIN_SIGNAL = 0.02
"""Least share sqrt(alpha_bar_t) of the image in the x_t at which encoding stops by default.

x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t) divides the network's error by this number, without any
clipping, so where nothing of the image is left nothing can be decoded. docs/samplers.md has the measurement.
"""

INVERSION_ROUNDS = 3
"""Network evaluations for a step of DDIM's inverse: the equation for x_t is implicit and solved by fixed point."""

REPAINT_STEPS, REPAINT_JUMP, REPAINT_ROUNDS = 250, 10, 10
"""RePaint's own (Lugmayr et al., section 5)."""


class Editing(DenoisingPipeline):
    """Operations on images: what a trained model makes of them."""

    @torch.no_grad()
    def encode(
        self,
        images: Images,
        num_inference_steps: int | None = None,
        timestep: int | None = None,
        class_labels: Labels = None,
    ) -> torch.Tensor:
        """Find the x_t from which DDIM makes these images: its inverse (Song et al., section 4.3).

        Args:
            images: PIL, or arrays or tensors in [0, 1]; of the model's mode and size.
            num_inference_steps: in [1, timestep + 1]; None is all of them.
            timestep: t, in [0, T); None is the last one with `MIN_SIGNAL` of the image in x_t.
            class_labels: as in `DDPMPipeline.__call__`.

        Returns:
            x_t, (batch, channels, height, width); `decode` with the same arguments makes the images of it.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        x_0 = self._input(images)
        request = self._check(len(x_0), class_labels=class_labels)
        return self._encode(x_0, self._ddim(timestep, num_inference_steps), request)

    @torch.no_grad()
    def decode(
        self,
        latents: torch.Tensor,
        num_inference_steps: int | None = None,
        timestep: int | None = None,
        class_labels: Labels = None,
        output_type: str | None = "pil",
    ) -> OutputImages:
        """Make images of x_t by DDIM, without clipping x_0, so that `encode` is its inverse.

        Args:
            latents: x_t, as `encode` returns it, or noise.
            num_inference_steps: in [1, timestep + 1]; None is all of them.
            timestep: t, in [0, T); None is the last one with `MIN_SIGNAL` of the image in x_t.
            class_labels, output_type: as in `DDPMPipeline.__call__`.

        Returns:
            The images, of this output type.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        if tuple(latents.shape[1:]) != self.image_shape or not len(latents):
            raise ValueError(f"latents have shape {tuple(latents.shape)}; the model's are (batch, *{self.image_shape})")
        request = self._check(len(latents), output_type, class_labels=class_labels)
        x_t = latents.to(self._execution_device, torch.float32)
        x_0, _ = self._denoise(x_t, self._ddim(timestep, num_inference_steps), request)
        return to_output(x_0, output_type)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Images,
        timestep: int,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        output_type: str | None = "pil",
        *,
        seeds: Sequence[int] | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
    ) -> OutputImages:
        """Noise images to x_t and denoise them again by ancestral sampling, from that same t (DDPM, section 4.4).

        Args:
            images: PIL, or arrays or tensors in [0, 1]; of the model's mode and size.
            timestep: t, in [0, T).
            num_inference_steps: in [1, timestep + 1]; None is all of them.
            generator, output_type, seeds, class_labels, guidance_scale: as in `DDPMPipeline.__call__`.

        Returns:
            The images, of this output type.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        x_0 = self._input(images)
        request = self._check(len(x_0), output_type, generator, seeds, class_labels, guidance_scale)
        return to_output(self._reconstruct(x_0, timestep, num_inference_steps, request), output_type)

    @torch.no_grad()
    def img2img(
        self,
        images: Images,
        strength: float = 0.5,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        output_type: str | None = "pil",
        *,
        seeds: Sequence[int] | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
    ) -> OutputImages:
        """Vary images, or make real ones of sketches (SDEdit, Meng et al., algorithm 1).

        Args:
            images: PIL, or arrays or tensors in [0, 1]; of the model's mode and size.
            strength: share of the T steps that is done again, in (0, 1]; at 1 nothing of the images is left.
            num_inference_steps: in [1, strength * T]; None is all of them.
            generator, output_type, seeds, class_labels, guidance_scale: as in `DDPMPipeline.__call__`.

        Returns:
            The images, of this output type.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength is {strength}; possible is more than 0, up to 1")
        timestep = max(round(strength * self.scheduler.config.num_train_timesteps), 1) - 1
        x_0 = self._input(images)
        request = self._check(len(x_0), output_type, generator, seeds, class_labels, guidance_scale)
        return to_output(self._reconstruct(x_0, timestep, num_inference_steps, request), output_type)

    @torch.no_grad()
    def interpolate(
        self,
        a: Images | int,
        b: Images | int,
        num_steps: int = 8,
        timestep: int | None = None,
        method: str = "ddim",
        *,
        seed: int = 0,
        num_inference_steps: int | None = None,
        class_labels: Labels = None,
        output_type: str | None = "pil",
    ) -> OutputImages:
        """Lead from one image to another over images that the model finds likely.

        "ddpm" mixes the two x_t linearly and denoises the mixture by ancestral sampling (DDPM, section 4.4). Both x_t,
        and all reverse steps, have the noise of one seed, so that a mixture has the variance that eq. 4 gives x_t.
        "ddim" mixes the two encoded x_t spherically and decodes the mixture (Song et al., section 5.3).

        Args:
            a: where lambda is 0: one image, or (with "ddim") a seed.
            b: where lambda is 1: the same kind.
            num_steps: number of images, a's and b's reconstructions among them; at least 2.
            timestep: t, in [0, T): the higher, the further from a and b; None is T // 2 for "ddpm", and for "ddim" the
                last one with `MIN_SIGNAL` of the image in x_t, so that lambda 0 and 1 are a and b.
            method: "ddpm" or "ddim".
            seed: of the noise of "ddpm".
            num_inference_steps: in [1, timestep + 1]; None is all of them.
            class_labels, output_type: as in `DDPMPipeline.__call__`.

        Returns:
            The images, of this output type.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        if num_steps < 2:
            raise ValueError(f"num_steps is {num_steps}; possible is 2 or more, for the two ends")
        if method not in ("ddpm", "ddim"):
            raise ValueError(f"method is {method!r}; possible are 'ddpm' and 'ddim'")
        seeds = [end for end in (a, b) if isinstance(end, int)]
        if len(seeds) == 1 or (seeds and (method == "ddpm" or timestep is not None)):
            raise ValueError("give two images, or two seeds with method 'ddim' and no timestep")
        request = self._check(num_steps, output_type, seeds=[seed] * num_steps, class_labels=class_labels)
        weights = torch.linspace(0, 1, num_steps, device=self._execution_device).reshape(-1, 1, 1, 1)
        if method == "ddpm":
            t = self.scheduler.config.num_train_timesteps // 2 if timestep is None else timestep
            mixed = (1 - weights) * self._one(a) + weights * self._one(b)
            return to_output(self._reconstruct(mixed, t, num_inference_steps, request), output_type)
        ddim = self._ddim(timestep, num_inference_steps)
        if seeds:
            ends = self._noise(replace(request, num_images=2, generator=make_generators(seeds)))
        else:
            labels = None if request.labels is None else request.labels[[0, -1]]
            ends = self._encode(torch.cat([self._one(a), self._one(b)]), ddim, replace(request, labels=labels))
        x_0, _ = self._denoise(slerp(ends[:1], ends[1:], weights), ddim, request)
        return to_output(x_0, output_type)

    @torch.no_grad()
    def inpaint(
        self,
        images: Images,
        mask: Images,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        output_type: str | None = "pil",
        *,
        seeds: Sequence[int] | None = None,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
    ) -> OutputImages:
        """Repaint a part of images so that it fits the rest (RePaint, Lugmayr et al., algorithm 1).

        Args:
            images: PIL, or arrays or tensors in [0, 1]; of the model's mode and size.
            mask: white (1) where to paint, black (0) where to keep; one for all images or one for each, of one channel.
            num_inference_steps: in [1, T], each of which is done ten times; None is 250, or T if that is less.
            generator, output_type, seeds, class_labels, guidance_scale: as in `DDPMPipeline.__call__`.

        Returns:
            The images, unchanged where they were to be kept.

        Raises:
            ValueError: an argument is not possible for this model.
        """
        x_0 = self._input(images)
        request = self._check(len(x_0), output_type, generator, seeds, class_labels, guidance_scale)
        paint = (to_input(mask, 1, self.image_shape[1:], "the mask") > 0).to(x_0.device)
        if len(paint) not in (1, len(x_0)):
            raise ValueError(f"{len(paint)} masks for {len(x_0)} images; give one for all or one for each")
        T = self.scheduler.config.num_train_timesteps
        num_steps = min(REPAINT_STEPS, T) if num_inference_steps is None else num_inference_steps
        ancestral = self._ancestral(T - 1, num_steps)
        process, timesteps = ancestral.process, [*ancestral.timesteps.tolist(), -1]  # -1 is the clean image

        x_t = self._noise(request)
        with self.sampling():
            for index, is_down in self.progress_bar(list(repaint_moves(num_steps))):
                t, s = timesteps[index : index + 2]
                if is_down:
                    output = self._predict(x_t, torch.tensor(t), ancestral, request)
                    painted, _ = ancestral.step(output, t, x_t, generator=request.generator, return_dict=False)
                    eps = self._noise(request)
                    known = x_0 if s < 0 else process.q_sample(x_0, eps, torch.tensor([s]))
                    x_t = torch.where(paint, painted, known)  # eq. 8
                else:
                    x_t = process.q_step(x_t, self._noise(request), s, t)
        return to_output(x_t, output_type)

    def _encode(self, x_0: torch.Tensor, ddim: DDIMScheduler, request: Request) -> torch.Tensor:
        x_t = x_0
        with self.sampling():
            for t in self.progress_bar(ddim.timesteps.flip(0)):
                x_s = x_t
                for _ in range(INVERSION_ROUNDS):
                    x_t = ddim.inverse_step(self._predict(x_t, t, ddim, request), t, x_s, guess=x_t)
        return x_t

    def _reconstruct(self, x_0: torch.Tensor, timestep: int, num_steps: int | None, request: Request) -> torch.Tensor:
        ancestral = self._ancestral(timestep, num_steps)
        x_t = ancestral.add_noise(x_0, self._noise(request), torch.tensor([timestep], device=x_0.device))
        return self._denoise(x_t, ancestral, request)[0]

    def _one(self, image: Images | int) -> torch.Tensor:
        assert not isinstance(image, int)  # `interpolate` has made sure
        x_0 = self._input(image)
        if len(x_0) != 1:
            raise ValueError(f"interpolation is between two images; {len(x_0)} were given for one of them")
        return x_0

    def _ddim(self, timestep: int | None, num_steps: int | None) -> DDIMScheduler:
        start, num_steps = self._check_start(timestep, num_steps)
        ddim = make_sampler("ddim", self.scheduler)
        ddim.register_to_config(clip_sample=False, thresholding=False)
        ddim.set_timesteps(timesteps=timesteps_down(start, num_steps))
        return ddim

    def _ancestral(self, timestep: int, num_steps: int | None) -> DDPMScheduler:
        start, num_steps = self._check_start(timestep, num_steps)
        ancestral = make_sampler("ddpm", self.scheduler)
        # Down to 0, not beyond: diffusers' own scheduler adds noise in a last step from above 0.
        steps = np.linspace(start, 0, num_steps).round().astype(int).tolist()
        ancestral.set_timesteps(timesteps=steps)
        return ancestral

    def _check_start(self, timestep: int | None, num_steps: int | None) -> tuple[int, int]:
        T = self.scheduler.config.num_train_timesteps
        start = self.last_with_signal() if timestep is None else timestep
        if not 0 <= start < T:
            raise ValueError(f"timestep is {start}; possible are 0 to {T - 1}")
        num_steps = start + 1 if num_steps is None else num_steps
        if not 1 <= num_steps <= start + 1:
            raise ValueError(f"num_inference_steps is {num_steps}; possible are 1 to {start + 1} from timestep {start}")
        return start, num_steps

    def last_with_signal(self) -> int:
        """The last timestep t with `MIN_SIGNAL` of the image in x_t: where encoding stops by default."""
        return max(int((self.scheduler.alphas_cumprod.double().sqrt() >= MIN_SIGNAL).sum()) - 1, 0)


def slerp(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Interpolate along the arc between two vectors (Shoemake, "Animating Rotation with Quaternion Curves").

    Args:
        a: where the weight is 0; (1, channels, height, width).
        b: where the weight is 1.
        weights: in [0, 1], (steps, 1, 1, 1).

    Returns:
        (steps, channels, height, width); the ends are a and b to the bit.
    """
    cosine = torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine).to(torch.float32)
    if angle < 1e-4 or angle > torch.pi - 1e-4:  # no arc between them, or no single one
        mixed = (1 - weights) * a + weights * b
    else:
        mixed = (torch.sin((1 - weights) * angle) * a + torch.sin(weights * angle) * b) / torch.sin(angle)
    return torch.where(weights == 0, a, torch.where(weights == 1, b, mixed))


def repaint_moves(num_steps: int) -> Iterator[tuple[int, bool]]:
    """RePaint's moves through the timesteps: ten down and ten up again, until each ten were done ten times.

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
