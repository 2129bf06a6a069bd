"""Optuna's own suite for storages, on PostgreSQL: the one that our studies lie in."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from carbs.storage import PatientStorage


@pytest.fixture(scope="module")
def opened(database: str) -> Iterator[PatientStorage]:
    storage = PatientStorage(database)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
class TestConformance(StorageTestCase):
    @pytest.fixture
    def storage(self, opened: PatientStorage) -> PatientStorage:
        """Empty: each test counts the studies of a database that it has for itself."""
        for study in opened.get_all_studies():
            opened.delete_study(study._study_id)
        return opened

    @pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
    def test_pickle_storage(self, storage: PatientStorage) -> None:
        super().test_pickle_storage(storage)
        gc.collect()  # the restored storage, which nobody has closed
