"""Known vulnerabilities of the installed dependencies, by pip-audit.

Fails if it finds one. Where no database can be reached, which is no fault of a commit, it says so.
"""

import json
import subprocess
import sys

COMMAND = (sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off")
LIMIT_S = 120


def main() -> None:
    """Install pip-audit, ask it, print what it found."""
    install = (sys.executable, "-m", "pip", "install", "--quiet", "pip-audit")
    try:
        subprocess.run(install, check=True, capture_output=True, timeout=LIMIT_S)
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=LIMIT_S)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.SubprocessError, ValueError) as error:
        print(f"dependency audit: not done here: {error}")
        return
    for package in packages:
        for one in package.get("vulns", ()):
            fixed = ", ".join(one["fix_versions"]) or "none yet"
            print(f"{package['name']} {package['version']}: {one['id']}, fixed in {fixed}")
    known = sum("vulns" in package for package in packages)
    print(f"dependency audit: {known} of {len(packages)} packages could be looked up")
    sys.exit(any(package.get("vulns") for package in packages))


if __name__ == "__main__":
    main()
