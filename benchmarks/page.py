"""All benchmarks on this machine, and one page of what they say: `pages/DATE-PROCESSOR/README.md`.

    python benchmarks/page.py [--quick] [--pages FOLDER]

Runs every benchmark that needs no data of yours, one after the other, and keeps what each prints and its line of JSON
in results.json. The page has plots of how costs grow (share of the machine's limit by batch size; a search by videos,
experts, patterns and k; times beside CENet's), and below them every table. Pages of other days and machines stay.
Where a benchmark fails, the page says why, the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from common import machine
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from speed import BATCH_GOAL, SINGLE_GOAL

HERE = Path(__file__).resolve().parent
SCRIPTS = ("speed", "memory", "callers", "retrieval", "index", "export", "serve", "bulk")
COLOURS = {"float32": "#4477aa", "bfloat16": "#ee6677", "float16": "#ccbb44", "int8": "#228833", "CENet": "#bbbbbb"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "page",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that it runs; the figures say nothing"
    )
    parser.add_argument("--pages", type=Path, default=HERE / "pages", help="where the pages are kept")
    options = parser.parse_args()
    results = {"date": datetime.date.today().isoformat(), "quick": options.quick, "machine": machine(), "scripts": {}}
    commands = [[script] for script in SCRIPTS]
    if torch.cuda.is_available():
        results["gpu"] = torch.cuda.get_device_name()
        commands.append(["speed", "--device", "cuda"])
    for command in commands:
        name = " ".join(command)
        results["scripts"][name] = done = run([*command, *(["--quick"] if options.quick else [])])
        print(f"{name}: {done.get('failed', 'done')}, {done['seconds']:.0f} s", flush=True)
    folder = options.pages / page_name(results)
    write_page(results, folder)
    print(folder / "README.md")
    sys.exit(any("failed" in done for done in results["scripts"].values()))


def run(command: Sequence[str]) -> Results:
    """What a benchmark prints, the object of its last line, and the seconds it took; or why it failed."""
    script, *arguments = command
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / f"{script}.py", *arguments], capture_output=True, text=True, check=False
    )
    found = {"seconds": time.perf_counter() - start}
    if done.returncode:
        return found | {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    return found | {"printed": printed, "result": json.loads(last)}


def page_name(results: Results) -> str:
    """Such as 2026-11-28-amd-epyc-avx2."""
    words = " ".join(str(results["machine"][key]) for key in ("processor", "instructions"))
    words = re.sub(r"\((R|TM)\)|CPU|@.*GHz", " ", words, flags=re.I)
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return f"{results['date']}-{slug}{'-quick' if results['quick'] else ''}"


# --- the page ---------------------------------------------------------------------------------------------


def write_page(results: Results, folder: Path) -> None:
    """Write results.json, the plots that it has figures for, and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(rounded(results), indent=1) + "\n")
    plots = []
    for name, (title, draw) in PLOTS.items():
        with mpl.rc_context(STYLE):
            figure = Figure(layout="constrained")
            try:
                draw(figure, results["scripts"])
            except KeyError:  # a benchmark that failed has no figures
                continue
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plots += [f"## {title}", f"![{title}]({name}.svg)"]
    (folder / "README.md").write_text("\n\n".join([*head(results), *plots, *tables(results)]) + "\n")


def rounded(value: Any) -> Any:
    """The same with four digits of each number, which keeps the file small."""
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def head(results: Results) -> list[str]:
    described = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    lines = [f"# Benchmarks, {results['date']}", f"{described}. `make bench`."]
    if results["quick"]:
        lines.append("**A quick run, to see that everything works: the figures say nothing.**")
    if "gpu" not in results:
        lines.append("There is no CUDA device on this machine: nothing here is of a GPU.")
    return lines


def tables(results: Results) -> list[str]:
    """What each benchmark printed."""
    parts = []
    for name, done in results["scripts"].items():
        parts.append(f"## {name}.py, {done['seconds']:.0f} s" if " " not in name else f"## {name}")
        parts.append(f"Failed: `{done['failed']}`" if "failed" in done else f"```text\n{done['printed'].strip()}\n```")
    return parts


# --- plots ------------------------------------------------------------------------------------------------


def draw_limits(figure: Figure, scripts: Results) -> None:
    """Share of the machine's limit by batch size, a line for each number format."""
    figure.set_size_inches(7, 3.2)
    axes = figure.add_subplot()
    for dtype, found in scripts["speed"]["result"]["sweep"].items():
        sizes = [int(size) for size in found]
        shares = [x["of limit"] * 100 for x in found.values()]
        axes.plot(sizes, shares, marker="o", markersize=4, color=COLOURS[dtype], label=dtype)
    axes.plot([1, 1.4], [SINGLE_GOAL * 100] * 2, color="#666666", linestyle="--")
    axes.plot([1.4, max(sizes)], [BATCH_GOAL * 100] * 2, color="#666666", linestyle="--", label="goal")
    measured_at(axes, sizes)
    axes.set(ylim=(0, 100), xlabel="batch size", ylabel="% of the machine's limit")
    axes.legend(frameon=False, loc="lower right")


def draw_search(figure: Figure, scripts: Results) -> None:
    """Milliseconds of one query, by four quantities, beside a line of proportional growth."""
    figure.set_size_inches(9, 2.8)
    panels = figure.subplots(1, 4, sharey=True)
    for axes, (name, found) in zip(panels, scripts["index"]["result"]["sweeps"].items(), strict=True):
        x, y = [int(value) for value in found], list(found.values())
        axes.plot(x, y, marker="o", markersize=4, color=COLOURS["float32"])
        axes.plot(x, [y[0] * value / x[0] for value in x], color=COLOURS["CENet"], linestyle="--", zorder=0)
        measured_at(axes, x)
        axes.set(yscale="log", xlabel=name)
    highest = max(max(found.values()) for found in scripts["index"]["result"]["sweeps"].values())
    panels[0].set(ylabel="ms of one query", ylim=(None, 2 * highest))


def draw_cenet(figure: Figure, scripts: Results) -> None:
    """How many times as fast as CENet each work is, a bar for each number format."""
    rows = scripts["speed"]["result"]["rows"]
    figure.set_size_inches(7, 0.4 + 0.3 * len(rows))
    axes: Axes = figure.add_subplot()
    names = [f"{row['work']}, B={row['size']}, {row['dtype']}" for row in rows]
    ratios = [row["cenet"] / row["ours"] for row in rows]
    bars = axes.barh(names, ratios, color=[COLOURS[row["dtype"]] for row in rows])
    axes.bar_label(bars, [f"{ratio:.1f}x" for ratio in ratios], padding=3)
    axes.axvline(1, color="#666666", linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as CENet")


def measured_at(axes: Axes, values: list[int]) -> None:
    """A logarithmic axis whose ticks are the values that were measured."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{x // 1000:,}k" if x >= 1000 else str(x) for x in values])
    axes.minorticks_off()


Draw = Callable[[Figure, Results], None]
PLOTS: dict[str, tuple[str, Draw]] = {
    "limits": ("Share of the machine's limit by batch size (both sides)", draw_limits),
    "search": ("Cost of a search by videos, experts, patterns and k (dashed: in proportion)", draw_search),
    "cenet": ("Beside CENet", draw_cenet),
}


if __name__ == "__main__":
    main()
