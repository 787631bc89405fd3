"""Files that are wrong on purpose, each in one way that chance seldom finds."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CONFIG = b"""\
out: run
data: {cohort: cohort.csv, features: features, splits: splits}
task: {kind: classification, label: subtype}
"""


def configs() -> dict[str, bytes]:
    """Configurations that YAML reads in unexpected ways, or hardly."""
    names = [f"a{i}" for i in range(30)]
    doubled = [f"&{b} [*{a}, *{a}]" for a, b in pairwise(names)]
    bomb = ", ".join(["[&a0 [x, x]", *doubled]).encode() + b"]"  # a billion values, were they written out
    return {
        "empty": b"",
        "nul": b"out: a\0b\n" + CONFIG,
        "control characters": CONFIG + b"seed: \x01\x02\n",
        "escaped nul in a path": CONFIG.replace(b"out: run", b'out: "a\\0b"'),
        "escaped newline in a key": CONFIG + b'"a\\nb": 1\n',
        "escaped newline in a value": CONFIG + b'preset: "a\\nb"\n',
        "line separator in a name": CONFIG.replace(b"kind: classification", b'kind: "class\\Lx"'),
        "lone surrogate": CONFIG.replace(b"label: subtype", b'label: "\\uD800"'),
        "lone surrogate in a path": CONFIG.replace(b"out: run", b'out: "\\uD800"'),
        "lone surrogate in a preset": CONFIG + b'preset: "\\uD800"\n',
        "surrogate of an unknown model": CONFIG + b'model: "\\uD800"\n',
        "not utf-8": CONFIG + b"seed: \xff\xfe\n",
        "utf-16": CONFIG.decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + CONFIG,
        "alias bomb": b"x: " + bomb + b"\n" + CONFIG,
        "alias bomb as a seed": CONFIG + b"seed: " + bomb + b"\n",
        "alias bomb as a path": CONFIG.replace(b"out: run", b"out: " + bomb),
        "alias bomb as classes": CONFIG.replace(b"label: subtype", b"label: subtype, classes: " + bomb),
        "alias bomb as a width": CONFIG + b"model: {name: abmil, dim: " + bomb + b"}\n",
        "alias bomb as a model": CONFIG + b"model: {name: " + bomb + b"}\n",
        "alias bomb as a preset": CONFIG + b"preset: " + bomb + b"\n",
        "alias of itself": CONFIG + b"model: &m {name: abmil, dim: *m}\n",
        "section of itself": b"&top\n" + CONFIG + b"data: *top\n",
        "classes of themselves": CONFIG.replace(b"label: subtype", b"label: subtype, classes: &c [a, *c]"),
        "model of itself": CONFIG + b"model: &m\n  name: *m\n",
        "deep lists": CONFIG + b"seed: " + b"[" * 5000 + b"]" * 5000 + b"\n",
        "deep mappings": CONFIG + b"model: " + b"{a: " * 5000 + b"1" + b"}" * 5000 + b"\n",
        "open lists": b"[" * 100_000,
        "huge whole number": CONFIG + b"seed: " + b"9" * 5000 + b"\n",
        "large seed": CONFIG + b"seed: " + b"9" * 40 + b"\n",
        "huge hexadecimal": CONFIG + b"seed: 0x" + b"f" * 20_000 + b"\n",
        "huge epochs": CONFIG + b"training: {epochs: " + b"9" * 30 + b"}\n",
        "huge batch": CONFIG + b"training: {batch_size: 1" + b"0" * 25 + b"}\n",
        "not a number": CONFIG + b"training: {lr: .nan}\n",
        "infinite": CONFIG + b"training: {lr: .inf}\n",
        "infinite whole number": CONFIG + b"training: {epochs: .inf}\n",
        "infinite in a model": CONFIG + b"model: {name: mamba2d-mil, dim: .inf}\n",
        "nan in a model": CONFIG + b"model: {name: mamba2d-mil, dropout: .nan}\n",
        "huge in a model": CONFIG + b"model: {name: mamba2d-mil, dim: " + b"9" * 40 + b"}\n",
        "date": CONFIG + b"seed: 2024-01-01\n",
        "impossible date": CONFIG + b"seed: 2024-99-99\n",
        "date as a key": CONFIG + b"2024-01-01: 1\n",
        "sixties": CONFIG + b"seed: 190:20:30\n",
        "list as a key": CONFIG + b"? [a, b]\n: 1\n",
        "mapping as a key": CONFIG + b"? {a: b}\n: 1\n",
        "list as a key below": CONFIG + b"model: {name: abmil, ? [a] : 1}\n",
        "number as a key": CONFIG + b"1: 2\n",
        "null as a key": CONFIG + b"~: 2\n",
        "number as a key of a model": CONFIG + b"model: {name: abmil, 1: 2}\n",
        "null as a key of a loss": CONFIG + b"training: {loss: {name: cross-entropy, ~: 2}}\n",
        "merge of a scalar": CONFIG + b"<<: 1\n",
        "merge of itself": b"&t\n<<: *t\n" + CONFIG,
        "python tag": CONFIG + b"seed: !!python/object/apply:os.getcwd []\n",
        "unknown tag": CONFIG + b"seed: !what 1\n",
        "binary": CONFIG + b"seed: !!binary aGVsbG8\n",
        "broken binary": CONFIG + b"seed: !!binary '\xc3\xa4'\n",
        "broken float": CONFIG + b"seed: !!float abc\n",
        "broken int": CONFIG + b"seed: !!int abc\n",
        "broken bool": CONFIG + b"seed: !!bool abc\n",
        "broken time": CONFIG + b"seed: !!timestamp abc\n",
        "set": CONFIG + b"model: !!set {name, abmil}\n",
        "ordered": CONFIG + b"model: !!omap [a: 1]\n",
        "pairs": CONFIG + b"task: !!pairs [a: 1]\n",
        "two documents": CONFIG + b"---\n" + CONFIG,
        "directive": b"%YAML 9.9\n---\n" + CONFIG,
        "a list": b"- 1\n- 2\n",
        "a scalar": b"1\n",
        "sections are lists": b"out: run\ndata: []\ntask: []\nmodel: []\ntraining: []\nevaluation: []\n",
        "sections are null": b"out: run\ndata:\ntask:\nmodel:\ntraining:\nevaluation:\n",
        "task is a scalar": CONFIG.replace(b"{kind: classification, label: subtype}", b"7"),
        "kind is a list": CONFIG.replace(b"kind: classification", b"kind: [a]"),
        "kind is a mapping": CONFIG.replace(b"kind: classification", b"kind: {a: b}"),
        "classes are mappings": CONFIG.replace(b"label: subtype", b"label: subtype, classes: [{a: 1}, {b: 2}]"),
        "classes with a line break": CONFIG.replace(b"label: subtype", b'label: x, classes: ["a\\nb", c]'),
        "event with a line break": CONFIG.replace(
            b"kind: classification, label: subtype", b'kind: survival, time: t, event: "a\\nb"'
        ),
        "preset is a list": CONFIG + b"preset: [demo]\n",
        "preset is a path": CONFIG + b"preset: ../../etc/passwd\n",
        "preset is absolute": CONFIG + b"preset: /etc/hostname\n",
        "preset is long": CONFIG + b"preset: " + b"x" * 5000 + b"\n",
        "preset with a nul": CONFIG + b'preset: "a\\0b"\n',
        "preset under a scalar": CONFIG + b"preset: demo\ntraining: 3\n",
        "preset, model is a list": CONFIG + b"preset: demo\nmodel: [a]\n",
        "preset, name is a list": CONFIG + b"preset: demo\nmodel: {name: [a]}\n",
        "model's name is a list": CONFIG + b"model: {name: [a]}\n",
        "model's name is null": CONFIG + b"model: {name: ~}\n",
        "model's name with a line break": CONFIG + b'model: {name: "a\\nb"}\n',
        "loss is a list": CONFIG + b"training: {loss: [a]}\n",
        "loss's name is a list": CONFIG + b"training: {loss: {name: [a]}}\n",
        "loss's name is null": CONFIG + b"training: {loss: {name: ~}}\n",
        "loss's name is missing": CONFIG + b"training: {loss: {}}\n",
        "loss's name with a line break": CONFIG + b'training: {loss: "a\\nb"}\n',
        "path is a list": CONFIG.replace(b"out: run", b"out: [run]"),
        "path is long": CONFIG.replace(b"out: run", b"out: " + b"x/" * 40_000),
        "key is long": CONFIG + b"x" * 900 + b": 1\n",
        "many keys": CONFIG + b"".join(b"k%d: 1\n" % i for i in range(20_000)),
        "value is long": CONFIG + b"seed: " + b"x" * 300_000 + b"\n",
        "quotes left open": CONFIG + b'seed: "' + b"x" * 1000,
        "tabs": CONFIG.replace(b"out: run", b"out:\trun\n\tx: 1"),
    }


def cohorts(sound: bytes) -> dict[str, bytes]:
    """Tables of slides with what spreadsheets and scripts put into them."""
    header, _, rows = sound.partition(b"\n")
    first = rows.partition(b"\n")[0]
    return {
        **_tables(sound),
        "newline in an id": sound.replace(b"P01-A", b'"P01\nA"'),
        "newline in a label": sound.replace(b",a,", b',"a\nb",', 1),
        "newline in a label of all": sound.replace(b",a,", b',"a\nb",').replace(b",b,", b',"a\nb",'),
        "newline in a status": sound.replace(b"alive", b'"al\nive"', 1),
        "newline in a time": sound.replace(b",41,", b',"4\n1",'),
        "newline in a column's name": sound.replace(b"subtype", b'"sub\ntype"'),
        "newline in mpp's name": sound.replace(b"mpp", b'"m\npp"'),
        "newline in mpp": sound.replace(b"0.5\n", b'"0\n5"\n', 1),
        "newline in a repeated id": header + b"\n" + 2 * first.replace(b"P00-A", b'"P00\nA"').join([b"", b"\n"]),
        "newline in a patient": sound.replace(b",P02,", b',"P\n02",').replace(b",8,", b",9,", 1),
        "form feed in a label": sound.replace(b",a,", b",a\x0cx,", 1),
        "line separator in a label": sound.replace(b",a,", ",a\u2028x,".encode(), 1),
        "carriage return in a label": sound.replace(b",a,", b',"a\rx",', 1),
        "infinite time": sound.replace(b",41,", b",inf,"),
        "huge time": sound.replace(b",41,", b",1e308,").replace(b",8,", b",1.7e308,"),
        "endless time": sound.replace(b",41,", b"," + b"9" * 5000 + b","),
        "underscores in a time": sound.replace(b",41,", b",4_1,"),
        "foreign digits in a time": sound.replace(b",41,", ",٤١,".encode()),
        "hexadecimal time": sound.replace(b",41,", b",0x29,"),
        "huge mpp": sound.replace(b"0.5\n", b"1e308\n"),
        "long label": sound.replace(b",a,", b"," + b"x" * 200_000 + b",", 1),
        "long id": sound.replace(b"P01-A", b"x" * 200_000),
        "id is a path": sound.replace(b"P01-A", b"../../P01"),
        "id is a suffix": sound.replace(b"P01-A", b".svs"),
        "id is a dot": sound.replace(b"P01-A", b"."),
        "id with a nul": sound.replace(b"P01-A", b"P01\0A"),
        "slide and patient share an id": sound.replace(b"P01-A", b"P03"),
        "a column twice": sound.replace(b"status", b"subtype"),
        "the slides' column twice": sound.replace(b"case_id", b"slide_id"),
        "the mpp column twice": sound.replace(b"months", b"mpp"),
        "a column twice but for spaces": sound.replace(b"status", b"subtype ", 1),
        "columns without names": b",,,,,\n" + rows,
        "columns with spaces": sound.replace(b",", b" , "),
        "a header alone": header + b"\n",
        "a header and empty rows": header + b"\n" + b",,,,,\n" * 5,
        "one row": header + b"\n" + first + b"\n",
        "fewer fields": header + b"\nP00-A\n",
        "more fields": sound.replace(b"0.5\n", b"0.5,1,2\n", 1),
        "more fields everywhere": sound.replace(b"0.5\n", b"0.5,1,2\n"),
        "many columns": b",".join([header, *(b"c%d" % i for i in range(2000))]) + b"\n" + rows,
        "many rows": sound + b"".join(b"Q%d,Q%d,a,1,dead,0.5\n" % (i, i) for i in range(20_000)),
        "every slide its own class": b"\n".join(
            [header, *(b"Q%d,Q%d,c%d,1,dead,0.5" % (i, i, i) for i in range(2000))]
        ),
        "one class": sound.replace(b",b,", b",a,"),
        "labels nan": sound.replace(b",a,", b",nan,"),
        "labels infinite": sound.replace(b",a,", b",inf,").replace(b",b,", b",-inf,"),
        "semicolons": sound.replace(b",", b";"),
        "tabs": sound.replace(b",", b"\t"),
    }


def predictions(sound: bytes) -> dict[str, bytes]:
    """Tables of predictions with numbers that are none."""
    header, _, rows = sound.partition(b"\n")
    fields = rows.partition(b"\n")[0].split(b",")

    def first(**changes: bytes) -> bytes:
        names = header.decode().split(",")
        row = [changes.get(name, field) for name, field in zip(names, fields, strict=True)]
        return b"\n".join([header, b",".join(row), *rows.split(b"\n")[1:]])

    return {
        **_tables(sound),
        **{f"fold {v.decode()[:12]}": first(fold=v) for v in (b"1e300", b"inf", b"nan", b"-1", b"1.0", b"1.5", b"1_0")},
        **{f"fold {v.decode()[:12]}": first(fold=v) for v in (b"9" * 30, b"9" * 400, b'"1\n2"', b'"a\nb"', b"0x1")},
        **{f"label {v.decode()[:12]}": first(label=v) for v in (b"zzz", b'"a\nb"', b"", b"x" * 200_000)},
        **{f"time {v.decode()[:12]}": first(time=v) for v in (b"-1", b"inf", b"nan", b"1e308", b"True", b"0", b"1j")},
        **{f"event {v.decode()[:12]}": first(event=v) for v in (b"2", b"True", b"nan", b"-0", b"1.0")},
        **{f"risk {v.decode()[:12]}": first(risk=v) for v in (b"1e308", b"-1e308", b"inf", b"True")},
        **{f"prob {v.decode()}": first(prob_a=v) for v in (b"2", b"-1", b"1e308", b"nan", b"1e-320")},
        "every fold another": b"\n".join(
            [header, *(b",".join([b"q%d" % i, b"p", b"%d" % i, *fields[3:]]) for i in range(300))]
        ),
        "no fold": b"\n".join([header, *(b",".join([b"q%d" % i, b"p", b"", *fields[3:]]) for i in range(9))]),
        "some folds": first(fold=b""),
        "one row": header + b"\n" + b",".join(fields) + b"\n",
        "a header alone": header + b"\n",
        "events alike": b"\n".join([header] + 5 * [b",".join(fields)]),
        "a class with a line break": sound.replace(b"prob_a", b'"prob_\na"'),
        "a class without a name": sound.replace(b"prob_a", b"prob_"),
        "a class twice": sound.replace(b"prob_a", b"prob_b"),
        "fold twice": sound.replace(b"case_id", b"fold"),
    }  # fmt: skip


def splits(sound: bytes) -> dict[str, bytes]:
    """Splits with ids that are none."""
    return {
        **_tables(sound),
        "newline in an id": sound.replace(b"P0", b'"P\n0"', 1),
        "form feed in an id": sound.replace(b"P0", b"P\x0c0", 1),
        "line separator in an id": sound.replace(b"P0", "P\u20280".encode(), 1),
        "a side twice": sound.replace(b"val", b"train"),
        "one side": b",train\n0,P00\n",
        "sides alike": b",train,val,test\n" + b"".join(b"%d,P0%d,P0%d,P0%d\n" % (i, i, i, i) for i in range(10)),
        "two sides": b",train,val\n0,P00,P01\n1,P02,P03\n2,P04,P05\n3,P06,P07\n",
        "two sides, few": b",train,val\n0,P00,P01\n",
        "two sides of one patient": b",train,val\n0,P00,P00\n",
        "long id": sound.replace(b"P0", b"x" * 200_000, 1),
        "many ids": sound + b"".join(b"%d,Q%d,,\n" % (i, i) for i in range(50_000)),
        "more fields": b",train,val,test\n0,P00,P01,P02,P03,P04\n",
        "no index": sound.replace(b",train", b"train", 1),
    }


def _tables(sound: bytes) -> dict[str, bytes]:
    """What may befall any table."""
    return {
        "empty": b"",
        "a newline": b"\n",
        "newlines": b"\n" * 1000,
        "a quote": b'"',
        "nul": sound.replace(b",", b"\0,", 3),
        "nul alone": bytes(5000),
        "not utf-8": sound.replace(b"0", b"\xff", 1),
        "not utf-8 in the header": b"\xff" + sound,
        "latin-1": sound.replace(b"P", "Ä".encode("latin-1")),
        "utf-16": sound.decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + sound,
        "two byte order marks": 2 * b"\xef\xbb\xbf" + sound,
        "old line ends": sound.replace(b"\n", b"\r"),
        "quote left open": sound.replace(b"P00", b'"P00', 1),
        "quote left open in the header": b'"' + sound,
        "quote left open, long": sound.replace(b"P00", b'"P00', 1) + 50_000 * sound[:40],
        "huge field": sound.replace(b"P00", b"x" * 3_000_000, 1),
        "huge line": sound.replace(b"P00", b"," * 3000, 1),
        "control characters": sound + bytes(range(1, 32)),
        "end of file mark": sound + b"\x1a",
        "gzip": b"\x1f\x8b\x08\0" + sound,
        "zip": b"PK\x03\x04" + sound,
        "escape codes": sound.replace(b"P00", b"\x1b[2J", 1),
        "markup": sound.replace(b"P00", b"[/red][bold]", 1),
        "lone surrogate": sound.replace(b"P00", b"\xed\xa0\x80", 1),
    }


def feature_files(sound: Path, folder: Path) -> Iterator[Path]:
    """HDF5 files that are sound as such and hold something else than features."""
    with h5py.File(sound) as file:
        arrays = {name: file[name][()] for name in file}
        attributes = dict(file.attrs)
    rows, dim = arrays["features"].shape

    def put(name: str, value: Any, **how: Any) -> Callable[[h5py.File], None]:
        def change(file: h5py.File) -> None:
            del file[name]
            if value is not None:
                file.create_dataset(name, **value, **how) if isinstance(value, dict) else file.__setitem__(name, value)

        return change

    def say(**values: Any) -> Callable[[h5py.File], None]:
        return lambda file: file.attrs.update(values)

    def both(*changes: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
        return lambda file: [change(file) for change in changes]  # type: ignore[func-returns-value, return-value]

    unwritten = {"chunks": (1024, dim), "dtype": "f4"}
    changes = {
        "far too many rows": put("features", {"shape": (10**11, dim), **unwritten}),
        "many rows not written": put("features", {"shape": (10**8, dim), **unwritten}),
        "many cells not written": put("index", {"shape": (10**9, 2), "chunks": (1024, 2), "dtype": "i4"}),
        "features are a group": lambda file: (file.__delitem__("features"), file.create_group("features")),
        "features link to themselves": put("features", h5py.SoftLink("/features")),
        "features link elsewhere": put("features", h5py.ExternalLink("nowhere.h5", "/x")),
        "features are a type": put("features", np.dtype("f4")),
        "features are a number": put("features", np.float32(1)),
        "features are null": put("features", h5py.Empty("f4")),
        "features are strings": put("features", np.full((rows, dim), "a", object)),
        "features are records": put("features", np.zeros((rows, dim), [("a", "f4")])),
        "features are not native": put("features", arrays["features"].astype(">f4")),
        "features are missing": put("features", None),
        "index is null": put("index", h5py.Empty("i4")),
        "index is not native": put("index", arrays["index"].astype(">i4")),
        "index is unsigned": put("index", arrays["index"].astype("u8")),
        "coords are null": put("coords", h5py.Empty("i4")),
        "schema is an array": say(schema=np.array(["wsi2d/1", "x"], object)),
        "schema is null": say(schema=h5py.Empty("f8")),
        "schema with a line break": say(schema="wsi2d\n2"),
        "complete is an array": say(complete=np.zeros(3, bool)),
        "complete is null": say(complete=h5py.Empty("f8")),
        "id with a line break": both(say(slide_id="a\nb"), put("index", np.zeros_like(arrays["index"]))),
        "encoder is bytes": say(encoder=np.bytes_(b"\xff\xfe")),
        "tissue is deep": say(tissue="[" * 60_000),
        "tissue is no mapping": say(tissue="[1, 2]"),
        "tissue is no JSON": say(tissue="{"),
        "grid is negative": say(grid_shape=np.array([-1, 2**62])),
        "grid is vast": say(grid_shape=np.array([2.0**80, 2.0**90])),
        "grid has three sides": say(grid_shape=np.array([9, 9, 9])),
    }  # fmt: skip
    for name in ("mpp", "slide_mpp", "patch_level0", "stride_level0", "patch_px", "level0_width"):
        for value in (0.0, -1.0, 1e308, np.nan, np.inf, h5py.Empty("f8"), np.zeros(3), "words"):
            changes[f"{name} is {str(value)[:12]}"] = say(**{name: value})
    for i, (name, change) in enumerate(changes.items()):
        path = folder / f"{i:03d} {name.replace('/', ' ')}.h5"
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
            file.attrs.update(attributes)
            change(file)
        yield path
