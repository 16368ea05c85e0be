"""Registered models: versions, aliases, and where their packages lie."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from rnnlm import faults
from rnnlm.decoding.generator import Generator
from rnnlm.errors import RnnlmError, UnreachableError, UsageError, without_secrets
from rnnlm.integrations.mlflow_model import ARTIFACT, global_address, log_model
from rnnlm.integrations.mlflow_tracking import Tracking
from rnnlm.package import load_package, package_digest
from rnnlm.storage import cache_folder

CHAMPION = "champion"
DIGEST_TAG = "rnnlm.digest"
BEFORE_TAG = "rnnlm.champion_before"
"""On a version: which one was champion before it; an empty value: none."""
_URI = re.compile(r"^models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))$")


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    version: str
    digest: str
    """SHA-256 of its package."""

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Resolved:
    """A model that can be loaded: a local package and its identity."""

    folder: Path
    name: str
    """Registered name, or the folder's."""
    version: str
    """Empty for a folder."""
    digest: str


class Registry:
    """The registered models of one MLflow."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._client = tracking.client

    def register(
        self,
        package: Path,
        name: str,
        *,
        run_id: str,
        tags: Mapping[str, str] | None = None,
        description: str = "",
    ) -> Version:
        """Log a package as a model of a run, and make it a new version, once for a run and a package.

        A version that is there already is described anew: what was decided about it may have changed.

        Args:
            package: folder of the model package.
            name: registered name, made where it is new.
            run_id: the run that made it.
            tags: of the version.
            description: of the version, for people.
        """
        digest = package_digest(package)
        version = self.made_by(name, run_id, digest)
        if version is None:
            with self._reaching():
                uri = log_model(package, run_id=run_id, tracking_uri=self._tracking.uri)
                if self._find(name) is None:
                    self._client.create_registered_model(name)
                all_tags = {**(tags or {}), DIGEST_TAG: digest}
                faults.point("version.create")
                made = self._client.create_model_version(
                    name, uri, run_id, tags=all_tags, model_id=uri.rpartition("/")[2], description=description
                )
                faults.point("version.created")
            version = _version(made)
        else:
            self._describe(version, tags or {}, description)
        return version

    def made_by(self, name: str, run_id: str, digest: str) -> Version | None:
        """The version that a run made of the package with this digest; None where it has not."""
        if self._find(name) is None:
            return None
        with self._reaching():
            found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        same = [version for version in map(_version, found) if version.digest == digest]
        return min(same, key=lambda version: int(version.version), default=None)

    def _describe(self, version: Version, tags: Mapping[str, str], description: str) -> None:
        """Bring up to date what a version says of itself."""
        with self._reaching():
            found = self._client.get_model_version(version.name, version.version)
            for key, value in tags.items():
                if found.tags.get(key) != value:
                    self._client.set_model_version_tag(version.name, version.version, key, value)
            if description and found.description != description:
                self._client.update_model_version(version.name, version.version, description)

    def champion(self, name: str) -> Version | None:
        """The version that carries `champion`; None where there is no such model, or no champion."""
        return self._holder(name, CHAMPION)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Move an alias to a version. A new champion remembers the one before it, for `rollback`.

        Raises:
            UsageError: no such model or version.
        """
        self.version(name, version)
        holder = self._holder(name, alias)
        if holder is not None and holder.version == version:
            return
        with self._reaching():
            if alias == CHAMPION:
                before = "" if holder is None else holder.version
                self._client.set_model_version_tag(name, version, BEFORE_TAG, before)
            faults.point("alias.move")
            self._client.set_registered_model_alias(name, alias, version)
            faults.point("alias.moved")

    def rollback(self, name: str) -> Version:
        """Make the champion before the present one champion again; calling it again goes back further.

        Raises:
            UsageError: no such model, or nothing to go back to.
        """
        champion = self.champion(name)
        if champion is None:
            raise self._unknown(name, f"@{CHAMPION}")
        with self._reaching():
            before = self._client.get_model_version(name, champion.version).tags.get(BEFORE_TAG)
        if not before:
            raise UsageError(f"{champion.uri}: was the first champion, there is none to go back to")
        version = self.version(name, before)
        with self._reaching():
            self._client.set_registered_model_alias(name, CHAMPION, before)
        return version

    def version(self, name: str, version: str) -> Version:
        """A version by its number.

        Raises:
            UsageError: no such model or version; the message lists what exists.
        """
        if self._find(name) is None or not version.isdecimal():
            raise self._unknown(name, f"/{version}")
        with self._reaching():
            try:
                return _version(self._client.get_model_version(name, version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        raise self._unknown(name, f"/{version}")

    def find(self, uri: str) -> Version:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now.

        Raises:
            UsageError: not such a URI, or no such model; the message lists what exists.
        """
        match = _URI.match(uri)
        if match is None:
            raise UsageError(f"{uri}: should be models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
        name, alias, version = match["name"], match["alias"], match["version"]
        if version is not None:
            return self.version(name, version)
        holder = self._holder(name, alias)
        if holder is None:
            raise self._unknown(name, f"@{alias}")
        return holder

    def aliased_runs(self) -> set[str]:
        """The runs of all versions, of whatever model, that have an alias."""
        found: set[str] = set()
        token = None
        while True:
            with self._reaching():
                page = self._client.search_registered_models(max_results=100, page_token=token)
                for model in page:
                    for version in set(model.aliases.values()):
                        found.add(str(self._client.get_model_version(model.name, version).run_id))
            token = page.token
            if not token:
                return found

    def folder(self, version: Version) -> Path:
        """A local copy of a version's package, kept in this node's cache under its digest.

        Raises:
            RnnlmError: the model has no package, or another one than it was registered with.
        """
        kept = cache_folder() / "models" / version.digest
        if version.digest and kept.is_dir():
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=kept.parent))
        try:
            fetched = self._download(version, scratch)
            digest = package_digest(fetched)
            if version.digest not in ("", digest):
                raise RnnlmError(f"{version.uri}: its package has changed since it was registered")
            try:
                return fetched.rename(kept.with_name(digest))
            except OSError:  # another process was faster
                return kept.with_name(digest)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def load(self, version: Version) -> Generator:
        """The generator of a version, run by the installed rnnlm."""
        return load_package(self.folder(version))

    def _download(self, version: Version, scratch: Path) -> Path:
        with self._reaching():
            location = self._client.get_model_version_download_uri(version.name, version.version)
            try:
                return Path(
                    download_artifacts(
                        artifact_uri=f"{location}/artifacts/{ARTIFACT}",
                        dst_path=str(scratch),
                        tracking_uri=self._tracking.uri,
                        registry_uri=self._tracking.uri,
                    )
                )
            except (OSError, MlflowException) as error:
                raise RnnlmError(f"{version.uri}: its model package cannot be fetched ({error})") from error

    def _find(self, name: str) -> dict[str, str] | None:
        """Aliases of a registered model, alias to version; None where there is no such model."""
        with self._reaching():
            try:
                aliases = self._client.get_registered_model(name).aliases
                return {str(alias): str(version) for alias, version in aliases.items()}
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return None

    def _holder(self, name: str, alias: str) -> Version | None:
        version = (self._find(name) or {}).get(alias)
        return None if version is None else self.version(name, version)

    def _unknown(self, name: str, what: str) -> UsageError:
        """An error that says what there is instead."""
        aliases = self._find(name)
        with self._reaching():
            if aliases is None:
                names = sorted(model.name for model in self._client.search_registered_models(max_results=50))
                known = f"there are {', '.join(names)}" if names else "none is registered yet"
                where = without_secrets(self._tracking.uri)
                return UsageError(f"models:/{name}{what}: no registered model {name!r} at {where}; {known}")
            latest = self._client.search_model_versions(f"name = '{name}'", max_results=20)
        versions = ", ".join(sorted((str(version.version) for version in latest), key=int)) or "none"
        shown = ", ".join(f"@{alias} ({version})" for alias, version in sorted(aliases.items())) or "none"
        return UsageError(f"models:/{name}{what}: does not exist; versions: {versions}; aliases: {shown}")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            with global_address(self._tracking.uri):
                yield
        except MlflowException as error:
            reason = str(error).strip().splitlines()[0]
            message = f"MLflow at {without_secrets(self._tracking.uri)}: {reason}"
            kind = UnreachableError if error.error_code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"} else RnnlmError
            raise kind(message) from error


def resolve(uri: str, tracking: Tracking | None = None) -> Resolved:
    """A model by `models:/NAME@ALIAS`, `models:/NAME/VERSION` or the folder of a package, ready to load.

    Args:
        uri: what the user named.
        tracking: where registered models are; not needed for a folder.

    Raises:
        UsageError: no such model, alias, version or package; the message lists what exists.
    """
    if not uri.startswith("models:"):
        folder = Path(uri)
        if not folder.is_dir():
            raise UsageError(f"{uri}: no such folder, and not a models:/ URI")
        return Resolved(folder, folder.absolute().name, "", package_digest(folder))
    if tracking is None:
        raise UsageError(f"{uri}: a registered model needs a tracking server (--tracking-uri)")
    registry = Registry(tracking)
    version = registry.find(uri)
    folder = registry.folder(version)
    return Resolved(folder, version.name, version.version, package_digest(folder))


def _version(found: ModelVersion) -> Version:
    return Version(str(found.name), str(found.version), str(found.tags.get(DIGEST_TAG, "")))
