"""The command line rewrites messages, which name arguments, to name its flags."""

import argparse
import io
from importlib import import_module

import pytest

from diffusers_dp_curriculum import InputError, cli
from diffusers_dp_curriculum.commands import evaluate, generate, train
from diffusers_dp_curriculum.commands.flags import in_flags, rename_arguments, with_home


@pytest.mark.parametrize(
    ("command", "message", "printed"),
    [
        (train, "`resolution` is 0: give a whole number above 0.", "--resolution is 0: give a whole number above 0."),
        (train, "Use `use_ema`, not `weights` or `hf auth login`.", "Use --use_ema, not `weights` or `hf auth login`."),
        (generate, "`images_per_class` is 0.", "--images_per_class is 0."),
        (evaluate, "Check `samples` and `reference`.", "Check PIPELINE_OR_DATASET and --reference."),
    ],
)
def test_arguments_that_a_command_has_are_written_as_on_its_command_line(command, message, printed):
    assert in_flags(message, command.make_parser()) == printed


def test_arguments_of_the_library_get_the_names_that_a_command_has_for_them():
    with (
        pytest.raises(InputError, match="^dir holds no images: give one that does as `reference`, not `split`.$"),
        rename_arguments(train_data_dir="reference"),
    ):
        raise InputError("dir holds no images: give one that does as `train_data_dir`, not `split`.")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_a_command_says_what_every_flag_is_by_default(command):
    parser = import_module(f"diffusers_dp_curriculum.commands.{command}").make_parser()
    for action in parser._actions:
        turns_off = str(action.option_strings[:1]).startswith("['--no_")
        if not turns_off and not any(action.default is none for none in (None, False, argparse.SUPPRESS)):
            assert "default" in action.help, action.option_strings
    assert "%(" not in parser.format_help()


def test_a_tilde_is_the_home_directory_in_every_argument(monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("USERPROFILE", "/home/alice")
    given = ["~/model", "--output_dir=~/x", "--output_dir", "~", "--seed=1", "a~b", "--commit_message=two\nlines"]
    expanded = ["/home/alice/model", "--output_dir=/home/alice/x", "--output_dir", "/home/alice"]
    assert with_home(given) == expanded + given[4:]


def test_an_error_is_one_line_and_status_1(capsys):
    arguments = ["generate", "model", "--images_per_class", "1", "2", "--class_balance", "dp_counts"]
    assert cli.main([*arguments, "--output_dir", "out"]) == 1
    message = (
        "error: --class_balance dp_counts computes the number of each class itself: give one number as "
        "--images_per_class.\n"
    )
    assert capsys.readouterr() == ("", message)


def test_ctrl_c_ends_with_130_and_without_a_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "main", interrupted)
    assert cli.main(["generate"]) == 130
    assert capsys.readouterr() == ("", "")


def test_what_a_terminal_cannot_show_is_escaped_and_ends_nothing(monkeypatch):
    monkeypatch.setattr(generate, "main", lambda _: print("größe 日本") or 0)
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii", write_through=True))
    assert cli.main(["generate"]) == 0
    assert printed.getvalue() == b"gr\\xf6\\xdfe \\u65e5\\u672c\n"
