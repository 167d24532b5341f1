"""The fast engine against the modules of CENet: subsets and orders of experts, chunk borders, number formats."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collaborative_experts import CEConfig, ExpertConfig, TextConfig
from collaborative_experts.base.linear import FEWEST_ROWS, int8_linear, int8_rows, packed_linear, spare_rows
from collaborative_experts.model.cenet import CEModel, initial_state, meta_model
from collaborative_experts.model.engine import CHUNK, Engine, check_dtype, supports
from collaborative_experts.model.graphs import MOST_GRAPHS
from collaborative_experts.model.kernels import negated_mish
from helpers import SMALL, cenet, cosines, largest_difference, random_inputs

CPU = torch.device("cpu")
SUMMED = replace(SMALL, use_ce="", mimic_ce_dims=True, summed_dim=5)


def pair(config, dtype="float32", **settings):
    """The engine and CENet's modules in float64 with the same weights, BatchNorms included."""
    state = initial_state(config)
    generator = torch.Generator().manual_seed(1)
    for name, x in state.items():
        if name.endswith("running_var"):
            x.uniform_(0.5, 2, generator=generator)
        elif "batch_norm" in name and x.is_floating_point():
            x.normal_(0.5, 0.5, generator=generator)
    reference = CEModel(config)
    reference.load_state_dict(state, strict=False)
    return Engine(config, state, dtype=dtype, **settings), reference.double()


def clean(config, videos, share_missing=0.0, seed=0):
    experts, _, text = random_inputs(config, videos, seed=seed)
    available = torch.from_numpy(np.random.default_rng(seed).random((videos, len(experts))) >= share_missing)
    features = {}
    for i, (name, x) in enumerate(experts.items()):
        features[name] = torch.from_numpy(x)
        features[name][~available[:, i]] = 0
    return features, available, torch.from_numpy(text).flatten(0, 1)


def worst(engine, reference, features, available, tokens):
    """Both ways to compute videos are looked at: what is available, as on CPU, and all of it, as on a GPU."""
    with torch.inference_mode():
        exact = reference.encode_video({name: x.double() for name, x in features.items()}, available)
        video = largest_difference(engine.encode_video(features, available), exact)
        unread = [x.masked_fill(~available[:, i].view(-1, *[1] * (x.ndim - 1)), torch.nan)
                  for i, x in enumerate(features.values())]  # fmt: skip
        masked = engine.encode_video.embed_masked(available, *unread)
        video = max(video, largest_difference(dict(zip(exact, masked, strict=True)), exact))
        (embds, weights), (their_embds, their_weights) = (
            engine.encode_text(tokens),
            reference.encode_text(tokens.double()),
        )
    return max(video, largest_difference(embds, their_embds), float((weights - their_weights).abs().max()))


@pytest.mark.parametrize("videos", [1, 2, 64, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 700])
@pytest.mark.parametrize("share_missing", [0, 0.4, 0.95])
@pytest.mark.parametrize("config", [SMALL, SUMMED], ids=["pairwise", "summed"])
def test_across_chunk_borders(config, videos, share_missing):
    engine, reference = pair(config)
    assert worst(engine, reference, *clean(config, videos, share_missing)) < 1e-6


experts_of_any_kind = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 4), st.sampled_from(["a", "b.c", "keys", "ocr", "ü"])),
    min_size=2,
    max_size=5,
    unique_by=lambda expert: expert[2],
)


@settings(max_examples=60, deadline=None)
@given(
    experts=experts_of_any_kind,
    use_ce=st.sampled_from(["pairwise", ""]),
    switches=st.fixed_dictionaries(
        {
            name: st.booleans()
            for name in ("mimic_ce_dims", "include_self", "use_mish", "use_bn_reason", "freeze_weights")
        }
    ),
    num_g_layers=st.integers(1, 4),
    summed_dim=st.integers(0, 8),
    videos=st.integers(1, 9),
    share_missing=st.sampled_from([0, 0.3, 0.7, 1]),
    seed=st.integers(0, 99),
)
def test_any_model(experts, use_ce, switches, num_g_layers, summed_dim, videos, share_missing, seed):
    config = CEConfig(
        experts=tuple(ExpertConfig(name, dim, clusters) for dim, clusters, name in experts),
        text=TextConfig(dim=5, clusters=2, ghost_clusters=seed % 3),
        shared_dim=8,
        use_ce=use_ce,
        num_g_layers=num_g_layers,
        summed_dim=summed_dim if switches["mimic_ce_dims"] and not use_ce else 0,
        **switches,
    )
    assert supports(config)
    engine, reference = pair(config)
    assert worst(engine, reference, *clean(config, videos, share_missing, seed)) < 1e-5


def test_the_last_numbers_are_summed_over_the_experts_of_a_video():
    """As the config says, in plain numpy."""
    experts = tuple(ExpertConfig(name, dim) for name, dim in (("a", 3), ("b", 5), ("c", 4)))
    config = replace(SUMMED, experts=experts, shared_dim=7, summed_dim=2)
    weights = {name: x.double().numpy() for name, x in initial_state(config).items()}
    features, available, _ = clean(config, 6)
    available[0], available[1:4, 1], available[2:5, 2] = False, False, False
    reduced = []
    for i, x in enumerate(features.values()):
        fc = f"ce.video_dim_reduce.{i}.fc"
        reduced.append(x.double().numpy() @ weights[f"{fc}.weight"].T + weights[f"{fc}.bias"])
    total = sum(x[:, 5:] * there[:, None] for x, there in zip(reduced, available.T.numpy(), strict=True))
    state = initial_state(config)
    model = CEModel(config)
    model.load_state_dict(state, strict=False)
    embds = [model.encode_video(features, available), Engine(config, state).encode_video(features, available)]
    for i, (x, there) in enumerate(zip(reduced, available.T.numpy(), strict=True)):
        x = unit(np.hstack([x[:, :5], total]))[there]
        gate = x @ weights[f"ce.video_GU.{i}.cg.fc.weight"].T + weights[f"ce.video_GU.{i}.cg.fc.bias"]
        expected = unit(x / (1 + np.exp(-gate / np.sqrt(1 + 1e-5))))
        for found in embds:
            np.testing.assert_allclose(found["abc"[i]][there].detach(), expected, atol=1e-6)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_moee_with_its_own_dimensions():
    own = tuple(replace(expert, output_dim=5 + i) for i, expert in enumerate(SMALL.experts))
    config = replace(SMALL, experts=own, use_ce="")
    engine, reference = pair(config)
    assert worst(engine, reference, *clean(config, 6, 0.3)) < 1e-6


def test_one_side_pops_only_its_own_weights():
    for side in ("video", "text"):
        weights = initial_state(SMALL)
        Engine(SMALL, weights, side)
        other = set(meta_model(SMALL, "text" if side == "video" else "video").state_dict())
        assert {name for name in weights if not name.endswith("num_batches_tracked")} == {
            name for name in other if not name.endswith("num_batches_tracked")
        }


def test_the_engine_keeps_no_view_of_the_weights():
    """A weights file may be a mapped one that changes later."""
    weights = initial_state(SMALL)
    kept = dict(weights)
    engine = Engine(SMALL, weights)
    inputs = clean(SMALL, 3, 0.4)
    before = engine.encode_video(*inputs[:2]), engine.encode_text(inputs[2])[0]
    for x in kept.values():
        x.fill_(7)
    after = engine.encode_video(*inputs[:2]), engine.encode_text(inputs[2])[0]
    assert all(largest_difference(a, b) == 0 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_engine_that_nobody_holds_is_gone_at_once(dtype):
    """Its weights are large; they are not to wait for Python's collector of cycles."""
    engine, _ = pair(SMALL, dtype)
    engine.encode_video(*clean(SMALL, 2)[:2])
    sides = [weakref.ref(engine.encode_video), weakref.ref(engine.encode_text)]
    gc.disable()
    try:
        del engine
        assert [side() for side in sides] == [None, None]
    finally:
        gc.enable()


# --- number formats -----------------------------------------------------------------------------------


def test_where_a_number_format_is_refused(monkeypatch):
    star = replace(SMALL, use_ce="pairwise-star")
    with pytest.raises(ValueError, match="'bfloat16' is for use_ce 'pairwise' and '' without h layers"):
        check_dtype(star, "bfloat16", CPU)
    check_dtype(star, "float32", CPU)
    with pytest.raises(ValueError, match="'int8' is not for cuda"):
        check_dtype(SMALL, "int8", torch.device("cuda"))
    check_dtype(SMALL, "float16", torch.device("cuda"))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="this processor has no fast bfloat16"):
        check_dtype(SMALL, "bfloat16", CPU)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'int8' needs a PyTorch with oneDNN"):
        check_dtype(SMALL, "int8", CPU)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_gpu(engine, features, available, tokens):
    """Embeddings of both sides and expert weights, by name, back on the CPU."""
    with torch.no_grad():
        video = engine.encode_video({name: x.cuda() for name, x in features.items()}, available.cuda())
        text, weights = engine.encode_text(tokens.cuda())
    return {name: x.cpu() for name, x in (video | {f"text {k}": x for k, x in text.items()} | {"": weights}).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_as_a_gpu_computes(dtype, monkeypatch):
    """Its way, products and number formats, on the CPU: with features far from 0, experts that are missing, and a
    cluster that hardly any token belongs to, which half precision would round to nothing."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    config = replace(SMALL, standardise=True)
    state = initial_state(config)
    for name, x in state.items():
        if name.startswith("standardise"):
            x.fill_(100 if name.endswith("mean") else 1e-3)
    state["pooling.audio.batch_norm.bias"][0] = 20
    state["text_pooling.batch_norm.bias"][0] = 20
    reference = CEModel(config)
    reference.load_state_dict(state, strict=False)
    engine = Engine(config, state, dtype=dtype)
    features, available, tokens = clean(config, 8, 0.4)
    features = {name: x * 1e-3 + 100 for name, x in features.items()}
    with torch.no_grad():
        exact = reference.double().encode_video({name: x.double() for name, x in features.items()}, available)
        video = dict(zip(exact, engine.encode_video.embed_masked(available, *features.values()), strict=True))
        assert cosines(video, exact).min() > {"float32": 0.9999, "bfloat16": 0.999, "float16": 0.9999}[dtype]
        exact, _ = reference.encode_text(tokens.double())
        *text, weights = engine.encode_text.embed(tokens)
        assert cosines(dict(zip(exact, text, strict=True)), exact).min() > 0.999
        assert weights.isfinite().all()


@cuda
@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("float32", 0.999999, 1e-6), ("bfloat16", 0.9995, 0.05), ("float16", 0.9995, 0.01)]
)
@pytest.mark.parametrize("config", [SMALL, SUMMED], ids=["pairwise", "summed"])
def test_cuda(config, dtype, least, most):
    """Each batch three times: computed as it comes, then captured, then replayed from a graph."""
    engine, reference = pair(config, dtype, device="cuda")
    assert on_gpu(engine, *clean(config, 0))[""].shape == (0, len(config.experts))
    for videos in (1, 3, 8, 64, 65, CHUNK + 1):
        for seed in range(3):
            features, available, tokens = clean(config, videos, 0.4, seed)
            with torch.inference_mode():
                theirs = reference.encode_video({name: x.double() for name, x in features.items()}, available)
                their_text, their_weights = reference.encode_text(tokens.double())
            ours = on_gpu(engine, features, available, tokens)
            assert (ours.pop("") - their_weights).abs().max() < most
            exact = theirs | {f"text {name}": x for name, x in their_text.items()}
            assert cosines(ours, exact).min() > least
            assert largest_difference(ours, exact) < most


@cuda
@pytest.mark.parametrize("warm", [True, False])
def test_cuda_threads_and_streams_give_the_same_numbers(warm):
    """Graphs captured before, or by the threads at once; callers in inference mode and out of it."""
    engine, reference = pair(SMALL, device="cuda")
    batches = [clean(SMALL, 1 + 30 * (seed % 4), 0.3, seed) for seed in range(24)] * 3
    if warm:
        for batch in batches:
            on_gpu(engine, *batch)

    def run(numbered):
        number, batch = numbered
        with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode(number % 2 == 0):
            return on_gpu(engine, *batch)

    with ThreadPoolExecutor(8) as pool:
        for ours, (features, available, tokens) in zip(pool.map(run, enumerate(batches)), batches, strict=True):
            with torch.no_grad():
                exact = reference.encode_video({name: x.double() for name, x in features.items()}, available)
                text, weights = reference.encode_text(tokens.double())
            exact |= {f"text {name}": x for name, x in text.items()} | {"": weights}
            assert largest_difference(ours, exact) < 1e-6


@cuda
def test_cuda_with_more_shapes_than_graphs():
    engine, reference = pair(SMALL, device="cuda")
    for tokens in (torch.randn(1, words, SMALL.text.dim) for words in range(1, MOST_GRAPHS + 5)):
        with torch.no_grad():
            exact = reference.encode_text(tokens.double())[0]
            for _ in range(3):
                ours = {name: x.cpu() for name, x in engine.encode_text(tokens.cuda())[0].items()}
                assert largest_difference(ours, exact) < 1e-6


# --- kernels ------------------------------------------------------------------------------------------


def test_negated_mish():
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, 1e-30, -1e-30, 1e38, -1e38])])
    exact = torch.nn.functional.mish(x.double())
    ours = negated_mish(-x)
    assert ((ours - exact).abs() <= 3e-7 * x.abs().clamp_min(1)).all()


@pytest.mark.parametrize("rows", [1, 8, 9, 300])
def test_packed_layers(rows):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((rows, 96), (40, 96), (40,)))
    exact = x.double() @ weight.double().T + bias
    assert (packed_linear(weight, bias, torch.float32, CPU)(x) - exact).abs().max() < 2e-5
    assert (packed_linear(weight, None, torch.float32, CPU)(x) - (exact - bias)).abs().max() < 2e-5


def test_spare_rows_leave_the_given_ones():
    for rows in range(FEWEST_ROWS + 2):
        x = torch.rand(rows, 4)
        padded = spare_rows(x)
        assert len(padded) == max(rows, FEWEST_ROWS)
        assert torch.equal(padded[:rows], x)
        assert not padded[rows:].any()


@pytest.mark.parametrize("rows", [1, 3, 4, 300])
@pytest.mark.parametrize("columns", [1, 5, 16, 40, 300, 1000, 96])
def test_int8_layers_of_any_width(rows, columns):
    """Next to the exact product, and much nearer to that with rounded weights: the rows lose next to nothing."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((rows, columns), (40, columns), (40,)))
    x[0] *= 1000
    ours = int8_linear(weight, bias, torch.float32)(int8_rows(x))[:rows].double() - bias
    scale = weight.abs().amax(1, keepdim=True).double() / 127
    rounded = (weight / scale).round() * scale
    for exact, close in ((weight.double(), 2e-2), (rounded, 5e-4)):
        wanted = x.double() @ exact.T
        assert ((ours - wanted).norm(dim=1) / (x.double().norm(dim=1) * exact.norm())).max() < close


def test_int8_at_its_extremes():
    """All products as large as they can be: an overflow anywhere would show."""
    x = torch.ones(2, 4096)
    x[1] = -1
    weight = torch.ones(3, 4096)
    weight[1] = -1
    weight[2, ::2] = -1
    ours = int8_linear(weight, torch.zeros(3), torch.float32)(int8_rows(x))[:2]
    assert torch.allclose(ours, x @ weight.T, rtol=1e-5)
    assert not int8_linear(weight, torch.zeros(3), torch.float32)(int8_rows(torch.zeros(1, 4096)))[:1].any()


def test_int8_rows_do_not_depend_on_their_neighbours():
    x = torch.randn(20, 70, generator=torch.Generator().manual_seed(0))
    layer = int8_linear(torch.randn(8, 70, generator=torch.Generator().manual_seed(1)), torch.zeros(8), torch.float32)
    together = layer(int8_rows(x))
    # The sums are integers and exact. Their scaling may round its last bit by the shape of the product (AMX tiles do).
    tolerance = float(together.abs().max()) * 2**-22
    for i in range(20):
        torch.testing.assert_close(layer(int8_rows(x[i : i + 1]))[0], together[i], rtol=0, atol=tolerance)


# --- threads ------------------------------------------------------------------------------------------


def test_threads_give_the_same_numbers():
    engine, _ = pair(SMALL)
    batches = [clean(SMALL, 1 + 90 * (seed % 4), 0.3, seed) for seed in range(24)]

    def run(batch):
        with torch.inference_mode():
            return engine.encode_video(*batch[:2]), engine.encode_text(batch[2])[0]

    expected = [run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for ours, wanted in zip(pool.map(run, batches), expected, strict=True):
            assert all(largest_difference(a, b) == 0 for a, b in zip(ours, wanted, strict=True))


def test_forms_that_run_through_cenet():
    for changes in ({"use_ce": "triplet"}, {"use_ce": "pairwise-star"}, {"num_h_layers": 1}):
        config = replace(SMALL, **changes)
        assert not supports(config)
        assert cenet(config).state_dict().keys() == meta_model(config).state_dict().keys()
