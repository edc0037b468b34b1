import pickle
import re

import pytest
import torch
import transformers
from torch.testing import assert_close

from ddpm_hf.config import BenchmarkConfig
from ddpm_hf.evaluation.extractors import load_extractor
from ddpm_hf.evaluation.extractors.base import to_network_size
from ddpm_hf.evaluation.extractors.digits_classifier import DigitsClassifier, load_digits_classifier
from ddpm_hf.evaluation.extractors.pretrained import Inception, _install, find_weights, load_inception
from ddpm_hf.evaluation.metrics import metric_name
from ddpm_hf.pipelines.images import to_uint8
from ddpm_hf.runtime.errors import UserError

IMAGES = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_same_images_in_any_range_have_the_same_features():
    extractor = load_digits_classifier()
    features = [
        extractor(to_uint8(images, value_range)).values
        for images, value_range in (
            (IMAGES, None),
            (IMAGES.float() / 255, (0, 1)),
            (IMAGES.double() / 127.5 - 1, (-1, 1)),
        )
    ]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


def test_gray_images_of_any_size_fit_a_network_for_colours():
    pixels = to_network_size(IMAGES, (32, 32), 3, "bicubic")
    assert pixels.shape == (4, 3, 32, 32)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_the_digits_classifier_knows_digits_and_says_what_it_is():
    classifier = load_digits_classifier()
    assert classifier.accuracy > 0.95
    assert "held-out" in classifier.description
    assert classifier(IMAGES).values.shape == (4, 64)
    assert classifier(IMAGES).logits.shape == (4, 10)
    assert "FID" not in metric_name("frechet_distance", classifier)


def test_the_digits_classifier_is_trained_once(_cache, caplog):
    before = load_digits_classifier()
    assert load_digits_classifier().fingerprint == before.fingerprint
    file = next(_cache.glob("digits-classifier-*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with caplog.at_level("WARNING"):
        assert load_digits_classifier().fingerprint == before.fingerprint, "and the same when it is trained again"
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole


def test_other_weights_or_resizing_have_another_fingerprint():
    one, other = DigitsClassifier(), DigitsClassifier()
    assert one.fingerprint != other.fingerprint
    other.load_state_dict(one.state_dict())
    assert one.fingerprint == other.fingerprint
    other.resize = "nearest"
    assert one.fingerprint != other.fingerprint


def save_tiny(kind: str, folder) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "dinov2":
        model = transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
            )
        )
    elif kind == "vit without pooler":
        model = transformers.ViTModel(
            transformers.ViTConfig(**small, image_size=32, patch_size=16), add_pooling_layer=False
        )
    elif kind == "resnet":
        model = transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        )
    else:
        text = transformers.CLIPTextConfig(**small, vocab_size=20, projection_dim=16)
        vision = transformers.CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=16)
        config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
        model = transformers.CLIPModel(config)
    model.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["dinov2", "vit without pooler", "resnet", "clip"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_vision_model_of_transformers_extracts_features(kind, channels, tmp_path):
    torch.manual_seed(0)
    save_tiny(kind, tmp_path / "tiny-model")
    extractor = load_extractor(BenchmarkConfig(features=str(tmp_path / "tiny-model")))
    images = torch.randint(0, 256, (3, channels, 8, 8), dtype=torch.uint8)
    features = extractor(images)
    assert features.values.shape == (3, 16)
    assert extractor.num_features == 16
    assert extractor.label == "tiny-model"
    assert features.values.isfinite().all()
    assert features.values.std(0).max() > 0, "it looks at the images"
    assert torch.equal(extractor(images).values, features.values), "nothing random is left in it"


def test_a_model_without_all_its_weights_is_refused(tmp_path):
    save_tiny("dinov2", tmp_path)
    weights = tmp_path / "model.safetensors"
    from safetensors.torch import load_file, save_file

    some = {name: tensor for name, tensor in load_file(weights).items() if "attention" not in name}
    save_file(some, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"benchmark\.features: .*attention"):
        load_extractor(BenchmarkConfig(features=str(tmp_path)))


def test_a_model_of_text_is_refused(tmp_path):
    transformers.BertModel(
        transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"benchmark\.features: .*bert"):
        load_extractor(BenchmarkConfig(features=str(tmp_path)))


@pytest.mark.parametrize("name", ["no/such-model", "inceptoin", "missing.py:network"])
def test_an_unknown_extractor_is_refused_with_what_is_possible(name):
    with pytest.raises(UserError, match=rf"benchmark\.features: given '{name}'"):
        load_extractor(BenchmarkConfig(features=name))


MODULE = """
import torch
class Mean(torch.nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3))
network = Mean()
def broken():
    raise RuntimeError("out of luck")
number = 3
class One(torch.nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3))[:1]
"""


def test_a_module_of_ones_own_extracts_features(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    for name in ("network", "Mean"):
        extractor = load_extractor(BenchmarkConfig(features=f"{tmp_path}/mine.py:{name}"))
        extractor.probe((3, 8, 8))
        assert extractor.num_features == 3
        assert_close(extractor(IMAGES.expand(-1, 3, -1, -1)).values[:, 0], IMAGES.float().mean((1, 2, 3)))


def test_a_module_with_other_code_has_another_fingerprint(tmp_path):
    def fingerprint(code: str) -> str:
        (tmp_path / "mine.py").write_text(code)
        return load_extractor(BenchmarkConfig(features=f"{tmp_path}/mine.py:network")).fingerprint

    assert fingerprint(MODULE) == fingerprint(MODULE)
    assert fingerprint(MODULE) != fingerprint(MODULE.replace("mean", "amax")), "though neither has weights"


def test_a_module_that_mixes_up_a_batch_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    with pytest.raises(UserError, match=r"benchmark\.features: .*One .*\(1, 3\)"):
        load_extractor(BenchmarkConfig(features=f"{tmp_path}/mine.py:One")).probe((3, 8, 8))


def test_other_weights_of_inception_give_no_fid():
    own, other = (Inception(torch.nn.Identity(), "tensorflow", file) for file in (None, "mine.pth"))
    assert metric_name("frechet_distance", own) == "FID"
    assert metric_name("frechet_distance", other) == "FD (Inception, weights of mine.pth)"


@pytest.mark.parametrize("name", ["broken", "number", "none"])
def test_a_module_that_cannot_be_used_is_refused(name, tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    with pytest.raises(UserError, match=rf"benchmark\.features: .*mine\.py:{name} "):
        load_extractor(BenchmarkConfig(features=f"{tmp_path}/mine.py:{name}"))


def test_missing_packages_of_inception_are_named_with_the_command_that_installs_them(monkeypatch, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torch_fidelity", "torchvision") else find(name)
    )
    with pytest.raises(UserError, match="pip install torch-fidelity torchvision") as caught:
        load_inception(str(tmp_path / "weights.pth"), "tensorflow")
    assert "curl -L" in str(caught.value), "and what else is missing, at once"


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ("2.13.0", "pip install torchvision torch==2.13.0"),
        (
            "2.13.0+cpu",
            "pip install torchvision torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu",
        ),
    ],
)
def test_the_command_leaves_torch_as_it_is(monkeypatch, version, command):
    monkeypatch.setattr(torch, "__version__", version)
    assert _install(["torchvision"]) == command
    assert _install(["torch-fidelity"]) == "pip install torch-fidelity"


def test_weights_that_run_code_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("caught",))

    file = tmp_path / "weights.pth"
    torch.save({"weight": Trap()}, file, pickle_module=pickle)
    with pytest.raises(UserError, match=str(file)):
        find_weights(str(file))


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_a_file_that_holds_no_weights_is_told_without_the_words_of_torch(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"benchmark\.inception_weights: .*x\.jpg holds no weights") as caught:
        find_weights(str(tmp_path / "x.jpg"))
    assert not re.search(r"weights_only|pickle|torch\.load", str(caught.value))


def test_weights_of_ones_own_need_no_network(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    assert find_weights(str(tmp_path / "weights.pth")) == tmp_path / "weights.pth"
