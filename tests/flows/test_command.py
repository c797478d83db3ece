"""The program ``hearscape``: help, versions, completion, one definition of each command, and how fast it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import command
from flows.command import PROGRAM
from flows.commands import HEARSCAPE, complete_paths
from pipeline.runtime.commands import Command, Group, parser_of
from pipeline.runtime.installed import installed_version

PROJECT = Path(__file__).parents[2]
SLOW = ("torch", "prefect", "numpy", "pyarrow", "pydantic", "rich", "av")
"""Packages that nobody waits for who asks for help."""


def leaves(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    for name, one in group.commands.items():
        if isinstance(one, Group):
            yield from leaves(one, (*path, name))
        else:
            yield (*path, name), one
            yield from (((*path, name, variant), inner) for variant, inner in one.variants.items())


COMMANDS = dict(leaves(HEARSCAPE))
PATHS = {"DATASET", "FILE", "FOLDER", "IN", "LIST", "OUT", "R.toml", "RECIPE", "SEGMENTS", "runs/NAME"}
"""Names of arguments that stand for a file or folder, though their value is kept as text: it may be a URL."""


def ran(*words: str, cwd: Path, program: tuple[str, ...] = ("-m", "flows.command")) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *words], check=False, cwd=cwd, env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_every_command_is_there() -> None:
    assert [" ".join(path) for path in COMMANDS] == [
        "new", "demo", "build", "serve", "report", "report serve", "verify", "ledger", "withdraw", "calibrate", "import vggsound",
        "import audioset", "import landscape", "fit", "generate", "evaluate", "convert", "completion",
    ]  # fmt: skip


def test_help_and_the_options_of_every_command_import_nothing_slow(tmp_path: Path) -> None:
    program = f"""
import sys
from flows.commands import HEARSCAPE
from pipeline.runtime.commands import parser_of
parser_of(HEARSCAPE, "hearscape").format_help()
print(sorted({{name.partition(".")[0] for name in sys.modules}} & set({SLOW})))
"""
    assert ran(cwd=tmp_path, program=("-c", program)).stdout == "[]\n"


def test_help_takes_less_than_half_a_second_of_processor_time(tmp_path: Path) -> None:
    def seconds() -> float:
        before = os.times()
        assert ran("--help", cwd=tmp_path).returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_names_every_command_with_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: hearscape [-h] [--version] COMMAND ...\n\nBuilds datasets of landscape videos")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    for name, one in HEARSCAPE.commands.items():
        assert [name, one.summary] in lines, "on one line, in a terminal of 80 columns"
    assert "first steps:\n  hearscape demo --no-fit" in out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_each_command_explains_every_option(path: tuple[str, ...]) -> None:
    parser = parser_of(COMMANDS[path], " ".join((PROGRAM, *path)))
    assert parser.format_help().startswith(f"usage: hearscape {' '.join(path)} ")
    for action in parser._actions:
        assert action.help, f"{path}: {action.dest}"


def test_a_word_that_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["biuld"])
    assert ended.value.code == 2
    assert "invalid choice: 'biuld' (choose from" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"hearscape {installed_version('hearscape')}\n"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("flows.build_dataset", "build"), ("flows.serve", "serve"), ("pipeline.report", "report"),
        ("pipeline.report serve", "report serve"), ("pipeline.manifest verify", "verify"), ("pipeline.manifest withdraw", "withdraw"),
        ("pipeline.ledger show", "ledger"), ("pipeline.agreement calibrate", "calibrate"), ("pipeline.importers", "import"),
        ("trainer.fit", "fit"), ("trainer.generate", "generate"), ("trainer.evaluate", "evaluate"),
        ("trainer.model.convert", "convert"),
    ],
)  # fmt: skip
def test_a_module_and_its_command_are_one(module: str, name: str, tmp_path: Path) -> None:
    long = ran(*module.split()[1:], "--help", cwd=tmp_path, program=("-m", module.split(maxsplit=1)[0])).stdout
    short = ran(*name.split(), "--help", cwd=tmp_path).stdout
    assert long.startswith(f"usage: python -m {module} ")
    assert words(long, f"python -m {module}") == words(short, f"hearscape {name}")


def words(text: str, program: str) -> list[str]:
    """Without the program's name, and without line breaks, which depend on its length."""
    return text.replace(program, "").split()


def test_a_refusal_names_what_to_do(tmp_path: Path) -> None:
    done = ran("build", "no.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: recipe no.toml: No such file or directory\n")


@pytest.mark.parametrize("delay_seconds", [0.0, 0.2, 0.5, 1.0])
def test_ctrl_c_while_it_starts_prints_no_trace(delay_seconds: float, tmp_path: Path) -> None:
    """From the first import in ``main`` on: what Python does before is not ours."""
    (tmp_path / "sources.csv").write_text("url\nhttp://127.0.0.1:9/x.mp4\n")
    (tmp_path / "r.toml").write_text('name = "x"\noutput = "x"\nsources = ["sources.csv"]\n')
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "flows.command", "build", "r.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PREFECT_HOME": str(tmp_path / "prefect")},
    )  # fmt: skip
    assert process.stderr is not None
    while not (line := process.stderr.readline()).endswith(" pipeline.runtime.interrupts\n"):
        assert line
    assert process.stderr.readline()  # the next import, in main()
    time.sleep(delay_seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), (
        err
    )  # Python ends by the signal itself where it met it in an eval()
    assert "Traceback" not in err
    assert err.strip().endswith("\nInterrupted. To continue, run it again: hearscape build r.toml")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "calibrate" in out and "audioset" in out and "keep-server" in out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=out, text=True, check=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ver"], {"verify"}),
        (["build", "--d"], {"--dry-run"}),
        (["build", "manifests/rec"], {"manifests/recipes"}),
        (["import", "a"], {"audioset"}),
        (["completion", ""], {"bash", "zsh", "fish", "tcsh"}),
    ],
)
def test_bash_completes(
    typed: list[str], offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script as bash runs it, with the words that stand before the cursor."""
    assert command.main(["completion", "bash"]) == 0
    (tmp_path / "hearscape.bash").write_text(capsys.readouterr().out)
    (tmp_path / "manifests" / "recipes").mkdir(parents=True)
    line = " ".join(f"'{word}'" for word in ("hearscape", *typed))
    script = (
        f"source hearscape.bash; COMP_WORDS=({line}); COMP_CWORD={len(typed)}; _shtab_hearscape hearscape; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert offered <= {line.rstrip("/ ") for line in done.stdout.splitlines()}
    assert len(done.stdout.splitlines()) <= len(offered) + 1


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_what_is_a_path_is_completed_as_one(path: tuple[str, ...]) -> None:
    parser = parser_of(COMMANDS[path], PROGRAM)
    complete_paths(parser)
    for action in parser._actions:
        assert ("complete" in vars(action)) == (action.type is Path or action.metavar in PATHS), action.dest


def test_new_lays_down_recipes_that_build(tmp_path: Path) -> None:
    done = ran("new", "my videos", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "my videos" / "manifests"
    for place in (
        "recipes/landscape.toml",
        "recipes/ablations/one-block.toml",
        "sources/README.md",
        "sources/example.csv",
        "slurm/fit.sbatch",
    ):
        assert (made / place).is_file()
    # from the folder above, and from the folder itself
    for folder, recipe in (
        (tmp_path, made / "recipes" / "landscape.toml"),
        (made.parent, Path("manifests/recipes/landscape.toml")),
    ):
        planned = ran("build", str(recipe), "--dry-run", cwd=folder)
        assert planned.returncode == 0, planned.stderr
        assert f'"output": "{made / "landscape"}"' in planned.stdout
        assert planned.stdout.splitlines()[-1].startswith("landscape: 4 sources")
    again = ran("new", "my videos", cwd=tmp_path)
    assert again.returncode == 2
    assert "my videos/manifests/recipes/" in again.stderr and "there already; name another folder" in again.stderr


def test_new_in_the_current_folder_leaves_the_recipes_as_they_are(tmp_path: Path) -> None:
    assert ran("new", ".", cwd=tmp_path).returncode == 0
    for kind in ("recipes", "sources", "slurm"):
        theirs = sorted(
            path.relative_to(PROJECT) for path in (PROJECT / "manifests" / kind).rglob("*") if path.is_file()
        )
        assert (
            sorted(path.relative_to(tmp_path) for path in (tmp_path / "manifests" / kind).rglob("*") if path.is_file())
            == theirs
        )
        for path in theirs:
            assert (tmp_path / path).read_bytes() == (PROJECT / path).read_bytes()


def test_new_replaces_nothing_and_writes_nothing_when_it_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "manifests" / "sources" / "example.csv"
    own.parent.mkdir(parents=True)
    own.write_text("url\n")
    done = ran("new", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: manifests/sources/example.csv: there already; name another folder, or remove what is there\n"
    )
    assert own.read_text() == "url\n"
    assert not (tmp_path / "manifests" / "recipes").exists()


def test_a_folder_with_a_quote_in_its_name(tmp_path: Path) -> None:
    assert ran("new", 'a "b" \\c', cwd=tmp_path).returncode == 0
    folder = tmp_path / 'a "b" \\c'
    planned = ran("build", str(folder / "manifests" / "recipes" / "landscape.toml"), "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ran("new", "file", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: file/manifests/recipes/ablations/one-block.toml cannot be written: Not a directory\n"
