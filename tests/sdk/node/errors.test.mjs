// Each class of error that the SDK makes of an answer.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import OpenAI from 'openai';

import {
  CHAT,
  assertFails,
  chatLine,
  client,
  collect,
  jsonl,
  makeClient,
  makeCountedClient,
} from './helpers.mjs';

const MAX_FILE_BYTES = 20_000_000;
const BATCH = { input_file_id: 'file-x', endpoint: CHAT, completion_window: '24h' };

describe('nothing is done', () => {
  const calls = {
    'files.list': (by) => by.files.list(),
    'files.retrieve': (by) => by.files.retrieve('file-x'),
    'files.content': (by) => by.files.content('file-x'),
    'files.delete': (by) => by.files.delete('file-x'),
    'files.create': (by) => by.files.create({ file: new File(['{}'], 'a'), purpose: 'batch' }),
    'batches.list': (by) => by.batches.list(),
    'batches.retrieve': (by) => by.batches.retrieve('batch_x'),
    'batches.cancel': (by) => by.batches.cancel('batch_x'),
    'batches.create': (by) => by.batches.create(BATCH),
    'models.list': (by) => by.models.list(),
    'models.retrieve': (by) => by.models.retrieve('sim-small'),
  };
  const withoutKey = makeClient({ defaultHeaders: { Authorization: null } });
  const withBadKey = makeClient({ apiKey: 'sk-ns-not-a-key' });
  for (const [name, call] of Object.entries(calls)) {
    test(`by ${name} without a key`, async () => {
      const expected = { status: 401 };
      const error = await assertFails(() => call(withoutKey), OpenAI.AuthenticationError, expected);
      assert.match(error.message, /^401 You didn't provide an API key\./);
    });
    test(`by ${name} with a bad key`, async () => {
      const expected = { status: 401, code: 'invalid_api_key' };
      const error = await assertFails(() => call(withBadKey), OpenAI.AuthenticationError, expected);
      assert.match(error.message, /^401 Incorrect API key provided: /);
      assert(!error.message.includes('sk-ns-not-a-key'));
    });
  }
});

describe('a bad request is', () => {
  const cases = {
    'an unsupported endpoint': [
      { endpoint: '/v1/invalid/endpoint' },
      { code: 'invalid_value', param: 'endpoint' },
    ],
    'a bad completion window': [
      { completion_window: '59s' },
      { code: 'invalid_value', param: 'completion_window' },
    ],
    'metadata of the wrong type': [
      { metadata: { tags: ['a'] } },
      {
        code: 'invalid_type',
        param: 'metadata.tags',
        message: "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
      },
    ],
    'an unknown field': [{ colour: 'blue' }, { code: 'unknown_parameter', param: 'colour' }],
    'a missing field': [
      { input_file_id: undefined },
      {
        code: 'missing_required_parameter',
        param: 'input_file_id',
        message: "Missing required parameter: 'input_file_id'.",
      },
    ],
  };
  for (const [name, [replaced, expected]] of Object.entries(cases)) {
    test(name, () =>
      assertFails(() => client.batches.create({ ...BATCH, ...replaced }), OpenAI.BadRequestError, {
        status: 400,
        ...expected,
      }));
  }

  test('an empty batch file', () =>
    assertFails(
      () => client.files.create({ file: new File([], 'empty.jsonl'), purpose: 'batch' }),
      OpenAI.BadRequestError,
      {
        status: 400,
        message:
          'Invalid file format for Batch API. Must be .jsonl. ' +
          'The file is empty: write one request on each line.',
      },
    ));
});

describe('not found is', () => {
  for (const method of ['retrieve', 'content', 'delete']) {
    test(`an unknown file, by ${method}`, () =>
      assertFails(() => client.files[method]('file-unknown'), OpenAI.NotFoundError, {
        status: 404,
        param: 'id',
        message: 'No such File object: file-unknown',
      }));
  }
  for (const method of ['retrieve', 'cancel']) {
    test(`an unknown batch, by ${method}`, () =>
      assertFails(() => client.batches[method]('batch_unknown'), OpenAI.NotFoundError, {
        status: 404,
        message: "No batch found with id 'batch_unknown'.",
      }));
  }
});

describe('a file over the limit is refused', () => {
  const line = jsonl([chatLine('x'.repeat(1000))]);
  const content = line.repeat(Math.ceil(MAX_FILE_BYTES / line.length) + 1000);
  const filePath = path.join(os.tmpdir(), `${randomUUID()}.jsonl`);
  before(() => fs.writeFileSync(filePath, content));
  after(() => fs.rmSync(filePath));
  const sources = {
    'with its length told': () => new File([content], path.basename(filePath)),
    'as a stream of unknown length': () => fs.createReadStream(filePath),
  };
  for (const [name, source] of Object.entries(sources)) {
    test(name, async () => {
      const { counted, sent } = makeCountedClient();
      await assert.rejects(counted.files.create({ file: source(), purpose: 'batch' }), (error) => {
        assert(error instanceof OpenAI.APIError);
        assert.equal(error.status, 413, `the answer arrives, and not: ${error.stack}`);
        assert.equal(error.headers.get('x-should-retry'), 'false');
        return true;
      });
      assert.equal(sent.length, 1);
      const names = (await collect(client.files.list())).map((file) => file.filename);
      assert(!names.includes(path.basename(filePath)));
    });
  }
});
