"""Packages that only encoders with weights need: imported where they are used, missing with a remedy, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from wsi2d.errors import ConfigError, Wsi2dError, one_line

INSTALL = "pip install 'wsi2d[encoders]'"


def import_package(name: str, what: str = "") -> ModuleType:
    """Import timm, transformers or huggingface_hub.

    Args:
        name: of the package.
        what: needs it; begins the error's line, as ``encoder 'uni': ``.

    Raises:
        ConfigError: it is not installed, or does not import; the line says what to do.
    """
    if find_spec(name) is None:
        raise ConfigError(f"{what}{name} is not installed; {INSTALL}")
    try:
        return import_module(name)
    # What an import can raise where binary packages do not belong together: torchvision, which timm needs, raises
    # RuntimeError beside a torch of another build.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise ConfigError(
            f"{what}{name} does not import ({one_line(str(error))[:200]}); install torch, torchvision and {name} that "
            "belong together"
        ) from error


@contextmanager
def one_error(kind: type[Wsi2dError], what: str) -> Iterator[None]:
    """Within it, whatever a package raises of values that come from a file becomes one error of a kind.

    Args:
        kind: of the error.
        what: begins its line; the first line of what was raised that is no headline follows in brackets.
    """
    try:
        yield
    except (Wsi2dError, MemoryError):
        raise
    except Exception as error:
        lines = [line for line in map(str.strip, str(error).splitlines()) if line] or [type(error).__name__]
        reason = next((line for line in lines if not line.endswith(":")), lines[0])
        raise kind(f"{what} ({reason[:200]})") from error
