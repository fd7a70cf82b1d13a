"""A machine without a GPU whose NVML, /proc, /sys and /dev say what a test wants, asked by the real nvidia-ml-py."""

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runners.probe import Probe, probe

FAKE = Path(__file__).with_name("fake_nvml.c")

H200 = {
    "name": "NVIDIA H200", "capability": "9.0", "cores": 16896, "bus_width": 6016, "mig": "0,0", "mig_max": 0,
    "memory2": "150754820096,644939776,150109880320,0", "memory": "150754820096,150109880320,644939776",
    "power": 700000, "clock_sm": 585, "clock_memory": 3201, "max_clock_sm": 1980, "max_clock_memory": 3201,
    "pcie_generation": 5, "pcie_max_generation": 5, "pcie_width": 16, "pcie_max_width": 16, "ecc": "1,1",
    "remapped": "0,0,0,0", "throttle": 1, "compute_mode": 0, "compute": "", "graphics": "", "mps": "",
}  # fmt: skip
"""As a real one answered, driver 580.159.04 (2026-11-22)."""


class Machine:
    """The fake driver runs in a child process, whose loader finds fake_nvml.c's library first."""

    h200 = H200

    def __init__(self, root: Path, driver: ProcessPoolExecutor | None, scenario: Path) -> None:
        self.root, self.driver, self.scenario = root, driver, scenario
        self.calls_file = scenario.with_name(f"{scenario.name}.calls")
        self.write("proc/meminfo", f"MemTotal: {128 << 20} kB\nMemAvailable: {100 << 20} kB\n")
        self.write("proc/self/cgroup", "0::/\n")
        (root / "proc/self/ns").mkdir(parents=True)
        (root / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
        self.write("dev/nvidia0", "")

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def probe(self, *cards: Mapping[str, Any], environment: Mapping[str, str] | None = None, **facts: Any) -> Probe:
        """The probe's answer where NVML lists these cards; every nvmlInit that succeeds must meet its nvmlShutdown."""
        lines = [f"{key}={value}" for key, value in {"driver": "580.159.04", "count": len(cards), **facts}.items()]
        for index, card in enumerate(cards):
            defaults = {"uuid": f"GPU-{index}{index}{index}{index}-aaaa", "bus": f"00000000:0{index + 1}:00.0"}
            lines += [
                f"gpu{index}.{key}={value}" if key else f"gpu{index}={value}"
                for key, value in (defaults | dict(card)).items()
            ]
        self.scenario.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.calls_file.write_text("", encoding="utf-8")
        try:
            answer: Probe = self.ask(probe, environment or {}, root=self.root, disk=self.root)
            return answer
        finally:
            calls = self.calls_file.read_text(encoding="utf-8").split()
            assert calls.count("init") == calls.count("shutdown"), calls

    def ask(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """What a function answers in the process that talks to the fake driver."""
        if self.driver is None:
            pytest.skip("no C compiler")
        return self.driver.submit(function, *arguments, **options).result(timeout=60)


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProcessPoolExecutor | None, Path]]:
    folder = tmp_path_factory.mktemp("driver")
    scenario = folder / "scenario"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield None, scenario
        return
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1")]
    subprocess.run([*command, str(FAKE)], check=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as driver,
    ):
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        patch.setenv("FAKE_NVML", str(scenario))
        driver.submit(os.getpid).result(timeout=60)
        patch.undo()
        yield driver, scenario


@pytest.fixture
def machine(tmp_path: Path, fake_driver: tuple[ProcessPoolExecutor | None, Path]) -> Machine:
    return Machine(tmp_path, *fake_driver)
