"""Share models on the Hugging Face Hub: export, model card, upload, and resuming from a repository."""

from ddpm_hf.hub.background import HubUploader
from ddpm_hf.hub.share import push_command, push_run

__all__ = ["HubUploader", "push_command", "push_run"]
