"""An archive that speaks DICOMweb: QIDO-RS, WADO-RS and STOW-RS (PS3.18).

dicomweb-client searches and stores. What is fetched is written as it arrives, byte by byte as the archive has it, which
that library would hold in memory and encode anew.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import pydicom
import requests
import urllib3.exceptions
from dicomweb_client import DICOMwebClient
from pydicom.datadict import tag_for_keyword
from requests.auth import AuthBase, HTTPBasicAuth

from oncofed.errors import TransferError
from oncofed.hospital.archive import (
    AccessRefusedError,
    ArchiveAwayError,
    Arriving,
    Begin,
    HoursOverError,
    Instance,
    Series,
    Study,
)
from oncofed.hospital.multipart import take_parts
from oncofed.hospital.settings import DicomWebSettings, read_secret

_CONNECT_SECONDS, _SILENCE_SECONDS = 10.0, 120.0
_CHUNK = 256 << 10
_PAGE = 5000
_PORTS = {"http": 80, "https": 443}
_UID = re.compile(r"[0-9.]{1,64}")
_BOUNDARY = re.compile(r'boundary="?([^";,]{1,70})"?')
# Any transfer syntax, that is the one in which the archive has it: PS3.18, section 8.7.3.5.2.
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PLAIN = 'multipart/related; type="application/dicom"'
_REFUSED = (401, 403)
_TEMPORARY = (408, 425, 429, 502, 503, 504)  # 500 may be of a single object, for good
_PERSON = ("PatientName", "PatientBirthDate", "PatientSex")
_Found = TypeVar("_Found")


class _Bearer(AuthBase):
    """Sends a token; requests would replace a header by what ``~/.netrc`` says."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """Trusts those alone that its settings name, and follows no request to another address."""

    def merge_environment_settings(self, url, proxies, stream, verify, cert):  # type: ignore[no-untyped-def]
        """Return how a request is sent."""
        # Else REQUESTS_CA_BUNDLE goes before dicomweb.ca.
        verify = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where an answer sends a request on to.

        Raises:
            TransferError: it is another address, to which patients' IDs would go.
        """
        target: str | None = super().get_redirect_target(resp)
        if target is not None and _origin(urljoin(resp.url, target)) != _origin(resp.url):
            resp.close()
            raise TransferError(
                "the archive sends requests on to another host, port or scheme, which are not followed. If that is the "
                "archive, too, name it in dicomweb.url"
            )
        return target


class DicomWebArchive:
    """One connection to a DICOMweb service.

    Args:
        settings: of ``pacs.yaml``.

    Raises:
        SpecError: its token or password cannot be used.
    """

    def __init__(self, settings: DicomWebSettings) -> None:
        for name in ("urllib3", "dicomweb_client", "requests"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log addresses, in which patients' IDs stand
        self._settings = settings
        self._session = _Session()
        # Images do not shrink much, and an archive would spend its time on it.
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.verify = str(settings.ca) if settings.ca else True
        if settings.certificate:
            key = settings.key or settings.certificate
            self._session.cert = (str(settings.certificate), str(key))
        if urlsplit(settings.url).hostname in {"localhost", "127.0.0.1", "::1"}:
            self._session.trust_env = False  # a proxy reaches no service of this machine
        self._secret = ""
        self._read_secret()
        self._client = DICOMwebClient(
            settings.url,
            self._session,
            permissive_uid=True,
            timeout=(_CONNECT_SECONDS, _SILENCE_SECONDS),
        )
        self._client.set_http_retry_params(retry=False)

    def close(self) -> None:
        """End the connection."""
        self._session.close()

    def studies(self, keys: Mapping[str, str]) -> list[Study]:
        """Return the studies that match."""
        fields = ["PatientID", "AccessionNumber", *_PERSON]
        found = self._all_pages(
            "StudyInstanceUID",
            lambda offset: self._client.search_for_studies(
                search_filters=dict(keys), fields=fields, limit=_PAGE, offset=offset
            ),
            is_there=True,
        )
        studies = []
        for values in found:
            person = tuple(_text(values, keyword) for keyword in _PERSON)
            studies.append(
                Study(
                    _text(values, "StudyInstanceUID"),
                    _text(values, "PatientID"),
                    _text(values, "AccessionNumber"),
                    person if all(person) else (),
                )
            )
        return studies

    def series(self, study: Study) -> list[Series]:
        """Return a study's series."""
        found = self._all_pages(
            "SeriesInstanceUID",
            lambda offset: self._client.search_for_series(
                study.uid,
                fields=["NumberOfSeriesRelatedInstances", "SeriesDescription"],
                limit=_PAGE,
                offset=offset,
            ),
        )
        series = []
        for values in found:
            count = _text(values, "NumberOfSeriesRelatedInstances")
            series.append(
                Series(
                    study,
                    _text(values, "SeriesInstanceUID"),
                    _text(values, "Modality"),
                    _text(values, "SeriesDescription"),
                    int(count) if count.isdecimal() else None,
                )
            )
        return series

    def instances(self, series: Series) -> list[Instance]:
        """Return a series' instances; none if it is gone."""
        found = self._all_pages(
            "SOPInstanceUID",
            lambda offset: self._client.search_for_instances(series.study.uid, series.uid, limit=_PAGE, offset=offset),
        )
        return [Instance(_text(values, "SOPInstanceUID"), _text(values, "SOPClassUID")) for values in found]

    def fetch(self, series: Series, wanted: Sequence[Instance] | None, begin: Begin) -> None:
        """Fetch instances of a series; None: all of them in one answer."""
        at = f"{self._settings.url}/studies/{series.study.uid}/series/{series.uid}"
        if wanted is None:
            self._asked(lambda: self._fetch(at, begin))
            return
        refused = [error for one in wanted if (error := self._refusal(f"{at}/instances/{one.uid}", begin))]
        if refused:
            raise refused[0]

    def store(self, file: Path) -> None:
        """Store a DICOM file.

        Raises:
            TransferError: the archive does not take it.
        """
        answer = self._asked(lambda: self._client.store_instances([pydicom.dcmread(file)]))
        failed = answer.get("FailedSOPSequence") if answer else None
        if failed or not answer:
            reason = failed[0].get("FailureReason") if failed else None
            raise TransferError(f"the archive did not store it{f' (0x{reason:04X})' if reason else ''}")

    def _refusal(self, url: str, begin: Begin) -> TransferError | None:
        """Fetch one object; return why the archive does not give it, which says nothing of the others."""
        try:
            self._asked(lambda: self._fetch(url, begin))
        except (AccessRefusedError, HoursOverError):
            raise
        except ArchiveAwayError as error:
            self._asked(lambda: self._client.search_for_studies(limit=1))  # away, or at a loss with this object alone?
            return TransferError(str(error))
        except TransferError as error:
            return error
        return None

    def _fetch(self, url: str, begin: Begin) -> None:
        timeout = (_CONNECT_SECONDS, _SILENCE_SECONDS)
        answer = self._session.get(url, headers={"Accept": _AS_STORED}, stream=True, timeout=timeout)
        if answer.status_code == requests.codes.not_acceptable:
            answer.close()
            answer = self._session.get(url, headers={"Accept": _PLAIN}, stream=True, timeout=timeout)
        with answer:
            answer.raise_for_status()
            if answer.status_code == requests.codes.no_content:
                return
            kind = answer.headers.get("Content-Type", "")
            boundary = _BOUNDARY.search(kind)
            start = lambda: begin("", "", "")  # noqa: E731
            chunks = answer.raw.stream(_CHUNK, decode_content=True)
            if kind.startswith("application/dicom") and "json" not in kind:
                _take_whole(chunks, start)
            elif kind.startswith("multipart/related") and boundary:
                take_parts(chunks, boundary[1].encode("latin-1"), start)
            else:
                raise TransferError("the archive answers with something else than DICOM files")

    def _all_pages(
        self, uid: str, page: Callable[[int], list[dict[str, Any]]], is_there: bool = False
    ) -> list[dict[str, Any]]:
        """Return the results of all pages, each once; an archive may ignore the offset.

        Args:
            uid: keyword of what tells results apart.
            page: asks for the results from a number on.
            is_there: what is searched in cannot have vanished.
        """
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        while True:
            results = self._asked(lambda offset=offset: page(offset))  # type: ignore[misc]
            if results is None and is_there and not offset:
                raise TransferError("the archive has no DICOMweb at this address (status 404). Expected another url")
            results = results or []
            if not all(isinstance(values, dict) for values in results):
                raise TransferError("the archive's answer is not what DICOMweb says. Is the url that of its DICOMweb?")
            new = {_text(values, uid): values for values in results}
            fresh = {name: values for name, values in new.items() if _UID.fullmatch(name) and name not in found}
            found |= fresh
            offset += len(results)
            # Some archives have a smaller page than was asked for: one that is not full may not be the last.
            if not fresh:
                return list(found.values())

    def _asked(self, ask: Callable[[], _Found], again: bool = True) -> _Found | None:
        """Ask the archive; None: there is no such thing."""
        try:
            with _plain_errors():
                return ask()
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
        if status in {requests.codes.not_found, requests.codes.gone}:
            return None
        if status in _REFUSED and again and self._read_secret():
            return self._asked(ask, again=False)
        if status in _REFUSED:
            secret = self._settings.token_file or self._settings.password_file
            what = f"what {secret} holds" if secret else "this machine without a token"
            advice = f"Put a new one into {secret}" if secret else "Name a token_file, password_file or certificate"
            raise AccessRefusedError(f"the archive does not accept {what} (status {status}). {advice}")
        if status in _TEMPORARY:
            raise ArchiveAwayError(f"the archive answered with status {status}")
        raise TransferError(f"the archive refuses a request with status {status}. Is the url that of its DICOMweb?")

    def _read_secret(self) -> bool:
        """Read token or password; return whether it is another one."""
        file = self._settings.token_file or self._settings.password_file
        if file is None:
            return False
        secret = read_secret(file)
        changed, self._secret = secret != self._secret, secret
        if self._settings.token_file:
            self._session.auth = _Bearer(secret)
        else:
            user, _, password = secret.partition(":")
            self._session.auth = HTTPBasicAuth(user, password)
        return changed


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Replace errors whose text may hold an address, in which patients' IDs stand."""
    try:
        yield
    except requests.HTTPError:
        raise
    except requests.exceptions.SSLError:
        raise TransferError(
            "the archive's certificate is not trusted, or it does not accept this machine's. Name those that sign it "
            "with dicomweb.ca, and this machine's with certificate and key"
        ) from None
    except ValueError:  # such as JSON that is none
        raise TransferError(
            "the archive's answer is not what DICOMweb says. Is the url that of its DICOMweb?"
        ) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        timed_out = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
        why = "nothing came in time" if timed_out else "the connection failed or broke off"
        raise ArchiveAwayError(f"the archive does not answer ({why})") from None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _take_whole(chunks: Iterator[bytes], begin: Callable[[], Arriving]) -> None:
    """Write an answer that is one object, which some archives send."""
    arriving = begin()
    try:
        for chunk in chunks:
            arriving.write(chunk)
        arriving.keep()
    finally:
        arriving.discard()


def _text(values: Mapping[str, Any], keyword: str) -> str:
    """Return an attribute's first value (DICOM JSON, PS3.18, annex F); empty: none."""
    found = values.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value") or [""]
    value = found[0]
    if isinstance(value, dict):  # a person's name
        value = value.get("Alphabetic", "")
    return "" if value is None else str(value).strip()
