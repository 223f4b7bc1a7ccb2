"""One open loop past what the server gives: `python benchmarks/overload.py OUTPUT`; it takes 80 seconds.

Runs workloads/overload.toml and writes OUTPUT.md with the table and OUTPUT.svg with both latencies over time:
from when a request was due, and from when it was sent. Where Chromium is found, OUTPUT.png shows the report.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from decant.files import write_text
from decant.hardware import provenance
from decant_bench.bench_plots import time_plot
from decant_bench.bench_result import BenchFolder, read_bench
from decant_bench.bench_text import result_text

_WORKLOAD = Path(__file__).with_name("workloads") / "overload.toml"
# The workload names what it serves from here.
_ROOT = _WORKLOAD.parents[2]
_LIMIT_S = 170.0
# Whoever looks at the file alone, on a light page or a dark one, needs its own colours and ground.
_STYLE = """<style>
svg { background: #fff; font: 12px system-ui, "Liberation Sans", Arial, sans-serif; fill: #221c1f }
.tick, .axis { fill: #6b6267 } .grid { stroke: #eee8e4 } .window { fill: #eef4ea } .bar { fill: var(--c) }
.dot { fill: var(--c); opacity: .6 } .s0 { --c: #7a1f3d } .s2 { --c: #2f6db5 } .s3 { --c: #8a8f98 }
</style>"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the load and writes what came of it; 2 when it did not run."""
    parser = argparse.ArgumentParser(prog="python benchmarks/overload.py", description=__doc__)
    parser.add_argument("output", type=Path, help="file name without its suffix")
    output: Path = parser.parse_args(arguments).output
    config = str(_WORKLOAD.relative_to(_ROOT))
    command = [sys.executable, "-m", "decant", "bench", "run", "--config", config]
    if subprocess.run(command, timeout=_LIMIT_S, check=False, cwd=_ROOT).returncode not in (0, 3):
        return 2
    folder = _ROOT / "runs" / "overload"
    run = read_bench(folder)
    write_text(output.with_suffix(".svg"), standalone(time_plot(run.requests, None)))
    write_text(output.with_suffix(".md"), page(run, output.name))
    screenshot(folder / "report.html", output.with_suffix(".png"))
    return 0


def standalone(plot: str) -> str:
    """A plot of the report as a file of its own."""
    head, rest = plot.split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}>{_STYLE}{rest}\n"


def page(run: BenchFolder, name: str) -> str:
    """What came of it, in Markdown."""
    facts = provenance(Path(__file__).parent)
    machine, load, slots = facts["hardware"], run.result.load, run.result.config["in_flight"]
    answer = json.loads((_WORKLOAD.with_name("half-second.json")).read_text(encoding="utf-8"))["answers"][0]
    takes_s = answer["ttft_s"] + answer["gaps_s"][0] * (len(answer["chunks"]) - 1)
    asked = (
        f"An answer takes {1000 * takes_s:.0f} ms and {slots} may be in flight: {slots / takes_s:.1f} answers"
        f" a second. Due are {load['rate']:g} a second ({load['arrival']} arrivals)."
    )
    seen = (
        "From sent (blue) the server looks as fast at the end as at the start. From due (dark) each request"
        " also waits for those before it, and that is what a user meets."
    )
    lines = [
        *("# Past what the server gives", "", asked, ""),
        *(f"![latency from due and from sent over time]({name}.svg)", "", seen),
        "",
        f"```text\n{result_text(run.result)}\n```",
        "",
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"- commit {facts['commit']}, command `python benchmarks/overload.py OUTPUT`, one run",
    ]
    return "\n".join(lines) + "\n"


def screenshot(report: Path, output: Path) -> None:
    """The report as Chromium shows it; nothing, and a word about it, where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.stderr.write("overload: no chromium on the PATH, so no picture of the report\n")
        return
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
    size = ("--window-size=1280,2250", "--force-device-scale-factor=0.6")
    look = (f"--screenshot={output}", *size, report.as_uri())
    subprocess.run([chromium, *quiet, *look], timeout=60, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
