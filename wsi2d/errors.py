"""The one tree of exceptions.

Every message is one line that says what is wrong, where, and what to do about it. The command line prints that line
and exits with code 2; with ``--debug`` it shows the traceback as well.
"""


def one_line(text: str) -> str:
    """Text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class Wsi2dError(Exception):
    """Base of every error that a user can cause or mend: one line, whatever a file or an option brought into it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(Wsi2dError):
    """A configuration, an option or an argument that cannot be used."""


class StorageError(Wsi2dError):
    """A file or a folder that cannot be written: no permission, a full disk, something else in its place."""


class FullDiskError(StorageError):
    """A disk without room, or a quota that is used up: nothing that follows can be written either."""


class TakenOverError(StorageError):
    """A half-written file that is another run's by now."""


class SlideError(Wsi2dError):
    """A slide file that cannot be opened, read or placed in micrometres."""


class FeatureStoreError(Wsi2dError):
    """A feature file that is missing, incomplete, inconsistent or made with other settings."""


class ForeignFileError(FeatureStoreError):
    """A sound HDF5 file that is no feature file of this package's."""


class CohortError(Wsi2dError):
    """A cohort table with missing columns, duplicate slides or unusable labels."""


class SplitError(Wsi2dError):
    """Splits that name unknown ids, leave a side empty or put one patient on two sides."""


class ModelError(Wsi2dError):
    """A model that needs a package which is not installed."""


class RunError(Wsi2dError):
    """A run folder that is missing, unfinished or not the one the command expects."""


class ClusterError(Wsi2dError):
    """A cluster that is not there, goes away, or whose machines do not belong together."""
