"""From a trained network to images."""

from ddpm_hf.pipelines.ddpm import DDPMPipeline, DDPMPipelineOutput
from ddpm_hf.pipelines.denoising import Intermediate

__all__ = ["DDPMPipeline", "DDPMPipelineOutput", "Intermediate"]
