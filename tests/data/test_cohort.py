"""Cohort tables: ids as they come, labels and outcomes checked, one line an error."""

import dataclasses
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.cohort import Cohort, CohortSlide, load_cohort, load_cohort_mpp, plain_slide_id
from wsi2d.errors import CohortError

GRADE = ClassificationTask(label="grade")
DEATH = SurvivalTask(time="months", event="died=1")

WriteTable = Callable[..., Path]


def failure(path: Path, task: ClassificationTask | SurvivalTask, **columns: str) -> str:
    """The message of the CohortError that loading a table ends in: one line that names the file."""
    with pytest.raises(CohortError) as caught:
        load_cohort(path, task, **columns)
    message = str(caught.value)
    assert message.startswith(f"cohort {path}: ")
    assert "\n" not in message
    return message.removeprefix(f"cohort {path}: ")


# --- ids -----------------------------------------------------------------------------------------------------------


def test_ids_stay_text(write_table: WriteTable) -> None:
    cohort = load_cohort(write_table("slide_id,case_id,grade", "007,0012,low", "1e3,0012,high", "8,1.0,low"), GRADE)
    assert [s.slide_id for s in cohort.slides] == ["007", "1e3", "8"]
    assert [s.case_id for s in cohort.slides] == ["0012", "0012", "1.0"]
    assert list(cohort.cases()) == ["0012", "1.0"]
    assert cohort.cases()["0012"] == cohort.slides[:2]


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("TCGA-01.svs", "TCGA-01"),
        ("TCGA-01.SVS", "TCGA-01"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB.svs", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB"),
        ("a.ndpi", "a"),
        ("a.mrxs", "a"),
        ("a.tiff", "a"),
        ("a.dcm", "a"),
        ("a.h5", "a.h5"),
        ("slide.2", "slide.2"),
        ("007", "007"),
    ],
)
def test_slide_suffix_is_stripped_and_nothing_else(write_table: WriteTable, written: str, plain: str) -> None:
    assert plain_slide_id(written) == plain
    cohort = load_cohort(write_table("slide_id,case_id,grade", f"{written},c1,low", "other,c2,high"), GRADE)
    assert cohort.slides[0].slide_id == plain


def test_spaces_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_bytes("\ufeffslide_id , case_id,grade\r\n a , c 1 , low \r\nb,c2,high\r\n".encode())
    cohort = load_cohort(path, GRADE)
    assert cohort.slides == (CohortSlide("a", "c 1", "low"), CohortSlide("b", "c2", "high"))


def test_other_column_names(write_table: WriteTable) -> None:
    path = write_table("image,who,grade", "a,p,low", "b,q,high")
    cohort = load_cohort(path, GRADE, slide_column="image", case_column="who")
    assert [(s.slide_id, s.case_id) for s in cohort.slides] == [("a", "p"), ("b", "q")]


def test_each_slide_a_patient_where_both_columns_are_one(write_table: WriteTable) -> None:
    path = write_table("image,grade", "a.svs,low", "b.svs,high")
    cohort = load_cohort(path, GRADE, slide_column="image", case_column="image")
    assert [(s.slide_id, s.case_id) for s in cohort.slides] == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("a", "a.svs"), ("a.tif", "a.svs")])
def test_one_row_a_slide(write_table: WriteTable, first: str, second: str) -> None:
    path = write_table("slide_id,case_id,grade", f"{first},c1,low", f"{second},c2,high")
    assert failure(path, GRADE) == "slide 'a' occurs more than once; keep one row a slide"


# --- tables that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "missing", "hint"),
    [
        ("slide_id,case_id,grad", "grade", "did you mean 'grad'?"),
        ("slideid,case_id,grade", "slide_id", "did you mean 'slideid'?"),
        ("slide_id,case_id,xyz", "grade", "there are case_id, slide_id, xyz"),
    ],
)
def test_missing_column_names_the_nearest(write_table: WriteTable, header: str, missing: str, hint: str) -> None:
    assert failure(write_table(header, "a,c1,low", "b,c2,high"), GRADE) == f"no column '{missing}'; {hint}"


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("slide_id,case_di,grade", "did you mean 'case_di'? or, "),
        ("slide_id,x,grade", "there are grade, x; or, "),
        ("slide_id,grade", "there are grade; or, "),
    ],
)
def test_missing_patient_column_may_be_declared(write_table: WriteTable, header: str, hint: str) -> None:
    assert failure(write_table(header, *(("a,b,c", "d,e,f") if header.count(",") == 2 else ("a,b", "c,d"))), GRADE) == (
        f"no column 'case_id'; {hint}where each slide is a patient of its own, give data.case_column: slide_id in a "
        "run's YAML, --case-column slide_id to `wsi2d splits make`"
    )
    renamed = write_table(header.replace("slide_id", "image"), "a,b,c" if header.count(",") == 2 else "a,b")
    with pytest.raises(CohortError, match=r"data\.case_column: image in .* --case-column image to"):
        load_cohort(renamed, GRADE, slide_column="image")


@pytest.mark.parametrize(("time", "event", "missing"), [("month", "died=1", "month"), ("months", "dead=1", "dead")])
def test_missing_survival_column(write_table: WriteTable, time: str, event: str, missing: str) -> None:
    path = write_table("slide_id,case_id,months,died", "a,c1,3,1", "b,c2,4,0")
    assert failure(path, SurvivalTask(time=time, event=event)).startswith(f"no column '{missing}'; did you mean")


@pytest.mark.parametrize("blank", ["", " ", "nan", "NaN", "NA"])
def test_missing_values_by_line(write_table: WriteTable, blank: str) -> None:
    path = write_table("slide_id,case_id,grade", "a,c1,low", f"b,c2,{blank}", "c,c3,high", f"d,c4,{blank}")
    message = failure(path, GRADE)
    assert message == "2 rows have no 'grade' (the first is line 3); fill them in or leave them out"


def test_missing_ids_by_line(write_table: WriteTable) -> None:
    assert "no 'slide_id' (the first is line 3)" in failure(
        write_table("slide_id,case_id,grade", "a,c1,low", ",c2,high"), GRADE
    )
    assert "no 'case_id' (the first is line 2)" in failure(
        write_table("slide_id,case_id,grade", "a,,low", "b,c2,high"), GRADE
    )


def test_lines_are_the_files_own_where_some_are_blank(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "", "a,c1,low", "", "b,c2,", "c,c3,high", "")
    assert "(the first is line 5)" in failure(path, GRADE)
    path = write_table("slide_id,case_id,months,died", "", "a,c1,1,1", "b,c2,-1,0")
    assert failure(path, DEATH).startswith("line 4 has months")


def test_blank_lines_are_no_slides(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "", "a,c1,low", " ", ",,", "b,c2,high", "")
    assert [s.slide_id for s in load_cohort(path, GRADE).slides] == ["a", "b"]


def test_short_row_lacks_its_label(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "a,c1,low", "b,c2", "c,c3,high")
    assert "1 rows have no 'grade' (the first is line 3)" in failure(path, GRADE)


@pytest.mark.parametrize(
    "rows",
    [
        ("a,c1,low,", "b,c2,high,"),
        ("a,c1,low,x", "b,c2,high,x"),
        ("a,c1,low", "b,c2,high,x"),
    ],
    ids=["every-row-ends-in-a-comma", "every-row", "one-row"],
)
def test_rows_longer_than_the_header_are_refused(write_table: WriteTable, rows: tuple[str, ...]) -> None:
    # pandas takes the first column for an index where all rows are longer: every value would slide one column left
    message = failure(write_table("slide_id,case_id,grade", *rows), GRADE)
    assert "fields" in message


def test_unreadable_tables(tmp_path: Path, write_table: WriteTable) -> None:
    give = r"give the path of .* \(data\.cohort in a run's YAML\)"
    assert re.fullmatch(rf"no such file; {give}", failure(tmp_path / "none.csv", GRADE))
    assert failure(write_table("slide_id,case_id,grade"), GRADE) == (
        "has no rows; below its header it must hold one row a slide"
    )
    assert re.fullmatch(rf"not a readable CSV table \(Is a directory\); {give}", failure(tmp_path, GRADE))
    save = "save it as CSV in UTF-8, with a header"
    (tmp_path / "empty.csv").write_text("")
    assert re.fullmatch(rf"not a readable CSV table \(.+\); {save}", failure(tmp_path / "empty.csv", GRADE))
    for content in (bytes(range(128, 256)) * 4, "slide_id\tcase_id\n".encode("utf-16")):
        (tmp_path / "binary.csv").write_bytes(content)
        assert re.fullmatch(rf"not a readable CSV table \(.+\); {save}", failure(tmp_path / "binary.csv", GRADE))


@pytest.mark.parametrize("row", ["b,c2,low,grade", 'b,"c2,low'], ids=["too-long", "open-quote"])
def test_a_line_that_cannot_be_parsed(write_table: WriteTable, row: str) -> None:
    message = failure(write_table("slide_id,case_id,grade", "a,c1,low", row), GRADE)
    assert re.fullmatch(r"not a readable CSV table \(.+ (line|row) \d.*\); mend that line: .*in quotes", message)


@pytest.mark.parametrize(("separator", "name"), [(";", "';'"), ("\t", "tabs"), ("|", "'|'")])
def test_other_separators_are_named(write_table: WriteTable, separator: str, name: str) -> None:
    path = write_table(*(line.replace(",", separator) for line in ("slide_id,case_id,grade,mpp", "a,b,c,0.5")))
    words = f"its columns are separated by {name}; save it as CSV with commas"
    assert failure(path, GRADE) == words
    with pytest.raises(CohortError, match=re.escape(words)):
        load_cohort_mpp(path)


def test_cohort_checks_itself() -> None:
    slide = CohortSlide("a", "c", "low")
    with pytest.raises(CohortError, match="has no slides"):
        Cohort((), GRADE, ("low", "high"))
    with pytest.raises(CohortError, match="'a' occurs more than once"):
        Cohort((slide, dataclasses.replace(slide, case_id="d")), GRADE, ("low", "high"))


# --- classes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "2", "1"], ("1", "2", "10")),
        (["NSCLC", "KIRC", "IDC"], ("IDC", "KIRC", "NSCLC")),
        (["tumour", "3", "-1"], ("-1", "3", "tumour")),
        (["None", "0"], ("0", "None")),
    ],
)
def test_classes_in_natural_order(write_table: WriteTable, labels: list[str], classes: tuple[str, ...]) -> None:
    path = write_table("slide_id,case_id,grade", *(f"s{i},c{i},{label}" for i, label in enumerate(labels)))
    assert load_cohort(path, GRADE).classes == classes


def test_given_classes_fix_names_and_order(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "a,c1,low", "b,c2,high", "c,c3,grade 1")
    for classes in (("low", "grade 1", "high"), ("high", "low", "grade 1")):
        assert load_cohort(path, ClassificationTask(label="grade", classes=classes)).classes == classes


def test_a_given_class_that_no_slide_has(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "a,c1,low", "b,c2,high")
    task = ClassificationTask(label="grade", classes=("low", "unseen", "high"))
    assert failure(path, task) == "no slide has grade 'unseen'; take it out of task.classes"


def test_unknown_class(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "a,c1,low", "b,c2,hihg", "c,c3,high")
    task = ClassificationTask(label="grade", classes=("low", "high"))
    assert failure(path, task) == (
        "line 3 has grade 'hihg', which is not among classes low, high; mend it, add it to task.classes, or leave such "
        "slides out"
    )


def test_one_class_only(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "a,c1,low", "b,c2,low")
    assert failure(path, GRADE) == "grade is 'low' everywhere; two classes are needed"


# --- survival ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "declared", "events"),
    [
        (["1", "0", "1"], "1", [True, False, True]),
        (["1", "0", "1"], "0", [False, True, False]),
        (["1.0", "0.0", "1.0"], "1", [True, False, True]),
        (["1", "0", "1"], "1.0", [True, False, True]),
        (["1.0", "0.0", "1.0"], "0", [False, True, False]),
        (["dead", "alive", "dead"], "dead", [True, False, True]),
        (["Alive", "Dead", "Alive"], "Dead", [False, True, False]),
        (["True", "False", "False"], "True", [True, False, False]),
        (["1:DECEASED", "0:LIVING", "0:LIVING"], "1:DECEASED", [True, False, False]),
        (["2", "1", "1"], "2", [True, False, False]),
        (["1", "1", "1"], "1", [True, True, True]),
    ],
)
def test_the_declared_value_is_the_event(
    write_table: WriteTable, column: list[str], declared: str, events: list[bool]
) -> None:
    path = write_table("slide_id,case_id,months,died", *(f"s{i},c{i},{i + 0.5},{v}" for i, v in enumerate(column)))
    cohort = load_cohort(path, SurvivalTask(time="months", event=f"died={declared}"))
    assert [s.event for s in cohort.slides] == events
    assert [s.time for s in cohort.slides] == [i + 0.5 for i in range(len(column))]
    assert cohort.classes == ()
    assert {s.label for s in cohort.slides} == {None}


def test_no_row_has_the_events_value(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,months,died", "a,c1,1,0", "b,c2,2,1")
    assert failure(path, SurvivalTask(time="months", event="died=yes")) == "no row has died=yes; died holds 0, 1"
    assert failure(path, SurvivalTask(time="months", event="died=2")) == "no row has died=2; died holds 0, 1"


def test_three_values_of_an_event(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,months,died", "a,c1,1,0", "b,c2,2,1", "c,c3,3,2")
    assert failure(path, DEATH) == (
        "died must hold two values, it holds 0, 1, 2; leave out the rows of which it is not known whether the event "
        "happened"
    )


@pytest.mark.parametrize("second", ["5,0", "4,1"], ids=["event", "time"])
def test_a_patient_has_one_outcome(write_table: WriteTable, second: str) -> None:
    path = write_table("slide_id,case_id,months,died", "a,c1,5,1", f"b,c1,{second}", "c,c2,1,0")
    assert failure(path, DEATH) == (
        "the slides of patient 'c1' have different times or events; give all its rows the same"
    )


def test_outcomes_written_in_two_ways_agree(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,months,died", "a,c1,5,1", "b,c1,5.0,1.0", "c,c2,1,0")
    assert load_cohort(path, DEATH).describe().startswith("3 slides of 2 patients")


@pytest.mark.parametrize("time", ["-1", "soon", "inf", "1,5"])
def test_times_are_numbers_from_zero(write_table: WriteTable, time: str) -> None:
    path = write_table("slide_id,case_id,months,died", "a,c1,0,1", f'b,c2,"{time}",0')
    message = failure(path, DEATH)
    assert re.fullmatch(rf"line 3 has months '{re.escape(time)}'; it must be a number >= 0", message)


def test_missing_times_and_events(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,months,died", "a,c1,1,1", "b,c2,,0")
    assert "no 'months' (the first is line 3)" in failure(path, DEATH)
    path = write_table("slide_id,case_id,months,died", "a,c1,1,", "b,c2,2,0")
    assert "no 'died' (the first is line 2)" in failure(path, DEATH)


# --- what is said and asked of a cohort ----------------------------------------------------------------------------


def test_describe_counts_patients_by_declared_polarity(write_table: WriteTable) -> None:
    rows = ("a,c1,5,1", "b,c1,5,1", "c,c2,1,0", "d,c3,2,0", "e,c4,2,0")
    path = write_table("slide_id,case_id,months,censorship", *rows)
    said = load_cohort(path, SurvivalTask(time="months", event="censorship=0")).describe()
    assert said == "5 slides of 4 patients; censorship=0 (event): 3 patients, censored: 1"
    said = load_cohort(path, SurvivalTask(time="months", event="censorship=1")).describe()
    assert said == "5 slides of 4 patients; censorship=1 (event): 1 patients, censored: 3"


def test_describe_counts_slides_of_each_class(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id,grade", "a,c1,10", "b,c1,2", "c,c2,2")
    assert load_cohort(path, GRADE).describe() == "3 slides of 2 patients; grade: 2 2, 10 1"


def test_subset_keeps_the_tables_order(write_table: WriteTable) -> None:
    cohort = load_cohort(write_table("slide_id,case_id,grade", "b,1,x", "a,2,y", "c,3,x"), GRADE)
    assert [s.slide_id for s in cohort.subset(["c", "b", "unknown"])] == ["b", "c"]


# --- pixel sizes ---------------------------------------------------------------------------------------------------


def test_mpp_column(write_table: WriteTable) -> None:
    path = write_table("slide_id,mpp", "007.svs,0.25", "b,", "c, 0.5 ")
    assert load_cohort_mpp(path) == {"007": 0.25, "c": 0.5}


@pytest.mark.parametrize("text", ["0", "-0.25", "forty", "inf", "nan"])
def test_mpp_must_be_positive(write_table: WriteTable, text: str) -> None:
    path = write_table("slide_id,mpp", "a,0.25", f"b,{text}")
    with pytest.raises(CohortError, match=re.escape(f"cohort {path}: slide 'b' has mpp '{text}'")):
        load_cohort_mpp(path)


def test_no_mpp_column(write_table: WriteTable) -> None:
    path = write_table("slide_id,case_id", "a,c1")
    with pytest.raises(CohortError, match=r"no column 'mpp'; there are slide_id, case_id; .*--slide-mpp"):
        load_cohort_mpp(path)


# --- published tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slides", "patients", "events"),
    [
        ("KIRC", 498, 498, 169),
        ("KIRP", 261, 261, 41),
        ("LUAD", 455, 455, 159),
        ("STAD", 363, 363, 145),
        ("UCEC", 539, 480, 75),
    ],
)
def test_published_survival_tables(tcga: Path, name: str, slides: int, patients: int, events: int) -> None:
    path = tcga / "survival" / f"{name}.csv"
    cohort = load_cohort(path, SurvivalTask(time="survival_months", event="censorship=0"))
    assert cohort.describe() == (
        f"{slides} slides of {patients} patients; censorship=0 (event): {events} patients, "
        f"censored: {patients - events}"
    )
    with pytest.raises(CohortError, match=r"no row has censorship=dead; censorship holds 0(\.0)?, 1(\.0)?$"):
        load_cohort(path, SurvivalTask(time="survival_months", event="censorship=dead"))


@pytest.mark.parametrize(
    ("name", "slide", "case", "label", "classes"),
    [
        ("BRACS", "slide_id", "slide_id", "label", ("AT", "BT", "MT")),
        ("DHMC", "File Name", "File Name", "Diagnosis", 5),
        ("PANDA", "image_id", "image_id", "isup_grade", ("0", "1", "2", "3", "4", "5")),
        ("TCGA-BRCA-label", "slide_id", "slide_id", "oncotree_code", 12),
    ],
)
def test_published_classification_tables(
    tcga: Path, name: str, slide: str, case: str, label: str, classes: tuple[str, ...] | int
) -> None:
    path = tcga / "classification" / f"{name}.csv"
    cohort = load_cohort(path, ClassificationTask(label=label), slide_column=slide, case_column=case)
    assert len(cohort.slides) == len(path.read_text().splitlines()) - 1
    counts = Counter(s.label for s in cohort.slides)
    assert set(counts) == set(cohort.classes)
    assert classes in (cohort.classes, len(cohort.classes))
    assert not any(s.slide_id.endswith(".svs") for s in cohort.slides)


def test_published_brca_lacks_patients(tcga: Path) -> None:
    message = failure(tcga / "classification" / "TCGA-BRCA-label.csv", ClassificationTask(label="oncotree_code"))
    assert message == "162 rows have no 'case_id' (the first is line 939); fill them in or leave them out"


# --- labels and patients as a table has them -----------------------------------------------------------------------


def test_labels_name_classes_and_leave_other_slides_out(
    write_table: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_table("slide_id,case_id,code", "a,p,IDC", "b,q,ILC", "c,r,MDLC", "d,s,IDC", "e,t,")
    task = ClassificationTask(label="code", labels={"IDC": "ductal", "ILC": "lobular"})
    with caplog.at_level("INFO", logger="wsi2d.data.cohort"):
        cohort = load_cohort(path, task)
    assert cohort.classes == ("ductal", "lobular")
    assert [(s.slide_id, s.label) for s in cohort.slides] == [("a", "ductal"), ("b", "lobular"), ("d", "ductal")]
    assert "2 slides with another code than ['IDC', 'ILC'] are left out" in caplog.text
    with pytest.raises(CohortError, match=r"no row's code is one of task\.labels, no$"):
        load_cohort(path, ClassificationTask(label="code", labels={"no": "x"}))


def test_a_pattern_finds_the_patient_that_the_table_does_not_name(write_table: Callable[..., Path]) -> None:
    path = write_table("slide_id,case_id,code", "P-01-a.svs,,x", "P-01-b,P-01,y", "P-02-a,,y")
    cohort = load_cohort(path, ClassificationTask(label="code"), case_pattern=r"P-\d\d")
    assert [s.case_id for s in cohort.slides] == ["P-01", "P-01", "P-02"]
    with pytest.raises(CohortError, match="2 rows have no 'case_id'"):
        load_cohort(path, ClassificationTask(label="code"), case_pattern="Q")


def test_a_zipped_table_is_read(write_table: Callable[..., Path], tmp_path: Path) -> None:
    path = write_table("slide_id,case_id,code", "a,p,x", "b,q,y")
    with zipfile.ZipFile(tmp_path / "table.csv.zip", "w") as packed:
        packed.write(path, "../elsewhere.csv")
    task = ClassificationTask(label="code")
    assert load_cohort(tmp_path / "table.csv.zip", task) == load_cohort(path, task)
