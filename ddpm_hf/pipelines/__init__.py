"""From a trained network to images."""

from ddpm_hf.pipelines.ddpm import DDPMPipeline, DDPMPipelineOutput, Intermediate

__all__ = ["DDPMPipeline", "DDPMPipelineOutput", "Intermediate"]
