"""The input contract: what is taken, what comes back, and the table of what is refused."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collaborative_experts import CollaborativeExperts, TextConfig
from collaborative_experts.model.inputs import clean_text, clean_video
from helpers import SMALL, largest_difference, random_inputs

NAN, INF = float("nan"), float("inf")


def changed(x, row, value):
    x = np.array(x)
    x[row] = value
    return x


# --- what is taken ------------------------------------------------------------------------------------

CONVERSIONS = {
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16).astype(np.float32),
    "non-contiguous": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed view": lambda x: x[::-1].copy()[::-1],
    "fortran order": np.asfortranarray,
    "big-endian": lambda x: x.astype(">f4"),
    "list of arrays": list,
    "nested lists": lambda x: x.tolist(),
    "tuple of tensors": lambda x: tuple(torch.from_numpy(x)),
    "torch": torch.from_numpy,
    "torch float64": lambda x: torch.from_numpy(x).double(),
    "torch transposed": lambda x: torch.from_numpy(x.T.copy()).permute(*reversed(range(x.ndim))),
    "torch with gradient": lambda x: torch.from_numpy(x.copy()).requires_grad_(),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_array_types(name, small_op):
    convert = CONVERSIONS[name]
    experts, ind, text = random_inputs(SMALL, 3)
    ind["face"] = np.array([1, 0, 1])
    if name == "float16":
        experts, text = (
            {k: x.astype(np.float16).astype(np.float32) for k, x in experts.items()},
            text.astype(np.float16),
        )
    expected = small_op(experts, ind, text)
    ours = small_op({k: convert(x) for k, x in experts.items()}, ind, convert(text))
    is_torch = "torch" in name or "tensors" in name
    for got, wanted in zip(ours, expected, strict=True):
        assert all(isinstance(x, torch.Tensor if is_torch else np.ndarray) for x in got.values())
        assert all(str(x.dtype).endswith("float32") for x in got.values())
        assert not any(getattr(x, "requires_grad", False) for x in got.values())
        assert largest_difference(got, wanted) < 1e-6


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int64", "uint32"])
def test_integer_features(dtype, small_op):
    experts, ind, text = random_inputs(SMALL, 2)
    experts = {k: np.abs(x * 10).astype(dtype) for k, x in experts.items()}
    expected = small_op({k: x.astype(np.float32) for k, x in experts.items()}, ind, text)
    assert largest_difference(small_op(experts, ind, text)[1], expected[1]) == 0


def test_a_single_video_reversed(small_op):
    """A step backwards along an axis of one, which PyTorch refuses."""
    experts, ind, text = random_inputs(SMALL, 1)
    expected = small_op(experts, ind, text)
    backwards = {name: x[::-1] for name, x in experts.items()}
    assert backwards["face"].strides[0] < 0
    assert largest_difference(small_op(backwards, ind, text[::-1])[1], expected[1]) == 0


def test_bfloat16_tensors(small_op):
    experts, _, _ = random_inputs(SMALL, 2)
    rounded = {k: torch.from_numpy(x).bfloat16() for k, x in experts.items()}
    ours = small_op.encode_video(rounded).embds
    assert largest_difference(ours, small_op.encode_video({k: x.float() for k, x in rounded.items()}).embds) == 0


def test_torch_outputs_are_ordinary_tensors(small_op):
    """A head can be trained on them, which inference tensors refuse."""
    experts, ind, text = random_inputs(SMALL, 2)
    _, video = small_op({k: torch.from_numpy(x) for k, x in experts.items()}, ind, text)
    head = torch.nn.Linear(SMALL.shared_dim, 1)
    head(video["face"]).sum().backward()
    video["face"].add_(1)


def test_each_side_follows_its_own_type(small_op):
    experts, ind, text = random_inputs(SMALL, 2)
    text_embds, vid_embds = small_op(experts, ind, torch.from_numpy(text))
    assert isinstance(text_embds["ocr"], torch.Tensor)
    assert isinstance(vid_embds["ocr"], np.ndarray)


def test_single_items_equal_rows_of_a_batch(small_op):
    experts, ind, text = random_inputs(SMALL, 3)
    ind["ocr"][1] = 0
    text_embds, vid_embds = small_op(experts, ind, text)
    for row in range(3):
        for flag in (lambda x: x, int, bool, lambda x: np.array([x])):
            one_text, one_video = small_op(
                {k: x[row] for k, x in experts.items()}, {k: flag(x[row]) for k, x in ind.items()}, text[row, 0]
            )
            assert one_video["face"].shape == (SMALL.shared_dim,)
            assert largest_difference(one_text, {k: x[row] for k, x in text_embds.items()}) < 1e-6
            assert largest_difference(one_video, {k: x[row] for k, x in vid_embds.items()}) < 1e-6
    video = small_op.encode_video({k: x[0].tolist() for k, x in experts.items()})
    assert video.available.shape == (4,)
    assert video.joint().shape == (4 * SMALL.shared_dim,)


def test_text_shapes(small_op):
    _, _, text = random_inputs(SMALL, 2, captions=3)
    flat = small_op.encode_text(text)
    assert flat.weights.shape == (6, 4)
    assert np.allclose(flat.weights.sum(1), 1)
    assert flat.embds["ocr"].shape == (6, 16)
    one = small_op.encode_text(text[1, 2])
    assert one.weights.shape == (4,)
    assert np.allclose(one.embds["ocr"], flat.embds["ocr"][5], atol=1e-6)


@pytest.mark.parametrize("videos", [0, 1])
def test_no_video_and_one(videos, small_op):
    experts, ind, text = random_inputs(SMALL, videos)
    text_embds, vid_embds = small_op(experts, ind, text)
    assert {x.shape for x in (*text_embds.values(), *vid_embds.values())} == {(videos, 16)}
    if not videos:
        experts["ocr"] = np.zeros((0, 0, 300))
        experts["face"] = []
        many = np.zeros((0, 3, 7, 24), dtype=np.float32)
        assert small_op(experts, None, many)[0]["face"].shape == (0, 3, 16)
        text_embds, vid_embds = small_op(experts, None, [])
        assert {x.shape for x in (*text_embds.values(), *vid_embds.values())} == {(0, 16)}


def test_sequences_of_unequal_length_are_padded_and_cut(small_op):
    """Whatever their neighbours: a list is padded to max_tokens, as in the paper's training."""
    rng = np.random.default_rng(0)
    experts, ind, text = random_inputs(SMALL, 3)
    sequences = [rng.standard_normal((n, 300)).astype(np.float32) for n in (2, 9, 6)]
    dense = np.zeros((3, 6, 300), dtype=np.float32)
    for row, sequence in enumerate(sequences):
        dense[row, : len(sequence)] = sequence[:6]
    expected = small_op({**experts, "ocr": dense}, ind, text)[1]
    assert largest_difference(small_op({**experts, "ocr": sequences}, ind, text)[1], expected) == 0
    assert (
        largest_difference(small_op({**experts, "ocr": [x.tolist() for x in sequences]}, ind, text)[1], expected) == 0
    )
    alone = small_op.encode_video({**{k: x[:1] for k, x in experts.items()}, "ocr": sequences[:1]})
    assert np.abs(alone.embds["ocr"][0] - expected["ocr"][0]).max() < 1e-6

    captions = [[text[0, 0, :3], text[0, 0]], [text[1, 0], text[1, 0, :5]]]
    encoded = small_op.encode_text(captions)
    assert encoded.weights.shape == (4, 4)
    padded = np.concatenate([text[0, 0, :3], np.zeros((4, 24), dtype=np.float32)])
    assert np.abs(encoded.embds["face"][0] - small_op.encode_text(padded).embds["face"]).max() < 1e-6


IND_FORMS = {
    "int list": lambda x: [int(v) for v in x],
    "bool list": lambda x: [bool(v) for v in x],
    "float array": lambda x: x.astype(np.float32),
    "bool tensor": lambda x: torch.from_numpy(x).bool(),
    "int tensor": torch.from_numpy,
    "half tensor": lambda x: torch.from_numpy(x).half(),
    "tuple": tuple,
}


@pytest.mark.parametrize("form", IND_FORMS)
def test_ind_forms(form, small_op):
    experts, ind, _ = random_inputs(SMALL, 4)
    ind["face"] = np.array([0, 1, 1, 0])
    got = small_op.encode_video(experts, {k: IND_FORMS[form](x) for k, x in ind.items()})
    assert got.available.tolist() == [[True, bool(f), True, True] for f in ind["face"]]


def test_availability_is_read_off_the_data(small_op):
    """No ind, no key, None as a value, None as a row: a row that holds NaN is missing."""
    experts, ind, _ = random_inputs(SMALL, 4)
    ind["face"], ind["ocr"] = np.array([1, 0, 1, 1]), np.array([1, 1, 1, 0])
    expected = small_op.encode_video(experts, ind)
    holes = {**experts, "face": changed(experts["face"], (1, 3), NAN), "ocr": changed(experts["ocr"], 3, NAN)}
    rows = {**experts, "face": [x if a else None for x, a in zip(experts["face"], ind["face"], strict=True)]}
    for given_experts, given_ind in (
        (holes, None),
        (holes, {}),
        (holes, {"audio": ind["audio"], "face": None}),
        (rows, {"ocr": ind["ocr"]}),
    ):
        got = small_op.encode_video(given_experts, given_ind)
        assert (got.available == expected.available).all()
        assert largest_difference(got.embds, expected.embds) == 0


def test_a_batch_in_which_nobody_has_an_expert(small_op):
    experts, _, _ = random_inputs(SMALL, 3)
    for nobody in ([None] * 3, (None, None, None)):
        got = small_op.encode_video({**experts, "ocr": nobody, "face": nobody}, {"face": [0, 0, 0]})
        assert got.available.tolist() == [[True, False, True, False]] * 3
    assert small_op.encode_text([torch.ones(24, dtype=torch.bfloat16)] * 3).weights.shape == (4,)


def test_under_autocast_and_another_default_dtype(small_op):
    """The usual contexts of a training loop change nothing."""
    experts, _, text = random_inputs(SMALL, 3)
    experts["face"][1] = NAN
    expected = small_op(experts, None, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = small_op(experts, None, text)
    torch.set_default_dtype(torch.float64)
    try:
        other = small_op({**experts, "ocr": list(experts["ocr"])}, None, text)
    finally:
        torch.set_default_dtype(torch.float32)
    for got in (under, other):
        assert largest_difference(got[0], expected[0]) == largest_difference(got[1], expected[1]) == 0


def test_experts_left_out_are_missing_for_all(small_op):
    experts, ind, _ = random_inputs(SMALL, 3)
    expected = small_op.encode_video(experts, {**ind, "audio": [0, 0, 0], "motion": [0, 0, 0]})
    less = {"face": experts["face"], "ocr": experts["ocr"], "motion": None}
    for given_ind in (None, ind, {"face": [1, 1, 1]}):
        got = small_op.encode_video(less, given_ind)
        assert not got.available[:, [0, 2]].any()
        assert largest_difference(got.embds, expected.embds) < 1e-6  # other numbers of zero tokens round otherwise
    nothing = small_op.encode_video({}, {"face": [0, 0]})
    assert not nothing.available.any()
    assert nothing.available.shape == (2, 4)


def test_nothing_of_the_callers_is_written_to(small_op):
    experts, ind, text = random_inputs(SMALL, 3)
    ind["ocr"][0] = ind["face"][2] = 0
    experts["ocr"][0] = NAN
    for x in (*experts.values(), *ind.values(), text):
        x.setflags(write=False)
    kept = [x.copy() for x in (*experts.values(), *ind.values(), text)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch would warn of read-only memory
        first = small_op(experts, ind, text)
        second = small_op(experts, ind, text)
    assert all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(kept, (*experts.values(), *ind.values(), text), strict=True)
    )
    assert largest_difference(first[0], second[0]) == largest_difference(first[1], second[1]) == 0
    tensors = {k: torch.tensor(x) for k, x in experts.items()}
    versions = {k: x._version for k, x in tensors.items()}
    small_op(tensors, ind, torch.tensor(text))
    assert {k: x._version for k, x in tensors.items()} == versions
    assert list(tensors) == list(experts)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mix_of_missing_rows(small_op, data):
    """Availability by ind, NaN rows, None rows and absent experts, mixed: the same as ind alone on clean features."""
    videos = data.draw(st.integers(1, 5))
    experts, ind, _ = random_inputs(SMALL, videos, seed=data.draw(st.integers(0, 99)))
    messy, messy_ind = {}, {}
    for name, x in experts.items():
        flags = data.draw(st.lists(st.booleans(), min_size=videos, max_size=videos))
        ind[name] = np.array(flags)
        how = data.draw(st.sampled_from(["ind", "nan", "none"] + ["absent"] * (not any(flags))))
        if how == "ind":
            garbage = data.draw(st.sampled_from([0.0, NAN, INF, 1e38]))
            messy[name], messy_ind[name] = changed(x, ~ind[name], garbage), flags
        elif how == "nan":
            messy[name] = changed(x, ~ind[name], NAN)
        elif how == "none":
            messy[name] = [row if there else None for row, there in zip(x, flags, strict=True)]
    if not messy and not messy_ind:
        messy_ind["face"] = ind["face"]
    expected, got = small_op.encode_video(experts, ind), small_op.encode_video(messy, messy_ind)
    assert (got.available == expected.available).all()
    assert largest_difference(got.embds, expected.embds) < 1e-6


# --- what is refused ----------------------------------------------------------------------------------
CYCLE = []
CYCLE.append(CYCLE)
DEEP = [1.0]
for _ in range(10_000):
    DEEP = [DEEP]

# name: (what to change of a good call (experts, ind, text) for three videos, error, words of its message)


def _objects(rows):
    array = np.empty(len(rows), dtype=object)
    array[:] = list(rows)
    return array


BAD = {
    "experts no dict": (lambda e, i, t: ([1], i, t), TypeError, "experts: expected a dict keyed by expert, got list"),
    "ind no dict": (lambda e, i, t: (e, np.ones((3, 4)), t), TypeError, "ind: expected a dict keyed by expert, got ndarray"),
    "unknown expert": (lambda e, i, t: ({**e, "odio": 1}, i, t), ValueError, "experts: unknown expert 'odio'; did you mean 'audio'?"),
    "unknown expert in ind": (lambda e, i, t: (e, {"oce": [1]}, t), ValueError, "ind: unknown expert 'oce'; did you mean 'ocr'?"),
    "wrong dim": (lambda e, i, t: ({**e, "face": np.ones((3, 11))}, i, t), ValueError, "experts['face']: expected (B, 12) or one (12,), got (3, 11)"),
    "wrong dim of tokens": (lambda e, i, t: ({**e, "ocr": np.ones((3, 2, 128))}, i, t), ValueError, "experts['ocr']: expected (B, N, 300) or one (N, 300) with N >= 1, got (3, 2, 128)"),
    "too many axes": (lambda e, i, t: ({**e, "face": np.ones((3, 1, 12))}, i, t), ValueError, "experts['face']: expected (B, 12) or one (12,), got (3, 1, 12)"),
    "a scalar": (lambda e, i, t: ({**e, "face": 7.0}, i, t), ValueError, "experts['face']: expected (B, 12) or one (12,), got ()"),
    "wrong batch": (lambda e, i, t: ({**e, "motion": np.ones((4, 20))}, i, t), ValueError, "experts['motion']: expected 3 videos like experts['audio'], got 4"),
    "one among many": (lambda e, i, t: ({**e, "face": np.ones(12)}, i, t), ValueError, "experts['face']: expected a batch of 3 like experts['audio'], got one video (12,)"),
    "empty token axis": (lambda e, i, t: ({**e, "ocr": np.ones((3, 0, 300))}, i, t), ValueError, "experts['ocr']: expected (B, N, 300) or one (N, 300) with N >= 1, got (3, 0, 300)"),
    "NaN where ind is 1": (lambda e, i, t: ({**e, "face": changed(e["face"], (1, 4), NAN)}, i, t), ValueError, "experts['face'], row 1: expected finite features where ind is 1, got NaN, Inf or beyond 1e+15; set ind to 0 for a missing expert"),
    "Inf where ind is 1": (lambda e, i, t: ({**e, "ocr": changed(e["ocr"], ([0, 2], 1, 4), INF)}, i, t), ValueError, "experts['ocr'], rows [0, 2]: expected finite"),
    "Inf without ind": (lambda e, i, t: ({**e, "face": changed(e["face"], (2, 4), -INF)}, None, t), ValueError, "experts['face'], row 2: expected finite"),
    "beyond float32": (lambda e, i, t: ({**e, "face": np.full((3, 12), 1e300)}, i, t), ValueError, "experts['face'], rows [0, 1, 2]: expected finite"),
    "None row where ind is 1": (lambda e, i, t: ({**e, "face": [None, *e["face"][1:]]}, i, t), ValueError, "experts['face'], row 0: expected finite"),
    "object dtype": (lambda e, i, t: ({**e, "face": np.full((3, 12), None)}, i, t), TypeError, "experts['face']: expected floats or integers, got dtype object"),
    "array of arrays": (lambda e, i, t: ({**e, "face": _objects(e["face"])}, i, t), TypeError, "experts['face']: expected floats or integers, got dtype object (ndarray); pass list(x) where its objects are arrays"),
    "ind of objects": (lambda e, i, t: (e, {**i, "face": i["face"].astype(object)}, t), TypeError, "ind['face']: expected 0 or 1, got dtype object; pass list(x) where its objects are arrays, x.astype(float)"),
    "text of arrays": (lambda e, i, t: (e, i, _objects(t[:, 0])), ValueError, "or (B, K, W, 24), got (3,); pass list(x) where its objects are arrays"),
    "strings": (lambda e, i, t: ({**e, "face": "face.npy"}, i, t), TypeError, "experts['face']: expected floats or integers, got dtype <U8 (str)"),
    "bool features": (lambda e, i, t: ({**e, "face": np.ones((3, 12), dtype=bool)}, i, t), TypeError, "experts['face']: expected floats or integers, got dtype bool"),
    "bool tensor features": (lambda e, i, t: ({**e, "face": torch.ones(3, 12, dtype=torch.bool)}, i, t), TypeError, "experts['face']: expected floats or integers, got torch.bool"),
    "complex": (lambda e, i, t: ({**e, "face": np.ones((3, 12), dtype=complex)}, i, t), TypeError, "experts['face']: expected floats or integers, got dtype complex128"),
    "complex tensor": (lambda e, i, t: ({**e, "face": torch.ones(3, 12, dtype=torch.cfloat)}, i, t), TypeError, "experts['face']: expected a dense tensor of floats or integers, got torch.complex64"),
    "sparse tensor": (lambda e, i, t: ({**e, "face": torch.ones(3, 12).to_sparse()}, i, t), TypeError, "experts['face']: expected a dense tensor"),
    "a dict of features": (lambda e, i, t: ({**e, "face": {"a": 1}}, i, t), TypeError, "experts['face']: expected floats or integers, got dtype object (dict)"),
    "row of wrong dim": (lambda e, i, t: ({**e, "face": [np.ones(12), np.ones(13), np.ones(12)]}, i, t), ValueError, "experts['face'], row 1: expected (12,), got (13,)"),
    "empty sequence in a list": (lambda e, i, t: ({**e, "ocr": [np.ones((2, 300)), np.ones((0, 300)), None]}, None, t), ValueError, "experts['ocr'], row 1: expected (N, 300) with N >= 1, got (0, 300); a video without this expert is None"),
    "ragged row": (lambda e, i, t: ({**e, "ocr": [[[1.0] * 300, [1.0] * 299]] * 3}, i, t), ValueError, "experts['ocr'], row 0: expected an array, got rows of unequal length"),
    "ind not 0 or 1": (lambda e, i, t: (e, {**i, "face": [1, 2, -1]}, t), ValueError, "ind['face'], rows [1, 2]: expected 0 or 1, got [2.0, -1.0]"),
    "ind fraction": (lambda e, i, t: (e, {**i, "face": torch.tensor([1, 0.5, 1])}, t), ValueError, "ind['face'], row 1: expected 0 or 1, got [0.5]"),
    "ind NaN": (lambda e, i, t: (e, {**i, "face": [NAN, 1, 1]}, t), ValueError, "ind['face'], row 0: expected 0 or 1, got [nan]"),
    "ind too short": (lambda e, i, t: (e, {**i, "face": [1, 1]}, t), ValueError, "ind['face']: expected (3,) for 3 video(s), got shape (2,)"),
    "ind two axes": (lambda e, i, t: (e, {**i, "face": [[1, 1, 1]]}, t), ValueError, "ind['face']: expected (B,), got (1, 3)"),
    "ind scalar for a batch": (lambda e, i, t: (e, {**i, "face": 1}, t), ValueError, "ind['face']: expected (3,) for 3 video(s), got shape ()"),
    "ind strings": (lambda e, i, t: (e, {**i, "face": ["1", "0", "1"]}, t), TypeError, "ind['face']: expected 0 or 1, got dtype <U1"),
    "ind ragged": (lambda e, i, t: (e, {**i, "face": [[1], [1, 0], 1]}, t), ValueError, "ind['face']: expected (B,), got rows of unequal length"),
    "no experts, no ind": (lambda e, i, t: ({}, None, t), ValueError, "experts: expected features of at least one expert (audio, face, motion, ocr)"),
    "text of wrong dim": (lambda e, i, t: (e, i, t[..., :23]), ValueError, "text: expected (B, K, W, 24) with K >= 1 and W >= 1, got (3, 1, 7, 23)"),
    "text with one axis": (lambda e, i, t: (e, i, np.ones(24)), ValueError, "text: expected (W, 24), (B, W, 24) or (B, K, W, 24), got (24,)"),
    "text with five axes": (lambda e, i, t: (e, i, t[None]), ValueError, "text: expected (W, 24), (B, W, 24) or (B, K, W, 24), got (1, 3, 1, 7, 24)"),
    "text strings": (lambda e, i, t: (e, i, "a man sings"), ValueError, "text: expected (W, 24), (B, W, 24) or (B, K, W, 24), got str"),
    "text NaN": (lambda e, i, t: (e, i, changed(t, (1, 0, 2, 3), NAN)), ValueError, "text, row 1: expected finite token embeddings, got NaN, Inf or beyond 1e+15"),
    "text None row": (lambda e, i, t: (e, i, [t[0, 0], None, t[2, 0]]), ValueError, "text, row 1: expected (W, 24) with W >= 1, got None"),
    "text without words": (lambda e, i, t: (e, i, t[:, :, :0]), ValueError, "text: expected (B, K, W, 24) with K >= 1 and W >= 1, got (3, 1, 0, 24)"),
    "text of wrong dim, three axes": (lambda e, i, t: (e, i, t[:, 0, :, :23]), ValueError, "text: expected (B, W, 24) or one (W, 24) with W >= 1, got (3, 7, 23)"),
    "text NaN in one of K": (lambda e, i, t: (e, i, changed(np.repeat(t, 3, axis=1), (1, 2, 0, 0), NAN)), ValueError, "text, row 1 caption 2: expected finite token embeddings"),
    "text empty caption": (lambda e, i, t: (e, i, [t[0, 0], [], t[2, 0]]), ValueError, "text, row 1: expected (W, 24) with W >= 1, got (0,)"),
    "text captions no list": (lambda e, i, t: (e, i, [[t[0, 0]], 5, [t[2, 0]]]), ValueError, "text, row 1: expected the same number of captions K >= 1 in every row (row 0 has 1), got [0]"),
    "too large": (lambda e, i, t: ({**e, "face": changed(e["face"], (1, 4), 1e16)}, i, t), ValueError, "experts['face'], row 1: expected finite features where ind is 1, got NaN, Inf or beyond 1e+15"),
    "empty sequence first": (lambda e, i, t: ({**e, "ocr": [[], *e["ocr"][1:]]}, i, t), ValueError, "experts['ocr'], row 0: expected (N, 300) with N >= 1, got (0,); a video without this expert is None"),
    "masked array": (lambda e, i, t: ({**e, "face": np.ma.masked_invalid(e["face"])}, i, t), TypeError, "experts['face']: expected an array, got a masked one; fill it with NaN"),
    "masked tokens of a list": (lambda e, i, t: ({**e, "ocr": [list(np.ma.masked_invalid(e["ocr"][0]))] * 3}, i, t), TypeError, "experts['ocr'], row 0: expected an array, got a masked one; fill it with NaN"),
    "ind masked": (lambda e, i, t: (e, {**i, "face": np.ma.MaskedArray([1, 1, 1], [0, 1, 0])}, t), TypeError, "ind['face']: expected an array, got a masked one; fill it with 0"),
    "ind masked value": (lambda e, i, t: (e, {**i, "face": [1, np.ma.masked, 1]}, t), TypeError, "ind['face']: expected an array, got a masked one; fill it with 0"),
    "text masked": (lambda e, i, t: (e, i, np.ma.masked_invalid(t)), TypeError, "text: expected an array, got a masked one; leave out the tokens that are masked"),
    "text masked tokens": (lambda e, i, t: (e, i, [list(np.ma.masked_invalid(x[0])) for x in t]), TypeError, "text: expected an array, got a masked one; leave out"),
    "meta tensor": (lambda e, i, t: ({**e, "face": torch.ones(3, 12, device="meta")}, i, t), TypeError, "experts['face']: expected a dense tensor"),
    "nested tensor": (lambda e, i, t: ({**e, "face": torch.nested.nested_tensor([torch.ones(12)] * 3, layout=torch.jagged)}, i, t), TypeError, "experts['face']: expected a dense tensor"),
    "ind sparse": (lambda e, i, t: (e, {**i, "face": torch.ones(3).to_sparse()}, t), TypeError, "ind['face']: expected a dense tensor"),
    "text without captions": (lambda e, i, t: (e, i, t[:, :0]), ValueError, "text: expected (B, K, W, 24) with K >= 1 and W >= 1, got (3, 0, 7, 24)"),
    "text of unequal K": (lambda e, i, t: (e, i, [[t[0, 0]], [t[1, 0]] * 2, [t[2, 0]]]), ValueError, "text, row 1: expected the same number of captions K >= 1 in every row (row 0 has 1), got [2]"),
    "text for other videos": (lambda e, i, t: (e, i, t[:2]), ValueError, "text: expected captions for 3 videos, got 2 rows"),
    "one caption for three": (lambda e, i, t: (e, i, t[0, 0]), ValueError, "text: expected captions for 3 videos, got one caption"),
    "three captions for one": (lambda e, i, t: ({k: x[0] for k, x in e.items()}, None, t), ValueError, "text: expected captions for one video, got 3 rows"),
    "cyclic list": (lambda e, i, t: ({**e, "face": CYCLE}, i, t), ValueError, "experts['face'], row 0: expected an array"),
    "cyclic list of sequences": (lambda e, i, t: ({**e, "ocr": CYCLE}, i, t), ValueError, "experts['ocr'], row 0: expected an array"),
    "deep list": (lambda e, i, t: ({**e, "face": DEEP}, i, t), ValueError, "experts['face'], row 0: expected an array"),
    "deep list of sequences": (lambda e, i, t: ({**e, "ocr": DEEP}, i, t), ValueError, "experts['ocr'], row 0: expected an array"),
    "ind cyclic": (lambda e, i, t: (e, {**i, "face": CYCLE}, t), ValueError, "ind['face']: expected (B,)"),
    "ind deep": (lambda e, i, t: (e, {**i, "face": DEEP}, t), ValueError, "ind['face']: expected (B,)"),
    "text cyclic": (lambda e, i, t: (e, i, CYCLE), ValueError, "text: expected (W, 24), (B, W, 24) or (B, K, W, 24), got lists nested 5 deep or deeper"),
    "text deep": (lambda e, i, t: (e, i, DEEP), ValueError, "text: expected (W, 24), (B, W, 24) or (B, K, W, 24), got lists nested 5 deep or deeper"),
    "a set": (lambda e, i, t: ({**e, "face": {1.0}}, i, t), TypeError, "experts['face']: expected floats or integers, got dtype object (set)"),
    "ind set": (lambda e, i, t: (e, {**i, "face": {0, 1}}, t), TypeError, "ind['face']: expected 0 or 1, got dtype object"),
    "text set": (lambda e, i, t: (e, i, {1.0}), ValueError, "text: expected (W, 24), (B, W, 24) or (B, K, W, 24), got set"),
    "integers beyond float": (lambda e, i, t: ({**e, "face": [[10**400] * 12] * 3}, i, t), TypeError, "experts['face'], row 0: expected floats or integers, got dtype object"),
    "ind beyond float": (lambda e, i, t: (e, {**i, "face": [1, 0, 10**400]}, t), TypeError, "ind['face']: expected 0 or 1, got dtype object"),
    "text beyond float": (lambda e, i, t: (e, i, [[10**400] * 24]), TypeError, "text: expected floats or integers, got dtype object"),
    "no text": (lambda e, i, t: (e, i), TypeError, "an operator with modality=None takes (experts, ind, text): missing a required argument: 'text'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_computation(case, small_op, monkeypatch):
    change, error, words = BAD[case]

    def compute(*_):
        raise AssertionError("computed before the input was checked")

    monkeypatch.setattr(small_op.model, "encode_video", compute)
    monkeypatch.setattr(small_op.model, "encode_text", compute)
    with pytest.raises(error, match=re.escape(words)):
        small_op(*change(*random_inputs(SMALL, 3)))


SIGNALLING = np.array([0x7FA00000, 0x3F800000, 0], dtype=np.uint32).view(np.float32)
SIGNALLING64 = np.array([0x7FF4000000000000, 0, 0], dtype=np.uint64).view(np.float64)


@pytest.mark.parametrize("all_errors", ["warn", "raise"])
def test_numpy_settings_of_the_caller_do_not_count(all_errors, small_op):
    """A number too small for float32 is 0, and a signalling NaN is NaN; neither warns nor raises."""
    experts, ind, text = random_inputs(SMALL, 3)
    tiny = {name: changed(x.astype(np.float64), (0, 0), 1e-310) for name, x in experts.items()}
    zero = {name: changed(x, (0, 0), 0) for name, x in experts.items()}
    missing = changed(np.zeros((3, 12)), (slice(None), 0), SIGNALLING64)
    expected = small_op(zero, ind, changed(text, (0, 0, 0, 0), 0))
    with np.errstate(all=all_errors), warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = small_op(tiny, ind, changed(text.astype(np.float64), (0, 0, 0, 0), 1e-310))
        lists = small_op({name: x.tolist() for name, x in tiny.items()}, ind, text)
        with pytest.raises(ValueError, match=re.escape("ind['face'], row 0: expected 0 or 1, got [nan]")):
            small_op(experts, {**ind, "face": SIGNALLING}, text)
        assert small_op.encode_video({**experts, "face": missing}).available[:, 1].tolist() == [False, True, True]
    for side, other in zip(ours, expected, strict=True):
        assert largest_difference(side, other) == 0
    assert all(np.isfinite(x).all() for x in lists[1].values())


def test_many_bad_rows_are_cut_to_ten():
    experts, ind, _ = random_inputs(SMALL, 40)
    experts["face"][5:] = NAN
    with pytest.raises(ValueError, match=r"rows \[5, 6, 7, 8, 9, 10, 11, 12, 13, 14 ... \(35 in all\)\]"):
        clean_video(experts, ind, SMALL)


def test_a_list_needs_max_tokens():
    config = replace(SMALL, experts=tuple(replace(expert, max_tokens=None) for expert in SMALL.experts))
    experts, _, _ = random_inputs(config, 2)
    with pytest.raises(ValueError, match=r"experts\['audio'\]: a list of sequences needs max_tokens in the config"):
        clean_video({"audio": list(experts["audio"])}, None, config)
    assert clean_video(experts, None, config).available.all()


@pytest.mark.parametrize("max_tokens", [1, 4, None])
def test_texts_of_a_model_that_does_not_pool_them_are_averaged(max_tokens):
    config = replace(SMALL, text=TextConfig(dim=24, clusters=0, max_tokens=max_tokens))
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal((words, 24), dtype=np.float32) for words in (1, 3, 40)]
    counted = 4 if max_tokens == 4 else 37  # as the authors write it, 1 is what averaging leaves
    means = np.stack([x[:counted].mean(0, keepdims=True) for x in texts])
    for lists in (texts, [x.tolist() for x in texts], [torch.from_numpy(x) for x in texts]):
        np.testing.assert_allclose(clean_text(lists, config).tokens.numpy(), means, rtol=0, atol=1e-6)
    assert clean_text([texts, texts], config).batch_shape == (2, 3)
    assert torch.equal(clean_text(list(means), config).tokens, clean_text(means, config).tokens)
    with pytest.raises(ValueError, match=r"expected one averaged vector a text .* a list are averaged"):
        clean_text(np.ones((2, 3, 24)), config)


def test_clean_inputs_are_not_copied_without_need():
    experts, ind, text = random_inputs(SMALL, 2)
    video = clean_video({k: torch.from_numpy(x) for k, x in experts.items()}, ind, SMALL)
    assert video.features["ocr"].data_ptr() == experts["ocr"].ctypes.data
    assert clean_text(text, SMALL).tokens.data_ptr() == text.ctypes.data


def test_wrong_side(small_weights):
    video = CollaborativeExperts(SMALL, small_weights, device="cpu", modality="video")
    with pytest.raises(ValueError, match="holds the video side only"):
        video.encode_text(np.ones((2, 7, 24)))
    with pytest.raises(
        TypeError, match=re.escape("modality='video' takes (experts, ind): too many positional arguments")
    ):
        video({}, None, np.ones((2, 7, 24)))
    text = CollaborativeExperts(SMALL, small_weights, device="cpu", modality="text")
    with pytest.raises(TypeError, match=re.escape("modality='text' takes (text): too many positional arguments")):
        text({}, None)
