"""The command line, run in this process: what its tests share."""

from tinymusician_core import cli


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    try:
        code = cli.main(arguments)
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out, err
