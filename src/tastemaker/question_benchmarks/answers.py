"""answers.jsonl: every answer with its score, appended as it comes, so that nothing is asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from tastemaker.errors import DataError, StorageError
from tastemaker.question_benchmarks.scoring import Note

FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answered:
    """A line of the file."""

    image: str
    """The image's name."""
    digest: str
    """Of the image (`Picture.digest`)."""
    prompt: str
    """The prompt's id."""
    question: str
    """The question's id."""
    asked: str
    """As the model was asked."""
    answer: str
    score: float
    note: Note

    @property
    def key(self) -> tuple[str, str, str, str]:
        """By which an answer is known again: image, prompt, question, and the question's wording."""
        return self.digest, self.prompt, self.question, self.asked


def read_answers(path: Path) -> list[Answered]:
    """The answers in a file; none where there is no file. A last line that is not whole is cut off.

    Raises DataError for a line that is none of ours, and StorageError.
    """
    try:
        data = path.read_bytes() if path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:  # a killed process was writing it
            with path.open("r+b") as file:
                file.truncate(len(whole))
    except OSError as error:
        raise StorageError(f"{path} cannot be read or mended: {error.strerror or error}") from error
    found = []
    for number, line in enumerate(whole.decode("utf-8", "replace").split("\n")[:-1], 1):
        try:
            found.append(Answered(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number} is no answer that was written here: remove the line") from error
    return found


@contextmanager
def appending(path: Path) -> Iterator[IO[bytes]]:
    """The file, for `append`. Raises StorageError where writing fails."""
    try:
        with path.open("ab") as file:
            yield file
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def append(file: IO[bytes], answered: Answered) -> None:
    """One line, which stays there should this process be killed next."""
    file.write((json.dumps(asdict(answered), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
    file.flush()
