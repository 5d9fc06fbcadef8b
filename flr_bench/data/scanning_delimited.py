"""Going through CSV, TSV and the like."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

from flr_bench.data.field_values import rename_hint, short
from flr_bench.data.layout import FileLayout
from flr_bench.data.problems import Findings
from flr_bench.data.scanner import Scanner

_LONGEST_QUOTE = 100  # lines; a quoted title with more line breaks is rather a quote that was never closed


class DelimitedScanner(Scanner):
    """A table with one record a line, or more lines where quotes hold a line break."""

    def __init__(self, layout: FileLayout, findings: Findings) -> None:
        """The header is not read yet, unless the layout says that there is none."""
        super().__init__(layout, findings)
        self._names: list[str] | None = None if layout.header else [column.name for column in layout.columns]
        self._wanted = list(layout.columns)

    def is_clean(self, lines: bytes) -> bool:
        """Whether Arrow reads every line and sees nothing unusual."""
        import pyarrow as pa
        import pyarrow.csv as pc

        if not lines or self._names is None or len(set(self._names)) < len(self._names):
            return not lines
        if self._layout.rule is not None:
            return False
        if self._layout.quoting and b'"' in lines:
            return False
        encoded = self._for_arrow(lines)
        if encoded is None:
            return False
        text, delimiter = encoded
        try:
            table = pc.read_csv(
                io.BytesIO(text),
                pc.ReadOptions(column_names=self._names, block_size=max(len(text), 1)),
                pc.ParseOptions(delimiter=delimiter, quote_char=False, ignore_empty_lines=False),
                pc.ConvertOptions(
                    column_types=dict.fromkeys(self._names, pa.string()),
                    include_columns=[column.name for column in self._wanted],
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return False
        return table.num_rows == lines.count(b"\n") and self.arrow_is_clean(table)

    def _for_arrow(self, lines: bytes) -> tuple[bytes, str] | None:
        """The lines in UTF-8 with a delimiter of one character."""
        try:
            text = lines.decode(self._layout.encoding)
        except UnicodeDecodeError:
            return None
        delimiter = self._layout.delimiter
        if len(delimiter) > 1:
            if "\x1f" in text:
                return None
            text, delimiter = text.replace(delimiter, "\x1f"), "\x1f"
        return text.encode(), delimiter

    def take_apart(self, lines: bytes, last: bool) -> bytes:
        """Look at the records one by one; a record that the piece cuts off is given back."""
        todo = lines.split(b"\n")[:-1]
        at = 0
        while at < len(todo):
            fields, used = self._record(todo, at)
            if fields is None and not last:
                return b"".join(line + b"\n" for line in todo[at:])
            if fields is None:
                self.report(
                    "a quote is opened and never closed",
                    "close it, or double quotes inside a quoted field",
                    "open quote",
                    line=self._line,
                )
                used = 1
            elif self._names is None and fields in ([], [""]):
                self._empty()
            elif self._names is None:
                self._header([name.strip() for name in fields])
            else:
                self._row(fields)
            at += used
            self._line += used
        return b""

    def _record(self, lines: Sequence[bytes], at: int) -> tuple[list[str] | None, int]:
        """Fields of the record that begins in line ``at`` and how many lines it takes; no fields if it does not end.

        A record that cannot be parsed at all is one line without fields.
        """
        text = self.decoded(lines[at], self._line).removesuffix("\r")
        delimiter = self._layout.delimiter
        if not self._layout.quoting or '"' not in text:
            return text.split(delimiter), 1
        if len(delimiter) > 1:  # as on reading: then quotes do not protect it
            delimiter = "\x1f"
        used = 1
        while True:
            text = text.replace(self._layout.delimiter, delimiter)
            try:
                return next(csv.reader([text], delimiter=delimiter, strict=True)), used
            except csv.Error as error:
                if "field limit" in str(error):
                    self.report(
                        "a field is too long to be looked at",
                        "nothing, if reading takes it",
                        "long field",
                        line=self._line,
                        severity="note",
                    )
                    return [], used
                if "unexpected end of data" not in str(error):
                    self.report(
                        "a quote inside a quoted field is not doubled", "write it twice", "bad quote", line=self._line
                    )
                    return [], 1
            if used == _LONGEST_QUOTE:
                self.report(
                    f"a quote is opened and not closed within {_LONGEST_QUOTE} lines",
                    "close it, or double quotes inside a quoted field",
                    "open quote",
                    line=self._line,
                )
                return [], 1
            if at + used == len(lines):
                return None, used
            text += "\n" + lines[at + used].decode(self._layout.encoding, "replace").removesuffix("\r")
            used += 1

    def _header(self, names: list[str]) -> None:
        self._names = names
        twice = [name for name, count in Counter(names).items() if count > 1]
        read = {column.name for column in self._layout.columns}
        for name in twice:
            self.report(
                f"two columns are called {short(name)}",
                "rename one" if name in read else "nothing: neither is read",
                "header",
                line=self._line,
                column=name,
                severity="error" if name in read else "note",
            )
        self._wanted = [column for column in self._layout.columns if column.name in names]
        for column in self._layout.columns:
            if column.required and column.name not in names:
                self._lacks(column.name, names)

    def _lacks(self, name: str, names: list[str]) -> None:
        others = [other for other in (",", "\t", ";", "|", "::") if other in names[0]] if len(names) == 1 else []
        remedy = f"set the delimiter to {others[0]!r}: the header holds it" if others else rename_hint(name, names)
        self.report(f"there is no column '{name}'", remedy, "missing column", line=self._line, column=name)

    def _row(self, fields: list[str]) -> None:
        names = self._names or []
        if fields == [] or (fields == [""] and len(names) > 1):
            if fields:
                self._empty()
            return
        if self._layout.spilling in names and len(fields) > len(names):
            at, surplus = names.index(str(self._layout.spilling)), len(fields) - len(names)
            joined = self._layout.delimiter.join(fields[at : at + surplus + 1])
            fields = [*fields[:at], joined, *fields[at + surplus + 1 :]]
        if len(fields) != len(names):
            self.report(
                f"{len(fields)} fields where there should be {len(names)}",
                "look for a delimiter inside a field or a broken line",
                "number of fields",
                line=self._line,
            )
            return
        self._records += 1
        by_name = dict(zip(names, fields, strict=True))
        for column in self._wanted:
            self.value(column, by_name[column.name], self._line)
        self.see(by_name, self._line)
        for fault in self._layout.rule(by_name) if self._layout.rule is not None else ():
            self.report(fault.what, fault.remedy, fault.kind, line=self._line, column=fault.column)

    def _empty(self) -> None:
        self.report("the line is empty", "remove it", "empty line", line=self._line, severity="note")
