"""What a site would install: a bill of materials (CycloneDX), and which of it has known vulnerabilities.

``make security`` runs it. Both tools read ``provisioning/requirements.txt``, where every file has its digest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
BILL = Path("workspace") / "sbom.cdx.json"


def main() -> int:
    """Write the bill, look for vulnerabilities, and return 1 where there are any."""
    BILL.parent.mkdir(exist_ok=True)
    bill = [sys.executable, "-m", "cyclonedx_py", "requirements", str(REQUIREMENTS), "--output-file", str(BILL)]
    subprocess.run(
        [*bill, "--pyproject", "pyproject.toml", "--spec-version", "1.6"], check=True, stderr=subprocess.DEVNULL
    )
    print(f"bill of materials: {BILL}")
    audit = [sys.executable, "-m", "pip_audit", "--requirement", str(REQUIREMENTS), "--disable-pip", "--require-hashes"]
    found = subprocess.run([*audit, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(found.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (found.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"NOT LOOKED for known vulnerabilities: {last[:200]}")
        return 0
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        # Without a network it asks in vain; that is no answer.
        print(
            f"NOT LOOKED for known vulnerabilities of {len(unknown)} of {len(packages)} packages: not in the database"
        )
    bad = [package for package in packages if package.get("vulns")]
    for package in bad:
        for known in package["vulns"]:
            fixed = ", ".join(known["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {known['id']}, free of it: {fixed}")
    if not bad and len(unknown) < len(packages):
        print(f"no known vulnerability in {len(packages) - len(unknown)} packages")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
