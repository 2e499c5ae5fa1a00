"""Students of several widths: their scores, and the latency of each on this machine.

    python -m benchmarks.smaller [--config=smaller:demo] [--workdir=DIR] [--length=1000] [--output=FILE.json]

This trains `--config`, or continues it, and then calls each student of the table with one video of `length` snippets,
as `kd_jax.load` returns it: the checks, one forward pass, and the probabilities.
"""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

import kd_jax
from benchmarks import measuring
from kd_jax.evaluation.intervals import describe_gain
from kd_jax.files import require_json


def main(arguments, shape):
    workdir = Path(arguments.workdir)
    command = [sys.executable, "-m", "kd_jax.main", f"--config={arguments.config}", f"--workdir={workdir}"]
    subprocess.run([*command, "--noreport", *arguments.override], check=True, stdout=sys.stderr)
    results = require_json(workdir / "results.json", "train the experiment again")
    baseline = next(row for row in results["rows"] if row["run"] == results["baseline"])
    rows = [row for row in results["rows"] if row["modality"] == baseline["modality"] and not row["members"]]
    runs = {row["run"]: kd_jax.load(workdir / row["run"]) for row in rows}
    ((_, size),) = next(iter(runs.values())).inputs.items()
    features = np.random.default_rng(0).standard_normal((shape["length"], size), np.float32)
    calls = {name: (lambda run=run: run(features)) for name, run in runs.items()}
    medians, _ = measuring.alternate(calls, arguments.repeats)
    title, found = results["gain_of"], []
    for row in rows:
        (member,) = runs[row["run"]].members
        found.append(
            {
                "run": row["run"],
                "H": member.model.hidden,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(member.variables["params"])),
                title: float(np.mean(row["scores"][title])),
                "gain": f"{describe_gain(row['gain'])} over {row['baseline']}" if row["gain"] else "–",
                "ms": 1000 * medians[row["run"]],
            }
        )
    return "smaller", found, {"config": arguments.config, "seeds": len(results["seeds"]), "snippets": shape["length"]}


if __name__ == "__main__":
    flags.DEFINE_string("config", "smaller", "Experiment, as for kd-jax train.")
    flags.DEFINE_string("workdir", "workdir/smaller", "Folder of the experiment.")
    flags.DEFINE_multi_string("override", [], "Further options of kd-jax train.")
    measuring.run(main, repeats=9, length=1000)
