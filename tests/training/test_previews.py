"""Pictures of samples during training."""

import numpy as np
from PIL import Image

from ddpm_hf.training.trainer import Trainer


def test_a_preview_is_drawn_in_chunks_with_too_little_memory(tiny, tmp_path, limited_memory, caplog):
    Trainer(tiny(f"output_dir={tmp_path / 'ample'}")).train()
    limited_memory(training=8, sampling=1)
    Trainer(tiny()).train()
    assert "Out of memory while sampling 4 images at a time: using chunks of 1 from now on" in caplog.text
    for picture in ("samples.png", "previews/step-4.png"):
        ours, theirs = (np.asarray(Image.open(tmp_path / run / picture), dtype=int) for run in ("run", "ample"))
        assert abs(ours - theirs).max() <= 1
