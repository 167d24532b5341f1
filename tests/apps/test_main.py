"""The command line as a whole: help, exit statuses, one line an error, and what it imports."""

import gc
import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from collaborative_experts import CollaborativeExperts
from collaborative_experts import __main__ as commands
from collaborative_experts.__main__ import VERBS, main
from collaborative_experts.apps.describe import show

CONFIG = {"experts": {"motion": 12, "sound": 7}, "text": {"dim": 6, "clusters": 1}, "use_ce": "", "shared_dim": 8}


@pytest.fixture
def verb(monkeypatch):
    """A verb `try`, whose work is the function that the test hands over."""

    def install(work):
        module = SimpleNamespace(add_arguments=lambda parser: None, run_command=lambda options: work())
        monkeypatch.setattr(commands, "VERBS", {"try": ("embed", "a verb of the test")})
        monkeypatch.setattr(commands, "import_module", lambda *_: module)

    return install


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"example: python -m collaborative_experts {name} " in printed
    assert VERBS[name][1][1:] in printed


def test_help_imports_no_verb():
    code = (
        "import sys; sys.argv = ['collaborative-experts', '--help']\n"
        "from collaborative_experts.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print([name for name in sys.modules if name == 'torch' or '.apps.' in name])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: collaborative-experts [-h] VERB ...")
    assert all(f"    {name} " in done.stdout for name in VERBS)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("outcome", ["return 0", "return 130", "raise ValueError", "sys.exit('why')", "sys.exit(2)"])
def test_the_process_ends_with_its_exit_functions(outcome):
    """What they print is seen, and the status stays; nothing is taken down that would have to be searched for."""
    code = f"""
import atexit, os, sys
from collaborative_experts import __main__
class Garbage:
    def __del__(self): print("taken down")
def main():
    atexit.register(print, "exit function")
    if not os.fork(): sys.exit(7)
    print("forked", os.waitstatus_to_exitcode(os.wait()[1]))
    {outcome}
__main__.main, kept = main, Garbage()
sys.exit(__main__.run())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == {"return 130": 130, "sys.exit(2)": 2, "return 0": 0}.get(outcome, 1)
    assert done.stdout.splitlines()[-2:] == ["forked 7", "exit function"]


@pytest.mark.parametrize("arguments", [[], ["serach"], ["describe"], ["describe", "x", "--no-such-option"]])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (ValueError("too\n  many\n\nlines"), "error: too; many; lines\n"),
        (RuntimeError(), "error: RuntimeError\n"),
        (ImportError("install it"), "error: install it\n"),
    ],
)
def test_an_error_is_one_line_and_status_1(verb, error, printed, capsys):
    def fail():
        raise error

    verb(fail)
    assert main(["try"]) == 1
    assert capsys.readouterr().err == printed


def test_a_warning_is_one_line(verb, capsys):
    def warn():
        sys.stderr.write(warnings.formatwarning(UserWarning("look here"), UserWarning, "somewhere.py", 7, "x = 1"))
        return 0

    usual, threshold = warnings.formatwarning, gc.get_threshold()
    verb(warn)
    assert main(["try"]) == 0
    assert capsys.readouterr().err == "warning: look here\n"
    assert (warnings.formatwarning, gc.get_threshold()) == (usual, threshold)


def test_ctrl_c_is_status_130(verb, capsys):
    def interrupt():
        raise KeyboardInterrupt

    verb(interrupt)
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_the_output_has_no_letters_for_is_escaped():
    code = (
        "from types import SimpleNamespace\n"
        "from collaborative_experts import __main__ as commands\n"
        "tell = lambda options: print('caf\\xe9 \\udce9')\n"
        "commands.import_module = lambda *_: SimpleNamespace(add_arguments=id, run_command=tell)\n"
        "commands.main(['embed'])"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("caf\\xe9 \\udce9\n", "")


def test_a_reader_that_has_seen_enough():
    """`| head -1` brings no traceback."""
    command = f"'{sys.executable}' -W ignore -m collaborative_experts fetch --list | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_describe_as_json(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    op = CollaborativeExperts(CONFIG, device="cpu")
    op.save(path)
    assert main(["describe", str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["config"] == op.config.to_dict()
    assert content["output_dims"] == {"motion": 8, "sound": 8}
    assert main(["describe", str(path)]) == 0
    printed = capsys.readouterr().out
    assert content["sha256"] in printed
    assert "  sound   7 (fixed) -> 8" in printed
    content["notes"] = {"encoder": {"name": "letters", "probe": [0.1, 0.2]}, "metrics": {"r1": 100 / 3, "epoch": 2}}
    content["notes"]["training"] = {"steps": None, "seed": 0}
    printed = show(content)
    assert "encoder     name letters\n" in printed
    assert "metrics     r1 33.3333, epoch 2\n" in printed
    assert "training    seed 0\n" in printed  # without what is not set


@pytest.mark.parametrize(
    ("change", "form"),
    [
        ({"use_ce": "pairwise"}, "collaborative experts (pairwise)"),
        ({"use_ce": "", "freeze_weights": True}, "mixture of embedding experts, equal weights"),
        (
            {"use_ce": "", "mimic_ce_dims": True, "summed_dim": 3},
            "mixture of embedding experts with reduced dimensions, 3 numbers summed over experts",
        ),
        ({"use_ce": "", "concat_experts": True}, "concatenation"),
    ],
)
def test_describe_tells_the_form(change, form, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    CollaborativeExperts(CONFIG | change, device="cpu").save(path)
    assert main(["describe", str(path)]) == 0
    assert f"form        {form}\n" in capsys.readouterr().out


def test_fetch_passes_its_options_on(capsys):
    assert main(["fetch", "--list", "didemo"]) == 0
    assert "didemo" in capsys.readouterr().out
    assert main(["fetch", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err
    assert main(["fetch", "msvd-train-full-ce", "--list"]) == 1
    assert "expected a name, --url or --list, got 'msvd-train-full-ce' beside" in capsys.readouterr().err
