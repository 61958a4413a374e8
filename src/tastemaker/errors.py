"""The errors that a user can fix. The command line prints their text as one sentence and exits with `exit_code`."""


class TastemakerError(Exception):
    """Base of all errors that say what was given, what was expected and how to fix it."""

    exit_code = 2


class ConfigError(TastemakerError):
    """A setting, preset, file or folder that cannot be used as given."""


class PromptError(TastemakerError):
    """Prompts that cannot be read."""


class DataError(TastemakerError):
    """Images, captions or preferences made by others that cannot be read."""


class ModelError(TastemakerError):
    """A model that cannot be loaded, or is not of a family known here."""


class RewardError(TastemakerError):
    """A reward that cannot be found, raises, or answers with something else than one finite number per image."""


class RewardUnavailable(RewardError):
    """A reward elsewhere that could not be reached, or did not get well, for as long as one waits for it.

    Its exit code is sysexits' EX_UNAVAILABLE: what was asked is right, and may work when the server is back.
    """

    exit_code = 69


class EngineError(TastemakerError):
    """A rollout engine that refuses, answers with something else than images of this model, or has other weights."""


class EngineUnavailable(EngineError):
    """A rollout engine that could not be reached, or did not get well, for as long as one waits for it."""

    exit_code = 69


class ProcessLost(TastemakerError):
    """Another process of the run has ended, or cannot be reached: the run can go on from its last checkpoint."""

    exit_code = 69


class CheckpointError(TastemakerError):
    """A checkpoint that is missing, damaged, or of another run than the one that is to go on."""


class StorageError(TastemakerError):
    """A file system to which a run cannot write; what it held before is untouched."""

    exit_code = 4


class DivergedError(TastemakerError):
    """Training that produced a loss or gradient which is not finite, or states that were not found again by inversion;
    raised before the weights are touched."""

    exit_code = 3


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """A hint for error messages: the known name closest to `name`, or up to 40 of them when none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", ... ({len(known)} in all)" if len(known) > 40 else ""
    return f"known: {', '.join(sorted(known)[:40])}{more}"
