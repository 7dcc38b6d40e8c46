"""What setup.py decides, and what an unbuilt checkout says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import frcnn
import frcnn_ops
from frcnn_ops.extension import describe_build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setup():
    spec = importlib.util.spec_from_file_location("frcnn_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("force", "torch_cuda", "nvcc", "expected"),
    [
        (None, None, None, False),
        (None, None, "13.0", False),
        (None, "13.0", None, False),
        (None, "13.0", "13.0", True),
        (None, "12.8", "12.4", True),
        ("", "12.8", "12.4", True),
        ("1", "12.8", "12.4", True),
        ("0", "12.8", "12.4", False),
        ("0", "12.8", "11.0", False),
    ],
)
def test_cuda_decision(setup, force, torch_cuda, nvcc, expected):
    assert setup.use_cuda(force, torch_cuda, nvcc) is expected


@pytest.mark.parametrize(
    ("force", "torch_cuda", "nvcc", "message"),
    [
        ("1", None, "13.0", "built without CUDA; install a CUDA build of torch or unset FORCE_CUDA"),
        ("1", "13.0", None, "there is no nvcc; install the CUDA 13 toolkit and set CUDA_HOME"),
        (
            None,
            "13.0",
            "12.4",
            "nvcc is CUDA 12.4, torch was built with CUDA 13.0; set CUDA_HOME to a CUDA 13",
        ),
        ("1", "12.8", "13.0", "set FORCE_CUDA=0 to build for the CPU only"),
        ("yes", None, None, "FORCE_CUDA is 0 or 1, not 'yes'"),
    ],
)
def test_cuda_refusal(setup, force, torch_cuda, nvcc, message):
    with pytest.raises(setup.BuildError, match=re.escape(message)):
        setup.use_cuda(force, torch_cuda, nvcc)


def test_a_folder_without_a_toolkit_is_refused(setup, tmp_path):
    with pytest.raises(setup.BuildError, match=rf"{tmp_path}, has no .*; set CUDA_HOME to the folder"):
        setup.check_toolkit(str(tmp_path))
    header = tmp_path / "include" / "cuda_runtime.h"
    header.parent.mkdir()
    header.touch()
    setup.check_toolkit(str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="writes shell scripts")
def test_the_toolkit_is_found_behind_a_link_and_a_wrapper(setup, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'on_path'}{os.pathsep}{os.environ['PATH']}")
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    # what nvcc prints first, where `--dryrun` asks what it would do
    nvcc.write_text(f"#!/bin/sh\n[ $1 = --dryrun ] && echo '#$ TOP={nvcc.parent}/..' >&2\n")
    nvcc.chmod(0o755)
    found = tmp_path / "on_path" / "nvcc"
    found.parent.mkdir()
    found.symlink_to(nvcc)
    assert setup.toolkit_on_path() == str(tmp_path / "toolkit")
    found.unlink()
    found.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    found.chmod(0o755)
    assert setup.toolkit_on_path() == str(tmp_path / "toolkit")
    found.write_text("#!/bin/sh\nexit 1\n")
    assert setup.toolkit_on_path() is None


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")
def test_the_toolkit_of_this_machine_is_found(setup):
    setup.check_toolkit(setup.toolkit_on_path())


def test_a_setuptools_that_cannot_read_the_project_is_refused(setup):
    required = re.search(r'"setuptools>=(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    setup.check_setuptools(f"{required}.0.3")
    with pytest.raises(setup.BuildError, match=rf"65.5.0 is too old; .* 'setuptools>={required}'"):
        setup.check_setuptools("65.5.0")  # which a new environment of Python 3.11 has


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0"])
def test_torch_accepted(setup, version):
    setup.check_torch(version)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, r"not importable here \(pip hides it .*\); install torch >= 2.10 .* --no-build-isolation"),
        ("2.9.1", "torch 2.9.1 is too old"),
    ],
)
def test_torch_refused(setup, version, message):
    with pytest.raises(setup.BuildError, match=message):
        setup.check_torch(version)


@pytest.mark.parametrize(("name", "version"), [("gcc", "11.1"), ("clang", "18.1.3"), ("msvc", "")])
def test_compiler_accepted(setup, name, version):
    setup.check_compiler(name, version)


@pytest.mark.parametrize(("name", "version"), [("gcc", "9.4.0"), ("clang", "10.0")])
def test_compiler_refused(setup, name, version):
    with pytest.raises(setup.BuildError, match=f"{name} {version} is too old .* name it in CXX"):
        setup.check_compiler(name, version)


def test_compiler_is_found(setup, monkeypatch):
    name, version = setup.found_compiler()
    assert name in setup.MINIMUM_COMPILER and setup.version_of(version)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(setup.BuildError, match="`no-such-compiler` does not run; install g\\+\\+ or set CXX"):
        setup.found_compiler()


def test_default_architectures(setup):
    assert setup.default_archs({"7.5", "8.0", "8.6", "9.0"}) == "8.0;8.6;9.0+PTX"
    assert setup.default_archs({"9.0", "10.0", "12.0", "12.1"}) == "9.0;10.0;12.0+PTX"
    with pytest.raises(setup.BuildError, match="set TORCH_CUDA_ARCH_LIST"):
        setup.default_archs({"5.0"})


def test_every_architecture_that_is_built_for_is_checked(setup):
    """.ci/compile_kernels.py, which refuses spills, takes its architectures from setup.py."""
    spec = importlib.util.spec_from_file_location("compile_kernels", ROOT / ".ci" / "compile_kernels.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_kernels"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    assert [f"{arch / 10:.1f}" for arch in module.shipped()] == list(setup.DEFAULT_ARCHS)


def in_a_copy(folder: Path, *later: Path, module: str = "") -> subprocess.CompletedProcess[str]:
    """Python in a folder that holds a copy of frcnn_ops, hence the first that it looks in.

    Args:
        later: folders that are searched after it.
        module: what `python -m` runs; else frcnn_ops is imported, and where its extension is gets printed.
    """
    # An editable install would find the extension in the checkout.
    code = """if True:
        import runpy, sys
        sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
        root, module, *later = sys.argv[1:]
        sys.path = ["", *(p for p in sys.path if p not in ("", root)), *later]
        if module:
            sys.argv = ["-m"]  # as while `python -m` looks for the module
            runpy._run_module_as_main(module)
        else:
            import frcnn_ops
            print(frcnn_ops.extension.library._name)
    """
    return subprocess.run(
        [sys.executable, "-c", code, str(ROOT), module, *map(str, later)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )


def refusal(folder: Path, *later: Path) -> str:
    """What importing a copy of frcnn_ops says that cannot work."""
    done = in_a_copy(folder, *later)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def source(tmp_path) -> Path:
    """The package as in a clone: its Python files and nothing compiled."""
    package = tmp_path / "clone" / "frcnn_ops"
    package.mkdir(parents=True)
    for path in (ROOT / "frcnn_ops").glob("*.py"):
        shutil.copy(path, package)
    return package


@pytest.fixture
def installed(source, tmp_path) -> Path:
    """The same, installed with its extension."""
    package = tmp_path / "site-packages" / "frcnn_ops"
    shutil.copytree(source, package)
    shutil.copy(frcnn_ops.extension.library._name, package)
    return package


def test_unbuilt_and_stale_extensions_say_how_to_build(source):
    clone = source.parent
    assert "frcnn_ops is not compiled: run `pip install --no-build-isolation .`" in refusal(clone)
    (source / "_C.abi3.so").write_bytes(b"not a library")
    message = refusal(clone)
    assert "it needs torch 2.10 or later" in message
    assert "run `pip install --no-build-isolation --no-deps --force-reinstall .`" in message


def test_a_clone_takes_the_extension_that_was_installed_from_it(source, installed):
    """As after a plain install, for `python -m frcnn` and torchrun."""
    done = in_a_copy(source.parent, installed.parent)
    assert (done.stderr, done.stdout) == ("", f"{installed / '_C.abi3.so'}\n")
    done = in_a_copy(source.parent, installed.parent, module="frcnn_ops")
    assert done.stderr == "" and done.stdout.strip() == describe_build()


def test_a_clone_does_not_take_an_extension_of_other_sources(source, installed):
    with (source / "nms.py").open("a") as file:
        file.write("# edited\n")
    message = refusal(source.parent, installed.parent)
    assert (
        f"found the source folder {source}, which is not compiled, before the installed {installed}"
        in message
    )
    assert (
        "run `pip install --no-build-isolation .` in the folder that holds setup.py, or the command"
        in message
    )


def test_what_was_built_is_asked_of_a_source_folder(source):
    """`python -m frcnn_ops` answers in one sentence, without a traceback."""
    done = in_a_copy(source.parent, module="frcnn_ops")
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(
        r"frcnn_ops is not compiled: run `pip install --no-build-isolation \.` .*\n", done.stderr
    )


def test_a_build_with_cuda_has_a_version_of_its_own(setup):
    assert setup.version(None) == frcnn.__version__
    assert setup.version("13.0") == f"{frcnn.__version__}+cu13"


def test_a_source_distribution_has_all_sources(tmp_path):
    """Those for CUDA as well, where it is made by a build for CPUs."""
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "FORCE_CUDA": "0"}, capture_output=True)
    listed = {Path(line) for line in (tmp_path / "frcnn.egg-info" / "SOURCES.txt").read_text().splitlines()}
    sources = {path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert any(path.suffix == ".cu" for path in sources) and sources <= listed
    assert not [path for path in listed if path.parts[0] in ("tests", "benchmarks", "build")]
