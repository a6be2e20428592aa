"""A plan over eight networks: on this machine, then again through a local Ray cluster: ``demo.py FOLDER``.

The second run finds every step done. So that Ray is seen at work too, it then folds all networks into another store.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def convbn(folder: Path, *arguments: str) -> None:
    """Run the command line in the folder; what fails ends the demo."""
    print("$ convbn", " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "convbn", *arguments], cwd=folder, check=True)


def counts(folder: Path) -> dict[str, int]:
    """Of the last run, how many steps were done, cached, failed and cancelled."""
    found: dict[str, int] = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))["counts"]
    return found


def main(folder: Path) -> int:
    """Exit code 0 if the first run did every step and the second none."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, str(HERE / "networks.py"), str(folder / "models")], check=True)
    shutil.copyfile(HERE / "plan.toml", folder / "plan.toml")
    convbn(folder, "run", "plan.toml")
    first = counts(folder)
    convbn(folder, "run", "plan.toml", "--ray", "local")
    second = counts(folder)
    plan = (HERE / "plan.toml").read_text(encoding="utf-8").split("[[targets]]")[0].replace('"out"', '"ray"')
    (folder / "ray.toml").write_text(plan + '[[targets]]\nkind = "onnx"\n', encoding="utf-8")
    convbn(folder, "run", "ray.toml", "--ray", "local", "--store", "ray-store")
    print(f"on this machine: {first}; again through Ray: {second}; report: {folder / 'out' / 'run.html'}")
    worked = first["failed"] == first["cached"] == 0
    return 0 if worked and second["cached"] == first["done"] == sum(second.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
