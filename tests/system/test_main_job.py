"""The main job against a real Orthanc: a study goes in, its report comes back over DICOMweb, exactly once."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage

from dicom_node import phantom
from dicom_node.demo import watch
from dicom_node.demo.orthanc_server import OrthancServer
from dicom_node.demo.site import PACS_AE
from dicom_node.demo.stack import Stack

LUA = Path(__file__).resolve().parents[2] / "orthanc_config" / "veilray.lua"
#: Two stable periods of the Orthanc and two polls of the feed: a loop would have turned by then.
LOOP_S = 6.0


@pytest.fixture(scope="module", params=["lua", "change-feed"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stack, OrthancServer]]:
    """The whole product beside an Orthanc that routes by script, or whose change feed is read."""
    folder = tmp_path_factory.mktemp(request.param)
    with Stack(folder, quiet_s=0.3) as stack:
        modalities = {"VEILRAY": (stack.ae_title, "127.0.0.1", stack.scp_port)}
        by_lua = request.param == "lua"
        config = {"UserMetadata": {"VeilRayRouted": 4321}}
        scripts = [LUA] if by_lua else []
        with OrthancServer(aet=PACS_AE, modalities=modalities, lua_scripts=scripts, config=config) as orthanc:
            stack.start(pacs_port=orthanc.dicom_port if by_lua else None, orthanc_url=None if by_lua else orthanc.url)
            yield stack, orthanc


def store(orthanc: OrthancServer, study: phantom.Study, number: int = 1) -> None:
    buffer = io.BytesIO()
    image = phantom.dataset(phantom.draw(number, "consolidation", (512, 640)), study=study, number=number)
    image.save_as(buffer, enforce_file_format=True)
    orthanc.upload(buffer.getvalue())


def over_dicomweb(orthanc: OrthancServer, study: phantom.Study) -> list[pydicom.Dataset]:
    """The study's reports: found by QIDO-RS, fetched by WADO-RS."""
    root = f"{orthanc.url}/dicom-web/studies/{study.study_uid}"
    found = httpx.get(f"{root}/instances", params={"Modality": "SR"}, timeout=30).raise_for_status()
    if found.status_code == httpx.codes.NO_CONTENT:
        return []
    reports = []
    for one in found.json():
        series, instance = one["0020000E"]["Value"][0], one["00080018"]["Value"][0]
        answer = httpx.get(f"{root}/series/{series}/instances/{instance}/metadata", timeout=30).raise_for_status()
        reports.append(pydicom.Dataset.from_json(answer.json()[0]))
    return reports


def wait_for_reports(stack: Stack, orthanc: OrthancServer, study: phantom.Study, count: int) -> list[pydicom.Dataset]:
    deadline = time.monotonic() + 90
    while len(found := over_dicomweb(orthanc, study)) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} reports came"
        time.sleep(0.2)
    ((_, seen),) = watch.follow(stack.settings.database_url, [study.study_uid], 30.0)
    assert all(one.state == "done" for one in (*seen.classified, *seen.delivered))
    return found


def test_a_stored_study_comes_back_as_one_report_and_does_not_loop(site: tuple[Stack, OrthancServer]) -> None:
    stack, orthanc = site
    study = phantom.Study.numbered(1, key="main-job")
    store(orthanc, study)
    reports = wait_for_reports(stack, orthanc, study, 2)
    assert sorted(one.SOPClassUID for one in reports) == sorted([Comprehensive3DSRStorage, EnhancedSRStorage])
    for report in reports:
        assert report.StudyInstanceUID == study.study_uid
        assert report.PatientID == study.patient_id
        assert report.AccessionNumber == study.accession_number
        assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
        assert "unverified" in report.SeriesDescription
    time.sleep(LOOP_S)
    assert len(over_dicomweb(orthanc, study)) == 2
    ((_, seen),) = watch.follow(stack.settings.database_url, [study.study_uid], 30.0)
    assert len(seen.classified) == 1


def test_a_late_image_makes_a_second_report_that_replaces_the_first(site: tuple[Stack, OrthancServer]) -> None:
    stack, orthanc = site
    study = phantom.Study.numbered(2, key="main-job")
    store(orthanc, study)
    first = {one.SOPInstanceUID for one in wait_for_reports(stack, orthanc, study, 2)}
    store(orthanc, study, number=2)
    reports = wait_for_reports(stack, orthanc, study, 4)
    later = [one for one in reports if one.SOPInstanceUID not in first]
    replaced = {
        item.ReferencedSOPInstanceUID
        for one in later
        for document in one.PredecessorDocumentsSequence
        for series in document.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert replaced == first
    assert {
        len(one.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence)
        for one in later
    } == {2}
