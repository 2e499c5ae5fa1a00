"""Requirements have lower bounds, which `.ci/oldest` installs, and `.ci/audit` fails for a vulnerability only."""

import configparser
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_requirement_of_users_has_a_lower_bound():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    tools = config["options.extras_require"]["test"].split()
    requirements = subprocess.check_output([sys.executable, ROOT / ".ci" / "requirements"], text=True).splitlines()
    assert "jax>=0.10" in requirements and "av>=18.1" in requirements
    assert [line for line in requirements if ">=" not in line and line not in tools] == []


SAFE = {"name": "numpy", "version": "2.0.0", "vulns": []}
UNKNOWN = {"name": "jax", "skip_reason": "not found on PyPI"}
VULNERABLE = {"name": "pillow", "version": "9.0", "vulns": [{"id": "CVE-2023-1", "fix_versions": ["10.0"]}]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SAFE, UNKNOWN], 0, "1 packages were audited; PyPI does not know jax"),
        ([SAFE, VULNERABLE], 1, "pillow 9.0 has CVE-2023-1, fixed in 10.0"),
        ([UNKNOWN], 0, "PyPI's advisories cannot be reached; nothing was audited"),
        (None, 0, "PyPI's advisories cannot be reached; nothing was audited"),
    ],
    ids=["safe", "vulnerable", "no advisories", "offline"],
)
def test_audit_fails_for_a_vulnerability_only(tmp_path, packages, code, said):
    answer = json.dumps({"dependencies": packages}) if packages else ""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    program = f"#!/bin/sh\nprintf '%s' '{answer}'\nexit 1\n"
    (tmp_path / "bin" / "pip-audit").write_text(program)
    (tmp_path / "bin" / "pip-audit").chmod(0o755)
    result = subprocess.run([ROOT / ".ci" / "audit"], env={"VENV": str(tmp_path)}, capture_output=True, text=True)
    assert (result.returncode, said in result.stdout) == (code, True), result.stdout + result.stderr
    assert "numpy>=2.0" in (tmp_path / "requirements.txt").read_text().splitlines()
