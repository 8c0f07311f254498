"""site.toml: every fault is one sentence that names the setting, and no value is echoed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.core import settings, training_settings
from dicom_node.core.errors import ConfigError
from dicom_node.core.section import Section

MINIMAL = '[site]\nname = "Demo"\nstate_dir = "state"\n[inference]\nengine = "plaintext"\n'


def load(tmp_path: Path, text: str) -> settings.Settings:
    path = tmp_path / "site.toml"
    path.write_text(text)
    return settings.load(path)


def test_a_minimal_file_loads_with_safe_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path, MINIMAL)
    assert loaded.scp.peers == ()
    assert loaded.web.host == loaded.scp.host == "127.0.0.1"
    assert loaded.database_url == "sqlite:///state/veilray.sqlite3"
    assert loaded.selection.age_rule == "enforce"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["site", "inference"]),
        (MINIMAL + "[scp]\nprot = 1\n", ["scp.prot", "not a known setting"]),
        (MINIMAL + "[scp]\nport = 70000\n", ["scp.port"]),
        (MINIMAL + '[scp]\nae_title = "A TITLE FAR TOO LONG"\n', ["scp.ae_title"]),
        (MINIMAL.replace("plaintext", "dealt-2pc"), ["inference.party", "inference.dealer", "inference.tls"]),
        (MINIMAL + '[selection]\nage_rule = "off"\n', ["population_override"]),
        (MINIMAL + '[[delivery.destinations]]\nname="pacs"\nkind="dicom"\n', ["ae_title, host, port"]),
        (MINIMAL + '[[delivery.destinations]]\nname="pacs"\nkind="orthanc"\n', ["[orthanc]"]),
        ("[site\n", ["not TOML"]),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for name in names:
        assert name in str(caught.value)


def test_a_value_is_never_echoed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL + '[database]\nurl = 5\nsecret = "hunter2"\n')
    assert "hunter2" not in str(caught.value)


def test_an_absent_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        settings.load(tmp_path / "none.toml")


def test_every_setting_is_described() -> None:
    sections = [
        value
        for value in (vars(settings) | vars(training_settings)).values()
        if isinstance(value, type) and issubclass(value, Section)
    ]
    undescribed = [
        f"{section.__name__}.{name}"
        for section in sections
        if section not in (Section, settings.Settings)
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert undescribed == []
