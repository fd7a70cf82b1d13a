"""Run by benchmarks/validate_emit.py inside SkyPilot's environment: every folder's sky.yaml as a task."""

import os
import sys
from pathlib import Path

import yaml
from every_folder import main


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


if __name__ == "__main__":
    sys.exit(main("skypilot", "sky.yaml", check))
