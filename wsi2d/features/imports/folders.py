"""Which files of a folder are features of a tool's, and where the coordinates' files that go with them lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports import atlaspatch, clam, stamp, trident
from wsi2d.features.imports.isolated import PeerReader
from wsi2d.features.imports.peer import choose
from wsi2d.features.imports.reading import OURS, Recognised

_DEEPEST = 6  # folders below the given one
_PATCHES = "patches"
_SHOWN = 5
_LOOKED_AT = 20  # sound files without features, after which a folder is left until no other has any


@dataclass(frozen=True)
class PeerFolder:
    """A tool's feature files.

    Attributes:
        tool: who wrote them.
        files: by slide id, in order of the ids.
        patches: folder of the files with coordinates, where it does not lie beside the features.
        encoder: whose features to take, of files that hold those of several.
    """

    tool: str
    files: dict[str, Path]
    patches: Path | None = None
    encoder: str | None = None


def find_peer_files(
    source: Path, reader: PeerReader, *, encoder: str | None = None, patches: Path | None = None
) -> PeerFolder:
    """Find a tool's feature files in a folder, be it the tool's root folder or the one with the features.

    Args:
        source: a folder, or one feature file.
        reader: opens files to see whose they are.
        encoder: whose features, where a folder holds those of several encoders.
        patches: folder of the files with coordinates, of a tool that keeps them apart (CLAM).

    Raises:
        FeatureStoreError: there are none, or the features of several encoders or settings.
    """
    if patches is not None and not patches.is_dir():
        raise FeatureStoreError(f"patches {patches}: is no folder; give the one that holds a .h5 file a slide")
    if source.is_file():
        whose = _refuse_ours(source, reader.recognise(source))
        return _folder(whose, [source], encoder, patches)
    if not source.is_dir():
        raise FeatureStoreError(f"features {source}: does not exist; give a folder of feature files")
    folders = dict(_folders_with_files(source))
    found, complaints, ours = _recognised(folders, reader)
    if not found:
        raise FeatureStoreError(_nothing(source, folders, complaints, ours))
    chosen = _chosen(found, encoder, source)
    files = [path for folder in chosen for path in folders[folder]]
    if patches is None and found[chosen[0]].tool == clam.NAME:
        patches = _patches_apart(source, chosen, folders)
    return _folder(found[chosen[0]], files, encoder, patches)


def _folders_with_files(source: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders from this one down that hold .h5 files, with these."""
    for place, folders, names in os.walk(source):
        depth = len(Path(place).relative_to(source).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < _DEEPEST else []
        paths = (Path(place, name) for name in sorted(names) if name.endswith(".h5") and not name.startswith("."))
        files = [path for path in paths if path.is_file()]
        if files:
            yield Path(place), files


def _recognised(folders: dict[Path, list[Path]], reader: PeerReader) -> tuple[dict[Path, Recognised], list[str], bool]:
    """Whose features each folder holds, as its first readable file of features says; what is wrong with the others;
    whether there are files of ours."""
    found, complaints, ours = {}, [], False
    left = {folder: iter(files) for folder, files in folders.items()}
    for most in (_LOOKED_AT, None):  # folders of coordinates have a file a slide, none of which says anything
        for folder, files in left.items():
            silent = 0
            while silent != most and (path := next(files, None)) is not None:
                try:
                    whose = reader.recognise(path)
                except FeatureStoreError as error:
                    complaints.append(str(error))
                    continue
                if whose is None:
                    silent += 1
                    continue
                if whose.tool == OURS:
                    ours = True
                else:
                    found[folder] = whose
                left[folder] = iter(())
                break
        if found:
            break
    return found, complaints, ours


def _chosen(found: dict[Path, Recognised], encoder: str | None, source: Path) -> list[Path]:
    """The folders whose features belong together: one, those of one encoder, or folders of slides within one folder."""
    folders = list(found)
    if len(folders) > 1 and encoder is not None:
        named = [f for f in folders if encoder in found[f].encoders or f.name in (encoder, trident.FOLDER + encoder)]
        folders = named or folders
    kinds = {(found[f].tool, found[f].encoders) for f in folders}
    nested = all(folders[0] in (f, *f.parents) for f in folders) or {tool for tool, _ in kinds} == {stamp.NAME}
    if len(folders) == 1 or (len(kinds) == 1 and nested):
        return folders
    listed = ", ".join(f"{f.relative_to(source)} ({found[f].tool})" for f in folders[:_SHOWN])
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    raise FeatureStoreError(
        f"features {source}: holds {len(folders)} folders of features, {listed}{more}; give one of them, or --encoder"
    )


def _patches_apart(source: Path, chosen: Iterable[Path], folders: dict[Path, list[Path]]) -> Path | None:
    """CLAM's folder of coordinates where it lies elsewhere below the source than beside the features."""
    beside = {place / _PATCHES for f in chosen for place in (f, f.parent, f.parent.parent)}
    if any(place.is_dir() for place in beside):
        return None
    apart = [folder for folder in folders if folder.name == _PATCHES]
    if len(apart) > 1:
        raise FeatureStoreError(
            f"features {source}: holds {len(apart)} folders '{_PATCHES}'; say with --patches which one goes with them"
        )
    return apart[0] if apart else None


def _folder(whose: Recognised, files: list[Path], encoder: str | None, patches: Path | None) -> PeerFolder:
    if whose.tool == atlaspatch.NAME:
        encoder = choose(encoder, whose.encoders, files[0])
    by_id: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: path.stem):
        if path.stem in by_id:
            raise FeatureStoreError(
                f"{path}: {by_id[path.stem]} bears the same slide's name; rename one, or give one of their folders"
            )
        by_id[path.stem] = path
    return PeerFolder(whose.tool, by_id, patches, encoder)


def _refuse_ours(path: Path, whose: Recognised | None) -> Recognised:
    if whose is None:
        raise FeatureStoreError(
            f"{path}: holds no patch features of TRIDENT, CLAM, STAMP or AtlasPatch; give a folder of such files"
        )
    if whose.tool == OURS:
        raise FeatureStoreError(f"{path}: is a wsi2d feature file; there is nothing to import")
    return whose


def _nothing(source: Path, folders: dict[Path, list[Path]], complaints: list[str], ours: bool) -> str:
    if complaints:
        return complaints[0]
    what = "no patch features of TRIDENT, CLAM, STAMP or AtlasPatch"
    if ours:
        return f"features {source}: holds feature files of wsi2d and {what}; there is nothing to import"
    if not folders and any(source.rglob("*.pt")):
        return (
            f"features {source}: holds .pt files, which have no coordinates (and run code when they are opened); give "
            "the folder with the .h5 files, as CLAM's h5_files"
        )
    looked = "no .h5 files" if not folders else f"{what} in {sum(map(len, folders.values()))} .h5 files"
    return f"features {source}: {looked}; give a folder that one of these tools wrote"
