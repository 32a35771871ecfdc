"""Tables that a script makes and a document shows, between marks: printed, put there, or compared with those there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from livemoments.store.files import write_file

END = "<!-- end -->\n"


def markdown(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


@dataclass(frozen=True)
class DocumentTable:
    """One script's part of a document.

    Attributes:
        document: where it is.
        tool: the script's path in the repository, which the mark names.
    """

    document: Path
    tool: str

    @property
    def begin(self) -> str:
        """The mark before the table."""
        return f"<!-- {self.tool} -->\n"

    def read(self, text: str) -> str:
        """The table that a document's text has between the marks.

        Raises:
            ValueError: it has no marks.
        """
        try:
            return text.split(self.begin, 1)[1].split(END, 1)[0]
        except IndexError:
            raise ValueError(f"{self.document.name} lacks the mark {self.begin.strip()}") from None

    def differences(self, table: str, text: str) -> list[str]:
        """The lines by which a text's table differs from this one: ``-`` the text's, ``+`` this one's."""
        old, new = self.read(text).splitlines(), table.splitlines()
        return [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]

    def main(self, description: str | None, make: Callable[[], str]) -> int:
        """The script's command line: ``--write``, ``--check``, or neither.

        Args:
            description: the script's docstring.
            make: makes the table.

        Returns:
            The exit code: 1 if the document was compared and has another table.
        """
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--write", action="store_true", help="put the table into the document")
        parser.add_argument("--check", action="store_true", help="compare it with the document's")
        options = parser.parse_args()
        table = make()
        text = self.document.read_text("utf-8")
        if options.write:
            old = f"{self.begin}{self.read(text)}{END}"
            write_file(self.document, text.replace(old, f"{self.begin}{table}{END}").encode())
        elif options.check:
            if drift := self.differences(table, text):
                print(f"{self.document.name} has another table (python {self.tool} --write):", *drift, sep="\n")
                return 1
        else:
            print(table, end="")
        return 0
