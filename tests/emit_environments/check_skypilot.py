"""Run by benchmarks/validate_emit.py inside SkyPilot's environment: every folder's sky.yaml as a task."""

import os
import sys
import traceback
from pathlib import Path

import yaml


def check(folder: Path) -> None:
    import sky
    from sky.utils import common_utils, schemas

    os.chdir(folder)
    settings = yaml.safe_load((folder / "sky.yaml").read_text())
    common_utils.validate_schema(settings, schemas.get_task_schema(), "task: ")
    common_utils.validate_schema(settings["resources"], schemas.get_resources_schema(), "resources: ")
    task = sky.Task.from_yaml_config({name: value for name, value in settings.items() if name != "file_mounts"})
    assert task.num_nodes == settings["num_nodes"] and task.run == settings["run"]
    wanted = {name for resources in task.resources for name in resources.accelerators}
    assert wanted == set(settings["resources"]["accelerators"]), wanted


def main() -> int:
    bad = 0
    folders = [path.parent.resolve() for path in sorted(Path(sys.argv[1]).glob("*/sky.yaml"))]
    for folder in folders:
        try:
            check(folder)
        except Exception:
            bad += 1
            print(f"{folder.name}\n{traceback.format_exc(limit=2)}")
    print(f"skypilot: {len(folders) - bad} of {len(folders)} accepted")
    return 1 if bad or not folders else 0


if __name__ == "__main__":
    sys.exit(main())
