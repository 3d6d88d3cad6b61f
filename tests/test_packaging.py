"""Contents of the package, and modules that its import loads."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAB = ("agents", "envs", "examples", "experiments", "tests")


def run_python(code: str, cwd: Path) -> str:
    """Output of `code` in a new interpreter that does not see the checkout."""
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def build_wheel(version: str, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", f"wheel:{version}", "--directory", out]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_wheel_ships_layeredrl_alone(tmp_path):
    names = zipfile.ZipFile(build_wheel("standard", tmp_path)).namelist()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"layeredrl"}
    assert {"layeredrl/__init__.py", "layeredrl/py.typed"} <= set(names)
    lab = {name.removeprefix("layeredrl/_lab/") for name in names if name.startswith("layeredrl/_lab/")}
    assert {"agents/pets.py", "envs/models/reacher.xml", "experiments/train.py", "experiments/run/config.py"} <= lab
    assert not any("results" in name or "__pycache__" in name for name in lab)


def test_editable_install_exposes_layeredrl_alone(tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(build_wheel("editable", tmp_path)).extractall(site)
    code = f"""
import importlib.util, site
site.addsitedir({str(site)!r})
import layeredrl
print(layeredrl.__file__)
print([name for name in {LAB} if importlib.util.find_spec(name)])
"""
    assert run_python(code, tmp_path).splitlines() == [str(ROOT / "layeredrl" / "__init__.py"), "[]"]


def test_imports_stay_light(tmp_path):
    # A stub for tianshou, which itself loads matplotlib and tensorboard, and ray where it is installed.
    code = f"""
import sys, types
sys.path.insert(0, {str(ROOT)!r})
import layeredrl.command
import layeredrl.loggers
print(*sys.modules)
data = types.ModuleType("tianshou.data")
data.Batch = type("Batch", (), {{}})
sys.modules |= {{"tianshou": types.ModuleType("tianshou"), "tianshou.data": data}}
import layeredrl.models
print(*sys.modules)
for name in [name for name in sys.modules if name.partition(".")[0] in ("layeredrl", "tianshou")]:
    del sys.modules[name]
import envs, gymnasium
env = gymnasium.make("ContinuousCartPole-v0")
env.reset()
print(*sys.modules)
"""
    loggers, models, tasks = (set(line.split()) for line in run_python(code, tmp_path).splitlines())
    heavy = {"matplotlib", "mujoco", "ray", "tensorboard", "wandb"}
    assert {*heavy, "torch", "tianshou", "PIL"} & loggers == set()
    assert heavy & models == set()
    assert {*heavy, "layeredrl", "tianshou", "agents", "gymnasium_robotics", "PIL", "pygame"} & tasks == set()


@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_machine_paths_in_the_repository():
    pattern = re.compile(r"(?<![\w.~-])/(work|root|home/\w+|tmp/venv)/")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    found = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content and pattern.search(content.decode(errors="replace")):
            found.append(name)
    assert not found
