"""The command line's help, its errors and its exit codes."""

from __future__ import annotations

import errno

import click
import pytest
from cli_support import error_of, run, stand_in
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle
from livemoments.cli import cli, main

COMMANDS = [
    *("demo", "make-checkpoint", "fetch", "make-prompt", "export", "sensitivity", "quantize", "check", "build"),
    *("frames", "restore", "record", "validate", "synlive build", "synlive check", "inspect", "verify", "devices"),
    *("plan", "profile", "completion"),
]
JSON_COMMANDS = COMMANDS[:-1]
RESTORE = ["restore", "b", "--frame", "f", "--photo", "p", "-o", "x.png"]
BUNDLE = "(a bundle that opens)"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("cli") / "bundle")


def test_the_commands_are_those_of_the_design() -> None:
    assert list(cli.commands) == list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    assert list(cli.commands["synlive"].commands) == ["build", "check"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    assert f"livemoments {name}" in result.stdout.split("\n", 3)[3]  # an example, below the usage line
    command: click.Command = cli
    for part in name.split():
        command = command.commands[part]  # type: ignore[attr-defined]
    assert command.short_help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.name} has no help"
    assert ("--json" in result.stdout) == (name in JSON_COMMANDS)


def test_help_of_the_group_names_the_exit_codes() -> None:
    text = " ".join(run("-h").stdout.split())
    assert "0 done; 1 a check fell short; 2 a mistake to mend" in text
    assert run().exit_code == 2
    assert "Usage:" in run().stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_say_where_they_go(shell: str) -> None:
    lines = run("completion", shell).stdout.splitlines()
    assert "_LIVEMOMENTS_COMPLETE" in "\n".join(lines)
    assert lines[-1].startswith("# Save this as ~/.")
    if shell == "zsh":
        assert lines[0] == "#compdef livemoments"  # zsh wants it first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "c", "-o", "b", "--precison", "fp16"], ["no such option '--precison'", "--precision"]),
        (["exprot"], ["no such command 'exprot'", "'export'"]),
        (["export", "c"], ["missing option", "--output"]),
        (["export", "c", "-o", "b", "--tile", "12by4"], ["--tile", "'12by4' is not a size", "write WIDTHxHEIGHT"]),
        (["export", "c", "-o", "b", "--tile", "0x64"], ["--tile", "'0x64' is not a size"]),
        (["export", "c", "-o", "b", "--reference", "often"], ["--reference", "'often'", "use per-step, phase-split"]),
        (["export", "c", "-o", "b", "--steps", "6,,2"], ["--steps", "'6,,2'", "e.g. 1,2,4,6"]),
        (["export", "c", "-o", "b", "--stages", "flow,vae"], ["--stages", "'vae' is not a stage", "vae_encoder"]),
        (["export", "c", "-o", "b", "--target", "openvino"], ["--target", "'openvino'", "onnx"]),
        (["export", "c", "-o", "b", "--engine", "rtx"], ["--engine needs --target tensorrt"]),
        (["export", "c", "-o", "b", "--target", "tensorrt", "--sm", "8.9"], ["--sm needs --engine rtx"]),
        (["build", "b", "--engine", "rtx", "--sm", "8.6,89"], ["--sm", "'89' is not a compute", "e.g. 8.6,8.9,12.0"]),
        (["build", "b"], ["missing option", "--engine"]),
        (["check", "b"], ["missing option", "--target"]),
        (["export", "c", "-o", "b", "--overlap", "-1"], ["--overlap", "-1"]),
        (
            ["restore", "b", "--frame", "f", "--photo", "p", "-o", "x.png", "--kv-budget", "lots"],
            ["'lots'", "e.g. 4GiB"],
        ),
        ([*RESTORE, "--steps", "0"], ["--steps", "0"]),
        (["validate", "b", "--checkpoint", "c", "--frame", "f"], ["--frame and --photo go together"]),
        (["demo", "--frame", "f"], ["--frame needs --photo"]),
        (["inspect", "nowhere"], ["nowhere: no such bundle", "livemoments export"]),
        (["verify", "nowhere"], ["nowhere: no such bundle"]),
        (["restore", "nowhere", "--frame", "f", "--photo", "p", "-o", "x.png"], ["nowhere: no such bundle"]),
    ],
)
def test_a_mistake_is_one_clear_error(arguments: list[str], words: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "\n  fix: " in result.stderr
    for word in words:
        assert word in result.stderr
    if arguments[0] in JSON_COMMANDS:
        error = error_of(run(*arguments, "--json"))
        assert error["exit_code"] == 2
        assert f"error: {error['message']}\n  fix: {error['fix']}\n" == result.stderr


def test_json_errors_name_the_path() -> None:
    assert error_of(run("inspect", "nowhere", "--json")) == {
        "type": "BundleError",
        "message": "nowhere: no such bundle",
        "fix": "make one with 'livemoments export CHECKPOINT -o BUNDLE'",
        "exit_code": 2,
        "path": "nowhere",
    }


def test_json_after_a_double_dash_is_a_name() -> None:
    result = run("inspect", "--", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--json: no such bundle" in result.stderr


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (MemoryError("tile"), "out of memory (tile)"),
        (OSError(errno.ENOSPC, "No space left on device", "b/weights.bin"), "the disk of b/weights.bin is full"),
    ],
)
def test_limits_of_the_machine_are_not_bugs(monkeypatch: pytest.MonkeyPatch, raised: BaseException, words: str) -> None:
    stand_in(monkeypatch, "livemoments.export.pipeline:export_bundle", raised)
    result = run("export", "c", "-o", "b", "--json")
    assert result.exit_code == 2
    assert error_of(result)["type"] == "ResourceError"
    assert words in error_of(result)["message"]


@pytest.mark.parametrize("raised", [ValueError("a bug"), EOFError("a bug"), OSError(errno.EIO, "a bug")])
def test_a_bug_passes_through(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "livemoments.export.pipeline:export_bundle", raised)
    assert run("export", "c", "-o", "b").exception is raised
    assert main(["export", "c", "-o", "b"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "target", "extra"),
    [
        (["export", "c", "-o", "b"], "livemoments.export.pipeline:export_bundle", "export"),
        (["fetch", "c"], "livemoments.weights.fetch:fetch", "hub"),
        (["make-prompt", "c", "-o", "d"], "livemoments.weights.prompt:make_prompt", "prompt"),
        (["make-checkpoint", "c"], "livemoments.reference.random_checkpoint:make_checkpoint", "reference"),
        (["demo"], "livemoments.demo:run_demo", "demo"),
        (["validate", BUNDLE, "--checkpoint", "c"], "livemoments.validate.run:validate_bundle", "export"),
        (["validate", BUNDLE], "livemoments.validate.run:validate_bundle", "validate"),
    ],
)
def test_a_missing_extra_names_its_fix(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, arguments: list[str], target: str, extra: str
) -> None:
    arguments = [str(bundle.path) if part == BUNDLE else part for part in arguments]
    stand_in(monkeypatch, target, ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    result = run(*arguments)
    assert result.exit_code == 2
    assert "no module named 'torch'" in result.stderr
    assert f"fix: pip install 'livemoments-deploy[{extra}]'" in result.stderr
    stand_in(monkeypatch, target, ModuleNotFoundError("No module named 'ours'", name="livemoments.ours"))
    assert isinstance(run(*arguments).exception, ModuleNotFoundError)  # our own fault
