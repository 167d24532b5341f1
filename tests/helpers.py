"""The reference: towhee.models' CENet itself, in float64, given what it wants (NaN in missing rows, a fresh copy)."""

import copy
import csv
import pickle
import warnings
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from towhee.models.collaborative_experts import CENet

from collaborative_experts import (
    CaptionedVideos,
    CEConfig,
    CollaborativeExperts,
    ExpertConfig,
    Features,
    TextConfig,
    TextEmbeddings,
    VideoEmbeddings,
)
from collaborative_experts.retrieval.similarity import similarity

JOINABLE = CEConfig.from_dict(
    {
        "experts": {"motion": 12, "sound": {"dim": 6, "clusters": 1, "max_tokens": 4}},
        "text": {"dim": 10, "clusters": 1, "ghost_clusters": 0},
        "shared_dim": 256,
        "use_ce": "",
        "mimic_ce_dims": True,
        "standardise": True,
    }
)
"""Of a form whose models can be joined."""

SMALL = CEConfig(
    experts=(
        ExpertConfig("audio", 128, clusters=2, max_tokens=5),
        ExpertConfig("face", 12),
        ExpertConfig("motion", 20),
        ExpertConfig("ocr", 300, clusters=3, max_tokens=6),
    ),
    text=TextConfig(dim=24, clusters=3, ghost_clusters=1, max_tokens=7),
    shared_dim=16,
)
"""Small, with the names and dimensions that CENet insists on for token sequences."""


def raw_statistics(expert, rng, logarithm=False):
    """A mean and a deviation (dim,) float32 of raw features, or of the logarithms of probabilities."""
    means, deviations = ((-5, 0), (0.1, 1)) if logarithm else ((-9, 9), (0.1, 9))
    return [rng.uniform(*span, expert.dim).astype(np.float32) for span in (means, deviations)]


# The grid that the operator and its exports are held to: forms, orders of experts, what is missing, what stands there.
FORMS = {
    "pairwise": {},
    "pairwise-star": {"use_ce": "pairwise-star"},
    "pairwise-star-specific": {"use_ce": "pairwise-star-specific"},
    "pairwise-star-tensor": {"use_ce": "pairwise-star-tensor"},
    "triplet": {"use_ce": "triplet"},
    "moee": {"use_ce": ""},
    "mimic": {"use_ce": "", "mimic_ce_dims": True},
    "pairwise-without-self": {"include_self": False},
    "pairwise-relu-h-layers": {"use_mish": False, "num_h_layers": 2, "num_g_layers": 2},
    "pairwise-one-g-layer": {"num_g_layers": 1, "use_bn_reason": False},
    "pairwise-frozen-weights": {"freeze_weights": True},
}
ORDERS = ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1])
MISSING = ("none", "some", "all but one")
FILLS = {"nan": np.nan, "zeros": 0.0, "garbage": 1e30}


def availability(pattern: str, videos: int, names: tuple[str, ...]) -> dict:
    """`ind` of one of the patterns `MISSING`."""
    rng = np.random.default_rng(1)
    ind = {name: np.ones(videos, dtype=np.int64) for name in names}
    if pattern == "some":
        for name in names[:-1]:
            ind[name] = rng.integers(0, 2, videos)
    if pattern == "all but one":
        keep = rng.integers(0, len(names), videos)
        ind = {name: (keep == i).astype(np.int64) for i, name in enumerate(names)}
    return ind


def fills(pattern: str) -> dict[str, float]:
    """What may stand in the missing rows; where none is missing, one of them stands for all."""
    return {"nan": FILLS["nan"]} if pattern == "none" else FILLS


def towhee_dict(config: CEConfig) -> dict:
    """The keyword arguments of CENet for a config."""
    variable = {expert.name: expert.clusters for expert in config.experts if expert.variable}
    names = {"audio", "ocr", "speech", *config.expert_names}
    return {
        "task": "retrieval",
        "use_ce": config.use_ce,
        "text_dim": config.text.dim,
        "l2renorm": False,
        "expert_dims": {
            expert.name: (expert.pooled_dim, expert.output_dim or config.shared_dim) for expert in config.experts
        },
        "vlad_clusters": {"text": config.text.clusters, **variable},
        "ghost_clusters": {"text": config.text.ghost_clusters},
        "disable_nan_checks": False,
        "keep_missing_modalities": False,
        "test_caption_mode": "indep",
        "randomise_feats": "",
        "feat_aggregation": {name: {"temporal": "vlad" if name in variable else "avg"} for name in names},
        "ce_shared_dim": config.shared_dim,
        "trn_config": {},
        "trn_cat": 0,
        "include_self": int(config.include_self),
        "use_mish": int(config.use_mish),
        "use_bn_reason": int(config.use_bn_reason),
        "num_h_layers": config.num_h_layers,
        "num_g_layers": config.num_g_layers,
        "freeze_weights": config.freeze_weights,
        "mimic_ce_dims": config.mimic_ce_dims,
        "concat_experts": config.concat_experts,
    }


def cenet(config: CEConfig, seed: int = 0) -> CENet:
    """CENet in evaluation mode, with random weights and random BatchNorm statistics, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CENet(**copy.deepcopy(towhee_dict(config)))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.5)
                module.running_var.uniform_(0.5, 2)
                torch.nn.init.normal_(module.weight, mean=1, std=0.2)
                torch.nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def run_cenet(model: CENet, experts: dict, ind: dict, text: torch.Tensor) -> dict:
    """CENet's outputs in float64 on copies; rows with ind 0 become NaN, as it expects."""
    if next(model.parameters()).dtype != torch.float64:
        model = copy.deepcopy(model).double()
    experts = {name: torch.as_tensor(np.asarray(x)).double().clone() for name, x in experts.items()}
    ind = {name: torch.as_tensor(np.asarray(x)).double() for name, x in ind.items()}
    for name, x in experts.items():
        x[ind[name] == 0] = torch.nan
    with torch.no_grad():
        return model(experts, ind, torch.as_tensor(np.asarray(text)).double())


def random_inputs(config: CEConfig, videos: int, captions: int = 1, seed: int = 0) -> tuple[dict, dict, np.ndarray]:
    """experts, ind (all ones) and text (B, K, W, dim) as NumPy arrays."""
    rng = np.random.default_rng(seed)
    experts = {
        expert.name: rng.standard_normal(
            (videos, expert.max_tokens or 4, expert.dim) if expert.variable else (videos, expert.dim), dtype=np.float32
        )
        for expert in config.experts
    }
    ind = {name: np.ones(videos, dtype=np.int64) for name in experts}
    text = rng.standard_normal((videos, captions, config.text.max_tokens or 6, config.text.dim), dtype=np.float32)
    return experts, ind, text


def largest_difference(ours: dict, theirs: dict) -> float:
    """Largest absolute difference over two dicts of arrays with the same keys."""
    assert list(ours) == list(theirs)
    worst = 0.0
    for name in ours:
        a, b = np.asarray(ours[name], dtype=np.float64), np.asarray(theirs[name], dtype=np.float64)
        assert a.shape == b.shape, f"{name}: {a.shape} is not {b.shape}"
        worst = max(worst, float(np.abs(a - b).max(initial=0)))
    return worst


def peak_memory(forget: bool = False) -> int:
    """Bytes of memory that this process held at most, since it was last told to forget (Linux; elsewhere 0).

    What `getrusage` says begins with the peak of the process that started this one.
    """
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def needs(*modules: str) -> pytest.MarkDecorator:
    """A mark for tests of optional packages that take seconds to be imported, which those that collect need not do."""
    missing = [module for module in modules if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def has_more_than_avx2() -> bool:
    """Whether oneDNN may take other instructions here than when it is held to AVX2."""
    file = Path("/proc/cpuinfo")
    flags = file.read_text().split() if file.exists() else []
    return not flags or any(flag.startswith(("avx512", "avx_vnni", "amx")) for flag in flags)


def cosines(ours: dict, theirs: dict) -> np.ndarray:
    """Inner products of embeddings, which have length 1 both."""
    products = np.concatenate([(np.asarray(ours[name]) * np.asarray(theirs[name])).sum(1) for name in theirs])
    assert products.max() < 1 + 1e-5
    return products


def random_embeddings(texts, videos, experts=3, dim=5, missing=0.4, seed=0):
    rng = np.random.default_rng(seed)

    def unit(rows):
        x = rng.standard_normal((rows, dim), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    names = [f"e{m}" for m in range(experts)]
    weights = rng.dirichlet(np.ones(experts), texts).astype(np.float32)
    return (
        TextEmbeddings({name: unit(texts) for name in names}, weights.reshape(texts, experts)),
        VideoEmbeddings({name: unit(videos) for name in names}, rng.random((videos, experts)) >= missing),
    )


def some(texts=5, videos=60, experts=3, dim=6, missing=0.3, seed=0):
    """Random embeddings of which every video has some expert. NaN stands for those that it lacks."""
    text, video = random_embeddings(texts, videos, experts, dim, missing, seed)
    video.available[~video.available.any(1), 0] = True
    for m, embd in enumerate(video.embds.values()):
        embd[~video.available[:, m]] = np.nan
    return text, video


TRAINABLE = CEConfig.from_dict(
    {
        "experts": {"motion": 12, "sound": {"dim": 6, "clusters": 2, "max_tokens": 4}},
        "text": {"dim": 10, "clusters": 1, "ghost_clusters": 0, "max_tokens": 5},
        "shared_dim": 32,
        "use_ce": "",
        "mimic_ce_dims": True,
    }
)
QUICK = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3}


def captioned(videos=32, missing=0.0, captions=2, seed=0) -> CaptionedVideos:
    """Videos and captions that are two views of the same hidden vectors; the scales of the features differ widely."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((videos, 6)).astype(np.float32)
    views = np.random.default_rng(99)  # the same for every set
    motion = 50 + 30 * hidden @ views.standard_normal((6, 12)).astype(np.float32)
    sound = [1e-3 * row * np.ones((rng.integers(1, 5), 6), dtype=np.float32) for row in hidden]
    there = {name: rng.random(videos) >= missing for name in ("motion", "sound")}
    there["sound"] |= ~there["motion"]  # something to find each video by
    motion[~there["motion"]] = np.nan
    targets = np.repeat(np.arange(videos), captions)
    words = hidden[targets] @ views.standard_normal((6, 10)).astype(np.float32)
    tokens = words[:, None] + 0.1 * rng.standard_normal((len(targets), 5, 10)).astype(np.float32)
    features = Features(
        tuple(f"video{i}" for i in range(videos)),
        {
            "motion": motion,
            "sound": [x if is_there else None for x, is_there in zip(sound, there["sound"], strict=True)],
        },
        {name: flags.astype(np.int64) for name, flags in there.items()},
    )
    return CaptionedVideos(features, targets, tokens.astype(np.float16))


def untrained(config=TRAINABLE):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*seeded initial parameters")
        return CollaborativeExperts(config, device="cpu")


def write_features(folder, layout, name, ids, rows):
    """Write rows (an array, or a list of arrays) in a layout such as "npz by video"; returns the file's path."""
    suffix = layout.replace(",", " ").split()[0]
    path = folder / (name if suffix == "folder" else f"{name}.{suffix}")
    by_video = dict(zip(ids, rows, strict=True))
    if layout == "npz":
        np.savez(path, video_id=np.array(ids), **{name: rows})
    elif layout == "npz by video":
        np.savez(path, **by_video)
    elif layout == "folder":
        path.mkdir()
        for video, row in by_video.items():
            np.save(path / f"{video}.npy", row)
    elif layout.startswith("npy"):
        np.save(path, rows)
        if layout == "npy":
            path.with_suffix(".ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
        else:
            np.save(path.with_suffix(".ids.npy"), np.array(ids))
    elif layout.startswith("h5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            group = file.create_group(name) if layout.endswith("group") else file
            if layout in ("h5", "h5, table in a group"):
                group["ids"], group["features"] = list(ids), rows
            for video, row in by_video.items() if " by " in layout else ():
                group[video] = row
    elif layout == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"video_id": list(ids), name: [None if x is None else x.tolist() for x in rows]})
        parquet.write_table(table, path, row_group_size=2)
    elif layout == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["video_id", *range(rows.shape[1])])
            writer.writerows([video, *row] for video, row in by_video.items())
    elif layout.startswith("pt"):
        tensors = {video: torch.from_numpy(row) for video, row in by_video.items()}
        table = {"video_id": list(ids), name: torch.as_tensor(rows)} if layout in ("pt", "pth") else tensors
        torch.save(table, path)
    elif layout == "lance":
        write_lance(path, name, ids, rows)
    else:
        path.write_bytes(pickle.dumps(by_video, protocol=5 if layout == "pkl" else 2))
    return path


def write_lance(path, name, ids, rows):
    """A dataset of one expert as `extract` writes it. A row with NaN or without tokens is missing."""
    pytest.importorskip("lance")
    from collaborative_experts.features.extract.dataset import FeatureDataset, Making, Row
    from collaborative_experts.features.extract.expert import Extracted

    facts = {"dim": rows[0].shape[-1], "sequence": rows[0].ndim == 2, "reads_text": False, "has_labels": False}
    dataset = FeatureDataset(path, Making({"by": "whole"}, "float32", {name: facts}))
    for video, x in zip(ids, rows, strict=True):
        output = Extracted(x) if len(x) and not np.isnan(x).any() else None
        dataset.append([Row(video, video, 0.0, 1.0, True, {name: output})])


def write_siglip(folder, tokenizer_to=None):
    """A tiny SigLIP of random weights with a processor and a tokenizer of words; returns its folder as text.

    Args:
        tokenizer_to: a second folder that the tokenizer is written to.
    """
    import tokenizers

    transformers = pytest.importorskip("transformers", minversion="5")  # as the extra `extract` asks for
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config=small | {"vocab_size": 50, "projection_size": 32}, vision_config=small | {"image_size": 32}
    )
    torch.manual_seed(0)
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    words = ["<pad>", "<unk>", "a", "dog", "runs", "two", "cats", "rabbit"]
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")
    for place in (folder, tokenizer_to):
        if place is not None:
            tokenizer.save_pretrained(place)
    return str(folder)


def same_features(a, b):
    """True where both are equal arrays, NaN included, or lists of equal arrays and None."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return all((x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in zip(a, b, strict=True))


def exact_scores(text, video):
    """The definition, in float64, pair by pair."""
    scores = np.zeros((len(text), len(video)))
    for t in range(len(text)):
        for v in range(len(video)):
            available = [name for m, name in enumerate(video.experts) if video.available[v, m]]
            weights = {name: float(text.weights[t, video.experts.index(name)]) for name in available}
            cosine = {
                name: text.embds[name][t].astype(float) @ video.embds[name][v].astype(float) for name in available
            }
            if available:
                scores[t, v] = sum(weights[n] * cosine[n] for n in available) / sum(weights.values())
    return scores


def write_media(path, frames=None, fps=10, sound=None, rate=16_000, times=None, codec=None, rotation=0, format=None):  # noqa: A002
    """Write a media file of RGB frames (n, h, w, 3) uint8 and mono sound (n,) int16; returns its path.

    Args:
        times: seconds at which the frames are shown, for a variable frame rate.
        codec: of the pictures, such as "ffv1" for a file without loss.
    """
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=format) as container:
        video = audio = None
        if frames is not None:
            video = container.add_stream(codec or "libx264", rate=fps)
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
            video.time_base = Fraction(1, 1000)
            video.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                video.set_display_rotation(rotation)
        if sound is not None:
            audio = container.add_stream({".mkv": "flac", ".wav": "pcm_s16le"}.get(path.suffix, "aac"), rate=rate)
            audio.layout = "mono"
        for i, image in enumerate([] if frames is None else frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[i] if times else i / fps)), Fraction(1, 1000)
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode(None))
        if audio is not None:
            for start in range(0, len(sound), rate):
                part = sound[None, start : start + rate]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="s16", layout="mono")
                frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def tone(seconds, hz=440.0, rate=16_000, level=0.3):
    """(n,) int16, a sine."""
    return np.round(32767 * level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def flat_frames(levels, height=48, width=64):
    """(n, h, w, 3) uint8, each frame of one grey level."""
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def check_best(index, text, scores, names, k):
    """The result has the highest of the scores (texts, videos), apart from the order of those equal to 1e-6."""
    found = index.search(text, k)
    best = -np.sort(-scores, axis=1)[:, :k]
    column = {name: i for i, name in enumerate(names)}
    rows = np.array([[column[name] for name in one] for one in found.ids])
    assert np.abs(np.take_along_axis(scores, rows, axis=1) - best).max() < 1e-6
    assert np.abs(found.scores - best).max() < 1e-6
    return found


def check_answers(index, text, video, names, k):
    """The result is what comparing with every video and sorting gives."""
    scores = similarity(text, video)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = index.search(text, k)
    assert found.ids.tolist() == names[order].tolist()
    assert np.abs(found.scores - np.take_along_axis(scores, order, axis=1)).max(initial=0) < 1e-6
    assert np.abs(found.shares.sum(2) - found.scores).max(initial=0) < 1e-6
    assert found.exact
    return found
