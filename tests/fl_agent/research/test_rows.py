"""A research site's folder in a federated run: its patients are rows like all others, each counted and paid once."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_node import pixels
from dicom_node.core.database import Database
from dicom_node.core.errors import ConfigError
from dicom_node.core.settings import Population, SelectionSettings, Settings
from dicom_node.core.training_settings import PrivacySettings
from dicom_node.training import consent
from dicom_node.training.consent import Change, Decision
from dicom_node.training.site_key import SiteKey
from dicom_node.training.subjects import Pseudonyms
from fl_agent.agent.agent import Agent
from fl_agent.agent.rows import SitePatients
from fl_agent.agent.runs import Runs
from fl_agent.agent.service import serve
from fl_agent.features import FeatureCache
from fl_agent.head import patient_means
from fl_agent.learning.propose import Budget, Features, default_descent, propose
from fl_agent.learning.site import Examples
from fl_agent.ledger.entries import State
from fl_agent.ledger.ledger import Ledger
from fl_agent.research.folder import read_list
from fl_agent.research.pictures import grey
from fl_agent.research.rows import FolderRows
from fl_agent.simulate import federation
from fl_agent.simulate.drawn import draw
from fl_agent.site_rows import Rows
from secure_infer.network import Trunk
from tests.fl_agent import federations
from tests.fl_agent.learning.hospitals import plan
from tests.fl_agent.research.test_research import PICTURE, a_site, as_nifti
from tests.fl_agent.test_site_rows import CHILDREN, Hospital
from tests.fl_agent.trunks import setup
from tests.scp_process import site

TAPS = ("stem",)
CHANNELS = Trunk(TAPS).channels
#: For tests alone: at such an epsilon there is next to no noise.
NOISELESS = 1e7


def change(folder: Path, alter: Callable[[str], str]) -> None:
    (folder / "patients.csv").write_text(alter((folder / "patients.csv").read_text()))


def add(folder: Path, column: str, of: Callable[[str], str]) -> None:
    """Add a column to the list, whose value follows from the line."""
    head, *lines = (folder / "patients.csv").read_text().split("\n")
    (folder / "patients.csv").write_text("\n".join([f"{head},{column}", *(f"{line},{of(line)}" for line in lines)]))


def of_children(folder: Path) -> Path:
    """A folder whose list tells ages: one patient is grown up, and two are called what others know them by."""
    a_site(folder, 6)
    add(folder, "age", lambda line: "40" if line.endswith("Patient 5") else "3")
    change(folder, lambda text: text.replace("Patient 3", "PHANTOM-1").replace("Patient 4", "PHANTOM-9"))
    return folder


def with_films(state: Path, films: Path) -> Settings:
    loaded = site(state)
    return loaded.model_copy(update={"training": loaded.training.model_copy(update={"films": films})})


def mean_feature(trunk: Trunk, images: list[np.ndarray]) -> np.ndarray:
    """The slow obvious way: of one patient, each image as it is and mirrored."""
    return np.mean([trunk.features(seen).mean((1, 2)) for one in images for seen in (one, one[:, ::-1])], axis=0)


def test_a_hospital_with_films_and_studies_takes_part_and_all_its_patients_are_summed_and_paid_for(
    memory: Path,
) -> None:
    films = of_children(memory / "films")
    assert sum(one.file.endswith(".nii.gz") for one in read_list(films)) == 6
    hospital = Hospital(memory)  # PHANTOM-1 and -2 agreed, and their images are fit
    with hospital.database.write() as connection:
        who = hospital.names.patient("PHANTOM-9", "another issuer")
        consent.record(connection, [Change(who, Decision.WITHDRAWN)], "test", 2.0)
    patients = SitePatients(with_films(memory / "state", films), hospital.database, clock=lambda: 3.0)
    assert patients.check() == 6

    privacy = PrivacySettings(epsilon=4 * NOISELESS, delta=1e-3)
    others = {f"site-{number}": draw(20 + number, CHANNELS, number) for number in (1, 2)}
    sites: dict[str, Examples] = {"site-0": draw(5, CHANNELS, 0), **others}
    for name in sites:
        (memory / name).mkdir()
        (memory / name / "site.sqlite3").write_bytes(federations.template())
    with federation.Federation(memory, sites, privacy) as made:
        stand_in, ledger = made.hospitals["site-0"].agent, Ledger(hospital.database, privacy)
        runs = Runs(hospital.database, ledger)
        agent = Agent(made._keys["site-0"], stand_in._rules, stand_in._rounds, runs, patients)
        made.hospitals["site-0"] = federation.Hospital(agent, hospital.database, ledger)
        features = Features(setup(*TAPS), ("plain", "mirrored"), CHANNELS)
        budget = Budget(NOISELESS, 1e-3, "distributed")
        agreed = propose(
            "1.0", made.members, features, budget, default_descent(1, 1), centre_noise=1e-3, squares=1.0,
            population=CHILDREN,
        )  # fmt: skip
        trained = made.run(agreed)
        assert made.records.events(agreed)[-1][1:] == ("summed", 3)

    trunk, listed = Trunk(TAPS), read_list(films)
    shown = [[pixels.from_dataset(hospital.images[number]).image] for number in (1, 2)]
    for patient in ("Patient 0", "Patient 1", "Patient 2"):
        shown.append([pixels.from_picture(grey(films / one.file)) for one in listed if one.patient == patient])
    drawn = [patient_means(one.features, one.patients) for one in others.values()]
    everybody = np.concatenate([[mean_feature(trunk, images) for images in shown], *drawn])
    assert len(everybody) == 2 + 3 + 21 + 22
    np.testing.assert_allclose(trained.centre, everybody.mean(0), atol=3e-4)
    assert {one.terms.patients for one in ledger.entries()} == {5}
    assert {name: state for name, (state, _) in federations.counted(ledger).items()} == {
        "mean feature": State.SPENT, "head": State.SPENT,
    }  # fmt: skip
    hospital.database.close()


def test_whoever_is_taken_out_of_the_folder_is_out_of_the_next_contribution_and_leaves_nothing(memory: Path) -> None:
    films = of_children(memory / "films")
    hospital = Hospital(memory)
    state = memory / "state"
    patients = SitePatients(with_films(state, films), hospital.database, clock=lambda: 3.0)
    wanted = plan().model_copy(update={"trunk": setup(*TAPS), "channels": CHANNELS, "population": CHILDREN})
    found = patients(wanted)
    assert found.count == 6  # PHANTOM-9 did not opt out here
    assert np.bincount(found.patients).tolist().count(2) == 4  # two films each; one image of each study
    kept = list((state / "film-features").rglob("*.npy"))
    assert len(kept) == 8

    gone = films / "normal" / "below"
    for number in (0, 1):
        (gone / f"0-{number}.nii.gz").unlink()
    with pytest.raises(ConfigError, match="line 2: there is no such picture"):
        patients(wanted)
    change(films, lambda text: "\n".join(line for line in text.split("\n") if "/0-" not in line))
    assert patients(wanted).count == 5
    assert len(list((state / "film-features").rglob("*.npy"))) == 6

    assert patients(wanted.model_copy(update={"views": ("plain",)})).features.shape == (8, 1, CHANNELS)
    assert len(list((state / "film-features").rglob("*.npy"))) == 6  # those of two views are gone
    assert SitePatients(site(state), hospital.database, clock=lambda: 3.0)(wanted).count == 2
    assert not list((state / "film-features").rglob("*.npy"))
    hospital.database.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "site.sqlite3").write_bytes(federations.template())
    opened = Database(f"sqlite:///{tmp_path / 'site.sqlite3'}")
    yield opened
    opened.close()


def rows_of(folder: Path, database: Database, **rules: object) -> FolderRows:
    return FolderRows(folder, database, Pseudonyms(SiteKey(bytes(32)), ""), SelectionSettings(**rules))


ADULTS = Population(min_age_years=18, max_age_years=99)


@pytest.mark.parametrize(
    ("column", "value", "population", "rules", "left_out"),
    [
        ("age", "", ADULTS, {}, {}),  # dataset.toml: 18 to 99
        ("age", "", Population(min_age_years=18, max_age_years=98), {}, {"age": 6}),
        ("age", "", Population(min_age_years=19, max_age_years=99), {}, {"age": 6}),
        ("age", "", CHILDREN, {}, {"age": 6}),
        ("age", "", CHILDREN, {"age_rule": "off", "population_override": "Agreed by Dr. A."}, {}),
        ("age", "5.9", CHILDREN, {}, {}),
        ("age", "6", CHILDREN, {}, {"age": 6}),
        ("age", "0.9", CHILDREN, {}, {"age": 6}),
        ("age", "6", None, {}, {}),
        ("view", "AP", ADULTS.model_copy(update={"views": ("PA",)}), {}, {"view": 6}),
        ("view", "PA", ADULTS.model_copy(update={"views": ("PA",)}), {}, {}),
        ("view", "", ADULTS.model_copy(update={"views": ("PA",)}), {}, {"view": 6}),
        ("view", "AP", ADULTS, {"views": ("PA",)}, {"view": 6}),
    ],
)
def test_a_film_is_taken_where_its_age_and_view_are_known_to_be_those_of_the_plan(
    tmp_path: Path,
    database: Database,
    column: str,
    value: str,
    population: Population | None,
    rules: dict[str, object],
    left_out: dict[str, int],
) -> None:
    folder = a_site(tmp_path / "films", 6)
    add(folder, column, lambda line: value)
    cache = FeatureCache(tmp_path / "cache", Trunk(TAPS), ("plain",))
    rows = rows_of(folder, database, **rules).read(population, cache, (), lambda done, of: None)
    assert isinstance(rows, Rows)
    assert rows.left_out == left_out
    assert len(set(rows.patients)) == 6 - sum(left_out.values())
    assert len(rows.labels) == len(rows.features) == 2 * len(set(rows.patients))


def _lost(folder: Path) -> None:
    shutil.rmtree(folder)


def _undescribed(folder: Path) -> None:
    (folder / "dataset.toml").unlink()


def _unlisted(folder: Path) -> None:
    Image.fromarray(PICTURE).save(folder / "viral" / "more.png")


def _broken(folder: Path) -> None:
    (folder / "bacterial" / "below" / "1-1.nii.gz").write_bytes(b"no picture")


def _of_two(folder: Path) -> None:
    for number in (3, 4):
        as_nifti(folder / f"normal/{number}.nii", PICTURE, "frontal")
    change(folder, lambda text: f"{text}\nnormal/3.nii,Patient A\nnormal/4.nii,Patient B\n")


def _all_for_the_test(folder: Path) -> None:
    add(folder, "split", lambda line: "test")


def _aged(folder: Path) -> None:
    add(folder, "age", lambda line: "five" if "/0-0" in line else "5")


def _turned(folder: Path) -> None:
    add(folder, "view", lambda line: "LL" if "/0-0" in line else "")


BAD = [
    (_lost, "dataset.toml"),
    (_undescribed, "dataset.toml"),
    (_unlisted, "leaves out 1 of the pictures"),
    (_broken, "line 5: a training image cannot be read"),
    (_of_two, "line 15: line 14 names the same picture for another patient"),
    (_all_for_the_test, "leaves nobody for training"),
    (_aged, "line 2: age must be in years"),
    (_turned, "line 2: view must be AP, PA or empty"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD)
def test_a_folder_that_is_not_as_it_must_be_is_told_at_the_start(
    tmp_path: Path, database: Database, spoil: Callable[[Path], None], sentence: str
) -> None:
    folder = a_site(tmp_path / "films", 6)
    spoil(folder)
    with pytest.raises(ConfigError, match=sentence) as error:
        rows_of(folder, database).check(lambda done, of: None)
    assert "Patient" not in str(error.value)


def test_the_agent_does_not_start_on_a_bad_folder(tmp_path: Path) -> None:
    folder = a_site(tmp_path / "films", 3)
    _broken(folder)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "veilray.sqlite3").write_bytes(federations.template())
    (tmp_path / "site.toml").write_text(
        f'[site]\nname = "Research"\nstate_dir = "{tmp_path / "state"}"\n[inference]\nengine = "plaintext"\n'
        f'[training]\nfilms = "{folder}"\n[training.federation]\nidentity_file = "{tmp_path / "identity.pem"}"\n'
        f'coordinator = "{"0" * 64}"\nroster = []\n'
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(ConfigError, match="line 5: a training image cannot be read"):
            serve(tmp_path / "site.toml")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not (tmp_path / "state" / "agent.sock").exists()
