"""What MLflow's own tests of a registry store ask for: our store and the stock one give the same, field by field."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from tests.plugin.registry_stories import (
    STAGES,
    STORIES,
    copy,
    create,
    look,
    model_tag,
    move,
    version,
    version_tag,
)
from tests.plugin.two_stores import Call, TwoStores, call
from tests.support.databases import DatabaseServer
from tests.support.registry_stores import Registry


@pytest.fixture(scope="session")
def _stock_stores() -> Iterator[dict[str, SqlAlchemyStore]]:
    stores: dict[str, SqlAlchemyStore] = {}
    yield stores
    for store in stores.values():
        store.engine.dispose()


@pytest.fixture
def stores(
    registry: Registry,
    _stock_stores: dict[str, SqlAlchemyStore],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> TwoStores:
    """Our store and the stock one, both empty, on databases of the same kind."""
    kind = sa.make_url(registry.url).get_backend_name()
    if kind not in _stock_stores:
        # A copy, since MLflow takes seconds to make its tables; that ours has some more is nothing to the stock store.
        registry.engine.dispose()
        if kind == "sqlite":
            copied = shutil.copy(str(registry.engine.url.database), tmp_path_factory.mktemp("stock"))
            url = f"sqlite:///{copied}"
        else:
            server: DatabaseServer = request.getfixturevalue(kind)
            url = server.create(template=registry.url)
        _stock_stores[kind] = SqlAlchemyStore(url)
    two = TwoStores(registry.store, _stock_stores[kind], monkeypatch)
    two.clear()
    return two


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize(
    "registry", ["sqlite", pytest.param("postgresql", marks=pytest.mark.exhaustive)], indirect=True
)
def test_our_store_and_the_stock_one_answer_alike(story: str, stores: TwoStores) -> None:
    stores.check(*STORIES[story])


MODELS = st.sampled_from(["m1", "m2", "m3"])
NUMBERS = st.integers(min_value=1, max_value=4)
ALIASES = st.sampled_from(["champion", "challenger"])
KEYS = st.sampled_from(["a", "b"])
VALUES = st.text(max_size=3)
ANY_CALL = st.one_of(
    st.builds(create, MODELS),
    st.builds(version, MODELS, VALUES),
    st.builds(version, MODELS),
    st.builds(move, MODELS, NUMBERS, st.sampled_from(STAGES), archive=st.booleans()),
    st.builds(move, MODELS, NUMBERS, st.sampled_from(STAGES), archive=st.booleans()),
    st.builds(copy, MODELS, NUMBERS, MODELS),
    st.builds(call, st.just("rename_registered_model"), MODELS, MODELS),
    st.builds(call, st.just("delete_registered_model"), MODELS),
    st.builds(call, st.just("update_model_version"), MODELS, NUMBERS, VALUES),
    st.builds(call, st.just("delete_model_version"), MODELS, NUMBERS),
    st.builds(call, st.just("set_registered_model_alias"), MODELS, ALIASES, NUMBERS),
    st.builds(call, st.just("delete_registered_model_alias"), MODELS, ALIASES),
    st.builds(call, st.just("set_registered_model_tag"), MODELS, st.builds(model_tag, KEYS, VALUES)),
    st.builds(call, st.just("set_model_version_tag"), MODELS, NUMBERS, st.builds(version_tag, KEYS, VALUES)),
    st.builds(call, st.just("delete_model_version_tag"), MODELS, NUMBERS, KEYS),
)


@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(ANY_CALL, min_size=10, max_size=30))
@pytest.mark.exhaustive
def test_our_store_and_the_stock_one_answer_alike_whatever_is_asked(stores: TwoStores, calls: list[Call]) -> None:
    stores.clear()
    stores.check(create("m1"), version("m1"), *calls, *look("m1", "m2"))
