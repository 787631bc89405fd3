"""The command as a whole: help, exit codes, errors in one line."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsi2d
from wsi2d.cli import console
from wsi2d.errors import SlideError

VERBS = [
    "tissue",
    "extract",
    "import",
    "encoders",
    "inspect",
    "export",
    "splits",
    "splits make",
    "models",
    "train",
    "evaluate",
    "compare",
    "benchmark",
    "predict",
    "heatmap",
    "receptive-field",
    "demo",
    "doctor",
]


def test_help_names_every_verb(cli: Any) -> None:
    result = cli("--help")
    assert result.code == 0
    for verb in VERBS:
        assert verb.split()[0] in result.out
    assert result.err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(cli: Any, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = cli(f"{verb} --help")
    assert result.code == 0
    assert f"wsi2d {verb}" in result.out
    assert result.err == ""
    assert len(result.out.splitlines()) > 6


def test_help_tells_the_defaults(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the configuration, which the options do not hold themselves."""
    from wsi2d.config import ExtractConfig

    monkeypatch.setenv("COLUMNS", "250")
    text = " ".join(cli("extract --help").out.split())
    default = ExtractConfig()
    for value in (default.encoder, default.patch.min_tissue, default.device):
        assert f"default: {value})" in text
    for value in (default.patch.mpp, default.patch.patch_px):
        assert f"default: {value}, or the encoder's own)" in text
    for value in (default.patch.overlap_px, default.workers, default.batch_size):
        assert f"default: {value})" in text


def test_every_option_is_explained(cli: Any) -> None:
    """An option without a help text is one that nobody understands."""
    import typer

    from wsi2d.cli.main import app

    def check(command: Any, path: str) -> int:
        names = getattr(command, "commands", {})
        for name, inner in names.items():
            assert inner.help, f"{path} {name}"
            check(inner, f"{path} {name}")
        for parameter in command.params:
            assert getattr(parameter, "help", "") or parameter.name == "help", f"{path} {parameter.name}"
        return len(names)

    assert check(typer.main.get_command(app), "wsi2d") == len({verb.split()[0] for verb in VERBS})


def test_version(cli: Any) -> None:
    result = cli("--version")
    assert (result.code, result.out) == (0, f"wsi2d {wsi2d.__version__}\n")


@pytest.mark.parametrize("arguments", ["fly", "--fast", "train", "train a b", "extract x --out y --mpp fine", "demo"])
def test_what_the_command_does_not_understand(cli: Any, arguments: str) -> None:
    result = cli(arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err


def test_no_arguments_is_a_question(cli: Any) -> None:
    result = cli("")
    assert "Usage" in result.out + result.err


# --- errors


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `wsi2d predict` raise something."""

    def breaks(error: BaseException) -> None:
        import wsi2d.training.predict as module

        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(module, "predict", fail)

    return breaks


PREDICT = "predict run features --out out.csv"


def test_an_error_is_one_line_and_exit_code_2(fails: Any, broken: Any) -> None:
    message = "slide '[red]A1[/]': " + "a very long explanation, " * 20 + "/a/path/without/blanks" * 9
    broken(SlideError(message))
    assert fails(PREDICT) == message, "neither wrapped nor taken for markup"


@pytest.mark.parametrize("arguments", [f"{PREDICT} --debug", f"--debug {PREDICT}", "predict --debug run f --out o"])
def test_debug_shows_where(cli: Any, broken: Any, arguments: str) -> None:
    broken(SlideError("slide 'A1': bad"))
    with pytest.raises(SlideError, match="slide 'A1': bad"):
        cli(arguments)


def test_a_file_system_that_refuses_is_one_line(fails: Any, finished_run: Path, tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    line = fails("predict", finished_run, finished_run.parent / "features", "--out", tmp_path / "file" / "out.csv")
    assert str(tmp_path / "file") in line
    line = fails("splits make --label label --folds 2 --out", tmp_path / "file", finished_run.parent / "cohort.csv")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (
            OSError(28, "No space left on device", "/data/x.csv"),
            "/data/x.csv: cannot be read or written (No space left",
        ),
        (OSError("Unable to\n  open"), "cannot be read or written (Unable to open)"),
    ],
)
def test_what_the_file_system_says_has_a_remedy(fails: Any, broken: Any, error: OSError, begins: str) -> None:
    broken(error)
    line = fails(PREDICT)
    assert line.startswith(begins)
    assert line.endswith("; check the path, who may use it, and the room on the disk")


@pytest.mark.parametrize(
    ("said", "told"), [("a grid of [1, 9]\nneeds 7 bytes", "a grid of [1, 9] needs 7 bytes"), ("", "no more")]
)
def test_too_little_memory_is_one_line(fails: Any, broken: Any, said: str, told: str) -> None:
    broken(MemoryError(said))
    line = fails(PREDICT)
    assert line.startswith(f"out of memory ({told}")
    assert line.endswith("; patches of a coarser mpp make smaller grids")


@pytest.mark.parametrize("below", [False, True], ids=["a folder", "below a file"])
@pytest.mark.parametrize("verb", ["predict nowhere features", "heatmap nowhere A"])
def test_out_is_checked_before_the_work(fails: Any, tmp_path: Path, verb: str, below: bool) -> None:
    (tmp_path / "taken").write_text("in the way")
    out = tmp_path / "taken" / "deep" / "a.png" if below else tmp_path
    line = fails(verb, "--out", out)
    assert line.startswith(f"out {out}: ")
    assert line.endswith("; give another --out")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("value", ["0", "nan", "-0.5", "inf"])
@pytest.mark.parametrize("verb", ["extract nowhere --out f", "heatmap nowhere A --out a.png"])
def test_pixel_sizes_are_checked_before_the_work(fails: Any, verb: str, value: str) -> None:
    assert fails(f"{verb} --slide-mpp={value}") == f"--slide-mpp: must be > 0 µm/px, got {value}"


def test_what_nobody_foresaw_keeps_its_traceback(cli: Any, broken: Any) -> None:
    broken(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli(PREDICT)


def test_interrupted(cli: Any, broken: Any) -> None:
    broken(KeyboardInterrupt())
    result = cli(PREDICT)
    assert result.code == 130
    assert result.err.strip() == "interrupted; run the same command again to go on"


def test_warnings_of_the_library_are_lines_on_stderr(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wsi2d.training.predict as module

    def warns(*args: object, **kwargs: object) -> list[int]:
        logging.getLogger("wsi2d.somewhere").warning("slide '%s': odd [bold]", "A1")
        logging.getLogger("wsi2d.somewhere").info("not worth a line")
        return [1, 2]

    monkeypatch.setattr(module, "predict", warns)
    result = cli(PREDICT)
    assert (result.code, result.out) == (0, "2 slides predicted → out.csv\n")
    assert result.err == "warning: slide 'A1': odd [bold]\n"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
def test_asked_again_before_it_has_said_that_it_stops(
    cli: Any, broken: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, again: signal.Signals
) -> None:
    broken(error)
    say = console.err.print

    def interrupted(*words: object, **options: Any) -> None:
        signal.raise_signal(again)
        say(*words, **options)

    monkeypatch.setattr(console.err, "print", interrupted)
    result = cli(PREDICT)
    assert (result.code, result.out) == (code, "")
    assert result.err.splitlines()[-1].endswith("; run the same command again to go on")


# --- as a process of its own

# Where the tests run in the background of a shell, interrupts are ignored from the start.
RUN_IT = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
SWALLOWED = """
import os, signal, time
import wsi2d.training.predict as module
from wsi2d.cli.main import main
from wsi2d.errors import CohortError

def read_table(*args, **kwargs):
    try:
        os.kill(os.getpid(), signal.{signal})
        time.sleep(60)
    except BaseException:
        raise {error}

module.predict = read_table
main()
"""


@pytest.mark.parametrize(
    "error", ["TypeError('raise: no exception')", "CohortError('cohort: cannot be read; mend it')"]
)
@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_stopped_in_code_that_makes_an_error_of_it(tmp_path: Path, error: str, name: str, code: int, word: str) -> None:
    """As pandas' reader of tables does now and then."""
    script = tmp_path / "stopped.py"
    script.write_text(SWALLOWED.format(signal=name, error=error), "utf-8")
    command = [
        sys.executable,
        "-c",
        f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {RUN_IT}",
    ]
    done = subprocess.run(
        [*command, script, *map(str, PREDICT.split())], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr == f"{word}; run the same command again to go on\n"


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python -m wsi2d.cli.main`` from a folder that is no checkout."""
    command = [sys.executable, "-m", "wsi2d.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_process(tmp_path: Path) -> None:
    bad = run("evaluate", "nowhere", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: run nowhere: no config.yaml; give the folder that `wsi2d train` wrote\n"
    debug = run("evaluate", "nowhere", "--debug", cwd=tmp_path)
    assert debug.returncode == 1
    assert "Traceback (most recent call last)" in debug.stderr
    assert debug.stderr.rstrip().endswith("give the folder that `wsi2d train` wrote")


def test_output_may_be_cut_off() -> None:
    """`wsi2d --help | head -1`: no traceback when the reader goes away, and no colour codes in a pipe."""
    command = f"{sys.executable} -m wsi2d.cli.main --help | head -n 2"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout


def test_installed_command(tmp_path: Path) -> None:
    """The script that an installation puts beside Python."""
    script = Path(sys.executable).with_name("wsi2d.exe" if os.name == "nt" else "wsi2d")
    if not script.exists():
        pytest.skip("wsi2d is not installed, but imported from its checkout")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"wsi2d {wsi2d.__version__}\n")
