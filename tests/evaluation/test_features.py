import urllib.error

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
)

from diffusers_dp_curriculum import HubError, InputError
from diffusers_dp_curriculum.evaluation import features
from diffusers_dp_curriculum.evaluation.features import extract_features, load_feature_extractor
from helpers.vision_models import PATCHES, TINY, save_vision_model, tiny_dinov2


GREY = torch.randint(0, 256, (70, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_features_are_those_of_the_model_on_normalised_colour_images(tmp_path):
    """Images of 16x16 are not resized here, so that the preprocessing is a formula."""
    model = tiny_dinov2()
    found = extract_features(load_feature_extractor(save_vision_model(model, tmp_path)), GREY)
    with torch.no_grad():
        expected = model((GREY.float() / 255 - 0.5).expand(-1, 3, -1, -1) / 0.25).pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_images_of_another_size_are_resized_as_the_model_asks(tmp_path):
    extractor = load_feature_extractor(save_vision_model(tiny_dinov2(), tmp_path, size={"shortest_edge": 16}))
    found = extract_features(extractor, GREY.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert found.shape == (70, 16)
    near = extract_features(extractor, GREY)
    assert torch.nn.functional.cosine_similarity(found, near).mean() > 0.9


@pytest.mark.parametrize(
    ("model", "width"),
    [
        (lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])), 12),
        (lambda: CLIPModel(CLIPConfig(text_config={"vocab_size": 9, **TINY}, vision_config={**TINY, **PATCHES})), 16),
    ],
    ids=["resnet", "clip"],
)
def test_other_families_of_models(model, width, tmp_path):
    found = extract_features(load_feature_extractor(save_vision_model(model(), tmp_path)), GREY.expand(-1, 3, -1, -1))
    assert found.shape == (70, width)
    assert found.std(dim=0).max() > 0


def test_pixels_are_the_image_in_0_to_1_and_large_images_are_averaged():
    pixels = load_feature_extractor("pixels")
    torch.testing.assert_close(extract_features(pixels, GREY), GREY.flatten(1).float() / 255)
    large = torch.full((2, 3, 64, 64), 51, dtype=torch.uint8)
    large[:, :, ::2] = 153
    torch.testing.assert_close(extract_features(pixels, large), torch.full((2, 3 * 32 * 32), 0.4))


def test_a_model_with_weights_that_would_be_random_is_refused(tmp_path):
    """A classifier is saved without the pooling layer, whose output would be the features."""
    path = save_vision_model(ViTForImageClassification(ViTConfig(**TINY, **PATCHES)), tmp_path)
    with pytest.raises(InputError, match=r"lack pooler\.dense\.\w+, which would be random"):
        load_feature_extractor(path)


def test_a_model_of_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="takes input_ids and no images"):
        load_feature_extractor(save_vision_model(BertModel(BertConfig(vocab_size=9, **TINY)), tmp_path))


def test_a_directory_without_preprocessing_is_refused(tmp_path):
    tiny_dinov2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has a preprocessor_config\.json"):
        load_feature_extractor(str(tmp_path))


def test_a_model_that_the_hub_does_not_have_is_refused(hub):
    with pytest.raises(HubError, match="'nobody/nothing' cannot be loaded as a vision model"):
        load_feature_extractor("nobody/nothing")


@pytest.mark.skipif(features.has_torch_fidelity(), reason="torch-fidelity is installed")
def test_without_torch_fidelity_inception_says_what_to_install():
    with pytest.raises(InputError, match=r'pip install "\.\[fid\]"'):
        load_feature_extractor("inception")


@pytest.mark.skipif(not features.has_torch_fidelity(), reason="needs torch-fidelity")
class TestInception:
    def test_its_features_are_torch_fidelitys(self, monkeypatch, tmp_path):
        from torch_fidelity import feature_extractor_inceptionv3 as original

        monkeypatch.setattr(original.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        monkeypatch.setattr(original, "load_state_dict_from_url", lambda *_, **__: None)
        torch.manual_seed(0)
        network = original.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        monkeypatch.undo()
        torch.save(network.state_dict(), tmp_path / "weights.pth")

        found = extract_features(load_feature_extractor("inception", tmp_path / "weights.pth"), GREY[:3])
        expected = network(GREY[:3].expand(-1, 3, -1, -1))[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_weights_that_cannot_be_fetched(self, monkeypatch):
        from torch_fidelity import feature_extractor_inceptionv3 as original

        def fail(*_, **__):
            raise urllib.error.URLError("no route")

        monkeypatch.setattr(original, "load_state_dict_from_url", fail)
        with pytest.raises(HubError, match=r"cannot be fetched .*no route.*`inception_weights`"):
            load_feature_extractor("inception")

    def test_other_weights_are_refused(self, tmp_path):
        torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
        with pytest.raises(InputError, match="does not hold the weights of FID's Inception"):
            load_feature_extractor("inception", tmp_path / "other.pth")

    def test_what_is_no_file_of_weights_is_refused(self, tmp_path):
        (tmp_path / "page.html").write_text("not found")
        with pytest.raises(InputError, match="does not hold PyTorch weights alone"):
            load_feature_extractor("inception", tmp_path / "page.html")
        with pytest.raises(InputError, match="is not a file"):
            load_feature_extractor("inception", tmp_path / "nowhere.pth")
