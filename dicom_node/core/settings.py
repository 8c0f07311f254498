"""A site's settings: one TOML file, read once by each command, frozen, and refused when a key is unknown.

Every section is a pydantic model whose field descriptions are the documentation: the example file and the README's
tables are compared with them by a test. Secrets are named by file path and never stand in the file itself.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from .errors import ConfigError
from .section import Section
from .training_settings import TrainingSettings

AeTitle = Annotated[str, Field(pattern=r"^[\x21-\x5B\x5D-\x7E](?:[\x20-\x5B\x5D-\x7E]{0,14}[\x21-\x5B\x5D-\x7E])?$")]
Port = Annotated[int, Field(ge=0, le=65535)]
OnMissing = Literal["refuse", "accept"]
T = TypeVar("T", bound="Section")


class TlsSettings(Section):
    """Certificates of one endpoint (PEM files)."""

    certificate: Path = Field(description="this side's certificate chain")
    key: Path = Field(description="this side's private key, readable by the service's user alone")
    ca: Path = Field(description="the authorities whose certificates the other side may show")
    crl: Path | None = Field(
        default=None, description="their lists of revoked certificates; one that is missing or expired lets nobody in"
    )

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is named."""
        return tuple(path for path in (self.certificate, self.key, self.ca, self.crl) if path is not None)


class SiteSettings(Section):
    """Who this site is and where it keeps its state."""

    name: str = Field(description="the site's name in reports and audit", min_length=1, max_length=64)
    state_dir: Path = Field(description="folder of the instances, models and the embedded database")


class DatabaseSettings(Section):
    """Where the site's records are kept."""

    url: str | None = Field(
        default=None,
        description="SQLAlchemy URL, e.g. postgresql+psycopg:///veilray; SQLite in state_dir when absent",
    )


class PeerSettings(Section):
    """One application entity that may open associations."""

    ae_title: AeTitle = Field(description="its calling AE title")
    addresses: tuple[str, ...] = Field(description="IP addresses or networks it may call from", min_length=1)


class ScpSettings(Section):
    """The DICOM service that receives studies (PS3.4 Annex A and B)."""

    ae_title: AeTitle = Field(default="VEILRAY", description="our AE title; a call to another one is refused")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(default=11112, description="port to listen on; 0 takes a free one")
    maximum_pdu_size: int = Field(
        default=131072, ge=16384, le=1048576, description="largest P-DATA PDU accepted, bytes"
    )
    maximum_associations: int = Field(default=32, ge=1, le=512, description="associations at once")
    maximum_associations_per_address: int = Field(
        default=16, ge=1, le=512, description="associations at once per address"
    )
    maximum_instance_bytes: int = Field(default=512 * 1024 * 1024, ge=1024, description="largest object kept, bytes")
    network_timeout_s: float = Field(default=30.0, gt=0, description="silence after which an association ends, seconds")
    acse_timeout_s: float = Field(
        default=10.0, gt=0, description="time to finish TLS and association negotiation, seconds"
    )
    minimum_free_bytes: int = Field(
        default=256 * 1024 * 1024, ge=0, description="free disk below which studies are not taken"
    )
    tls: TlsSettings | None = Field(default=None, description="DICOM TLS (PS3.15 B.9, BCP 195); plain TCP when absent")
    peers: tuple[PeerSettings, ...] = Field(default=(), description="who may call; nobody when empty")


class AssemblerSettings(Section):
    """When a study counts as complete."""

    quiet_s: float = Field(
        default=10.0, ge=0, description="seconds without a new image and without an open association"
    )


class MissingTagRules(Section):
    """What to do when an image does not carry a tag that a rule reads."""

    body_part: OnMissing = Field(default="refuse", description="no body part in tags or descriptions")
    view: OnMissing = Field(default="refuse", description="no view position in tags or descriptions")
    age: OnMissing = Field(default="refuse", description="neither PatientAge nor PatientBirthDate")


class Population(Section):
    """Whom a model was made for; the model card states it."""

    min_age_years: float = Field(ge=0, le=120, description="youngest age, years")
    max_age_years: float = Field(ge=0, le=120, description="oldest age, years, the whole year included")
    views: tuple[Literal["PA", "AP"], ...] = Field(default=("PA", "AP"), description="view positions")


class SelectionSettings(Section):
    """Which images are classified; everything else is a recorded refusal."""

    modalities: tuple[Literal["CR", "DX"], ...] = Field(default=("CR", "DX"), description="Modality (0008,0060)")
    body_parts: tuple[str, ...] = Field(default=("CHEST", "THORAX"), description="BodyPartExamined (0018,0015)")
    views: tuple[Literal["PA", "AP"], ...] = Field(default=("PA", "AP"), description="ViewPosition (0018,5101)")
    age_rule: Literal["enforce", "off"] = Field(
        default="enforce", description="whether the model's intended ages are enforced; off needs population_override"
    )
    population_override: str = Field(
        default="", max_length=400, description="why this site leaves the model's intended population, and who decided"
    )
    missing: MissingTagRules = Field(default=MissingTagRules(), description="what a missing tag means")

    @model_validator(mode="after")
    def _override_in_writing(self) -> SelectionSettings:
        if self.age_rule == "off" and not self.population_override.strip():
            raise ValueError("age_rule = 'off' leaves the model's intended population: say why in population_override")
        return self


class OrthancSettings(Section):
    """An Orthanc whose change feed is a second way in, and whose REST API is a way out."""

    url: str = Field(description="base URL, e.g. http://127.0.0.1:8042")
    username: str | None = Field(default=None, description="REST user")
    password_file: Path | None = Field(default=None, description="file that holds the REST user's password")
    change_feed: bool = Field(default=False, description="take new studies from /changes")
    change_feed_from: Literal["now", "beginning"] = Field(
        default="now", description="where the very first look starts; 'beginning' classifies the archive's past, too"
    )
    poll_s: float = Field(default=1.0, gt=0, description="seconds between two looks at /changes")


class DestinationSettings(Section):
    """Where reports go."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="its name in jobs, logs and pages")
    kind: Literal["dicom", "orthanc", "stow"] = Field(description="C-STORE, Orthanc's REST API, or STOW-RS")
    ae_title: AeTitle | None = Field(default=None, description="called AE title (dicom)")
    host: str | None = Field(default=None, description="host (dicom)")
    port: Port | None = Field(default=None, description="port (dicom)")
    url: str | None = Field(default=None, description="base URL of the DICOMweb service (stow)")
    token_file: Path | None = Field(default=None, description="file that holds a bearer token (stow)")
    tls: TlsSettings | None = Field(default=None, description="DICOM TLS or a client certificate (dicom, stow)")

    @model_validator(mode="after")
    def _complete(self) -> DestinationSettings:
        needs = {"dicom": ("ae_title", "host", "port"), "orthanc": (), "stow": ("url",)}[self.kind]
        missing = [field for field in needs if getattr(self, field) is None]
        if missing:
            raise ValueError(f"a destination of kind '{self.kind}' needs {', '.join(missing)}")
        return self


class DeliverySettings(Section):
    """How reports are sent."""

    destinations: tuple[DestinationSettings, ...] = Field(default=(), description="every report goes to each of them")
    first_retry_s: float = Field(default=5.0, gt=0, description="pause after the first failure; doubles each time")
    longest_retry_s: float = Field(default=3600.0, gt=0, description="longest pause between two tries")
    give_up_after_s: float = Field(default=7 * 86400.0, gt=0, description="age at which a delivery is left to a person")


class EndpointSettings(Section):
    """A service of another organisation that this site dials."""

    host: str = Field(description="host name or address")
    port: Port = Field(description="port")
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of its certificate (DER), hexadecimal")


class InferenceSettings(Section):
    """How studies are classified."""

    engine: Literal["dealt-2pc", "crypten", "plaintext"] = Field(
        default="dealt-2pc",
        description="encrypted (dealt-2pc; crypten: slower, an independent check), or in the clear (plaintext)",
    )
    model: str = Field(default="", description="model version; the only or newest active one when empty")
    trusted_publishers: tuple[str, ...] = Field(
        default=(), description="Ed25519 public keys, hexadecimal, besides ours"
    )
    party: EndpointSettings | None = Field(default=None, description="the model owner's party 1")
    dealer: EndpointSettings | None = Field(default=None, description="the dealer of correlated randomness")
    tls: TlsSettings | None = Field(default=None, description="this site's certificate towards party and dealer")
    timeout_s: float = Field(
        default=30.0, gt=0, description="longest wait for any one message of the protocol, seconds"
    )
    prefetch: int = Field(default=4, ge=0, le=64, description="bundles fetched ahead")
    audit_one_in: int = Field(
        default=64, ge=0, description="one bundle in so many is opened to test the dealer; 0 for none"
    )
    threads: int = Field(default=1, ge=1, le=64, description="threads of the public part of the network")

    @model_validator(mode="after")
    def _complete(self) -> InferenceSettings:
        if self.audit_one_in == 1:
            raise ValueError("inference.audit_one_in = 1 would open every bundle: use at least 2, or 0 for none")
        if self.engine != "plaintext":
            missing = [field for field in ("party", "dealer", "tls") if getattr(self, field) is None]
            if missing:
                raise ValueError(f"engine '{self.engine}' needs inference.{', inference.'.join(missing)}")
        return self


class ReportSettings(Section):
    """What is written for each study."""

    text_companion: bool = Field(default=True, description="also write the answer as a report of sentences")
    series_number: int = Field(default=9900, ge=1, le=2**31 - 1, description="SeriesNumber of our reports")


class JobSettings(Section):
    """How work is held and repeated."""

    lease_s: float = Field(default=60.0, gt=0, description="time after which a dead worker's job is taken by another")
    poll_s: float = Field(default=0.1, gt=0, description="pause between two looks for work, seconds")
    attempts: int = Field(default=8, ge=1, description="tries before a failing classification is left to a person")


class WebSettings(Section):
    """The admin pages."""

    host: str = Field(default="127.0.0.1", description="address to listen on; keep loopback unless a proxy guards it")
    port: Port = Field(default=8080, description="port to listen on")


class LogSettings(Section):
    """What the services write to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level written")


class Settings(Section):
    """All of site.toml."""

    site: SiteSettings
    database: DatabaseSettings = DatabaseSettings()
    scp: ScpSettings = ScpSettings()
    assembler: AssemblerSettings = AssemblerSettings()
    selection: SelectionSettings = SelectionSettings()
    orthanc: OrthancSettings | None = None
    delivery: DeliverySettings = DeliverySettings()
    inference: InferenceSettings
    report: ReportSettings = ReportSettings()
    training: TrainingSettings = TrainingSettings()
    jobs: JobSettings = JobSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _orthanc_named(self) -> Settings:
        if self.orthanc is None and any(d.kind == "orthanc" for d in self.delivery.destinations):
            raise ValueError("a destination of kind 'orthanc' needs the section [orthanc]")
        return self

    @model_validator(mode="after")
    def _publisher_trusted(self) -> Settings:
        publisher = self.training.handover.publisher
        if publisher and publisher not in {key.lower() for key in self.inference.trusted_publishers}:
            raise ValueError("training.handover.publisher must be one of inference.trusted_publishers")
        return self

    @property
    def database_url(self) -> str:
        """The URL of the site's database."""
        return self.database.url or f"sqlite:///{self.site.state_dir / 'veilray.sqlite3'}"

    @property
    def agent_socket(self) -> Path:
        """Where the courier brings the frames of training runs."""
        chosen = self.training.federation.socket if self.training.federation else None
        return chosen or self.site.state_dir / "agent.sock"

    @property
    def training_key(self) -> Path:
        """The file that holds the secret behind all pseudonyms."""
        return self.training.key_file or self.site.state_dir / "training.key"


def explain(error: ValidationError) -> str:
    """Say in one line per fault what is wrong with a settings file, without repeating its values."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        what = "is not a known setting" if fault["type"] == "extra_forbidden" else fault["msg"]
        lines.append(f"{where}: {what}")
    return "; ".join(lines)


def read(path: Path, model: type[T]) -> T:
    """Read and check a settings file.

    Parameters
    ----------
    path : Path
        A TOML file; relative paths inside it are taken from the process's working folder.
    model : type
        What it must hold, e.g. `Settings`.

    Raises
    ------
    ConfigError
        The file is absent, is not TOML, or a setting is unknown, missing or out of range.
    """
    try:
        with path.open("rb") as stream:
            return model.model_validate(tomllib.load(stream))
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None


def load(path: Path) -> Settings:
    """Read and check a site's settings; see `read`."""
    return read(path, Settings)
