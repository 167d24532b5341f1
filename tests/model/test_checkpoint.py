"""Weight files: what loads, what is refused and how it is said, and that nothing half-written stays."""

import errno
import os
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from collaborative_experts import CollaborativeExperts
from collaborative_experts.base.files import replacing
from collaborative_experts.model.cenet import initial_state
from collaborative_experts.model.checkpoint import read_config, read_weights, write_weights
from helpers import SMALL, cenet, random_inputs


def outputs(op):
    return [x for side in op(*random_inputs(SMALL, 3)) for x in side.values()]


def same(op, other):
    return all((a == b).all() for a, b in zip(outputs(op), outputs(other), strict=True))


@pytest.fixture
def state():
    return cenet(SMALL).state_dict()


FILES = ("w.pth", "w.pt", "w.safetensors", "module.safetensors", "nested.pth", "module.pth", "legacy.pth")


@pytest.mark.parametrize("name", FILES)
def test_files_that_load(name, state, small_op, tmp_path):
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(state, path)
    elif name == "module.safetensors":
        save_file({f"module.{key}": x for key, x in state.items()}, path)
    elif name == "nested.pth":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif name == "module.pth":
        torch.save({f"module.{key}": x for key, x in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name != "legacy.pth")
    op = CollaborativeExperts(SMALL, path, device="cpu")
    assert op.pretrained
    assert same(op, small_op)


@pytest.mark.parametrize("is_zip", [True, False])
def test_parameters_with_gradients(is_zip, small_op, tmp_path):
    """`keep_vars=True` writes the parameters themselves; what is read are plain tensors."""
    path = tmp_path / "w.pth"
    state = cenet(SMALL).state_dict(keep_vars=True)
    next(iter(state.values())).note = {"detach": OrderedDict}  # attributes of a parameter are written, too
    next(iter(state.values())).detach = OrderedDict
    assert any(x.requires_grad for x in state.values())
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    assert all(type(x) is torch.Tensor and not x.requires_grad for x in read_weights(path).values())
    op = CollaborativeExperts(SMALL, path, device="cpu")
    assert same(op, small_op)
    op.save(tmp_path / "again.safetensors")
    assert same(CollaborativeExperts(weights_path=tmp_path / "again.safetensors", device="cpu"), small_op)
    assert op.identity == small_op.identity


def test_old_files_with_parameters_no_longer_used(state, small_op, tmp_path):
    state["ce.moe_fc_bottleneck1.weight"] = state["ce.moe_cg.fc.bias"] = torch.ones(2)
    torch.save(state, tmp_path / "old.pth")
    assert same(CollaborativeExperts(SMALL, tmp_path / "old.pth", device="cpu"), small_op)


def test_half_and_double_weights_become_float32(state, small_op, tmp_path):
    save_file({key: x.double() if x.is_floating_point() else x for key, x in state.items()}, tmp_path / "d.safetensors")
    assert same(CollaborativeExperts(SMALL, str(tmp_path / "d.safetensors"), device="cpu"), small_op)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_beside_the_weights(module, state, tmp_path, monkeypatch):
    """Python 3.13 writes them by another name than those before and after."""
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    written = sys.modules[module].PosixPath = type("PosixPath", (), {"__module__": module})
    torch.save({"state_dict": state, "folder": written()}, tmp_path / "w.pth")
    monkeypatch.undo()
    assert read_weights(tmp_path / "w.pth").keys() == state.keys()


@pytest.mark.parametrize("modality", [None, "video", "text"])
def test_saved_weights_give_identical_outputs_without_a_config(modality, small_op, small_weights, tmp_path):
    """A saved file carries its config and both sides, whichever side the operator holds."""
    op = CollaborativeExperts(SMALL, small_weights, device="cpu", modality=modality)
    path = op.save(tmp_path / "saved.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["saved.safetensors"]
    reloaded = CollaborativeExperts(weights_path=path, device="cpu")
    assert reloaded.config == SMALL
    assert same(reloaded, small_op)


def test_tensors_that_share_memory_are_saved(state, small_op, tmp_path):
    both = torch.stack([state["ce.text_GU.0.cg.fc.bias"], state["ce.text_GU.1.cg.fc.bias"]])
    state["ce.text_GU.0.cg.fc.bias"], state["ce.text_GU.1.cg.fc.bias"] = both
    torch.save(state, tmp_path / "shared.pth")
    path = CollaborativeExperts(SMALL, tmp_path / "shared.pth", device="cpu").save(tmp_path / "w.safetensors")
    assert same(CollaborativeExperts(weights_path=path, device="cpu"), small_op)
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_saving_over_its_own_file(small_op, tmp_path):
    path = small_op.save(tmp_path / "own.safetensors")
    op = CollaborativeExperts(weights_path=path, device="cpu")
    op.save(path)
    assert same(CollaborativeExperts(weights_path=path, device="cpu"), small_op)


def test_saving_when_the_source_has_changed_or_gone(small_op, state, tmp_path, monkeypatch):
    """The operator holds its weights folded, so it must not pass off another file's as its own."""
    monkeypatch.chdir(tmp_path)
    path = small_op.save("w.safetensors")
    op = CollaborativeExperts(weights_path=path, device="cpu")
    monkeypatch.chdir(tmp_path.parent)
    op.save(tmp_path / "copy.safetensors")
    write_weights(tmp_path / path, {key: x * 2 for key, x in state.items()}, SMALL)
    with pytest.raises(ValueError, match="this file has changed since the operator was made from it"):
        op.save(tmp_path / "copy.safetensors")
    (tmp_path / path).unlink()
    with pytest.raises(FileNotFoundError, match="there is no such weights file"):
        op.save(tmp_path / "copy.safetensors")


def test_initial_weights_do_not_become_pretrained_by_saving(tmp_path):
    path = CollaborativeExperts(SMALL, device="cpu").save(tmp_path / "w.safetensors")
    assert not CollaborativeExperts(weights_path=path, device="cpu").pretrained


def test_threads_that_save_to_one_path_and_load(small_op, tmp_path):
    torch.save({"state_dict": cenet(SMALL).state_dict()}, tmp_path / "w.pth")

    def both(_):
        small_op.save(tmp_path / "w.safetensors")
        return CollaborativeExperts(SMALL, tmp_path / "w.pth", device="cpu")

    with ThreadPoolExecutor(4) as pool:
        assert all(same(op, small_op) for op in pool.map(both, range(8)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]


def test_outputs_do_not_depend_on_the_file_afterwards(small_op, tmp_path):
    path = small_op.save(tmp_path / "gone.safetensors")
    op = CollaborativeExperts(weights_path=path, device="cpu")
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(op, small_op)


def test_towhees_own_loader_takes_what_save_model_writes(small_op, tmp_path):
    path = small_op.save_model("pytorch", tmp_path / "ce.pth")
    model = cenet(SMALL, seed=9)
    model.load_state_dict(torch.load(path, weights_only=True))
    assert small_op.save_model("safetensors", tmp_path / "ce.safetensors").is_file()
    with pytest.raises(ValueError, match="format: expected one of 'safetensors', 'pytorch', 'onnx', got 'tensorrt'"):
        small_op.save_model("tensorrt")


def test_the_message_lists_every_kind_of_mismatch(state, tmp_path):
    state["extra.weight"] = state.pop("ce.moe_fc.weight")
    state["ce.moe_fc.bias"] = torch.ones(5)
    state["ce.g_reason_1.bias"] = torch.ones(16, dtype=torch.int64)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="these weights are not of this config's model") as error:
        CollaborativeExperts(SMALL, tmp_path / "w.pth", device="cpu")
    for words in (
        "1 missing: ce.moe_fc.weight",
        "1 unexpected: extra.weight",
        "1 mis-shaped: ce.moe_fc.bias (expected (4,), got (5,))",
        "1 of the wrong type: ce.g_reason_1.bias (expected floats, got torch.int64)",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e38])  # the last one's square is infinite
@pytest.mark.parametrize("use_ce", ["pairwise", "triplet"])  # computed by the engine, and by CENet's modules
def test_weights_that_are_no_numbers(value, use_ce, tmp_path):
    config = replace(SMALL, use_ce=use_ce)
    state = initial_state(config)
    state["ce.moe_fc.weight"][1, 2] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: weights: ce\.moe_fc\.weight: expected finite values, got"):
        CollaborativeExperts(config, tmp_path / "w.pth", device="cpu")
    state["ce.moe_fc.weight"][1, 2] = 1e17
    torch.save(state, tmp_path / "w.pth")
    CollaborativeExperts(config, tmp_path / "w.pth", device="cpu")
    name = next(name for name in state if name.endswith("running_var"))
    state[name][0] = -1
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth: weights: {name}: expected variances of at least 0, got -1"):
        CollaborativeExperts(config, tmp_path / "w.pth", device="cpu")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2**25)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as old,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match=r"w\.pth: not a complete PyTorch file: ValueError: refused, its [\d,]+ bytes"):
        read_weights(tmp_path / "w.pth")


def test_initial_weights_larger_than_any_model_are_not_made():
    config = replace(SMALL, shared_dim=2**17)
    with pytest.raises(ValueError, match=r"config: expected a model of at most 2,147,483,648 parameters, got \d"):
        CollaborativeExperts(config, device="cpu")


def test_long_lists_are_cut_to_ten(small_weights):
    with pytest.raises(ValueError, match=r"\d\d+ missing: (\S+, ){10}\.\.\.; \d\d+ mis-shaped: "):
        CollaborativeExperts(weights_path=small_weights, device="cpu")


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


def truncate(path, to):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * to)])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("to", [0, 0.001, 0.5, 0.99])
def test_truncated_files(suffix, to, small_op, tmp_path):
    path = tmp_path / f"w{suffix}"
    small_op.save_model("pytorch" if suffix == ".pth" else "safetensors", path)
    truncate(path, to)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        CollaborativeExperts(SMALL, path, device="cpu")


def test_code_is_never_run(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state, "config": RunsCode()}, tmp_path / "evil.pth")
    torch.save(RunsCode(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    for name in ("evil.pth", "legacy.pth", "plain.pt"):
        with pytest.raises(ValueError, match=f"{name}: refused, loading it would call posix.system; expected a state"):
            CollaborativeExperts(SMALL, tmp_path / name, device="cpu")
    assert not (tmp_path / "executed").exists()


BAD_PATHS = {
    "missing": ("nothing.pth", FileNotFoundError, "there is no such weights file"),
    "folder": ("folder.pth", FileNotFoundError, "there is no such weights file"),
    "suffix": ("weights.onnx", ValueError, "expected a weights file (.safetensors, .pth, .pt), got the suffix '.onnx'"),
    "list": ("list.pth", ValueError, "expected a state dict (names to tensors), got list"),
    "numbers": ("numbers.pth", ValueError, "expected a state dict (names to tensors), got dict"),
}


@pytest.mark.parametrize("case", BAD_PATHS)
def test_bad_paths(case, tmp_path):
    name, error, words = BAD_PATHS[case]
    (tmp_path / "folder.pth").mkdir()
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(error, match=re.escape(words)):
        CollaborativeExperts(SMALL, tmp_path / name, device="cpu")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(small_op, tmp_path):
    path = small_op.save(tmp_path / "w.safetensors")
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_full_disk_is_named(tmp_path):
    """By the file, whatever the library says; other errors stay what they are."""
    path = tmp_path / "w.safetensors"
    message = f"^{re.escape(str(path))}: cannot be written: No space left on device$"
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left on device\nat 1")):
        with pytest.raises(OSError, match=message), replacing(path, RuntimeError):
            raise error
    with pytest.raises(ConnectionError, match="no answer"), replacing(path, RuntimeError):
        raise ConnectionError("no answer")
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written(small_op, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        small_op.save(tmp_path / "no" / "w.safetensors")
    with pytest.raises(ValueError, match=re.escape("weights are written as .safetensors, got the suffix '.pth'")):
        small_op.save(tmp_path / "w.pth")


def test_the_config_in_the_metadata(state, tmp_path):
    path = write_weights(tmp_path / "w.safetensors", state, SMALL)
    assert read_config(path) == SMALL
    assert load_file(path).keys() == state.keys()
    save_file(state, path, {"collaborative_experts.config": "{"})
    with pytest.raises(ValueError, match="its metadata is damaged"):
        read_config(path)
