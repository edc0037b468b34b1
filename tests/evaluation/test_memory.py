import logging

import pytest
import torch

from ddpm_hf.evaluation.evaluate import evaluate


def test_an_evaluation_out_of_memory_goes_on_with_the_same_figures(make_pipeline, make_config, tmp_path, caplog):
    whole = evaluate("model", make_config(), output=tmp_path / "whole", pipeline=make_pipeline(), pictures=False)
    pipeline = make_pipeline()

    def limited(network, arguments):
        if len(arguments[0]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    pipeline.unet.register_forward_pre_hook(limited)
    with caplog.at_level(logging.WARNING):
        found = evaluate("model", make_config(), output=tmp_path / "parts", pipeline=pipeline, pictures=False)
    assert [record.args for record in caplog.records] == [
        ("sampling", 16, 4),
        ("reconstructing", 6, 3),
        ("measuring the likelihood of", 6, 3),
    ]
    for name, figure in whole.metrics.items():
        assert found.metrics[name].value == pytest.approx(figure.value, rel=1e-3), name
    files = [sorted((tmp_path / name / "samples/seed-0").glob("*.png")) for name in ("whole", "parts")]
    assert len(files[0]) == len(files[1]) == 70
    assert sum(a.read_bytes() != b.read_bytes() for a, b in zip(*files, strict=True)) <= 1, "but for rounding"
