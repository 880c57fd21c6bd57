"""`client.models`."""

import openai
import pytest

from helpers import assert_error

MODELS = ["sim-small", "sim-large", "org/model:tag"]


def test_the_configured_models_are_listed(client):
    page = client.models.list()
    assert page.object == "list"
    models = {model.id: model for model in page}
    assert set(MODELS) <= set(models)
    for model in models.values():
        assert (model.object, type(model.created)) == ("model", int)
        assert model.owned_by


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_retrieved(client, name):
    model = client.models.retrieve(name)
    assert (model.id, model.object) == (name, "model")
    assert model in client.models.list().data
    assert client.models.with_raw_response.retrieve(name).parse() == model


@pytest.mark.parametrize("name", ["gpt-unknown", "org/unknown", "a b?c#d%2F"])
def test_an_unknown_model_is_not_found(client, name):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(name)
    message = f"The model `{name}` does not exist or you do not have access to it."
    assert_error(
        caught.value, 404, code="model_not_found", param=caught.value.param, message=message
    )
    assert caught.value.param in (None, "model")


def test_models_are_not_deleted(client):
    with pytest.raises(openai.APIStatusError) as caught:
        client.models.delete("sim-small")
    message = "Not allowed to DELETE on /v1/models/sim-small."
    assert (caught.value.status_code, caught.value.body["message"]) == (405, message)
    assert client.models.retrieve("sim-small").id == "sim-small"
