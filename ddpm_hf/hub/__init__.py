"""Share models on the Hugging Face Hub: export, model card, upload, download, and resume from a repository."""

from ddpm_hf.hub.background import HubUploader
from ddpm_hf.hub.client import HubClient, HubUnreachableError, Patience
from ddpm_hf.hub.dataset import pin_dataset
from ddpm_hf.hub.download import fetch_checkpoint, fetch_pipeline
from ddpm_hf.hub.environment import record_environment
from ddpm_hf.hub.portable import portable, portable_config
from ddpm_hf.hub.share import push_command, push_newest_checkpoint, push_run

__all__ = [
    "HubClient",
    "HubUnreachableError",
    "HubUploader",
    "Patience",
    "fetch_checkpoint",
    "fetch_pipeline",
    "pin_dataset",
    "portable",
    "portable_config",
    "push_command",
    "push_newest_checkpoint",
    "push_run",
    "record_environment",
]
