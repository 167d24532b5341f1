"""The preset `best` on tiny models with random weights, loaded from folders as the published ones are."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import tone, write_siglip

pytest.importorskip("av")
pytest.importorskip("transformers", minversion="5")  # as the extra `extract` asks for

import transformers  # after the check that it is there

from collaborative_experts.features.extract.clips import Clip, Frames
from collaborative_experts.features.extract.expert import describe, make_extractors
from collaborative_experts.features.extract.sound import resample, windows
from collaborative_experts.features.extract.video import Preprocessing

RNG = np.random.default_rng(0)


def frames_clip(extractor, images):
    images = np.asarray(images)
    frames = {view: Frames(np.arange(len(images), dtype=float), images) for view in extractor.views}
    return Clip("a.mp4", "a.mp4", 0.0, 5.0, frames, None)


def sound_clip(sound):
    return Clip("a.mp4", "a.mp4", 0.0, 5.0, {}, sound)


def noise(seconds):
    return RNG.integers(-8000, 8000, round(seconds * 16_000)).astype(np.int16)


def images(count, height=40, width=60):
    return RNG.integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    audio = {
        "spec_size": 256,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "num_mel_bins": 64,
        "window_size": 8,
        "hidden_size": 32,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "patch_embeds_hidden_size": 16,
        "num_hidden_layers": 2,
        "projection_dim": 24,
    }
    text = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "projection_dim": 24,
    }
    torch.manual_seed(0)
    config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=24)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        feature_size=64, truncation="rand_trunc", padding="repeatpad", max_length_s=10
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def spectrogram(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ast")
    names = {i: f"sound {i}" for i in range(12)}
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_length=64,
        num_mel_bins=32,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    torch.manual_seed(0)
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["videomae", "vjepa2"])
def video(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if request.param == "videomae":
        config = transformers.VideoMAEConfig(image_size=32, num_frames=4, intermediate_size=48, **small)
        transformers.VideoMAEModel(config).save_pretrained(folder)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        name = "preprocessor_config.json"
    else:
        predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
        config = transformers.VJEPA2Config(crop_size=32, frames_per_clip=4, **small, **predictor)
        transformers.VJEPA2Model(config).save_pretrained(folder)
        size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
        name = "video_preprocessor_config.json"
    numbers = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 1 / 255}
    (folder / name).write_text(json.dumps(size | numbers))
    return str(folder)


def make(name, folder, **more):
    return make_extractors("best", [name], {name: {"model": folder, **more}}, device="cpu")[0]


class TestSigLip:
    def test_features_are_those_of_transformers(self, siglip):
        extractor = make("appearance", siglip, keep="frames")
        model, processor = (
            getattr(transformers, x).from_pretrained(siglip) for x in ("SiglipModel", "SiglipImageProcessor")
        )
        shown = images(20)
        [x] = extractor([frames_clip(extractor, shown)])
        with torch.inference_mode():
            pixels = processor(images=list(shown), return_tensors="pt")["pixel_values"]
            expected = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        assert np.abs(x - expected.numpy()).max() < 1e-5
        assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
        assert (extractor.dim, extractor.sequence, extractor.text_tower) == (32, True, siglip)

    def test_forms_batches_and_nothing(self, siglip):
        extractor = make("appearance", siglip)
        first, second = images(3), images(5, 32, 32)
        outputs = extractor([frames_clip(extractor, first), frames_clip(extractor, []), frames_clip(extractor, second)])
        assert outputs[1] is None
        assert [x.shape for x in (outputs[0], outputs[2])] == [(32,), (32,)]
        assert np.allclose(outputs[0], extractor([frames_clip(extractor, first)])[0], atol=1e-5)
        assert extractor.views[0].side == 32

    def test_features_lie_in_the_space_of_the_texts(self, siglip):
        """The same width as a text's, so that a score is their product."""
        model = transformers.AutoModel.from_pretrained(siglip)
        with torch.inference_mode():
            text = model.get_text_features(input_ids=torch.ones(1, 8, dtype=torch.long)).pooler_output
        assert text.shape[-1] == make("appearance", siglip).dim


class TestVideo:
    def test_shapes_and_the_network_sees_order(self, video):
        extractor = make("motion", video)
        shown = images(9)
        [there, back, photo] = extractor([frames_clip(extractor, x) for x in (shown, shown[::-1], shown[:1])])
        assert there.shape == (extractor.dim,) == (32,)
        assert np.abs(there - back).max() > 1e-3
        assert photo is None

    def test_another_model_is_refused(self, siglip):
        with pytest.raises(ValueError, match="expected a model of V-JEPA 2 or VideoMAE, got siglip"):
            make("motion", siglip)

    def test_without_a_saved_processor(self, video, tmp_path):
        transformers.AutoModel.from_pretrained(video).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"expected video_preprocessor_config.json or .*, found neither"):
            make("motion", str(tmp_path))

    @pytest.mark.parametrize("size", [(40, 60), (60, 40), (32, 32), (20, 24)])
    def test_preprocessing_as_the_processor_of_transformers(self, size):
        """VideoMAE's own processor is the oracle."""
        try:
            processor = transformers.VideoMAEImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            )
        except ImportError:
            from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

            processor = VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        shown = images(3, *size)
        expected = np.asarray(processor(list(shown), return_tensors="np")["pixel_values"])[0]
        ours = Preprocessing(json.loads(processor.to_json_string()))(shown)
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() < 0.05, np.abs(ours - expected).max()


class TestClap:
    def test_windows_silence_and_length(self, clap):
        extractor = make("audio", clap)
        assert (extractor.dim, extractor.text_tower) == (24, clap)
        sounds = (noise(3), np.zeros(16_000, np.int16), None, noise(25), noise(0.2))
        outputs = extractor([sound_clip(sound) for sound in sounds])
        assert [x is None for x in outputs] == [False, True, True, False, False]
        assert all(x.shape == (24,) for x in outputs if x is not None)
        assert np.linalg.norm(outputs[0]) == pytest.approx(1, abs=1e-4)

    def test_features_are_those_of_transformers(self, clap):
        sound = tone(10, 1000)
        [x] = make("audio", clap)([sound_clip(sound)])
        model, processor = (
            getattr(transformers, name).from_pretrained(clap) for name in ("ClapModel", "ClapFeatureExtractor")
        )
        exact = tone(10, 1000, rate=48_000).astype(np.float32) / 32768
        with torch.inference_mode():
            inputs = processor([exact], sampling_rate=48_000, return_tensors="pt")
            expected = torch.nn.functional.normalize(model.eval().get_audio_features(**inputs).pooler_output, dim=-1)
        assert np.abs(x - expected[0].numpy()).max() < 1e-2

    def test_resampling_is_exact(self):
        low, high = (tone(1, 1000, rate=rate).astype(np.float32) for rate in (16_000, 48_000))
        assert np.abs(resample(low, 16_000, 48_000) - high).max() < 2
        assert resample(low, 16_000, 16_000) is low


class TestSpectrogram:
    def test_a_token_a_window_and_labels(self, spectrogram):
        [extractor] = make_extractors("best", ["ast"], {"ast": {"model": spectrogram}}, device="cpu")
        long, silent = extractor([sound_clip(noise(25)), sound_clip(np.zeros(99_999, np.int16))])
        assert silent is None
        assert long.array.shape == (3, 32)
        assert len(long.labels) == 10
        assert set(long.labels) <= {f"sound {i}" for i in range(12)}
        assert list(long.scores) == sorted(long.scores, reverse=True)
        assert describe(extractor)["has_labels"] is True
        assert extractor.name == "audio"

    def test_features_are_what_the_classifier_sees(self, spectrogram):
        [extractor] = make_extractors("best", ["ast"], {"ast": {"model": spectrogram}}, device="cpu")
        [x] = extractor([sound_clip(noise(5))])
        model = transformers.ASTForAudioClassification.from_pretrained(spectrogram).eval()
        with torch.inference_mode():
            logits = model.classifier(torch.from_numpy(x.array))
        best = logits.sigmoid().mean(dim=0).topk(10)
        assert x.labels == tuple(f"sound {i}" for i in best.indices.tolist())
        assert np.allclose(x.scores, best.values.numpy(), atol=1e-5)


@pytest.mark.parametrize(("seconds", "lengths"), [(5, [5]), (25, [10, 10, 5]), (21, [10, 10]), (1, [1])])
def test_windows(seconds, lengths):
    assert [len(x) / 16_000 for x in windows(noise(seconds), 10.0)] == lengths


def test_weights_are_told_apart(siglip, tmp_path):
    """Other weights in a folder of the same name are other features."""
    model = transformers.SiglipModel.from_pretrained(siglip)
    before = make("appearance", siglip).weights
    torch.nn.init.ones_(model.vision_model.post_layernorm.bias)
    model.save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert make("appearance", str(tmp_path)).weights != before


@pytest.mark.parametrize("name", ["appearance", "motion", "audio"])
def test_a_folder_without_a_model(tmp_path, name):
    with pytest.raises(ValueError, match=f"AutoModel: .*{tmp_path.name}: cannot be loaded"):
        make(name, str(tmp_path))


@pytest.mark.parametrize("name", ["appearance", "audio"])
def test_code_of_a_hub_is_not_run(siglip, tmp_path, name):
    """A model whose config names a class in a file of its own is refused, and its file is not imported."""
    (tmp_path / "evil.py").write_text("raise SystemExit('was run')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"AutoModel: .* cannot be loaded"):
        make(name, str(tmp_path))


@pytest.mark.parametrize(
    ("preset", "expert", "model"),
    [
        ("best", "appearance", "google/siglip2-base-patch16-256"),
        ("best", "motion", "facebook/vjepa2-vitl-fpc16-256-ssv2"),
        ("best", "audio", "laion/clap-htsat-unfused"),
        ("offline", "speech", "large-v3-turbo"),
    ],
)
def test_without_a_network_it_fails_at_once(preset, expert, model, tmp_path, monkeypatch):
    """The hub is asked once, by one request, and the libraries' own long attempts are not begun."""
    hub = pytest.importorskip("huggingface_hub.constants")
    asked = []
    monkeypatch.setattr("collaborative_experts.base.model_hub._answers", lambda url: asked.append(url))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("looked for a server"))
    if expert == "speech":
        pytest.importorskip("faster_whisper")
    settings = {expert: {"model": model}}
    with pytest.raises(
        FileNotFoundError, match=rf"^{expert}: .*'{model}' is neither .*\(--set {expert}.model=FOLDER\)$"
    ):
        make_extractors(preset, [expert], settings, encoder=SimpleNamespace(dim=4, name="none"))
    assert asked == [hub.ENDPOINT]
