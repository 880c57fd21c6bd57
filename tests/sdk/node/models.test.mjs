// `client.models`.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import OpenAI from 'openai';

import { client, collect } from './helpers.mjs';

const MODELS = ['sim-small', 'sim-large', 'org/model:tag'];

test('the configured models are listed', async () => {
  const models = await collect(client.models.list());
  const ids = models.map((model) => model.id);
  assert(MODELS.every((id) => ids.includes(id)), `${ids}`);
  for (const model of models) {
    assert.equal(model.object, 'model');
    assert(Number.isInteger(model.created));
    assert.equal(typeof model.owned_by, 'string');
  }
  assert.equal((await client.models.list()).object, 'list');
});

for (const id of MODELS) {
  test(`${id} is retrieved`, async () => {
    const model = await client.models.retrieve(id);
    assert.equal(model.id, id);
    assert((await client.models.list()).data.some((listed) => listed.id === id));
  });
}

for (const id of ['gpt-unknown', 'org/unknown', 'a b?c#d%2F']) {
  test(`${id} is not found`, async () => {
    await assert.rejects(client.models.retrieve(id), (error) => {
      assert(error instanceof OpenAI.NotFoundError);
      assert.deepEqual([error.status, error.code], [404, 'model_not_found']);
      const message = `The model \`${id}\` does not exist or you do not have access to it.`;
      assert.equal(error.error.message, message);
      return true;
    });
  });
}

test('models are not deleted', async () => {
  await assert.rejects(client.models.delete('sim-small'), (error) => {
    assert(error instanceof OpenAI.APIError);
    assert.equal(error.message, '405 Not allowed to DELETE on /v1/models/sim-small.');
    return true;
  });
});
